//! The operator's blocks: quick start, troubleshooting, installation, upgrade, alerts.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use rustix::process::Signal;
use signal_feed::demo::postgres::PrivatePostgres;

use super::desk::Desk;
use crate::support::database::Database;
use crate::support::outside::free_address;
use crate::support::program::signal_feed;
use crate::support::readme::{block, block_with, text};
use crate::support::server::Server;
use crate::support::sse::Request;
use crate::support::wait::until;

#[test]
fn the_quick_start_shows_the_demo_and_the_bot_trades_on_it() {
    let desk = Desk::new();
    desk.program(".ci/install", "#!/bin/sh\n");
    desk.stand_in(
        "cargo",
        "case \"$*\" in\n\
         'run --locked -- '*) shift 3; exec signal-feed \"$@\" ;;\n\
         'run --locked --bin trader-bot -- '*) shift 5; exec trader-bot \"$@\" ;;\n\
         esac; exit 9",
    );
    let commands = block(".ci/install && cargo run");
    let mut commands = commands.lines();
    let listen = free_address().to_string();
    let environment = [("SIGNAL_FEED_LISTEN", listen.as_str())];
    let demo = desk.start("bash", &["-c", commands.next().unwrap()], &environment);
    // The second command is what .ci/run runs.
    assert_eq!(commands.next(), Some(".ci/install tests && cargo test --locked --features ibkr,tls"));
    desk.wait_for("out", "cursor=0");
    let said = desk.read("out");
    let key = said.split_whitespace().find(|word| word.starts_with("sf_")).unwrap();
    let address = said.lines().find_map(|line| line.trim().strip_prefix("watch page")).unwrap();
    let address = address.trim().trim_start_matches("http://").trim_end_matches('/');

    let sample = block_with("$ curl -N", &[("sf_…", key), ("127.0.0.1:8080", address)]);
    let (line, blocks) = sample.split_once('\n').unwrap();
    let curl = desk.start("bash", &["-c", &line["$ ".len()..]], &[]);
    desk.wait_for("out", "event: signal");
    desk.wait_for("out", "data: {\"feed_seq\":");
    drop(curl);
    let out = desk.read("out");
    let data = out.lines().find(|line| line.starts_with("data: {\"feed_seq\":")).unwrap();
    let keys = |line: &str| line.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    // As far as the sample goes.
    let printed = keys(blocks.lines().find(|line| line.starts_with("data: ")).unwrap());
    let names = ["feed_seq", "prev_seq", "event_time", "op"];
    assert!(names.iter().all(|name| printed.iter().any(|key| key == name)), "{printed:?}");
    assert!(names.iter().all(|name| keys(data).iter().any(|key| key == name)), "{data}");

    let bot = block_with("echo 'sf_…' > bot.key", &[("sf_…", key), ("127.0.0.1:8080", address)]);
    let _bot = desk.start("bash", &["-c", &bot], &[]);
    desk.wait_for("trader-bot.paper", "\"order_ref\"");
    demo.signal(Signal::INT);
}

#[test]
fn the_query_for_a_bot_that_missed_signals_finds_them() {
    let database = Database::migrated();
    for (symbol, time) in
        [("OLD", "2026-11-20 10:59+00"), ("NEW", "2026-11-20 12:30+00"), ("LATE", "2026-11-20 11:01+00")]
    {
        database.sql(&format!(
            "insert into stock_market.signal (symbol, action, side, created_at, updated_at) \
             values ('{symbol}', 'entry', 'BUY', '{time}', '{time}')"
        ));
    }
    let rows = database.connect().query(block("select * from stock_market.signal").trim().trim_end_matches(';'), &[]);
    let symbols: Vec<String> = rows.unwrap().iter().map(|row| row.get("symbol")).collect();
    assert_eq!(symbols, ["LATE", "NEW"]);
}

#[test]
fn the_restore_brings_a_backup_into_another_database() {
    let (old, new) = (PrivatePostgres::start(&[]).unwrap(), PrivatePostgres::start(&[("fsync", "on")]).unwrap());
    let (from, to) = (Database::migrated_in(&old), Database::empty_in(&new));
    from.insert(3);
    let desk = Desk::new();
    desk.run("pg_dump -Fc -f market.dump \"$FROM\"", &[("FROM", &from.url)]);
    desk.run(&block("signal-feed migrate --roles-sql"), &[("OWNER", &to.url)]);
    to.insert(1);
    assert_eq!(to.number("select count(*) from stock_market.signal_feed_event"), 4);
    assert_eq!(to.head(), 1_000_004);
}

