//! Attacks by ordinary rights. Each one fails, or `migrate` and `doctor` name it.

use std::thread;
use std::time::Duration;

use postgres::{Client, NoTls};

use crate::support::database::Database;
use crate::support::program::signal_feed;
use crate::support::server::Server;
use crate::support::wait::until;

use super::{SIGNAL, Screener, count, log, migrated};

/// The message of `doctor`'s check with its fix, and whether it is well.
fn doctor(database: &Database, check: &str) -> (bool, String) {
    let run = signal_feed(&database.url, &["doctor", "--json"]);
    let checks: serde_json::Value =
        serde_json::from_str(&run.stdout).unwrap_or_else(|_| panic!("{}: {}", run.code, run.stderr));
    let one = checks.as_array().unwrap().iter().find(|one| one["check"] == check).unwrap().clone();
    (one["ok"].as_bool().unwrap(), format!("{}; {}", one["message"], one["fix"]))
}

/// Every privilege and every object of the feed that an attack could have reached.
const REACH: &str = "array[
    'select count(*) from signal_feed_private.signal_feed_session_secret',
    'select count(*) from stock_market.signal_feed_api_key',
    'insert into stock_market.signal_feed_api_key (name, key_sha256) values (''mallory'', sha256(''m''))',
    'insert into stock_market.signal_feed_event values (99, now(), ''INSERT'', ''{}'')',
    'insert into signal_feed_private.signal_feed_outbox (round, op, signal) values (1, ''INSERT'', ''{}'')',
    'insert into signal_feed_private.signal_feed_first (xact, op) values (''1'', ''INSERT'')',
    'update stock_market.signal_feed_counter set value = 50',
    'select stock_market.signal_feed_restored(5)',
    'select stock_market.signal_feed_prune_to(1)',
    'lock table signal_feed_private.signal_feed_lock in share update exclusive mode',
    'create function evil.door() returns void language sql security definer as $f$ $f$',
    'alter function stock_market.signal_feed_render(record, record) security invoker',
    'alter function stock_market.signal_feed_capture() security invoker',
    'drop function stock_market.signal_feed_capture() cascade',
    'set role signal_feed_owner', 'reset role', 'reset session authorization']";

/// Statements that make an attacker's function, which tries all of [`REACH`] and records its successes in `said`.
fn tries(function: &str) -> String {
    format!(
        "grant usage, create on schema evil to public;
         create table evil.said (who text, did text); grant all on evil.said to public;
         create function {function} as $$
            declare attempt text; said text := '';
            begin
                foreach attempt in array {REACH} loop
                    begin
                        execute attempt;
                        said := said || ' DID ' || attempt;
                    exception when others then null;
                    end;
                end loop;
                begin insert into evil.said values (current_user, said); exception when others then null; end;
                raise notice '% %', current_user, said;
                return RESULT;
            end $$;"
    )
}

#[test]
fn a_foreign_key_on_signal_runs_its_cast_as_a_role_that_owns_nothing_else() {
    let screener = Screener::new("create schema evil authorization SCREENER");
    let mut superuser = screener.database.connect();
    superuser.batch_execute(&format!("grant references on stock_market.signal to {}", screener.name)).unwrap();
    let mut client = screener.connect();
    client
        .batch_execute(&format!(
            "create type evil.number as (n bigint); {}
             create function evil.cast(evil.number) returns bigint language plpgsql as
                'begin return evil.attempt($1); end';
             create cast (evil.number as bigint) with function evil.cast(evil.number) as implicit;
             {SIGNAL};
             create table evil.child (id evil.number references stock_market.signal (id));",
            tries("evil.attempt(v evil.number) returns bigint language plpgsql").replace("RESULT", "(v).n")
        ))
        .unwrap();
    // Whether the row is accepted does not matter.
    let _ = client.batch_execute("insert into evil.child values (row(1)::evil.number)");
    let _ = client.batch_execute(
        "create table evil.numbers (id evil.number); insert into evil.numbers values (row(1)::evil.number);
         alter table evil.numbers add foreign key (id) references stock_market.signal (id)",
    );
    let said: Vec<(String, String)> = superuser
        .query("select distinct who, did from evil.said", &[])
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1)))
        .collect();
    assert!(said.iter().any(|(who, _)| who == "signal_feed_signal"), "{said:?}");
    for (who, did) in &said {
        assert!(who == "signal_feed_signal" || *who == screener.name, "{said:?}");
        // A door that keeps the rights of signal's owner is no more than REFERENCES on signal gives anyway.
        let worst =
            did.replace(" DID create function evil.door() returns void language sql security definer as $f$ $f$", "");
        assert_eq!(worst.replace(" DID reset role", "").replace(" DID reset session authorization", ""), "", "{who}");
    }
    assert_eq!(log(&mut superuser), ["1 INSERT A"]);
    let (ok, text) = doctor(&screener.database, "privileges");
    assert!(!ok && text.contains("has REFERENCES on stock_market.signal"), "{text}");
    assert!(screener.database.migrate().contains(&format!("{} has REFERENCES", screener.name)));
}

