//! Rights: the roles, and what a writer of `signal` can never do.

use postgres::fallible_iterator::FallibleIterator;
use signal_feed::db::Connection;
use signal_feed::db::doctor::capture_fault;

use crate::support::wait::PATIENCE;

use super::{SIGNAL, Screener, assert_whole, count, log, migrated};

#[test]
fn the_log_is_immutable_for_its_owner_and_for_superusers() {
    let (_database, mut client) = migrated();
    client.batch_execute(&format!("{SIGNAL}; {SIGNAL}")).unwrap();
    for role in ["postgres", "signal_feed_owner"] {
        client.batch_execute(&format!("set role {role}")).unwrap();
        for statement in [
            "update stock_market.signal_feed_event set op = op",
            "update stock_market.signal_feed_event set op = 'INSERT' where false",
            "delete from stock_market.signal_feed_event",
            "delete from stock_market.signal_feed_event where feed_seq = 1",
            "truncate stock_market.signal_feed_event",
            "set session_replication_role = replica; delete from stock_market.signal_feed_event",
            "insert into stock_market.signal_feed_event values (1, now(), 'UPDATE', '1') on conflict (feed_seq) do update set signal = '1'",
        ] {
            if role != "postgres" && statement.starts_with("set session") {
                continue;
            }
            let refused = client.batch_execute(statement).unwrap_err();
            let text = refused.as_db_error().map(|error| error.message().to_owned()).unwrap_or_default();
            assert!(text.contains("the log is append-only"), "{statement}: {refused:?}");
            let _ = client.batch_execute("reset session_replication_role");
        }
        client.batch_execute("reset role").unwrap();
    }
    assert_eq!(log(&mut client).len(), 2);
}

#[test]
fn a_screener_needs_only_its_rights_on_signal_and_has_no_others() {
    let screener = Screener::new("");
    let mut client = screener.connect();
    client.batch_execute(SIGNAL).unwrap();
    client.batch_execute("update stock_market.signal set price = 2").unwrap();
    for statement in [
        "select * from stock_market.signal_feed_event",
        "insert into stock_market.signal_feed_event values (99, now(), 'INSERT', '{}')",
        "select * from signal_feed_private.signal_feed_outbox",
        "insert into signal_feed_private.signal_feed_outbox (round, op, signal) values (1, 'INSERT', '{}')",
        "update stock_market.signal_feed_counter set value = 5",
        "select * from stock_market.signal_feed_api_key",
        "select * from signal_feed_private.signal_feed_session_secret",
        "begin; lock table signal_feed_private.signal_feed_lock in access share mode",
        "begin; lock table stock_market.signal_feed_event in access share mode",
        "select stock_market.signal_feed_render(row(1), null)",
        "select stock_market.signal_feed_render_pinned(row(1), null)",
        "select stock_market.signal_feed_prune_to(1)",
        "select stock_market.signal_feed_restored(1)",
        "select nextval('signal_feed_private.signal_feed_outbox_seq_seq')",
        "create table stock_market.mine (id int)",
        "set role signal_feed_owner",
        "alter table stock_market.signal disable trigger all",
    ] {
        let refused = client.batch_execute(statement).unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{statement}: {refused:?}");
        client.batch_execute("rollback").unwrap();
    }
    // Hanging the feed's functions on a table of one's own.
    let mut superuser = screener.database.connect();
    superuser.batch_execute(&format!("create schema own authorization {}", screener.name)).unwrap();
    client.batch_execute("create table own.mine (xact xid8, seq bigint, first boolean)").unwrap();
    for function in ["capture", "gather", "number", "refuse", "touch", "key_changed"] {
        let refused = client
            .batch_execute(&format!(
                "create trigger t after insert on own.mine for each row execute function stock_market.signal_feed_{function}()"
            ))
            .unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{function}: {refused:?}");
    }
    assert_eq!(log(&mut superuser), ["1 INSERT A", "2 UPDATE A"]);
}

#[test]
fn a_screener_with_every_right_on_signal_cannot_replace_a_trigger_of_the_feed() {
    let screener = Screener::new("");
    let mut superuser = screener.database.connect();
    superuser
        .batch_execute(&format!(
            "create schema own authorization {0}; grant all on stock_market.signal to {0}",
            screener.name
        ))
        .unwrap();
    let mut client = screener.connect();
    client
        .batch_execute("create function own.nothing() returns trigger language plpgsql as 'begin return null; end'")
        .unwrap();
    // PostgreSQL 13 does not know the statement at all.
    client
        .batch_execute(
            "create or replace trigger \"!signal_feed_capture\" after insert on stock_market.signal
                for each row execute function own.nothing()",
        )
        .unwrap_err();
    client.batch_execute("drop trigger \"!signal_feed_capture\" on stock_market.signal").unwrap_err();
    client.batch_execute(SIGNAL).unwrap();
    assert_eq!(log(&mut superuser), ["1 INSERT A"]);
}