#[test]
fn the_commands_for_a_full_disk_prune_and_rewrite_the_log() {
    let database = Database::migrated();
    database.log_rows("select n, now() - interval '8 days', 'INSERT', 'null' from generate_series(1, 5000) as n");
    database.insert(1);
    let size = || database.number("select pg_total_relation_size('stock_market.signal_feed_event')");
    let before = size();
    let environment = [("ADMIN", database.url.as_str()), ("OWNER", database.url.as_str())];
    // While an autovacuum of this database holds a snapshot, the rows that prune removed keep their space.
    until("the log shrinks", || {
        Desk::new().run(&block("signal-feed prune --older-than"), &environment);
        assert_eq!(database.number("select count(*) from stock_market.signal_feed_event"), 1);
        (size() < before / 2).then_some(())
    });
}

#[test]
fn the_package_is_built_and_installed_as_its_check_does_it() {
    let desk = Desk::new();
    for program in ["cargo", "dpkg"] {
        desk.stand_in(program, "");
    }
    desk.program(".ci/package", "#!/bin/sh\nmkdir -p target/debian; touch target/debian/signal-feed_1_amd64.deb\n");
    desk.run(&block("cargo install cargo-deb"), &[]);
    let expected = ["cargo install cargo-deb --locked", "dpkg -i target/debian/signal-feed_1_amd64.deb"];
    assert_eq!(desk.calls(), expected);
    let check = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(".ci/check-package")).unwrap();
    assert!(check.contains("\n.ci/package") && check.contains(" dpkg -i target/debian/signal-feed_*.deb\n"));
}

#[test]
fn the_first_installation_ends_with_a_feed_that_is_live() {
    let cluster = PrivatePostgres::start(&[("fsync", "on")]).unwrap();
    let socket = cluster.dir().to_str().unwrap().to_owned();
    let port = cluster.url("").split("port=").nth(1).unwrap().split('&').next().unwrap().to_owned();
    postgres::Client::connect(&cluster.url("postgres"), postgres::NoTls)
        .unwrap()
        .batch_execute("create database market")
        .unwrap();
    let desk = Desk::new();
    let etc = desk.path("etc").to_str().unwrap().to_owned();
    fs::create_dir(&etc).unwrap();
    let environment = [("PGHOST", socket.as_str()), ("PGPORT", &port), ("PGUSER", "postgres")];
    let owner = format!("host={socket} port={port} user=postgres dbname=market");
    let local = format!("@/market?host={socket}&port={port}");
    // Instead of systemd, the server itself, with the file that the unit hands it.
    let (feed, ops) = (free_address().to_string(), free_address().to_string());
    desk.stand_in(
        "systemctl",
        &format!(
            "case \"$*\" in *signal-feed.service*) \n\
             SIGNAL_FEED_DATABASE_URL_FILE={etc}/database-url signal-feed serve --listen {feed} --ops-listen {ops} >&2 2>serve.log & \n\
             until curl -sf http://{feed}/readyz; do sleep 0.05; done ;; esac"
        ),
    );
    let status = format!("http://{ops}");
    let first = "sudo -u postgres signal-feed migrate --database-url 'host=/run/postgresql dbname=market'\nsudo";
    let replacements = [
        ("host=/run/postgresql dbname=market", owner.as_str()),
        ("@localhost/market", &local),
        ("/etc/signal-feed", &etc),
    ];
    let install = block_with(first, &replacements);
    // One group of processes: the server ends with it.
    let mut job = desk.start(
        "bash",
        &["-euo", "pipefail", "-c", &format!("{install}\necho done; sleep 60")],
        &[environment[0], environment[1], environment[2], ("SIGNAL_FEED_URL", &status)],
    );
    desk.wait_for("out", "done");
    for file in ["database-url", "admin-database-url"] {
        let mode =
            std::os::unix::fs::PermissionsExt::mode(&fs::metadata(desk.path("etc").join(file)).unwrap().permissions());
        assert_eq!(mode & 0o777, 0o600, "{file}");
    }
    let out = desk.read("out");
    assert!(out.contains("live") && out.contains("bot-1"), "{out}");
    let key = out.lines().find(|line| line.starts_with("sf_")).unwrap();
    let mut stream = Request::feed(key).open(feed.parse().unwrap());
    stream.connected();
    let mut screener =
        postgres::Client::connect(&cluster.url("market").replace("user=postgres", "user=screener"), postgres::NoTls)
            .unwrap();
    screener.batch_execute(&block("insert into stock_market.signal")).unwrap();
    assert_eq!(stream.signal().symbol(), "ACME");
    let units = ["signal-feed.socket signal-feed.service", "signal-feed-prune.timer signal-feed-doctor.timer"];
    assert_eq!(desk.calls(), units.map(|units| format!("systemctl enable --now {units}")));
    job.signal(Signal::TERM);
    job.wait();
}