/// A screener whose type has a cast to json of its own making.
fn with_cast(body: &str) -> Screener {
    let screener = Screener::new(
        "create type public.mood as enum ('fine'); create schema evil authorization SCREENER;
         alter type public.mood owner to SCREENER; create table stock_market.signal (id int, mood public.mood)",
    );
    let mut client = screener.connect();
    client.batch_execute(body).unwrap();
    client
        .batch_execute(
            "create function evil.cast(public.mood) returns json language plpgsql as 'begin return evil.attempt($1); end';
             create cast (public.mood as json) with function evil.cast(public.mood)",
        )
        .unwrap();
    screener
}

#[test]
fn a_cast_to_json_leaves_no_back_door() {
    let body = tries("evil.attempt(v public.mood) returns json language plpgsql").replace("RESULT", "to_json(said)");
    let screener = with_cast(&body);
    let mut client = screener.connect();
    client.batch_execute("insert into stock_market.signal values (1, 'fine')").unwrap();
    client.batch_execute("set timezone = 'Asia/Tokyo'; insert into stock_market.signal values (2, 'fine')").unwrap();
    client.batch_execute("update stock_market.signal set id = id + 10").unwrap();
    let mut superuser = screener.database.connect();
    let did = "select string_agg(distinct replace(replace(signal ->> 'mood', ' DID reset role', ''),
        ' DID reset session authorization', ''), '') from stock_market.signal_feed_event";
    assert_eq!(superuser.query_one(did, &[]).unwrap().get::<_, String>(0), "");
    assert_eq!(count(&mut superuser, "select count(*) from stock_market.signal_feed_event"), 4);
    let owned = "select count(*) from pg_proc where proowner = 'signal_feed_render'::regrole";
    assert_eq!(count(&mut superuser, owned), 1);
    assert!(doctor(&screener.database, "owners").0 && doctor(&screener.database, "privileges").0);
}

#[test]
fn what_a_cast_to_json_does_is_undone_even_where_it_can_switch_read_only_off() {
    // RESET inside an exception block would end with the block. From PostgreSQL 16 on it fails at once.
    let screener = with_cast(
        "grant usage, create on schema evil to public;
         create function evil.attempt(v public.mood) returns json language plpgsql as $$
            begin
                reset transaction_read_only;
                alter function stock_market.signal_feed_render(record, record) security invoker;
                create function evil.door() returns void language sql security definer as '';
                create temp table door (i int);
                return to_json(current_user);
            end $$",
    );
    let mut client = screener.connect();
    for statement in [
        "insert into stock_market.signal values (1, 'fine')",
        "update stock_market.signal set id = id + 10",
        "set timezone = 'Asia/Tokyo'; insert into stock_market.signal values (2, 'fine')",
    ] {
        client.batch_execute(statement).unwrap();
    }
    let mut superuser = screener.database.connect();
    for role in ["signal_feed_render", "signal_feed_capture"] {
        let functions = format!("select count(*) from pg_proc where proowner = '{role}'::regrole");
        let own = if role == "signal_feed_render" { 1 } else { 2 };
        assert_eq!(count(&mut superuser, &functions), own, "{role}");
        let tables = format!("select count(*) from pg_class where relowner = '{role}'::regrole");
        assert_eq!(count(&mut superuser, &tables), 0, "{role}");
    }
    let as_others =
        "select count(*) from stock_market.signal_feed_event where signal ->> 'mood' <> 'signal_feed_render'";
    assert_eq!(count(&mut superuser, as_others), 0);
    assert_eq!(count(&mut superuser, "select count(*) from stock_market.signal_feed_event"), 3);
    assert!(doctor(&screener.database, "owners").0 && doctor(&screener.database, "privileges").0);
}

