//! `signal-feed migrate`: installing, repairing, refusing, and moving over from the sequence era.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::database::Database;
use crate::support::program::signal_feed;
use crate::support::wait::until;

/// The log of the sequence era, as the contract describes it.
pub const SEQUENCE_ERA: &str = "
    create schema stock_market;
    create table stock_market.signal (
        id bigserial primary key, symbol text not null, action text not null default 'entry',
        side text not null default 'BUY', price numeric,
        created_at timestamptz not null default now(), updated_at timestamptz not null default now());
    create table stock_market.signal_feed_event (
        feed_seq bigserial primary key, event_time timestamptz not null default now(),
        op text not null, signal jsonb);
    create function stock_market.signal_feed_append() returns trigger language plpgsql as $$
    declare n bigint;
    begin
        insert into stock_market.signal_feed_event (op, signal) values (tg_op, to_jsonb(new)) returning feed_seq into n;
        perform pg_notify('signal_feed', n::text);
        return null;
    end $$;
    create trigger signal_feed_append after insert or update on stock_market.signal
        for each row execute function stock_market.signal_feed_append();";

fn count(client: &mut Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).unwrap().get(0)
}

/// Ends with the test's database, which is dropped before it.
struct Role {
    url: String,
    name: String,
}

impl Role {
    fn new(database: &Database, attributes: &str) -> Self {
        let name = format!("{}_role", database.name);
        database.connect().batch_execute(&format!("create role {name} login {attributes}")).unwrap();
        Self { url: database.url.replace(&database.name, "postgres"), name }
    }
}

impl Drop for Role {
    fn drop(&mut self) {
        if let Ok(mut client) = Client::connect(&self.url, NoTls) {
            let _ = client.batch_execute(&format!("drop owned by {0}; drop role {0}", self.name));
        }
    }
}

#[test]
fn a_first_run_installs_everything_and_a_second_finds_nothing_to_do() {
    let database = Database::empty();
    signal_feed(&database.url, &["migrate", "--check"]).failed(1);
    assert!(
        database.connect().query_opt("select from pg_namespace where nspname = 'stock_market'", &[]).unwrap().is_none()
    );
    let said = database.migrate();
    assert!(said.contains("applied migration 0005_tables") && said.contains("signal_inserted"), "{said}");
    assert!(database.migrate().contains("nothing to do"));
    signal_feed(&database.url, &["migrate", "--check"]).ok();
    let mut client = database.connect();
    assert_eq!(count(&mut client, "select count(*) from stock_market.signal_feed_identity"), 1);
    assert_eq!(count(&mut client, "select value from stock_market.signal_feed_counter"), 0);
    assert_eq!(count(&mut client, "select pruned_through from stock_market.signal_feed_pruned"), 0);
}

