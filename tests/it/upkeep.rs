//! `prune`, `doctor` and `restored`; backup and restore.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::database::Database;
use crate::support::directory::Directory;
use crate::support::program::signal_feed;
use crate::support::server::Server;
use crate::support::wait::until;

const SIGNAL: &str = "insert into stock_market.signal (symbol, action, side) values ('A', 'entry', 'BUY')";

fn count(client: &mut Client, sql: &str) -> i64 {
    client.query_one(sql, &[]).unwrap().get(0)
}

/// Makes events older than they are, which only a superuser can do by switching the guards off.
fn age(client: &mut Client, sql: &str) {
    client
        .batch_execute(&format!(
            "begin; alter table stock_market.signal_feed_event disable trigger all; {sql};
            alter table stock_market.signal_feed_event enable always trigger signal_feed_refuse_row;
            alter table stock_market.signal_feed_event enable always trigger signal_feed_refuse_statement; commit"
        ))
        .unwrap();
}

/// Doctor's result for one check: (ok, message and fix).
fn examined(url: &str, check: &str) -> (bool, String) {
    let outcome = signal_feed(url, &["doctor", "--json"]);
    let checks: serde_json::Value = serde_json::from_str(&outcome.stdout).unwrap();
    let checks = checks.as_array().unwrap();
    assert_eq!(outcome.code == 0, checks.iter().all(|one| one["ok"] == true));
    let one = checks.iter().find(|one| one["check"] == check).unwrap_or_else(|| panic!("{check} of {checks:?}"));
    (one["ok"].as_bool().unwrap(), format!("{}; {}", one["message"], one["fix"]))
}

#[test]
fn prune_removes_old_events_from_the_old_end_and_never_what_may_be_replayed() {
    let database = Database::migrated();
    let mut client = database.connect();
    client
        .batch_execute(
            "insert into stock_market.signal (symbol, action, side) select 's', 'entry', 'BUY' from generate_series(1, 12000)",
        )
        .unwrap();
    // Old ones, one without a usable time among the young ones and one among the old, and one far in the future.
    age(
        &mut client,
        "update stock_market.signal_feed_event set event_time = now() - interval '100 hours' where feed_seq <= 11000;
        update stock_market.signal_feed_event set event_time = now() - interval '80 hours' where feed_seq between 11001 and 11500;
        update stock_market.signal_feed_event set event_time = 'infinity' where feed_seq in (500, 11000, 11800);
        update stock_market.signal_feed_event set event_time = '20000-01-01' where feed_seq = 11501",
    );
    let url = &database.url;
    let said = signal_feed(url, &["prune", "--older-than", "90h", "--dry-run"]).ok();
    assert!(said.contains("would remove 11000 events"), "{said}");
    assert_eq!(count(&mut client, "select count(*) from stock_market.signal_feed_event"), 12000);
    let said = signal_feed(url, &["prune", "--older-than", "90h"]).ok();
    assert!(said.contains("removed 11000 events"), "{said}");
    assert_eq!(count(&mut client, "select pruned_through from stock_market.signal_feed_pruned"), 11000);
    // A live key with a delay of ten hours: 72h + 10h.
    client
        .batch_execute("insert into stock_market.signal_feed_api_key (name, key_sha256, delay) values ('k', sha256(''), '10 hours')")
        .unwrap();
    let said = signal_feed(url, &["prune", "--older-than", "1h"]).ok();
    assert!(said.contains("lengthened") && said.contains("removed 0 events"), "{said}");
    client.batch_execute("update stock_market.signal_feed_api_key set revoked_at = now()").unwrap();
    let said = signal_feed(url, &["prune", "--older-than", "1h"]).ok();
    // The one in the future is as old as the one before it.
    assert!(said.contains("removed 501 events"), "{said}");
    let said = signal_feed(url, &["prune", "--older-than", "0s", "--replay-window", "0s"]).ok();
    assert!(said.contains("removed 0 events"), "{said}");
    // The rest is still immutable, and writers continue.
    client.batch_execute("delete from stock_market.signal_feed_event").unwrap_err();
    client.batch_execute(SIGNAL).unwrap();
    assert_eq!(count(&mut client, "select max(feed_seq) from stock_market.signal_feed_event"), 12001);
    assert!(examined(url, "log").0);
    assert!(signal_feed(url, &["prune"]).failed(2).contains("--older-than"));
    assert!(signal_feed(url, &["prune", "--older-than", "soon"]).failed(2).contains("soon"));
}