#[test]
fn a_cast_that_leaves_a_search_path_behind_replaces_no_operator_and_no_function_of_the_feed() {
    let screener = with_cast(
        "create function evil.attempt(v public.mood) returns json language plpgsql as $$
            begin perform set_config('search_path', 'evil, pg_catalog', false); return to_json('m'::text); end $$;
         create table evil.said (who text); grant all on evil.said to public; grant usage on schema evil to public;
         create function evil.note() returns boolean language plpgsql as $$
            begin insert into evil.said values (current_user); return true; exception when others then raise exception 'as %', current_user; end $$;
         create function evil.equal(jsonb, jsonb) returns boolean language sql as 'select evil.note() and jsonb_eq($1, $2)';
         create operator evil.= (leftarg = jsonb, rightarg = jsonb, function = evil.equal);
         create function evil.equal(xid8, xid8) returns boolean language sql as 'select evil.note()';
         create operator evil.= (leftarg = xid8, rightarg = xid8, function = evil.equal);
         create function evil.equal(text, text) returns boolean language sql as 'select evil.note()';
         create operator evil.= (leftarg = text, rightarg = text, function = evil.equal);
         create function evil.minus(jsonb, text) returns jsonb language sql as 'select case when evil.note() then $1 end';
         create operator evil.- (leftarg = jsonb, rightarg = text, function = evil.minus);
         create function evil.pg_notify(text, text) returns text language sql as 'select evil.note()::text';
         create function evil.to_jsonb(anyelement) returns jsonb language sql as 'select pg_catalog.to_jsonb(evil.note())';
         create function evil.pg_current_xact_id() returns xid8 language sql as 'select case when evil.note() then ''1''::xid8 end';
         create function evil.octet_length(text) returns int language sql as 'select case when evil.note() then 1 end';",
    );
    let mut client = screener.connect();
    for statement in [
        "insert into stock_market.signal values (1, 'fine')",
        "begin; insert into stock_market.signal values (2, 'fine'); insert into stock_market.signal values (3, 'fine'); commit",
        "update stock_market.signal set id = id + 10",
    ] {
        client.batch_execute(statement).unwrap();
    }
    let mut superuser = screener.database.connect();
    assert_eq!(count(&mut superuser, "select count(*) from evil.said where who like 'signal_feed%'"), 0);
    assert_eq!(count(&mut superuser, "select count(*) from stock_market.signal_feed_event"), 6);
}

#[test]
fn a_function_of_the_same_name_with_other_arguments_is_never_called() {
    let screener = Screener::new(
        "create table stock_market.signal (id int, raw json); grant create on schema stock_market to SCREENER;
         create table public.ran (who text); grant all on public.ran to public",
    );
    let mut client = screener.connect();
    client
        .batch_execute(
            "create function stock_market.signal_feed_render(record, text) returns jsonb language plpgsql as
                $$ begin insert into public.ran values (current_user); return '1'; end $$;
             create function stock_market.signal_feed_restored(text, out from_seq bigint, out to_seq bigint) language plpgsql as
                $$ begin insert into public.ran values (current_user); from_seq := 1; to_seq := 1; end $$;
             create function stock_market.signal_feed_prune_to(text) returns bigint language plpgsql as
                $$ begin insert into public.ran values (current_user); return 1; end $$;
             insert into stock_market.signal values (1, '\"\\u0000\"');
             update stock_market.signal set id = 2",
        )
        .unwrap();
    let database = &screener.database;
    assert_eq!(database.number("select count(*) from stock_market.signal_feed_event where signal is null"), 2);
    database.sql(
        "alter table stock_market.signal_feed_event disable trigger all;
         update stock_market.signal_feed_event set event_time = now() - interval '100 hours';
         alter table stock_market.signal_feed_event enable always trigger signal_feed_refuse_row;
         alter table stock_market.signal_feed_event enable always trigger signal_feed_refuse_statement",
    );
    signal_feed(&database.url, &["prune", "--older-than", "72h"]).ok();
    signal_feed(&database.url, &["restored"]).ok();
    assert_eq!(database.number("select count(*) from public.ran"), 0);
    assert!(signal_feed(&database.url, &["migrate"]).failed(1).contains("signal_feed_render(record, text)"));
}