#[test]
fn every_object_is_commented_every_table_has_a_primary_key_and_nothing_belongs_to_the_runner() {
    let database = Database::migrated();
    let mut client = database.connect();
    let bare: Vec<String> = client
        .query(
            "select format('%s has no comment', c.oid::regclass) from pg_class as c
                where relnamespace in ('stock_market'::regnamespace, 'signal_feed_private'::regnamespace) and relkind in ('r', 'p')
                    and obj_description(c.oid, 'pg_class') is null
            union all select format('%s.%s has no comment', attrelid::regclass, attname) from pg_attribute
                join pg_class as c on c.oid = attrelid
                where relnamespace in ('stock_market'::regnamespace, 'signal_feed_private'::regnamespace) and relkind = 'r' and attnum > 0
                    and col_description(attrelid, attnum) is null
            union all select format('%s has no comment', oid::regprocedure) from pg_proc
                where pronamespace = 'stock_market'::regnamespace and obj_description(oid, 'pg_proc') is null
            union all select format('trigger %s has no comment', tgname) from pg_trigger
                join pg_class as c on c.oid = tgrelid
                where relnamespace in ('stock_market'::regnamespace, 'signal_feed_private'::regnamespace) and not tgisinternal
                    and obj_description(pg_trigger.oid, 'pg_trigger') is null
            union all select format('%s has no primary key', c.oid::regclass) from pg_class as c
                where relnamespace in ('stock_market'::regnamespace, 'signal_feed_private'::regnamespace) and relkind = 'r'
                    and not exists (select from pg_index where indrelid = c.oid and indisprimary)
            union all select format('%s belongs to %s', c.oid::regclass, relowner::regrole) from pg_class as c
                where relnamespace in ('stock_market'::regnamespace, 'signal_feed_private'::regnamespace) and relowner::regrole::text not like 'signal\\_feed\\_%'
            union all select format('%s belongs to %s', oid::regprocedure, proowner::regrole) from pg_proc
                where pronamespace = 'stock_market'::regnamespace and proowner::regrole::text not like 'signal\\_feed\\_%'
            union all select format('%s can log in', rolname) from pg_roles
                where rolname like 'signal\\_feed\\_%' and rolcanlogin",
            &[],
        )
        .unwrap()
        .iter()
        .map(|row| row.get(0))
        .collect();
    assert_eq!(bare, Vec::<String>::new());
}

#[test]
fn owners_grants_functions_and_guards_are_repaired_and_foreign_grants_reported() {
    let database = Database::migrated();
    let mut client = database.connect();
    client
        .batch_execute(
            "alter table stock_market.signal_feed_event owner to postgres;
            alter function stock_market.signal_feed_capture() owner to postgres;
            revoke select on stock_market.signal_feed_event from signal_feed_server;
            alter table stock_market.signal_feed_event disable trigger signal_feed_refuse_row;
            alter table stock_market.signal_feed_event enable trigger signal_feed_refuse_statement;
            grant execute on function stock_market.signal_feed_prune_to(bigint) to public;
            grant insert on stock_market.signal_feed_event to public;
            grant execute on function stock_market.signal_feed_prune_to(bigint) to pg_monitor;
            alter table stock_market.signal_feed_event enable row level security;
            create rule lost as on insert to stock_market.signal_feed_quarantine do instead nothing;
            drop index stock_market.signal_feed_event_event_time_idx;
            delete from stock_market.signal_feed_counter",
        )
        .unwrap();
    let missing = signal_feed(&database.url, &["migrate", "--check"]);
    assert_eq!(missing.code, 1);
    assert!(missing.stdout.contains("signal_feed_refuse_row"), "{}", missing.stdout);
    let said = database.migrate();
    assert!(said.contains("warning: PUBLIC has INSERT"), "{said}");
    assert!(said.contains("warning: pg_monitor has EXECUTE on stock_market.signal_feed_prune_to(bigint)"), "{said}");
    signal_feed(&database.url, &["migrate", "--check"]).ok();
    // Nothing of that kept a signal from the log.
    assert_eq!(count(&mut client, "select count(*) from stock_market.signal_feed_event"), 0);
}

#[test]
fn a_database_with_defaults_of_its_own_is_installed_and_examined_like_any_other() {
    let database = Database::empty();
    for default in [
        "standard_conforming_strings = off",
        "quote_all_identifiers = on",
        "default_transaction_isolation = serializable",
        "default_transaction_read_only = on",
        "search_path = ''",
        "datestyle = 'German'",
        "statement_timeout = '10s'",
        "lock_timeout = '1ms'",
        "session_replication_role = replica",
    ] {
        database.sql(&format!("begin read write; alter database {} set {default}; commit", database.name));
    }
    database.migrate();
    database.sql(
        "begin read write; insert into stock_market.signal (symbol, action, side) values ('A', 'entry', 'BUY'); commit",
    );
    assert_eq!(database.head(), 1);
    assert!(database.migrate().contains("nothing to do"));
    let checks: serde_json::Value =
        serde_json::from_str(&signal_feed(&database.url, &["doctor", "--json"]).stdout).unwrap();
    let failed: Vec<_> = checks.as_array().unwrap().iter().filter(|one| one["ok"] == false).collect();
    // The tests' own PostgreSQL runs without fsync.
    assert!(failed.iter().all(|one| one["check"] == "fsync"), "{failed:?}");
}