#[test]
fn a_prune_that_was_interrupted_is_finished_by_the_next() {
    let database = Database::migrated();
    let mut client = database.connect();
    for _ in 0..5 {
        client.batch_execute(SIGNAL).unwrap();
    }
    age(
        &mut client,
        "update stock_market.signal_feed_event set event_time = now() - interval '100 hours' where feed_seq <= 3",
    );
    client.batch_execute("select stock_market.signal_feed_prune_to(3)").unwrap();
    client.batch_execute("delete from stock_market.signal_feed_event where feed_seq = 2").unwrap();
    assert!(examined(&database.url, "log").0);
    signal_feed(&database.url, &["prune", "--older-than", "72h"]).ok();
    assert_eq!(count(&mut client, "select min(feed_seq) from stock_market.signal_feed_event"), 4);
}

#[test]
fn a_log_that_prune_has_emptied_keeps_its_head() {
    let database = Database::migrated();
    let mut client = database.connect();
    client.batch_execute(&format!("{SIGNAL}; {SIGNAL}")).unwrap();
    age(&mut client, "update stock_market.signal_feed_event set event_time = now() - interval '100 hours'");
    signal_feed(&database.url, &["prune", "--older-than", "72h"]).ok();
    assert_eq!(count(&mut client, "select count(*) from stock_market.signal_feed_event"), 0);
    assert!(examined(&database.url, "log").0);
    client.batch_execute(SIGNAL).unwrap();
    assert_eq!(count(&mut client, "select min(feed_seq) from stock_market.signal_feed_event"), 3);
    assert!(examined(&database.url, "log").0);
}

