//! Effects on other transactions: locks, waits, isolation levels, failures.

use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;

use signal_feed::db::Connection;
use signal_feed::db::doctor::capture_fault;
use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::database::Database;

use super::{SIGNAL, assert_nothing_left, assert_whole, count, log, migrated};

#[test]
fn set_constraints_prepared_transactions_and_strict_isolation_keep_the_log_whole() {
    let cluster = PrivatePostgres::start(&[("max_prepared_transactions", "5")]).unwrap();
    let database = Database::empty_in(&cluster);
    database.migrate();
    let mut client = database.connect();
    client.batch_execute(&format!("begin; set constraints all immediate; {SIGNAL}; {SIGNAL}; commit")).unwrap();
    client.batch_execute(&format!("begin; {SIGNAL}; set constraints all immediate; {SIGNAL}; commit")).unwrap();
    client
        .batch_execute(&format!(
            "begin; {SIGNAL}; set constraints all immediate; set constraints all immediate; {SIGNAL}; commit"
        ))
        .unwrap();
    assert_eq!(log(&mut client).len(), 6);
    let refused = client.batch_execute(&format!("begin; {SIGNAL}; prepare transaction 'p'")).unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("PREPARE"), "{refused:?}");
    client.batch_execute("rollback").unwrap();
    // A serialisation failure at commit is possible, a gap or a duplicate never.
    for level in ["repeatable read", "serializable"] {
        let mut strict = database.connect();
        strict.batch_execute(&format!("begin isolation level {level}; {SIGNAL}")).unwrap();
        client.batch_execute(SIGNAL).unwrap();
        let failed = strict.batch_execute("commit").unwrap_err();
        assert_eq!(failed.code().unwrap().code(), "40001");
        strict.batch_execute(&format!("begin isolation level {level}; {SIGNAL}; commit")).unwrap();
    }
    assert_eq!(log(&mut client).len(), 10);
    assert_whole(&mut client);
    assert_nothing_left(&mut client);
}

#[test]
fn the_feeds_lock_is_taken_after_every_deferred_constraint_of_the_transactions_statements() {
    let (_database, mut client) = migrated();
    // A deferred trigger of the screener's own says whether the lock was already held when it ran.
    client
        .batch_execute(
            "create table public.seen (held boolean);
            create function public.look() returns trigger language plpgsql as $$ begin
                insert into public.seen select exists (select from pg_locks
                    where relation = 'signal_feed_private.signal_feed_lock'::regclass and pid = pg_backend_pid());
                return null; end $$;
            create constraint trigger zzz after insert on stock_market.signal deferrable initially deferred
                for each row execute function public.look()",
        )
        .unwrap();
    client.batch_execute(&format!("begin; {SIGNAL}; {SIGNAL}; commit")).unwrap();
    client
        .batch_execute(&format!(
            "begin; set constraints all immediate; {SIGNAL}; set constraints all deferred; {SIGNAL}; commit"
        ))
        .unwrap();
    assert_eq!(count(&mut client, "select count(*) from public.seen where held"), 0);
    assert_eq!(count(&mut client, "select count(*) from public.seen"), 4);
}

#[test]
fn an_open_transaction_that_wrote_a_signal_delays_nobody() {
    let database = Database::migrated();
    let mut open = database.connect();
    open.batch_execute(&format!("begin; {SIGNAL}; set constraints all immediate; {SIGNAL}")).unwrap();
    let mut client = database.connect();
    // A session that waited for a lock of the open transaction would fail.
    client.batch_execute("set lock_timeout = '5s'").unwrap();
    for _ in 0..50 {
        client.batch_execute(SIGNAL).unwrap();
    }
    open.batch_execute("commit").unwrap();
    assert_eq!(log(&mut client).len(), 52);
    assert_whole(&mut client);
}

#[test]
fn opposite_orders_deferred_foreign_keys_and_ddl_fail_no_more_than_without_the_feed() {
    let (database, mut client) = migrated();
    client
        .batch_execute(&format!(
            "begin; {SIGNAL}; alter table stock_market.signal alter column strategy set default 'x'; {SIGNAL}; commit;
            begin; {SIGNAL}; truncate stock_market.signal; commit"
        ))
        .unwrap();
    client
        .batch_execute(
            "create table public.parent (id int primary key); insert into public.parent values (1), (2);
            alter table stock_market.signal add column parent int references public.parent deferrable initially deferred",
        )
        .unwrap();
    let insert = |parent: i32| {
        format!("insert into stock_market.signal (symbol, action, side, parent) values ('P', 'entry', 'BUY', {parent})")
    };
    let failures = AtomicI64::new(0);
    thread::scope(|scope| {
        for worker in 0..4 {
            let (database, failures) = (&database, &failures);
            scope.spawn(move || {
                let mut client = database.connect();
                for _ in 0..50 {
                    let (a, b) = if worker % 2 == 0 { (1, 2) } else { (2, 1) };
                    let sql = format!("begin; {}; {}; commit", insert(a), insert(b));
                    if client.batch_execute(&sql).is_err() {
                        failures.fetch_add(1, Ordering::Relaxed);
                        let _ = client.batch_execute("rollback");
                    }
                }
            });
        }
    });
    assert_eq!(failures.load(Ordering::Relaxed), 0);
    assert_eq!(log(&mut client).len(), 403);
    assert_whole(&mut client);
}

#[test]
fn a_missing_counter_row_refuses_the_write_and_migrate_puts_it_back() {
    let (database, mut client) = migrated();
    client.batch_execute(SIGNAL).unwrap();
    client.batch_execute("delete from stock_market.signal_feed_counter").unwrap();
    let refused = client.batch_execute(SIGNAL).unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("counter"), "{refused:?}");
    let mut connection = Connection::open(&database.url.parse().unwrap(), "test").unwrap();
    assert!(capture_fault(&mut connection).unwrap().unwrap().contains("counter"));
    database.migrate();
    client.batch_execute(SIGNAL).unwrap();
    assert_whole(&mut client);
}

#[test]
fn a_transaction_whose_snapshot_is_older_than_the_feed_is_told_to_retry() {
    for level in ["repeatable read", "serializable"] {
        let database = Database::empty();
        let mut client = database.connect();
        client.batch_execute("create schema stock_market; create table stock_market.signal (id int)").unwrap();
        client.batch_execute(&format!("begin isolation level {level}; select count(*) from pg_class")).unwrap();
        database.migrate();
        client.batch_execute("insert into stock_market.signal values (1)").unwrap();
        let failed = client.batch_execute("commit").unwrap_err();
        assert_eq!(failed.code().unwrap().code(), "40001", "{failed:?}");
        client.batch_execute("insert into stock_market.signal values (1)").unwrap();
        assert_eq!(count(&mut client, "select max(feed_seq) from stock_market.signal_feed_event"), 1);
    }
}
