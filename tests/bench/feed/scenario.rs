//! What is measured, each with a fresh server.

use std::process::Stdio;
use std::time::{Duration, Instant};

use signal_feed::demo::postgres::PrivatePostgres;

use super::table::Table;
use super::world::{World, Writer};
use super::{Options, client, usage};
use crate::support::database::Database;
use crate::support::wait::until;

/// Streams of the disturbed latency.
const DISTURBED_STREAMS: usize = 100;
/// How many of them are stalled.
const STALLED_STREAMS: usize = 10;
/// How far behind a stream is that reconnects: within the newest events, which the server has in memory.
const BEHIND: usize = 1_000;

/// From INSERT to the client, with this many streams; with the most of them also the cost.
pub fn latency(options: &Options, postgres: &PrivatePostgres, table: &mut Table) {
    for &streams in &options.streams {
        let world = World::new(postgres);
        let server = world.serve(streams);
        let mut writer = Writer::new(&world.database);
        let (idle_mib, _) = usage::memory_mib(server.pid());
        let threads = server.threads();
        let clients = world.connect(&server, streams, options.rows(), &["--timed"]);
        if streams == options.most_streams() {
            let (pss_mib, rss_mib) = usage::memory_mib(server.pid());
            table.add(format!("{streams} idle streams: server's memory (PSS), MiB"), pss_mib);
            table.add(format!("{streams} idle streams: server's memory (RSS), MiB"), rss_mib);
            table.add("memory of a stream (PSS), KiB", (pss_mib - idle_mib) * 1024.0 / streams as f64);
            table.add("threads of a stream", (server.threads() - threads) as f64 / streams as f64);
        }
        let (server_cpu, database_cpu) = (usage::cpu_s(server.pid()), world.database_cpu_s());
        let commit_ms = writer.insert_at(options.rate, options.rows());
        let measured = clients.finish();
        table.check(&measured);
        let name = format!("{streams} streams, {} events/s", options.rate);
        table.add(format!("{name}: INSERT, p50, ms"), commit_ms);
        table.add_latency(&format!("{name}: INSERT → received"), &measured);
        if streams == options.most_streams() {
            let per_10_s = 10.0 / options.seconds;
            table.add(format!("{name}: server's CPU in 10 s, s"), (usage::cpu_s(server.pid()) - server_cpu) * per_10_s);
            table.add(
                format!("{name}: PostgreSQL's CPU in 10 s, s"),
                (world.database_cpu_s() - database_cpu) * per_10_s,
            );
            table.add(format!("{name}: client's CPU in 10 s, s"), measured.cpu_s * per_10_s);
        }
    }
}

/// The latency of healthy streams while others are stalled, and while another replays a long log.
pub fn disturbed(options: &Options, postgres: &PrivatePostgres, table: &mut Table) {
    let name = format!("{DISTURBED_STREAMS} streams, {} events/s", options.rate);
    for stalled in [0, STALLED_STREAMS] {
        let world = World::new(postgres);
        let server = world.serve(DISTURBED_STREAMS);
        let mut writer = Writer::new(&world.database);
        let (healthy, stalled_text) = (DISTURBED_STREAMS - stalled, stalled.to_string());
        let clients = world.connect(&server, healthy, options.rows(), &["--timed", "--stalled", &stalled_text]);
        writer.insert_at(options.rate, options.rows());
        let measured = clients.finish();
        table.check(&measured);
        table.add(format!("{name}, {stalled} of them stand still: p99 of the others, ms"), measured.latency_ms[2]);
    }
    let world = fill_log(postgres, options.log_rows);
    let server = world.serve(DISTURBED_STREAMS + 1);
    let mut writer = Writer::new(&world.database);
    let clients = world.connect(&server, DISTURBED_STREAMS, options.rows(), &["--timed"]);
    let replays = std::thread::scope(|scope| {
        let writing = scope.spawn(|| writer.insert_at(options.rate, options.rows()));
        let mut replays = 0;
        while !writing.is_finished() {
            let replay = world.connect(&server, 1, options.log_rows, &["--cursor", "0"]);
            table.check(&replay.finish());
            replays += 1;
        }
        replays
    });
    let measured = clients.finish();
    table.check(&measured);
    table.add(format!("{name}, beside one that replays: p99, ms"), measured.latency_ms[2]);
    table.add(format!("… replays of {} events meanwhile", options.log_rows), f64::from(replays));
}

/// One INSERT of many rows: from the commit to the last delivery.
pub fn burst(options: &Options, postgres: &PrivatePostgres, table: &mut Table) {
    let (streams, rows) = (options.most_streams(), options.burst);
    let world = World::new(postgres);
    let server = world.serve(streams);
    let clients = world.connect(&server, streams, rows, &[]);
    let mut writer = Writer::new(&world.database);
    let cpu_before = usage::cpu_s(server.pid());
    writer.insert(rows);
    let committed = client::now();
    let measured = clients.finish();
    table.check(&measured);
    let name = format!("{rows} rows in one commit to {streams} streams");
    table.add(format!("{name}: deliveries/s"), measured.deliveries as f64 / (measured.last_at - committed));
    table.add(format!("{name}: server's CPU, s"), usage::cpu_s(server.pid()) - cpu_before);
}