#[test]
fn the_servers_role_can_do_what_serve_needs_and_nothing_else() {
    let screener = Screener::new("");
    let mut superuser = screener.database.connect();
    superuser
        .batch_execute(&format!(
            "revoke all on stock_market.signal from {0}; grant signal_feed_server to {0}",
            screener.name
        ))
        .unwrap();
    superuser.batch_execute(SIGNAL).unwrap();
    let mut client = screener.connect();
    for statement in [
        "select * from stock_market.signal_feed_event, stock_market.signal_feed_counter, stock_market.signal_feed_pruned,
            stock_market.signal_feed_identity, stock_market.signal_feed_skipped, stock_market.signal_feed_cluster,
            stock_market.signal_feed_migration, signal_feed_private.signal_feed_session_secret, stock_market.signal_feed_cluster_now()",
        "insert into stock_market.signal_feed_quarantine (feed_seq, error) values (1, 'x') on conflict do nothing",
        "select * from stock_market.signal_feed_quarantine",
        "update stock_market.signal_feed_api_key set last_used_at = now() where id = 1",
        "listen signal_feed",
    ] {
        client.batch_execute(statement).unwrap_or_else(|error| panic!("{statement}: {error:?}"));
    }
    let mut connection = Connection::open(&screener.database.url_as(&screener.name).parse().unwrap(), "test").unwrap();
    assert_eq!(capture_fault(&mut connection).unwrap(), None);
    signal_feed::db::migrate::check_schema(&mut connection).unwrap();
    for statement in [
        "insert into stock_market.signal_feed_api_key (name, key_sha256) values ('x', sha256(''))",
        "update stock_market.signal_feed_api_key set revoked_at = null",
        "delete from stock_market.signal_feed_api_key",
        "select * from stock_market.signal",
        SIGNAL,
        "delete from stock_market.signal_feed_event",
        "update stock_market.signal_feed_pruned set pruned_through = 1",
        "delete from stock_market.signal_feed_quarantine",
        "select stock_market.signal_feed_prune_to(1)",
        "select stock_market.signal_feed_restored(1)",
        "update stock_market.signal_feed_counter set value = 1",
        "begin; lock table signal_feed_private.signal_feed_lock in exclusive mode",
    ] {
        let refused = client.batch_execute(statement).unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{statement}: {refused:?}");
        client.batch_execute("rollback").unwrap();
    }
}

#[test]
fn the_admins_role_manages_keys_and_cannot_touch_the_log_above_what_is_pruned() {
    let screener = Screener::new("");
    let mut superuser = screener.database.connect();
    superuser
        .batch_execute(&format!(
            "revoke all on stock_market.signal from {0}; grant signal_feed_admin to {0}",
            screener.name
        ))
        .unwrap();
    superuser.batch_execute(SIGNAL).unwrap();
    let mut client = screener.connect();
    client
        .batch_execute(
            "begin; lock table stock_market.signal_feed_api_key in share row exclusive mode;
            insert into stock_market.signal_feed_api_key (name, key_sha256) values ('x', sha256('')); commit;
            select * from stock_market.signal_feed_quarantine",
        )
        .unwrap();
    let refused = client.batch_execute("delete from stock_market.signal_feed_event").unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("append-only"));
    let refused = client.batch_execute("select stock_market.signal_feed_prune_to(1)").unwrap_err();
    assert!(refused.as_db_error().unwrap().message().contains("younger than an hour"));
    client.batch_execute("select stock_market.signal_feed_prune_to(7)").unwrap_err();
    for statement in [
        "update stock_market.signal_feed_pruned set pruned_through = 1",
        "insert into stock_market.signal_feed_event values (99, now(), 'INSERT', '{}')",
        "select * from signal_feed_private.signal_feed_session_secret",
        "update stock_market.signal_feed_counter set value = 1",
        "update stock_market.signal_feed_event set op = op",
        "truncate stock_market.signal_feed_event",
    ] {
        let refused = client.batch_execute(statement).unwrap_err();
        assert_eq!(refused.code().unwrap().code(), "42501", "{statement}: {refused:?}");
        client.batch_execute("rollback").unwrap();
    }
}