#[test]
fn doctor_names_a_session_that_locks_the_log_by_a_failing_create_trigger() {
    let screener = Screener::new("create schema evil authorization SCREENER");
    let mut holder = screener.connect();
    holder.batch_execute("create table evil.mine (i int)").unwrap();
    holder.batch_execute("begin; lock table evil.mine in access exclusive mode").unwrap();
    let mut stranger = screener.connect();
    let pid: i32 = stranger.query_one("select pg_backend_pid()", &[]).unwrap().get(0);
    let attack = thread::spawn(move || {
        let _ = stranger.batch_execute(
            "create constraint trigger t after insert on stock_market.signal_feed_event from evil.mine
                for each row execute function suppress_redundant_updates_trigger()",
        );
    });
    let held =
        format!("select count(*) from pg_locks where pid = {pid} and mode = 'ShareRowExclusiveLock' and granted");
    until("the log is locked", || (screener.database.number(&held) == 1).then_some(()));
    let (ok, text) = doctor(&screener.database, "lock");
    assert!(!ok && text.contains(&format!("pg_terminate_backend({pid})")) && text.contains(&screener.name), "{text}");
    screener.database.sql(&format!("select pg_terminate_backend({pid})"));
    attack.join().unwrap();
    holder.batch_execute("commit").unwrap();
    screener.connect().batch_execute(SIGNAL).unwrap();
}

/// A log of the sequence era with something planted in it, by the owner of `signal`.
fn sequence_era(planted: &str) -> String {
    format!(
        "create table stock_market.signal (id int);
         create table stock_market.signal_feed_event (feed_seq bigserial primary key,
            event_time timestamptz not null default now(), op text not null, signal jsonb);
         {planted}"
    )
}

#[test]
fn migrate_refuses_what_others_left_in_the_schema_before_it_runs_any_of_it() {
    for (planted, name) in [
        (
            "create table stock_market.signal_feed_choice (single boolean default true primary key, signal_inserted text default evil.boom());",
            "signal_feed_choice",
        ),
        (
            "create table stock_market.signal_feed_identity (single boolean default true primary key, feed_id uuid default gen_random_uuid(), counter_start bigint);
             create trigger t before insert on stock_market.signal_feed_identity for each row execute function evil.boom_row();",
            "signal_feed_identity",
        ),
        (
            "create view stock_market.signal_feed_event_feed_seq_seq as select evil.boom()::text as last_value, true as is_called;",
            "signal_feed_event_feed_seq_seq",
        ),
        (
            "create view stock_market.signal_feed_migration as select 1 as version, evil.boom() as checksum;",
            "signal_feed_migration",
        ),
        (
            "create function stock_market.signal_feed_touch() returns trigger language plpgsql as 'begin return new; end';",
            "signal_feed_touch",
        ),
        ("create type stock_market.signal_feed_mood as enum ('x');", "signal_feed_mood"),
        (
            "create table stock_market.other (i int);
             create index signal_feed_event_event_time_idx on stock_market.other (i);",
            "the index stock_market.signal_feed_event_event_time_idx",
        ),
        (
            "create table stock_market.signal_feed_event (feed_seq bigserial primary key, event_time timestamptz not null default now(),
                op text not null, signal jsonb check (evil.boom() is not null));",
            "signal_feed_event",
        ),
        (
            "create table stock_market.signal_feed_event (feed_seq bigserial primary key, event_time timestamptz not null default now(), op text not null, signal jsonb);
             create rule r as on insert to stock_market.signal_feed_event do also select evil.boom();",
            "signal_feed_event",
        ),
        // From here on the log would be a sound one of the sequence era.
        (
            &sequence_era(
                "create function evil.f(text) returns text language plpgsql immutable as 'begin return evil.boom(); end';
                 create statistics evil.s on (evil.f(op)) from stock_market.signal_feed_event;",
            ),
            "the statistics s",
        ),
        (
            &sequence_era(
                "create type evil.e as enum ('1');
                 create function evil.cast(evil.e) returns bigint language plpgsql as
                    $$ begin perform evil.boom(); return 1; end $$;
                 create cast (evil.e as bigint) with function evil.cast(evil.e) as implicit;
                 create table evil.consumer (seq evil.e references stock_market.signal_feed_event);",
            ),
            "the foreign key consumer_seq_fkey of evil.consumer",
        ),
        (
            &sequence_era(
                "alter table stock_market.signal_feed_event
                    add check (query_to_xml('select evil.boom()', true, false, '') is not null);",
            ),
            "calls query_to_xml",
        ),
        (
            &sequence_era(
                "create view evil.v as select evil.boom();
                 alter table stock_market.signal_feed_event
                    add x text default table_to_xml('evil.v', true, false, '')::text;",
            ),
            "calls table_to_xml",
        ),
        (
            &sequence_era("alter table stock_market.signal_feed_event add x text default set_config('jit', 'on', true);"),
            "calls set_config",
        ),
        (
            &sequence_era(
                "create domain evil.d as text check (evil.boom() is not null);
                 alter table stock_market.signal_feed_event add x evil.d;",
            ),
            "uses type evil.d",
        ),
        (
            &sequence_era(
                "create function evil.f(text) returns text language plpgsql immutable as 'begin return evil.boom(); end';
                 create index on stock_market.signal_feed_event (evil.f(op));",
            ),
            "an index of stock_market.signal_feed_event uses function evil.f(text)",
        ),
    ] {
        let database = Database::empty();
        let eve = format!("{}_eve", database.name);
        database.sql(&format!(
            "create role {eve} login; create schema evil authorization {eve}; create schema stock_market;
             grant usage, create on schema stock_market to {eve}; create table public.ran (who text); grant all on public.ran to public"
        ));
        let mut client = Client::connect(&database.url_as(&eve), NoTls).unwrap();
        client
            .batch_execute(&format!(
                "create function evil.boom() returns text language plpgsql as
                    $$ begin insert into public.ran values (current_user); return 'auto'; end $$;
                 create function evil.boom_row() returns trigger language plpgsql as
                    $$ begin insert into public.ran values (current_user); return new; end $$;
                 {planted}"
            ))
            .unwrap();
        // The planting itself runs some of it.
        database.sql("truncate public.ran");
        for command in [&["migrate", "--check"][..], &["migrate"], &["doctor"], &["serve"]] {
            let outcome = signal_feed(&database.url, command);
            assert_eq!(outcome.code, 1, "{command:?}");
            assert!(command[0] != "migrate" || outcome.stderr.contains(name) && outcome.stderr.contains(&eve), "{}", outcome.stderr);
        }
        assert_eq!(database.number("select count(*) from public.ran"), 0, "{planted}");
        assert_eq!(database.number("select count(*) from pg_class where relname = 'signal_feed_counter'"), 0);
        database.sql(&format!("drop owned by {eve} cascade; drop role {eve}"));
    }
}