#[test]
fn capture_that_was_off_is_put_on_and_leaves_one_event_without_a_row() {
    for harm in [
        "alter table stock_market.signal disable trigger \"!signal_feed_capture\"",
        "alter table stock_market.signal enable trigger \"!signal_feed_capture\"",
        "drop trigger \"!signal_feed_capture\" on stock_market.signal",
        "alter table signal_feed_private.signal_feed_first disable trigger signal_feed_number",
        "drop trigger signal_feed_gather on signal_feed_private.signal_feed_first",
        "create or replace function stock_market.signal_feed_number() returns trigger
            language plpgsql security definer as 'begin return null; end'",
        "alter table stock_market.signal rename to signal_old;
         create table stock_market.signal (like stock_market.signal_old including all)",
    ] {
        let database = Database::migrated();
        let mut client = database.connect();
        let write = "insert into stock_market.signal (symbol, action, side) values ('A', 'entry', 'BUY')";
        client.batch_execute(write).unwrap();
        client.batch_execute(harm).unwrap();
        client.batch_execute("set session_replication_role = replica").unwrap();
        client.batch_execute(&write.replace("(symbol", "(id, symbol").replace("('A'", "(1000, 'A'")).unwrap();
        let said = database.migrate();
        assert!(said.contains("capture was off"), "{harm}: {said}");
        let row = client
            .query_one(
                "select e.feed_seq, e.signal::text, q.error from stock_market.signal_feed_event as e
                join stock_market.signal_feed_quarantine as q using (feed_seq)",
                &[],
            )
            .unwrap();
        assert_eq!(row.get::<_, i64>(0), 2, "{harm}");
        assert_eq!(row.get::<_, Option<String>>(1), None);
        assert_eq!(row.get::<_, String>(2), "capture was off");
        client.batch_execute(&write.replace("(symbol", "(id, symbol").replace("('A'", "(1001, 'A'")).unwrap();
        assert_eq!(count(&mut client, "select max(feed_seq) from stock_market.signal_feed_event"), 3, "{harm}");
        assert_eq!(
            count(
                &mut client,
                "select (select count(*) from signal_feed_private.signal_feed_outbox) + (select count(*) from signal_feed_private.signal_feed_first)"
            ),
            0,
            "{harm}"
        );
        assert!(database.migrate().contains("nothing to do"));
    }
}

#[test]
fn a_newer_schema_and_another_text_of_a_migration_are_refused() {
    let database = Database::migrated();
    let mut client = database.connect();
    client.batch_execute("update stock_market.signal_feed_migration set checksum = 'x' where version = 5").unwrap();
    assert!(signal_feed(&database.url, &["migrate"]).failed(1).contains("migration 5"));
    client
        .batch_execute(
            "insert into stock_market.signal_feed_migration (version, name, checksum) values (1000, 'x', 'x')",
        )
        .unwrap();
    let said = signal_feed(&database.url, &["migrate"]).failed(1);
    assert!(said.contains("1000") && said.contains("newer"), "{said}");
}

