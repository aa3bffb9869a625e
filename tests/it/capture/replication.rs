//! Logical replication, for real: `signal` arrives from another database and is numbered here.

use postgres::Client;
use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::database::{Database, insert_signals};
use crate::support::program::signal_feed;
use crate::support::wait::until;

use super::{assert_nothing_left, assert_whole, count, log};

fn logical() -> PrivatePostgres {
    PrivatePostgres::start(&[("wal_level", "logical"), ("max_wal_senders", "4")]).unwrap()
}

/// How the subscriber reaches the publisher's database.
fn connection_to(publisher: &PrivatePostgres, database: &Database) -> String {
    format!("host={} port=5432 user=postgres dbname={}", publisher.dir().display(), database.name)
}

fn wait_events(client: &mut Client, events: i64) {
    until("the rows have arrived", || {
        (count(client, "select count(*) from stock_market.signal_feed_event") == events).then_some(())
    });
}

#[test]
fn rows_that_a_subscription_applies_are_captured_in_commit_order() {
    let (publisher, subscriber) = (logical(), logical());
    let source = Database::empty_in(&publisher);
    let table = "create schema stock_market; create table stock_market.signal
        (id int primary key, symbol text, updated_at timestamptz)";
    source.sql(&format!("{table}; insert into stock_market.signal values (1, 'before'), (2, 'before')"));
    source.sql("create publication signals for table stock_market.signal");
    let target = Database::empty_in(&subscriber);
    target.sql(table);
    target.migrate();
    let mut client = target.connect();
    let to = connection_to(&publisher, &source);
    client.batch_execute(&format!("create subscription s connection '{to}' publication signals")).unwrap();
    // Existing rows are copied in one transaction.
    wait_events(&mut client, 2);
    source.sql(
        "begin; insert into stock_market.signal values (3, 'a'); update stock_market.signal set symbol = 'b' where id = 3;
        savepoint s; insert into stock_market.signal values (4, 'gone'); rollback to s; commit",
    );
    source.sql(
        "update stock_market.signal set updated_at = now() where id = 3; delete from stock_market.signal where id = 1",
    );
    source.sql("begin; insert into stock_market.signal values (5, 'gone'); rollback");
    source.sql("insert into stock_market.signal select i, 'many' from generate_series(10, 59) as i");
    wait_events(&mut client, 54);
    assert_eq!(log(&mut client)[2..5], ["3 INSERT a", "4 UPDATE b", "5 INSERT many"]);
    // A local writer beside it.
    client.batch_execute("insert into stock_market.signal values (100, 'local')").unwrap();
    source.sql("insert into stock_market.signal values (101, 'last')");
    wait_events(&mut client, 56);
    assert_eq!(log(&mut client)[54..], ["55 INSERT local", "56 INSERT last"]);
    assert_whole(&mut client);
    assert_nothing_left(&mut client);
    client.batch_execute("drop subscription s").unwrap();
}

#[test]
fn a_subscription_with_two_phase_is_named_by_migrate_and_doctor() {
    let (publisher, subscriber) = (logical(), logical());
    let source = Database::migrated_in(&publisher);
    if source.number("select current_setting('server_version_num')::bigint") < 150_000 {
        return;
    }
    source.sql("create publication signals for table stock_market.signal");
    let target = Database::migrated_in(&subscriber);
    let mut client = target.connect();
    let to = connection_to(&publisher, &source);
    client
        .batch_execute(&format!(
            "create subscription s connection '{to}' publication signals with (two_phase = true, copy_data = false)"
        ))
        .unwrap();
    assert!(target.migrate().contains("the subscription s has two_phase"));
    let doctor = signal_feed(&target.url, &["doctor"]);
    assert!(doctor.code == 1 && doctor.stdout.contains("the subscription s has two_phase"), "{}", doctor.stdout);
    client.batch_execute("drop subscription s").unwrap();
}

#[test]
fn a_publication_for_all_tables_lets_commits_succeed_and_carries_the_log_to_where_nobody_numbers() {
    let (publisher, subscriber) = (logical(), logical());
    let source = Database::migrated_in(&publisher);
    source.sql("create publication everything for all tables");
    // The whole installation, without its triggers: a plain copy of the tables that are published.
    let target = Database::migrated_in(&subscriber);
    target.sql(
        "drop trigger \"!signal_feed_capture\" on stock_market.signal;
        truncate stock_market.signal_feed_migration, stock_market.signal_feed_identity, stock_market.signal_feed_counter,
            stock_market.signal_feed_pruned, stock_market.signal_feed_cluster, stock_market.signal_feed_choice,
            signal_feed_private.signal_feed_session_secret",
    );
    let mut client = target.connect();
    let to = connection_to(&publisher, &source);
    client.batch_execute(&format!("create subscription s connection '{to}' publication everything")).unwrap();
    source.insert(3);
    source.sql("update stock_market.signal set price = 2 where id = 1; delete from stock_market.signal where id = 2");
    source.mint("bot");
    wait_events(&mut client, 4);
    let told = "select string_agg(feed_seq || ' ' || op, ',' order by feed_seq) from stock_market.signal_feed_event";
    let told = |database: &Database| -> String { database.connect().query_one(told, &[]).unwrap().get(0) };
    assert_eq!(told(&target), told(&source));
    let counted = "select coalesce(max(value), 0) from stock_market.signal_feed_counter";
    until("the counter has arrived", || (target.number(counted) == source.head()).then_some(()));
    assert_eq!(target.number("select count(*) from stock_market.signal_feed_api_key"), 1);
    // A migrate there would number events that already have numbers.
    let refused = signal_feed(&target.url, &["migrate"]).failed(1);
    assert!(refused.contains("the subscription s writes this database's log itself"), "{refused}");
    // Commits of many rows succeed, too.
    source.sql(&insert_signals(2000));
    wait_events(&mut client, 2004);
    client.batch_execute("drop subscription s").unwrap();
}