#[test]
fn what_the_owner_of_the_schema_plants_after_the_installation_runs_with_nobodys_rights() {
    let (database, _) = migrated();
    let eve = format!("{}_eve", database.name);
    database.sql(&format!(
        "create role {eve} login; alter schema stock_market owner to {eve}; \
         create table public.ran (who text); grant all on public.ran to public"
    ));
    let server = Server::ready(&database, &[]);
    let mut client = Client::connect(&database.url_as(&eve), NoTls).unwrap();
    client
        .batch_execute(
            "drop function stock_market.signal_feed_cluster_now() cascade;
             create function stock_market.signal_feed_cluster_now(out system_identifier text, out timeline integer)
                language plpgsql as $$ begin insert into public.ran values (current_user); end $$",
        )
        .unwrap();
    for command in [&["doctor"][..], &["migrate", "--check"], &["migrate"]] {
        let outcome = signal_feed(&database.url, command);
        assert_eq!(outcome.code, 1, "{command:?}");
        assert!((outcome.stdout + &outcome.stderr).contains("signal_feed_cluster_now"), "{command:?}");
    }
    server.wait_log(&["WARN", "signal_feed_cluster_now"]);
    assert_eq!(database.number("select count(*) from public.ran"), 0);
    drop(server);
    database.sql(&format!("drop owned by {eve} cascade; drop role {eve}"));
}