#[test]
fn doctor_finds_each_fault_and_says_what_to_do() {
    let cluster = PrivatePostgres::start(&[("fsync", "on")]).unwrap();
    for (check, harm, word) in [
        ("triggers", "alter table stock_market.signal disable trigger \"!signal_feed_capture\"", "disabled"),
        (
            "triggers",
            "alter table stock_market.signal rename to former; create table stock_market.signal (id int)",
            "missing",
        ),
        (
            "triggers",
            "alter table signal_feed_private.signal_feed_first disable trigger signal_feed_number",
            "signal_feed_number",
        ),
        ("immutability", "drop trigger signal_feed_refuse_row on stock_market.signal_feed_event", "can be changed"),
        (
            "owners",
            "create or replace function stock_market.signal_feed_capture() returns trigger language plpgsql as 'begin return null; end'",
            "signal_feed_capture",
        ),
        ("owners", "alter table stock_market.signal_feed_event owner to postgres", "belongs to postgres"),
        ("privileges", "revoke select on stock_market.signal_feed_event from signal_feed_server", "lacks SELECT"),
        ("privileges", "grant insert on stock_market.signal_feed_event to public", "PUBLIC has INSERT"),
        (
            "privileges",
            "grant execute on function stock_market.signal_feed_restored(bigint) to pg_monitor",
            "pg_monitor has EXECUTE on stock_market.signal_feed_restored(bigint)",
        ),
        (
            "privileges",
            "grant all on sequence signal_feed_private.signal_feed_outbox_seq_seq to pg_monitor",
            "pg_monitor has UPDATE on signal_feed_private.signal_feed_outbox_seq_seq",
        ),
        (
            "privileges",
            "revoke all on sequence signal_feed_private.signal_feed_outbox_seq_seq from signal_feed_capture",
            "lacks USAGE on signal_feed_private.signal_feed_outbox_seq_seq",
        ),
        ("owners", "alter table stock_market.signal_feed_event enable row level security", "row-level security"),
        ("owners", "create rule lost as on insert to stock_market.signal_feed_event do instead nothing", "rule lost"),
        ("installation", "create table stock_market.child () inherits (stock_market.signal)", "inheritance children"),
        ("installation", "drop index stock_market.signal_feed_event_event_time_idx", "event_time_idx"),
        ("log", "delete from stock_market.signal_feed_identity", "signal_feed_identity has no row"),
        ("log", "delete from stock_market.signal_feed_pruned", "signal_feed_pruned has no row"),
        ("log", "update stock_market.signal_feed_counter set value = 9", "ahead"),
        ("log", "update stock_market.signal_feed_counter set value = 1", "behind"),
        (
            "log",
            "alter table stock_market.signal_feed_event disable trigger all; delete from stock_market.signal_feed_event where feed_seq = 2",
            "numbers 2 to 2 are missing",
        ),
        (
            "clock",
            "alter table stock_market.signal_feed_event disable trigger all; update stock_market.signal_feed_event set event_time = now() + interval '1 day' where feed_seq = 3",
            "in the future",
        ),
        (
            "clock",
            "alter table stock_market.signal_feed_event disable trigger all; update stock_market.signal_feed_event set event_time = now() - interval '1 day' where feed_seq = 2",
            "jumped back",
        ),
        (
            "outbox",
            "insert into signal_feed_private.signal_feed_outbox (round, op, signal) values (1, 'INSERT', '{}')",
            "never numbered",
        ),
        ("cluster", "update stock_market.signal_feed_cluster set system_identifier = '1'", "another cluster"),
        ("cluster", "update stock_market.signal_feed_cluster set timeline = 7", "timeline 1 and not 7"),
        ("schema", "update stock_market.signal_feed_migration set version = 1000 where version = 5", "newer"),
    ] {
        let database = Database::empty_in(&cluster);
        let (ok, text) = examined(&database.url, "schema");
        assert!(!ok && text.contains("as a superuser or the owner of the database"), "{text}");
        database.migrate();
        let mut client = database.connect();
        client.batch_execute(&format!("{SIGNAL}; {SIGNAL}; {SIGNAL}")).unwrap();
        signal_feed(&database.url, &["doctor"]).ok();
        client.batch_execute(harm).unwrap();
        let (ok, text) = examined(&database.url, check);
        assert!(!ok && text.contains(word), "{harm}: {text}");
        assert!(!text.ends_with("; null"), "{harm}: {text}");
    }
}

#[test]
fn doctor_names_the_sessions_that_hold_an_old_snapshot_or_the_feeds_lock() {
    let database = Database::migrated();
    let mut holder = database.connect();
    holder
        .batch_execute("set application_name = 'forgetful'; begin isolation level repeatable read; select 1")
        .unwrap();
    assert!(examined(&database.url, "snapshots").1.contains("forgetful"));
    // Without a snapshot of its own, but with a transaction number.
    holder.batch_execute(&format!("commit; begin; {SIGNAL}")).unwrap();
    assert!(examined(&database.url, "snapshots").1.contains("forgetful"));
    holder
        .batch_execute(&format!(
            "commit; begin; {SIGNAL}; set constraints all immediate; set constraints all immediate"
        ))
        .unwrap();
    let (ok, text) = examined(&database.url, "lock");
    assert!(!ok && text.contains("forgetful"), "{text}");
    holder.batch_execute("commit").unwrap();
    assert!(examined(&database.url, "lock").0);
}