#[test]
fn what_no_trigger_can_watch_is_refused_and_nothing_is_installed() {
    let era = SEQUENCE_ERA.replace("create schema stock_market;", "");
    for (shape, word) in [
        ("create view stock_market.signal as select 1 as id", "a view"),
        ("create materialized view stock_market.signal as select 1 as id", "materialized view"),
        (
            "create table stock_market.signal (id int); create table stock_market.child () inherits (stock_market.signal)",
            "inheritance",
        ),
        (
            "create table stock_market.signal (id int); create table stock_market.signal_feed_event (feed_seq int, event_time timestamptz, op text, signal jsonb)",
            "feed_seq",
        ),
        (
            &format!("{era}; alter table stock_market.signal_feed_event drop constraint signal_feed_event_pkey"),
            "its primary key is not feed_seq",
        ),
        (
            &format!("{era}; alter table stock_market.signal_feed_event add column source text not null"),
            "its column source is NOT NULL",
        ),
        (
            "create table stock_market.signal (id int); create table stock_market.signal_2024 (id int);
            create function stock_market.signal_feed_append() returns trigger language plpgsql as 'begin return null; end';
            create trigger signal_feed_append after insert on stock_market.signal_2024
                for each row execute function stock_market.signal_feed_append()",
            "stock_market.signal_2024",
        ),
    ] {
        let database = Database::empty();
        let mut client = database.connect();
        client.batch_execute(&format!("create schema stock_market; {shape}")).unwrap();
        let said = signal_feed(&database.url, &["migrate"]).failed(1);
        assert!(said.contains(word), "{said}");
        assert!(client.query_opt("select from pg_class where relname = 'signal_feed_counter'", &[]).unwrap().is_none());
    }
}

#[test]
fn a_check_constraint_of_the_sequence_era_that_can_fail_writes_is_reported() {
    let database = Database::empty();
    database.sql(&format!(
        "{SEQUENCE_ERA} alter table stock_market.signal_feed_event
            add constraint usual check (op in ('INSERT', 'UPDATE')),
            add constraint whole check (signal is not null)"
    ));
    let said = database.migrate();
    assert!(said.contains("warning: the CHECK constraint whole on stock_market.signal_feed_event"), "{said}");
    assert!(!said.contains("usual"), "{said}");
}

#[test]
fn an_existing_signal_inserted_trigger_is_kept_and_no_second_one_added() {
    let database = Database::empty();
    let mut client = database.connect();
    client
        .batch_execute(
            "create schema stock_market; create table stock_market.signal (id int);
            create function stock_market.shout() returns trigger language plpgsql as $$
                begin perform pg_notify('signal_inserted', to_jsonb(new)::text); return null; end $$;
            create trigger shout after insert on stock_market.signal for each row execute function stock_market.shout()",
        )
        .unwrap();
    let said = database.migrate();
    assert!(said.contains("the trigger shout notifies it"), "{said}");
    let ours = "select count(*) from pg_trigger where tgname = '!signal_feed_capture' and tgnargs > 0";
    assert_eq!(count(&mut client, ours), 0);
    assert!(signal_feed(&database.url, &["migrate", "--signal-inserted", "on"]).failed(1).contains("shout"));
    client.batch_execute("drop trigger shout on stock_market.signal").unwrap();
    database.migrate();
    assert_eq!(count(&mut client, ours), 1);
    assert!(signal_feed(&database.url, &["migrate", "--signal-inserted", "off"]).ok().contains("nothing notifies it"));
    assert_eq!(count(&mut client, ours), 0);
    // A choice stays until the next one.
    assert!(database.migrate().contains("signal_inserted: off"));
    assert_eq!(count(&mut client, "select count(*) from stock_market.signal_feed_event"), 0);
}

#[test]
fn several_databases_and_several_runs_at_once_do_not_harm_each_other() {
    let databases: Vec<Database> = (0..3).map(|_| Database::empty()).collect();
    thread::scope(|scope| {
        for database in &databases {
            for _ in 0..2 {
                scope.spawn(|| database.migrate());
            }
        }
    });
    for database in &databases {
        signal_feed(&database.url, &["migrate", "--check"]).ok();
    }
}