#[test]
fn what_would_run_somebody_elses_code_at_the_log_of_an_installation_is_named() {
    let screener = Screener::new("create schema evil authorization SCREENER");
    let database = &screener.database;
    database.sql(&format!("grant references on stock_market.signal_feed_event to {}", screener.name));
    assert!(doctor(database, "privileges").1.contains("has REFERENCES on stock_market.signal_feed_event"));
    let mut client = screener.connect();
    client
        .batch_execute(
            "create function evil.f(text) returns text language sql immutable as 'select $1';
             create table evil.consumer (seq bigint references stock_market.signal_feed_event)",
        )
        .unwrap();
    // The others are an administrator's mistake, or were planted before migrate looked for them.
    for (planted, remedy, named) in [
        ("", "drop table evil.consumer", "the foreign key consumer_seq_fkey of evil.consumer"),
        (
            "create statistics public.s on (evil.f(op)) from stock_market.signal_feed_event",
            "drop statistics public.s",
            "the statistics s of stock_market.signal_feed_event uses function evil.f(text)",
        ),
        (
            "alter table stock_market.signal_feed_event add constraint c
                check (query_to_xml('select evil.f(null)', true, false, '') is not null)",
            "alter table stock_market.signal_feed_event drop constraint c",
            "calls query_to_xml",
        ),
    ] {
        database.sql(planted);
        let said = signal_feed(&database.url, &["migrate"]).failed(1);
        assert!(said.contains(named), "{said}");
        let (ok, text) = doctor(database, "installation");
        assert!(!ok && text.contains(named), "{text}");
        database.sql(remedy);
        database.migrate();
    }
}

#[test]
fn vacuum_cuts_nothing_off_a_table_that_a_commit_writes() {
    let (database, mut client) = migrated();
    // Of random text, because text that can be compressed is not stored apart.
    client
        .batch_execute(
            "insert into stock_market.signal (symbol, action, side, strategy)
             select 'A', 'entry', 'BUY', (select string_agg(gen_random_uuid()::text, '') from generate_series(n, n + 300))
             from generate_series(1, 50) as n",
        )
        .unwrap();
    database.prune_through(50);
    let tables = client
        .query(
            "select c.oid::regclass::text from pg_class as r join pg_class as c on c.oid in (r.oid, r.reltoastrelid)
             where r.oid in ('stock_market.signal_feed_event'::regclass, 'stock_market.signal_feed_counter'::regclass,
                'signal_feed_private.signal_feed_first'::regclass, 'signal_feed_private.signal_feed_outbox'::regclass)",
            &[],
        )
        .unwrap();
    assert_eq!(tables.len(), 7);
    for row in tables {
        let table: String = row.get(0);
        let size = format!("select pg_relation_size('{table}')");
        let before = count(&mut client, &size);
        client.batch_execute(&format!("vacuum {table}")).unwrap();
        assert!(before > 0 && count(&mut client, &size) == before, "{table}");
    }
}

#[test]
fn usage_on_the_schema_does_not_allow_anyone_to_hold_the_feeds_lock() {
    let screener = Screener::new("create schema evil authorization SCREENER");
    let mut holder = screener.connect();
    holder.batch_execute("create table evil.mine (i int)").unwrap();
    holder.batch_execute("begin; lock table evil.mine in access exclusive mode").unwrap();
    let mut superuser = screener.database.connect();
    for private in ["signal_feed_lock", "signal_feed_outbox", "signal_feed_first", "signal_feed_session_secret"] {
        for attempt in [
            "create temp table t () inherits (signal_feed_private.NAME, evil.mine)",
            "create constraint trigger t after insert on signal_feed_private.NAME from evil.mine for each row execute function suppress_redundant_updates_trigger()",
            "begin; lock table signal_feed_private.NAME in access share mode",
            "prepare p as select * from signal_feed_private.NAME, evil.mine",
            "alter table signal_feed_private.NAME add column x int",
            "vacuum signal_feed_private.NAME",
            "analyze signal_feed_private.NAME",
            "comment on view signal_feed_private.NAME is 'x'",
            "set constraints signal_feed_private.signal_feed_number immediate",
        ] {
            let refused = screener.connect().batch_execute(&attempt.replace("NAME", private)).unwrap_err();
            assert_eq!(refused.code().unwrap().code(), "42501", "{attempt} {private}: {refused:?}");
        }
    }
    superuser.batch_execute(&format!("set lock_timeout = '5s'; {SIGNAL}")).unwrap();
    assert_eq!(log(&mut superuser), ["1 INSERT A"]);
}