#[test]
fn doctor_names_who_makes_a_commit_wait_and_not_the_commit_that_waits() {
    let database = Database::migrated();
    let mut holder = database.connect();
    holder
        .batch_execute(
            "set application_name = 'careless'; begin; update stock_market.signal_feed_counter set value = value",
        )
        .unwrap();
    let pid: i32 = holder.query_one("select pg_backend_pid()", &[]).unwrap().get(0);
    let mut writer = database.connect();
    writer.batch_execute("set application_name = 'patient'").unwrap();
    let victim: i32 = writer.query_one("select pg_backend_pid()", &[]).unwrap().get(0);
    let commit = std::thread::spawn(move || writer.batch_execute(SIGNAL));
    let waits = format!("select count(*) from pg_stat_activity where pid = {victim} and wait_event_type = 'Lock'");
    until("the commit waits", || (database.number(&waits) == 1).then_some(()));
    let (ok, text) = examined(&database.url, "lock");
    assert!(!ok && text.contains("patient") && text.contains("and waits for") && text.contains("careless"), "{text}");
    assert!(text.contains(&format!("pg_terminate_backend({pid})")), "{text}");
    assert!(!text.contains(&format!("pg_terminate_backend({victim})")), "{text}");
    holder.batch_execute("rollback").unwrap();
    commit.join().unwrap().unwrap();
}

#[test]
fn doctor_says_that_a_commit_waits_for_a_synchronous_standby() {
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&cluster);
    let standbys = |names: &str| {
        let mut client = database.connect();
        client.batch_execute("set synchronous_commit = local").unwrap();
        client.batch_execute(&format!("alter system set synchronous_standby_names = '{names}'")).unwrap();
        client.batch_execute("select pg_reload_conf()").unwrap();
    };
    standbys("nobody");
    let setting = "select count(*) from pg_settings where name = 'synchronous_standby_names' and setting = 'nobody'";
    until("the setting counts", || (database.number(setting) == 1).then_some(()));
    let mut writer = database.connect();
    let commit = std::thread::spawn(move || writer.batch_execute(SIGNAL));
    let waits = "select count(*) from pg_stat_activity where wait_event = 'SyncRep'";
    until("the commit waits", || (database.number(waits) == 1).then_some(()));
    let (ok, text) = examined(&database.url, "lock");
    standbys("");
    commit.join().unwrap().unwrap();
    assert!(!ok && text.contains("waits for a synchronous standby"), "{text}");
    assert!(text.contains("synchronous_standby_names") && !text.contains("pg_terminate_backend"), "{text}");
}

#[test]
fn doctor_says_which_checks_it_lacks_rights_for() {
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::empty_in(&cluster);
    database.migrate();
    database.sql("revoke pg_monitor from signal_feed_admin; create role admin login in role signal_feed_admin");
    assert!(!examined(&database.url, "snapshots").1.contains("cannot be seen"));
    assert!(
        examined(&database.url_as("admin"), "snapshots").1.contains("cannot be seen: as a superuser, grant pg_monitor")
    );
}

#[test]
fn doctor_takes_20_seconds_at_most_however_slowly_the_database_answers() {
    let database = Database::migrated();
    let (_, query) = database.url.split_once('?').unwrap();
    let socket = query.split('&').find_map(|pair| pair.strip_prefix("host=")).unwrap().to_owned();
    let directory = Directory::new();
    let listener = UnixListener::bind(directory.file(".s.PGSQL.5432")).unwrap();
    let url = database.url.replace(&socket, directory.file("").trim_end_matches('/'));
    std::thread::spawn(move || {
        while let Ok((mut client, _)) = listener.accept() {
            let mut server = UnixStream::connect(format!("{socket}/.s.PGSQL.5432")).unwrap();
            let (mut from_client, mut to_server) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            std::thread::spawn(move || {
                let _ = std::io::copy(&mut from_client, &mut to_server);
                let _ = to_server.shutdown(Shutdown::Both);
            });
            std::thread::spawn(move || {
                let mut answer = [0; 65536];
                while let Ok(length @ 1..) = server.read(&mut answer) {
                    std::thread::sleep(Duration::from_millis(400));
                    let _ = client.write_all(&answer[..length]);
                }
            });
        }
    });
    let began = Instant::now();
    let (ok, text) = examined(&url, "installation");
    assert!(began.elapsed() < Duration::from_secs(20), "{:?}", began.elapsed());
    assert!(!ok && text.contains("ran out of time"), "{text}");
}