#[test]
fn a_key_that_is_added_or_changed_is_told_and_its_last_use_is_not() {
    let (database, mut client) = migrated();
    let mut listener = database.connect();
    listener.batch_execute("listen signal_feed_key").unwrap();
    client
        .batch_execute(
            "insert into stock_market.signal_feed_api_key (name, key_sha256) values ('x', sha256(''));
            update stock_market.signal_feed_api_key set last_used_at = now()",
        )
        .unwrap();
    client.batch_execute("update stock_market.signal_feed_api_key set revoked_at = now()").unwrap();
    client.batch_execute("update stock_market.signal_feed_api_key set last_used_at = now()").unwrap();
    client.batch_execute("delete from stock_market.signal_feed_api_key").unwrap();
    client.batch_execute("notify signal_feed_key, 'end'").unwrap();
    let mut heard = Vec::new();
    let mut notifications = listener.notifications();
    let mut arrivals = notifications.timeout_iter(PATIENCE);
    while heard.last().map(String::as_str) != Some("end") {
        heard.push(arrivals.next().unwrap().unwrap().payload().to_owned());
    }
    assert_eq!(heard, ["", "", "", "end"]);
}

#[test]
fn a_cast_to_json_runs_without_any_right_and_forges_nothing() {
    let screener = Screener::new(
        "create type public.mood as enum ('fine');
        create schema evil authorization SCREENER;
        alter type public.mood owner to SCREENER;
        create table stock_market.signal (id int, mood public.mood)",
    );
    let mut superuser = screener.database.connect();
    let mut client = screener.connect();
    client
        .batch_execute(
            "create function evil.cast(public.mood) returns json language plpgsql as $$
            declare attempt text; said text := current_user;
            begin
                foreach attempt in array array[
                    'insert into signal_feed_private.signal_feed_outbox (round, op, signal) values (1, ''INSERT'', ''{}'')',
                    'insert into signal_feed_private.signal_feed_first (xact, op) values (''1'', ''INSERT'')',
                    'insert into stock_market.signal_feed_event values (99, now(), ''INSERT'', ''{}'')',
                    'update stock_market.signal_feed_counter set value = 50',
                    'lock table signal_feed_private.signal_feed_lock in exclusive mode',
                    'set role signal_feed_owner', 'reset role', 'create table stock_market.x (i int)',
                    'alter role signal_feed_render superuser'] loop
                    begin
                        execute attempt;
                        said := said || ' DID ' || attempt;
                    exception when others then null;
                    end;
                end loop;
                return to_json(said);
            end $$;
            create cast (public.mood as json) with function evil.cast(public.mood);
            insert into stock_market.signal values (1, 'fine');
            set timezone = 'Asia/Tokyo'; insert into stock_market.signal values (2, 'fine');
            update stock_market.signal set id = 3 where id = 2",
        )
        .unwrap();
    let row: String = superuser
        .query_one("select string_agg(signal ->> 'mood', ' ') from stock_market.signal_feed_event", &[])
        .unwrap()
        .get(0);
    assert_eq!(row, ["signal_feed_render"; 3].join(" "));
    assert_eq!(count(&mut superuser, "select count(*) from stock_market.signal_feed_event"), 3);
}

#[test]
fn settings_search_paths_temporary_objects_and_operators_of_the_writer_change_nothing() {
    let screener = Screener::new("create schema evil authorization SCREENER");
    let mut client = screener.connect();
    client
        .batch_execute(
            "create function evil.boom(bigint, bigint) returns boolean language plpgsql as $$ begin raise exception 'boom'; end $$;
            create operator evil.= (leftarg = bigint, rightarg = bigint, function = evil.boom);
            create operator evil.+ (leftarg = bigint, rightarg = bigint, function = evil.boom);
            create function evil.to_jsonb(anyelement) returns jsonb language sql as 'select ''{}''::jsonb';
            create function evil.pg_notify(text, text) returns void language sql as '';
            create function evil.clock_timestamp() returns timestamptz language sql as 'select ''epoch''::timestamptz';
            create temp table signal_feed_event (feed_seq bigint); create temp table signal_feed_counter (value bigint);
            set search_path = evil, pg_temp, pg_catalog, stock_market;
            set enable_indexscan = off; set enable_bitmapscan = off; set enable_indexonlyscan = off; set work_mem = 64;
            set plan_cache_mode = force_custom_plan; set standard_conforming_strings = off; set synchronous_commit = off;
            set check_function_bodies = off; set transform_null_equals = on; set quote_all_identifiers = on;
            set default_transaction_deferrable = on; set row_security = off; set lc_monetary = 'C'; set client_encoding = 'LATIN1'",
        )
        .unwrap();
    for _ in 0..7 {
        client.batch_execute(SIGNAL).unwrap();
    }
    let mut superuser = screener.database.connect();
    assert_whole(&mut superuser);
    assert_eq!(log(&mut superuser).len(), 7);
    assert_eq!(
        count(
            &mut superuser,
            "select count(*) from stock_market.signal_feed_event where event_time > now() - interval '1 hour'"
        ),
        7
    );
}