#[test]
fn the_commands_without_the_package_start_a_feed() {
    let database = Database::migrated();
    let desk = Desk::new();
    desk.stand_in("cargo", "");
    let install = "cargo install --locked --features tls --path .";
    assert!(text().replace('\n', " ").contains(&format!("Run `{install}`, then the example of `signal-feed --help`.")));
    let help = signal_feed("", &["--help"]).ok();
    let (_, example) = help.split_once("\nExamples:\n").unwrap();
    let (demo, example) = example.split_once('\n').unwrap();
    assert!(demo.trim_start().starts_with("signal-feed demo "), "{demo}");
    let url = database.url.replace('&', "\\&");
    let mut commands = format!("{install}\n{example}");
    for (from, to) in [("postgres://owner@localhost/market", url.as_str()), ("0.0.0.0:8080", "127.0.0.1:0")] {
        assert!(commands.contains(from), "{commands}");
        commands = commands.replace(from, to);
    }
    let _job = desk.start("bash", &["-euc", &commands], &[]);
    desk.wait_for("err", "listening on ");
    let log = desk.read("err");
    let address = log.split("listening on ").nth(1).unwrap().split_whitespace().next().unwrap();
    let key = desk.read("out").lines().find(|line| line.starts_with("sf_")).unwrap().to_owned();
    Request::feed(&key).open(address.parse().unwrap()).connected();
}

#[test]
fn the_upgrade_migrates_and_then_restarts() {
    let database = Database::migrated();
    let desk = Desk::new();
    for program in ["dpkg", "systemctl"] {
        desk.stand_in(program, "");
    }
    let url = [("host=/run/postgresql dbname=market", database.url.as_str())];
    desk.run(&block_with("sudo dpkg -i signal-feed_NEW.deb", &url), &[]);
    assert_eq!(desk.calls(), ["dpkg -i signal-feed_NEW.deb", "systemctl restart signal-feed"]);
}

#[test]
fn the_uninstallation_ends_the_capture() {
    let database = Database::migrated();
    database.insert(2);
    database.sql(&block("drop trigger"));
    database.insert(2);
    assert_eq!(database.head(), 2);
    assert_eq!(database.number("select count(*) from stock_market.signal"), 4);
}

#[test]
fn the_bots_service_is_installed_with_its_key() {
    let desk = Desk::new();
    desk.stand_in("systemctl", "");
    let etc = desk.path("etc").to_str().unwrap().to_owned();
    fs::create_dir(&etc).unwrap();
    desk.run(&block_with("echo 'sf_…' | sudo install", &[("/etc/signal-feed", &etc), ("sf_…", "sf_key")]), &[]);
    assert_eq!(desk.read("etc/trader-bot.key"), "sf_key\n");
    assert_eq!(desk.calls(), ["systemctl enable --now trader-bot"]);
}

/// The answer to one POST, and its body.
fn one_post(listener: &TcpListener) -> String {
    let (mut stream, _) = listener.accept().unwrap();
    let mut text = String::new();
    let mut bytes = [0; 4096];
    while !text.contains('}') {
        let count = stream.read(&mut bytes).unwrap();
        assert!(count > 0, "{text}");
        text.push_str(std::str::from_utf8(&bytes[..count]).unwrap());
    }
    stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n").unwrap();
    text.split_once("\r\n\r\n").unwrap().1.trim().to_owned()
}