#[test]
fn a_cluster_that_is_not_recorded_is_no_other_cluster_and_migrate_records_it() {
    let database = Database::migrated();
    let server = Server::ready(&database, &["--ops-listen", "127.0.0.1:0"]);
    for (harm, words) in [
        ("delete from stock_market.signal_feed_cluster", "has no row"),
        ("drop table stock_market.signal_feed_cluster", "does not exist"),
    ] {
        database.sql(harm);
        let (ok, text) = examined(&database.url, "cluster");
        assert!(!ok && text.contains("signal_feed_cluster") && text.contains(words), "{text}");
        assert!(text.contains("signal-feed migrate") && !text.contains("restored"), "{text}");
        server.wait_log(&["[WARN] check the installation: ", "signal_feed_cluster", words, "signal-feed migrate"]);
        assert_eq!(server.status()["database"]["another_cluster"], false);
        database.migrate();
        let (ok, text) = examined(&database.url, "cluster");
        assert!(ok, "{text}");
    }
    assert!(!server.stop().iter().any(|line| line.contains("restored")));
}

#[test]
fn fsync_that_is_off_fails() {
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::empty_in(&cluster);
    database.migrate();
    let (ok, text) = examined(&database.url, "fsync");
    assert!(!ok && text.contains("fsync"), "{text}");
}

#[test]
fn restored_skips_numbers_and_records_the_range() {
    let database = Database::migrated();
    let mut client = database.connect();
    client.batch_execute(&format!("{SIGNAL}; {SIGNAL}")).unwrap();
    signal_feed(&database.url, &["restored", "--skip", "0"]).failed(2);
    signal_feed(&database.url, &["restored", "--skip", "9223372036854775807"]).failed(1);
    let said = signal_feed(&database.url, &["restored", "--skip", "100"]).ok();
    assert!(said.contains("skipped 3 to 102"), "{said}");
    assert!(examined(&database.url, "log").0);
    signal_feed(&database.url, &["restored"]).ok();
    client.batch_execute(&format!("{SIGNAL}; {SIGNAL}")).unwrap();
    assert_eq!(count(&mut client, "select max(feed_seq) from stock_market.signal_feed_event"), 1_000_104);
    assert_eq!(count(&mut client, "select max(to_seq) from stock_market.signal_feed_skipped"), 1_000_102);
    let (ok, text) = examined(&database.url, "log");
    assert!(ok, "{text}");
}

#[test]
fn after_restored_doctor_is_content_even_if_the_log_lost_its_end_or_the_counter_was_behind() {
    for (harm, skipped) in [
        // Of five events the last two are lost, while the counter knows of them: their numbers are history too.
        (
            "alter table stock_market.signal_feed_event disable trigger signal_feed_refuse_row;
             delete from stock_market.signal_feed_event where feed_seq > 3;
             alter table stock_market.signal_feed_event enable always trigger signal_feed_refuse_row",
            "skipped 4 to 105",
        ),
        ("update stock_market.signal_feed_counter set value = 2", "skipped 6 to 105"),
    ] {
        let database = Database::migrated();
        let mut client = database.connect();
        client.batch_execute(&[SIGNAL; 5].join(";")).unwrap();
        client.batch_execute(harm).unwrap();
        assert!(!examined(&database.url, "log").0);
        let said = signal_feed(&database.url, &["restored", "--skip", "100"]).ok();
        assert!(said.contains(skipped), "{harm}: {said}");
        client.batch_execute(SIGNAL).unwrap();
        assert_eq!(count(&mut client, "select max(feed_seq) from stock_market.signal_feed_event"), 106);
        let (ok, text) = examined(&database.url, "log");
        assert!(ok, "{harm}: {text}");
    }
}