#[test]
fn maintenance_in_a_transaction_and_beside_an_old_snapshot_makes_no_commit_wait() {
    let (database, mut client) = migrated();
    let mut old = database.connect();
    old.batch_execute("begin isolation level repeatable read; select count(*) from stock_market.signal").unwrap();
    let mut maintenance = database.connect();
    maintenance.batch_execute("begin; analyze").unwrap();
    client.batch_execute(&format!("set lock_timeout = '5s'; {SIGNAL}")).unwrap();
    maintenance.batch_execute("commit").unwrap();
    maintenance.batch_execute("vacuum").unwrap();
    // It waits for the old snapshot.
    let url = database.url.clone();
    let name = database.name.clone();
    let reindex = thread::spawn(move || {
        let mut client = Client::connect(&url, NoTls).unwrap();
        client.batch_execute(&format!("reindex database concurrently {name}")).unwrap();
    });
    let waits = "select count(*) from pg_stat_activity where query like 'reindex%' and wait_event_type = 'Lock'
        and datname = current_database()";
    until("REINDEX waits for the snapshot", || (count(&mut maintenance, waits) == 1).then_some(()));
    client.batch_execute(&format!("{SIGNAL}; {SIGNAL}")).unwrap();
    old.batch_execute("commit").unwrap();
    reindex.join().unwrap();
    assert_eq!(log(&mut client).len(), 3);
}

#[test]
fn doctor_ends_in_time_and_names_the_session_that_locks_the_log_or_the_keys() {
    let (database, _client) = migrated();
    for (table, check) in [
        ("stock_market.signal_feed_event", "lock"),
        ("stock_market.signal_feed_api_key", "lock"),
        ("stock_market.signal_feed_migration", "lock"),
        ("stock_market.signal", "lock"),
        ("pg_trigger", "lock"),
        // Without this catalog PostgreSQL runs no query at all, and so names nobody.
        ("pg_proc", "connection"),
    ] {
        let mut holder = database.connect();
        let pid: i32 = holder.query_one("select pg_backend_pid()", &[]).unwrap().get(0);
        holder
            .batch_execute(&format!(
                "set application_name = 'obstinate'; begin; lock table {table} in access exclusive mode"
            ))
            .unwrap();
        let began = std::time::Instant::now();
        let (ok, text) = doctor(&database, check);
        assert!(began.elapsed() < Duration::from_secs(20), "{table}");
        if check == "connection" {
            assert!(!ok && text.contains("ps -ef"), "{text}");
            continue;
        }
        assert!(!ok && text.contains("obstinate") && text.contains(&format!("pg_terminate_backend({pid})")), "{text}");
        assert!(text.contains("AccessExclusiveLock") && text.contains(table), "{text}");
    }
}

#[test]
fn the_name_of_a_prepared_transaction_reaches_no_terminal_as_it_is() {
    let cluster = signal_feed::demo::postgres::PrivatePostgres::start(&[("max_prepared_transactions", "2")]).unwrap();
    let database = Database::migrated_in(&cluster);
    database.sql("create table public.t (i int)");
    let mut client = database.connect();
    client
        .batch_execute("begin; insert into public.t values (1); prepare transaction E'\\x1b[2J\\x1b]0;owned\\x07'")
        .unwrap();
    let said = signal_feed(&database.url, &["doctor"]).stdout;
    assert!(said.contains("u001b[2J") && !said.contains('\u{1b}'), "{said:?}");
    client.batch_execute("rollback prepared E'\\x1b[2J\\x1b]0;owned\\x07'").unwrap();
}

#[test]
fn doctor_fails_on_rights_and_objects_that_the_feed_did_not_make() {
    for (harm, word) in [
        ("grant references on stock_market.signal to pg_monitor", "pg_monitor has REFERENCES"),
        ("grant trigger on stock_market.signal to pg_monitor", "pg_monitor has TRIGGER"),
        ("grant references (id) on stock_market.signal to pg_monitor", "pg_monitor has REFERENCES"),
        ("grant create on schema stock_market to pg_monitor", "pg_monitor has CREATE"),
        ("grant usage on schema signal_feed_private to pg_monitor", "pg_monitor has USAGE"),
        (
            "create function public.door() returns void language sql security definer as ''; alter function public.door() owner to signal_feed_render",
            "door() belongs to signal_feed_render",
        ),
        (
            "create table public.loot (i int); alter table public.loot owner to signal_feed_owner",
            "loot belongs to signal_feed_owner",
        ),
    ] {
        let (database, mut client) = migrated();
        client.batch_execute(harm).unwrap();
        let (ok, text) = doctor(&database, "privileges");
        assert!(!ok && text.contains(word), "{harm}: {text}");
        let said = database.migrate();
        assert!(said.contains("nothing to do") && said.contains(word), "{harm}: {said}");
    }
    let (database, mut client) = migrated();
    let owner = format!("{}_other", database.name);
    client.batch_execute(&format!("create role {owner}; alter schema stock_market owner to {owner}")).unwrap();
    assert!(database.migrate().contains(&format!("the schema stock_market belongs to {owner}")));
    assert!(doctor(&database, "privileges").1.contains(&owner));
    client.batch_execute(&format!("alter schema stock_market owner to signal_feed_owner; drop role {owner}")).unwrap();
}