/// All streams reconnect at once, each somewhat behind.
pub fn reconnect(options: &Options, postgres: &PrivatePostgres, table: &mut Table) {
    let streams = options.most_streams();
    let world = World::new(postgres);
    let server = world.serve(streams);
    Writer::new(&world.database).insert(BEHIND);
    // So that there are enough events to be behind.
    let head = i64::try_from(BEHIND).unwrap();
    until("the log is read", || (server.stream(&world.key).connected().data["head"] == head).then_some(()));
    let began = client::now();
    let measured = world.connect(&server, streams, BEHIND, &["--cursor", "0"]).finish();
    table.check(&measured);
    let took = measured.last_at - began;
    let name = format!("{streams} streams reconnect at once, {BEHIND} events behind");
    table.add(format!("{name}: until the last has everything, s"), took);
    table.add(format!("{name}: deliveries/s"), measured.deliveries as f64 / took);
}

/// A database with a long log.
pub fn fill_log(postgres: &PrivatePostgres, rows: usize) -> World<'_> {
    let world = World::new(postgres);
    let mut writer = Writer::new(&world.database);
    for from in (0..rows).step_by(10_000) {
        writer.insert((rows - from).min(10_000));
    }
    world.database.sql("vacuum analyze");
    world
}

/// One stream from the log's beginning, beside COPY of the same rows.
pub fn replay(options: &Options, world: &World<'_>, table: &mut Table) {
    let rows = options.log_rows;
    let server = world.serve(1);
    let cpu_before = usage::cpu_s(server.pid());
    let began = client::now();
    let measured = world.connect(&server, 1, rows, &["--cursor", "0"]).finish();
    table.check(&measured);
    let replayed = rows as f64 / (measured.last_at - began);
    table.add(format!("replay of {rows} events: events/s"), replayed);
    table.add(format!("replay of {rows} events: server's CPU, s"), usage::cpu_s(server.pid()) - cpu_before);
    let copied = rows as f64 / copy_s(&world.database);
    table.add("COPY … TO STDOUT of the same rows: rows/s", copied);
    table.add("replay : COPY", replayed / copied);
}

/// How long `COPY … TO STDOUT` of the log takes, seconds: what the same bytes cost the fastest reader that PostgreSQL
/// has.
fn copy_s(database: &Database) -> f64 {
    let copy = "copy (select feed_seq, event_time, op, signal from stock_market.signal_feed_event order by feed_seq) to stdout";
    let mut psql = std::process::Command::new("psql");
    psql.args(["--no-psqlrc", "--quiet", "--command", copy, &database.url]).stdout(Stdio::null());
    let began = Instant::now();
    assert!(psql.status().unwrap().success());
    began.elapsed().as_secs_f64()
}

/// Single-row transactions a second as pgbench counts them, without the feed's triggers and with them.
pub fn producer(options: &Options, postgres: &PrivatePostgres, table: &mut Table) {
    let script = postgres.dir().join("insert.sql");
    std::fs::write(
        &script,
        "insert into stock_market.signal (symbol, action, side, price, quantity) values ('ACME', 'entry', 'BUY', 1.5, 100);",
    )
    .unwrap();
    let seconds = Duration::from_secs_f64(options.seconds).as_secs().clamp(1, 4).to_string();
    for sessions in [1, 8] {
        for (name, triggers) in [("without the feed", "disable"), ("with the feed", "enable always")] {
            let world = World::new(postgres);
            for trigger in ["!signal_feed_capture", "signal_feed_inserted"] {
                world.database.sql(&format!(
                    "do $$ begin if exists (select from pg_trigger where tgname = '{trigger}') then \
                     alter table stock_market.signal {triggers} trigger \"{trigger}\"; end if; end $$"
                ));
            }
            let mut pgbench = postgres.command(postgres.programs().join("pgbench"));
            pgbench.args(["--no-vacuum", "--protocol=prepared", "--time", &seconds, "--client", &sessions.to_string()]);
            let output = pgbench.arg("--file").arg(&script).arg(&world.database.url).output().unwrap();
            let text = String::from_utf8(output.stdout).unwrap();
            let tps =
                text.lines().find_map(|line| line.strip_prefix("tps = ")?.split_whitespace().next()?.parse().ok());
            let tps: f64 = tps.unwrap_or_else(|| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)));
            table.add(format!("INSERTs a second, {sessions} sessions, {name}"), tps);
        }
    }
}