#[test]
fn the_alert_program_posts_to_a_chat() {
    let desk = Desk::new();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let chat = format!("http://{}/hook", listener.local_addr().unwrap());
    desk.program("alert", &block_with("#!/bin/sh\njq", &[("https://chat.example/hook", &chat)]));
    let database = Database::migrated();
    let mut command = Server::command(&database.url, "127.0.0.1:0");
    command.arg("--alert-command").arg(desk.path("alert")).env("PATH", std::env::var("PATH").unwrap());
    let server = Server::spawn(command);
    server.wait_ready();
    database.sql("alter table stock_market.signal disable trigger all");
    let body = one_post(&listener);
    assert!(body.starts_with("{\"text\":\"CRITICAL capture_off: "), "{body}");
}

/// What `systemd-analyze verify` says about all units of the package with these drop-ins.
fn verify(desk: &Desk, more: &[(&str, &str)]) -> String {
    let units = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    let mut names = Vec::new();
    for entry in fs::read_dir(units).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_owned();
        if [".service", ".socket", ".timer"].iter().any(|ending| name.ends_with(ending)) {
            let text = fs::read_to_string(&path).unwrap();
            let text = text.replace("/usr/bin/signal-feed ", concat!(env!("CARGO_BIN_EXE_signal-feed"), " "));
            desk.write(
                &format!("units/{name}"),
                &text.replace("/usr/bin/trader-bot", env!("CARGO_BIN_EXE_trader-bot")),
            );
            names.push(name);
        }
    }
    for (name, text) in more {
        desk.write(&format!("units/{name}"), text);
    }
    let directory = desk.path("units");
    let output = Command::new("systemd-analyze")
        .args(["verify", "--man=no"])
        .args(names.iter().map(|name| directory.join(name)))
        .env("SYSTEMD_UNIT_PATH", format!("{}:", directory.display()))
        .output()
        .unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn drop_ins_and_units_are_clean_for_systemd_analyze() {
    let desk = Desk::new();
    let files = [
        ("signal-feed.socket.d/override.conf", block("[Socket]")),
        ("trader-bot.service.d/override.conf", block("[Service]\nLoadCredential")),
    ];
    let texts: Vec<(&str, &str)> = files.iter().map(|(name, text)| (*name, text.as_str())).collect();
    assert_eq!(verify(&desk, &texts), "");
    // It really reads them.
    for (name, text) in texts {
        let broken = verify(&desk, &[(name, &text.replace('=', "x="))]);
        assert!(broken.contains(name.rsplit('/').next().unwrap()), "{name}: {broken}");
        desk.write(&format!("units/{name}"), text);
    }
}

#[test]
fn a_signal_from_psql_and_one_from_psycopg_become_events() {
    let database = Database::migrated();
    let desk = Desk::new();
    let environment = [("DATABASE_URL", database.url.as_str())];
    desk.write("insert.sql", &block("insert into stock_market.signal"));
    desk.run("psql -v ON_ERROR_STOP=1 \"$DATABASE_URL\" -f insert.sql", &environment);
    desk.write("write.py", &block("import os, time, psycopg"));
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients/python/bin/python");
    desk.run(&format!("{} write.py", python.display()), &environment);
    let prices = "select count(*) from stock_market.signal_feed_event \
                  where signal ->> 'price' = '12.50' and signal ->> 'strategy' = 'breakout'";
    assert_eq!(database.number(prices), 2);

    // A lock in the way of a writer with a lock_timeout, for a while: it tries again.
    database.sql(&format!("alter database {} set lock_timeout = '50ms'", database.name));
    let mut other = database.connect();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute("lock table stock_market.signal").unwrap();
    let mut job = desk.start(python.to_str().unwrap(), &["write.py"], &environment);
    let waits = "select count(*) from pg_stat_activity \
                 where datname = current_database() and wait_event_type = 'Lock'";
    until("the writer waits", || (database.number(waits) > 0).then_some(()));
    until("the writer has given up once", || (database.number(waits) == 0).then_some(()));
    lock.rollback().unwrap();
    assert!(job.wait().success());
    assert_eq!(database.number(prices), 3);
    assert_eq!(signal_feed(&database.url, &["quarantine", "list"]).code, 0);
}