/// Runs one of PostgreSQL's programs.
fn run(cluster: &PrivatePostgres, program: &str, arguments: &[&str]) {
    let output = cluster.command(cluster.programs().join(program)).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn a_dump_is_restored_into_another_cluster_by_roles_restore_migrate_restored_doctor() {
    let old = PrivatePostgres::start(&[("fsync", "on")]).unwrap();
    let new = PrivatePostgres::start(&[("fsync", "on")]).unwrap();
    let source = Database::empty_in(&old);
    source.migrate();
    let mut client = source.connect();
    for _ in 0..10 {
        client.batch_execute(SIGNAL).unwrap();
    }
    let file = old.dir().join("dump");
    run(&old, "pg_dump", &["--format=custom", "--file", file.to_str().unwrap(), &source.url]);
    let target = Database::empty_in(&new);
    let roles = signal_feed("postgresql:///nowhere", &["migrate", "--roles-sql"]).ok();
    target.connect().batch_execute(&roles).unwrap();
    run(&new, "pg_restore", &["--exit-on-error", "--dbname", &target.url, file.to_str().unwrap()]);
    target.migrate();
    assert!(!examined(&target.url, "cluster").0);
    signal_feed(&target.url, &["restored"]).ok();
    signal_feed(&target.url, &["doctor"]).ok();
    let mut client = target.connect();
    client.batch_execute(SIGNAL).unwrap();
    assert_eq!(count(&mut client, "select max(feed_seq) from stock_market.signal_feed_event"), 1_000_011);
    assert_eq!(count(&mut client, "select count(*) from stock_market.signal_feed_event"), 11);
    client.batch_execute("delete from stock_market.signal_feed_event").unwrap_err();
    // Without the roles, pg_restore complains and migrate repairs the owners.
    let bare = PrivatePostgres::start(&[("fsync", "on")]).unwrap();
    let target = Database::empty_in(&bare);
    let program = bare.programs().join("pg_restore");
    let status = bare
        .command(program)
        .args(["--no-owner", "--no-acl", "--dbname", &target.url])
        .arg(&file)
        .output()
        .unwrap()
        .status;
    assert!(status.success());
    target.migrate();
    signal_feed(&target.url, &["restored"]).ok();
    signal_feed(&target.url, &["doctor"]).ok();
}

#[test]
fn a_promoted_standby_is_on_another_timeline_until_that_is_acknowledged() {
    let primary =
        PrivatePostgres::start(&[("fsync", "on"), ("wal_level", "replica"), ("max_wal_senders", "4")]).unwrap();
    let database = Database::empty_in(&primary);
    database.migrate();
    database.connect().batch_execute(SIGNAL).unwrap();
    let copy = primary.dir().join("copy");
    let copy = copy.to_str().unwrap();
    let url = primary.url("postgres");
    run(&primary, "pg_basebackup", &["--dbname", &url, "--pgdata", copy, "--checkpoint=fast", "--write-recovery-conf"]);
    let log = primary.dir().join("standby.log");
    let options = format!(
        "-c unix_socket_directories={} -c port=5433 -c max_connections=200 -c listen_addresses=",
        primary.dir().display()
    );
    run(&primary, "pg_ctl", &["-D", copy, "-o", &options, "-l", log.to_str().unwrap(), "-w", "start"]);
    let standby = database.url.replace("port=5432", "port=5433");
    let stop = || {
        let program = primary.programs().join("pg_ctl");
        let _: Result<_, _> = primary.command(program).args(["-D", copy, "-m", "immediate", "stop"]).output();
    };
    let outcome = std::panic::catch_unwind(|| {
        until("the standby has the event", || {
            let mut client = Client::connect(&standby, NoTls).ok()?;
            (count(&mut client, "select count(*) from stock_market.signal_feed_event") == 1).then_some(())
        });
        // On a hot standby every check that can run passes, and migrate is refused.
        let mut connection = signal_feed::db::Connection::open(&standby.parse().unwrap(), "test").unwrap();
        assert_eq!(signal_feed::db::doctor::capture_fault(&mut connection).unwrap(), None);
        signal_feed::db::migrate::check_schema(&mut connection).unwrap();
        signal_feed(&standby, &["doctor"]).ok();
        assert!(signal_feed(&standby, &["migrate"]).failed(1).contains("standby"));
        run(&primary, "pg_ctl", &["-D", copy, "-w", "promote"]);
        let (ok, text) = examined(&standby, "cluster");
        assert!(!ok && text.contains("timeline 2 and not 1"), "{text}");
        signal_feed(&standby, &["restored", "--nothing-lost"]).ok();
        signal_feed(&standby, &["doctor"]).ok();
    });
    stop();
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
}

#[test]
fn the_whole_upkeep_works_without_a_superuser() {
    let cluster = PrivatePostgres::start(&[("fsync", "on")]).unwrap();
    let database = Database::empty_in(&cluster);
    database
        .connect()
        .batch_execute(&format!(
            "create role boss login createrole; alter database {} owner to boss; revoke all on schema public from public",
            database.name
        ))
        .unwrap();
    let boss = database.url_as("boss");
    signal_feed(&boss, &["migrate"]).ok();
    let mut client = Client::connect(&boss, NoTls).unwrap();
    client
        .batch_execute(
            "create role serving login in role signal_feed_server; create role admin login in role signal_feed_admin;
            create role screener login; grant usage on schema stock_market to screener;
            grant insert, update, select on stock_market.signal to screener",
        )
        .unwrap();
    let mut screener = Client::connect(&database.url_as("screener"), NoTls).unwrap();
    for _ in 0..3 {
        screener.batch_execute(SIGNAL).unwrap();
    }
    let admin = database.url_as("admin");
    for arguments in [
        &["migrate"][..],
        &["doctor"],
        &["prune", "--older-than", "72h"],
        &["key", "mint", "--name", "bot"],
        &["key", "list"],
        &["quarantine", "list"],
        &["restored"],
        &["doctor"],
    ] {
        signal_feed(&admin, arguments).ok();
    }
    screener.batch_execute(SIGNAL).unwrap();
    let mut connection =
        signal_feed::db::Connection::open(&database.url_as("serving").parse().unwrap(), "test").unwrap();
    assert_eq!(signal_feed::db::doctor::capture_fault(&mut connection).unwrap(), None);
    signal_feed::db::migrate::check_schema(&mut connection).unwrap();
    client.batch_execute("alter table stock_market.signal disable trigger \"!signal_feed_capture\"").unwrap();
    assert!(signal_feed(&boss, &["migrate"]).ok().contains("capture was off"));
    signal_feed(&admin, &["doctor"]).ok();
}

#[test]
fn a_dump_moves_to_a_cluster_without_a_superuser() {
    let old = PrivatePostgres::start(&[("fsync", "on")]).unwrap();
    let source = Database::empty_in(&old);
    source.migrate();
    source.sql(&format!("{SIGNAL}; {SIGNAL}; {SIGNAL}"));
    let file = old.dir().join("dump");
    let file = file.to_str().unwrap();
    run(&old, "pg_dump", &["--format=custom", "--file", file, &source.url]);
    // As on a managed PostgreSQL: a login with CREATEROLE that owns a database.
    let new = PrivatePostgres::start(&[("fsync", "on")]).unwrap();
    let target = Database::empty_in(&new);
    target.sql(&format!("create role boss login createrole; alter database {} owner to boss", target.name));
    let boss = target.url_as("boss");
    let mut client = Client::connect(&boss, NoTls).unwrap();
    let roles = signal_feed("postgresql:///nowhere", &["migrate", "--roles-sql"]).ok();
    client.batch_execute(&roles).unwrap();
    run(&new, "pg_restore", &["--exit-on-error", "--no-owner", "--no-acl", "--dbname", &boss, file]);
    signal_feed(&boss, &["migrate"]).ok();
    client.batch_execute("create role admin login in role signal_feed_admin").unwrap();
    let admin = target.url_as("admin");
    signal_feed(&admin, &["restored"]).ok();
    signal_feed(&admin, &["doctor"]).ok();
    client.batch_execute(SIGNAL).unwrap();
    assert_eq!(count(&mut client, "select max(feed_seq) from stock_market.signal_feed_event"), 1_000_004);
    assert!(client.batch_execute("delete from stock_market.signal_feed_event").is_err());
    assert!(signal_feed(&boss, &["migrate"]).ok().contains("nothing to do"));
}