#[test]
fn writers_hardly_wait_while_migrate_waits_for_its_lock_and_it_gives_up_in_time() {
    let database = Database::empty();
    let mut holder = database.connect();
    holder.batch_execute("create schema stock_market; create table stock_market.signal (id int)").unwrap();
    holder.batch_execute("begin; insert into stock_market.signal values (1)").unwrap();
    let url = database.url.clone();
    let migrate = thread::spawn(move || signal_feed(&url, &["migrate", "--lock-wait", "3s"]));
    let mut writer = database.connect();
    let mut longest = Duration::ZERO;
    while !migrate.is_finished() {
        let began = Instant::now();
        writer.batch_execute("insert into stock_market.signal values (2)").unwrap();
        longest = longest.max(began.elapsed());
    }
    let said = migrate.join().unwrap().failed(1);
    let pid: i32 = holder.query_one("select pg_backend_pid()", &[]).unwrap().get(0);
    let advice = format!("select pg_terminate_backend({pid})");
    assert!(said.contains("holds RowExclusiveLock on stock_market.signal") && said.contains(&advice), "{said}");
    assert!(longest < Duration::from_secs(3), "{longest:?}");
    holder.batch_execute("commit").unwrap();
    // Any login can take the lock that keeps two runs apart.
    holder.batch_execute("set application_name = 'obstinate'; select pg_advisory_lock(32485515142194532)").unwrap();
    let said = signal_feed(&database.url, &["migrate", "--lock-wait", "1s"]).failed(1);
    assert!(said.contains("(obstinate, idle, ") && said.contains(&advice), "{said}");
    drop(holder);
    database.migrate();
}

#[test]
fn the_sequence_era_moves_to_the_counter_while_writers_write_and_roll_back() {
    let database = Database::empty();
    let mut client = database.connect();
    client.batch_execute(SEQUENCE_ERA).unwrap();
    // History with holes: rolled-back numbers, one of them at the end.
    for _ in 0..20 {
        client.batch_execute("insert into stock_market.signal (symbol) values ('old')").unwrap();
        client.batch_execute("begin; insert into stock_market.signal (symbol) values ('gone'); rollback").unwrap();
    }
    let before: String = client
        .query_one("select string_agg(e::text, ';' order by feed_seq) from stock_market.signal_feed_event as e", &[])
        .unwrap()
        .get(0);
    let stop = AtomicBool::new(false);
    let written = thread::scope(|scope| {
        let writers: Vec<_> = (0..4)
            .map(|writer| {
                let (database, stop) = (&database, &stop);
                scope.spawn(move || {
                    let mut client = database.connect();
                    let mut written = 0_i64;
                    let mut round = 0;
                    while !stop.load(Ordering::Relaxed) {
                        round += 1;
                        let end = if round % 3 == 0 { "rollback" } else { "commit" };
                        client
                            .batch_execute(&format!(
                                "begin; insert into stock_market.signal (symbol) values ('{writer}-{round}'); {end}"
                            ))
                            .unwrap();
                        written += i64::from(end == "commit");
                    }
                    written
                })
            })
            .collect();
        let mut watcher = database.connect();
        let events = "select count(*) from stock_market.signal_feed_event";
        until("writers are at work", || (count(&mut watcher, events) > 100).then_some(()));
        database.migrate();
        let now = count(&mut watcher, events);
        until("writers go on", || (count(&mut watcher, events) > now + 100).then_some(()));
        stop.store(true, Ordering::Relaxed);
        writers.into_iter().map(|writer| writer.join().unwrap()).sum::<i64>()
    });
    let after: String = client
        .query_one("select string_agg(e::text, ';' order by feed_seq) from stock_market.signal_feed_event as e where feed_seq <= 40", &[])
        .unwrap()
        .get(0);
    assert_eq!(before, after);
    assert_eq!(count(&mut client, "select count(*) from stock_market.signal_feed_event"), 20 + written);
    assert_eq!(
        count(&mut client, "select count(distinct signal ->> 'id') from stock_market.signal_feed_event"),
        20 + written
    );
    let start = count(&mut client, "select counter_start from stock_market.signal_feed_identity");
    // From the counter's start on there is no hole.
    let row = client
        .query_one(
            "select count(*), max(feed_seq) - $1, (select value from stock_market.signal_feed_counter) - $1
            from stock_market.signal_feed_event where feed_seq > $1",
            &[&start],
        )
        .unwrap();
    let (rows, span, counted): (i64, i64, i64) = (row.get(0), row.get(1), row.get(2));
    assert!(rows == span && rows == counted && rows > 0, "{rows} {span} {counted}");
    let left = client
        .query_one(
            "select to_regprocedure('stock_market.signal_feed_append()') is null
                and not exists (select from pg_trigger where tgname = 'signal_feed_append')
                and not exists (select from pg_attrdef where adrelid = 'stock_market.signal_feed_event'::regclass)",
            &[],
        )
        .unwrap();
    assert!(left.get::<_, bool>(0));
}