#[test]
fn a_signal_table_whose_updated_at_is_gone_can_still_be_updated() {
    for change in ["drop column updated_at", "rename column updated_at to changed_at"] {
        let (_database, mut client) = migrated();
        client.batch_execute(SIGNAL).unwrap();
        client.batch_execute(&format!("alter table stock_market.signal {change}")).unwrap();
        client.batch_execute("update stock_market.signal set price = 2").unwrap();
        assert_eq!(log(&mut client), ["1 INSERT A", "2 UPDATE A"], "{change}");
    }
}

#[test]
fn the_old_table_becomes_a_partition_of_a_new_one() {
    let (database, mut client) = migrated();
    client.batch_execute(SIGNAL).unwrap();
    client
        .batch_execute(
            "alter table stock_market.signal rename to signal_old;
             create table stock_market.signal (like stock_market.signal_old including defaults) partition by list (strategy);
             alter table stock_market.signal alter column id add generated by default as identity (start with 1000);
             -- PostgreSQL 17 attaches no table with an identity column.
             alter table stock_market.signal_old alter column id drop identity if exists;
             alter table stock_market.signal attach partition stock_market.signal_old default",
        )
        .unwrap();
    let said = database.migrate();
    assert!(said.contains("signal_old"), "{said}");
    assert!(database.migrate().contains("nothing to do"));
    let before = count(&mut client, "select max(feed_seq) from stock_market.signal_feed_event");
    client.batch_execute(SIGNAL).unwrap();
    assert_eq!(count(&mut client, "select max(feed_seq) from stock_market.signal_feed_event"), before + 1);
}

#[test]
fn numbers_stay_below_two_to_the_fifty_third() {
    let (database, mut client) = migrated();
    client.batch_execute(SIGNAL).unwrap();
    // The log has one event: the first skip that is refused would leave 2^53 to the next event.
    for skip in ["9223372036854775000", "9007199254740992", "9007199254740991", "9007199254740990"] {
        let said = signal_feed(&database.url, &["restored", "--skip", skip]).failed(1);
        assert!(said.contains("below 2^53"), "{said}");
    }
    signal_feed(&database.url, &["restored", "--skip", "9007199254740989"]).ok();
    client.batch_execute(SIGNAL).unwrap();
    assert_eq!(count(&mut client, "select max(feed_seq) from stock_market.signal_feed_event"), (1 << 53) - 1);
}

#[test]
fn a_copy_of_the_database_in_the_same_cluster_is_reported_until_acknowledged() {
    let database = Database::migrated();
    let copy = Database::copy_of(&database);
    let (ok, text) = doctor(&copy, "cluster");
    assert!(!ok && text.contains("another database of the cluster"), "{text}");
    signal_feed(&copy.url, &["restored", "--nothing-lost"]).ok();
    assert!(doctor(&copy, "cluster").0 && doctor(&database, "cluster").0);
}

#[test]
fn a_quarantined_event_is_settled_by_an_admin() {
    let (database, mut client) = migrated();
    client
        .batch_execute(
            "insert into stock_market.signal_feed_quarantine (feed_seq, error) values (7, 'capture was off')",
        )
        .unwrap();
    let said = signal_feed(&database.url, &["doctor"]).stdout;
    assert!(said.lines().any(|line| line.starts_with("WARN  quarantine ") && line.contains("1 quarantined")), "{said}");
    let (ok, text) = doctor(&database, "quarantine");
    assert!(ok && text.contains("not exists (select from stock_market.signal_feed_event"), "{text}");
    assert!(signal_feed(&database.url, &["quarantine", "settle", "8"]).failed(1).contains("8 is not quarantined"));
    signal_feed(&database.url, &["quarantine", "settle", "x"]).failed(2);
    signal_feed(&database.url, &["quarantine", "settle", "7"]).ok();
    assert_eq!(
        count(&mut client, "select count(*) from stock_market.signal_feed_quarantine where settled_at is not null"),
        1
    );
    assert!(doctor(&database, "quarantine").1.contains("every quarantined event is settled"));
}