#[test]
fn a_sequence_that_was_never_used_starts_the_counter_at_zero() {
    let database = Database::empty();
    let mut client = database.connect();
    client.batch_execute(SEQUENCE_ERA).unwrap();
    database.migrate();
    client.batch_execute("insert into stock_market.signal (symbol) values ('first')").unwrap();
    assert_eq!(count(&mut client, "select min(feed_seq) from stock_market.signal_feed_event"), 1);
}

#[test]
fn the_owner_of_the_database_with_createrole_installs_without_a_superuser() {
    // A cluster of its own: from PostgreSQL 16 on such a role can grant only roles that it made itself.
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::empty_in(&cluster);
    let owner = Role::new(&database, "createrole");
    database.connect().batch_execute(&format!("alter database {} owner to {}", database.name, owner.name)).unwrap();
    let url = database.url_as(&owner.name);
    signal_feed(&url, &["migrate"]).ok();
    signal_feed(&url, &["migrate", "--check"]).ok();
    let mut client = Client::connect(&url, NoTls).unwrap();
    client
        .batch_execute("insert into stock_market.signal (symbol, action, side) values ('A', 'entry', 'BUY')")
        .unwrap();
    assert_eq!(count(&mut client, "select count(*) from stock_market.signal_feed_event"), 1);
    client.batch_execute("alter table stock_market.signal disable trigger \"!signal_feed_capture\"").unwrap();
    assert!(signal_feed(&url, &["migrate"]).ok().contains("capture was off"));
}

#[test]
fn a_runner_who_does_not_inherit_the_feeds_roles_is_refused_by_name() {
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::empty_in(&cluster);
    let owner = Role::new(&database, "createrole noinherit");
    database.connect().batch_execute(&format!("alter database {} owner to {}", database.name, owner.name)).unwrap();
    let said = signal_feed(&database.url_as(&owner.name), &["migrate"]).failed(1);
    assert!(said.contains(&owner.name) && said.contains("signal_feed_owner") && said.contains("inherit"), "{said}");
}

#[test]
fn roles_made_beforehand_let_a_mere_database_owner_migrate() {
    let database = Database::empty();
    let owner = Role::new(&database, "nocreaterole");
    let mut client = database.connect();
    client.batch_execute(&format!("alter database {} owner to {}", database.name, owner.name)).unwrap();
    let roles = signal_feed("postgresql:///nowhere", &["migrate", "--roles-sql"]).ok();
    client.batch_execute(&roles).unwrap();
    client.batch_execute(&roles).unwrap();
    signal_feed(&database.url_as(&owner.name), &["migrate"]).ok();
}

#[test]
fn an_admin_may_run_a_migrate_that_finds_nothing_to_do() {
    let database = Database::migrated();
    let role = Role::new(&database, "in role signal_feed_admin");
    let said = signal_feed(&database.url_as(&role.name), &["migrate"]).ok();
    assert!(said.contains("nothing to do"), "{said}");
}
