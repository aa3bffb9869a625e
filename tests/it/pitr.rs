//! Point-in-time recovery: clients of every kind hold cursors from a future that is lost.

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};
use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::cluster::Cluster as _;
use crate::support::database::Database;
use crate::support::program::signal_feed;
use crate::support::server::Server;
use crate::support::sse::{Block, Request, Stream};
use crate::support::wait::{PATIENCE, until};

/// The archive lies beside the data directory, in which PostgreSQL runs its commands.
const ARCHIVE: &str = "mkdir -p ../archive && cp %p ../archive/%f";
const RECOVERY: &str = "
restore_command = 'cp ../archive/%f %p'
recovery_target_name = 'good'
recovery_target_action = 'promote'
";

fn run(cluster: &PrivatePostgres, program: &str, arguments: &[&str]) {
    let output = cluster.command(cluster.programs().join(program)).args(arguments).output().unwrap();
    assert!(output.status.success(), "{program}: {}", String::from_utf8_lossy(&output.stderr));
}

/// Replaces the data by the base backup, and lets PostgreSQL recover to the restore point.
fn recover(cluster: &PrivatePostgres) {
    let (data, backup) = (cluster.dir().join("data"), cluster.dir().join("backup"));
    cluster.stop(true);
    fs::rename(&data, cluster.dir().join("lost")).unwrap();
    fs::rename(&backup, &data).unwrap();
    let settings = data.join("postgresql.auto.conf");
    let present = fs::read_to_string(&settings).unwrap();
    give(&data, "postgresql.auto.conf", &(present + RECOVERY));
    give(&data, "recovery.signal", "");
    cluster.start_again();
    until("the recovery is over", || {
        let mut client = postgres::Client::connect(&cluster.url("postgres"), postgres::NoTls).ok()?;
        let recovers: bool = client.query_one("select pg_is_in_recovery()", &[]).ok()?.get(0);
        (!recovers).then_some(())
    });
}

/// Writes a file that belongs to whom the directory belongs to.
fn give(dir: &Path, name: &str, text: &str) {
    use std::os::unix::fs::MetadataExt;
    let owner = fs::metadata(dir).unwrap();
    fs::write(dir.join(name), text).unwrap();
    chown(dir.join(name), Some(owner.uid()), Some(owner.gid())).unwrap();
}

/// A program that follows the feed in a directory of its own; killed with the test.
struct Follower {
    child: Child,
    dir: std::path::PathBuf,
}

impl Follower {
    fn start(name: &str, mut command: Command, key: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("signal-feed-pitr-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("key"), key).unwrap();
        let child = command.current_dir(&dir).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        Self { child, dir }
    }

    fn end(&mut self) -> Option<i32> {
        until("the follower's end", || self.child.try_wait().unwrap()).code()
    }
}

impl Drop for Follower {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.dir);
    }
}

fn bot(server: &Server, key: &str) -> Follower {
    let mut command = Command::new(env!("CARGO_BIN_EXE_trader-bot"));
    let url = format!("http://{}/feed", server.address());
    command.args(["--feed-url", &url, "--feed-api-key-file", "key", "--backoff-min", "50ms", "--backoff-max", "500ms"]);
    Follower::start("bot", command, key)
}

fn state(bot: &Follower) -> Value {
    let text = fs::read_to_string(bot.dir.join("trader-bot.state")).unwrap_or_default();
    serde_json::from_str(&text).unwrap_or_default()
}

/// The next block that is not about the outage.
fn next(stream: &mut Stream) -> Block {
    loop {
        let block = stream.next_block(2 * PATIENCE).unwrap();
        if !matches!(block.reason(), Some("degraded" | "recovered")) {
            return block;
        }
    }
}

fn told(stream: &mut Stream) -> Value {
    let block = next(stream);
    assert_eq!(block.id, None, "{block:?}");
    block.data
}

fn rewritten(cursor: i64, head: i64) -> Value {
    json!({"reason": "history_rewritten", "cursor": cursor, "head": head})
}

#[test]
fn after_a_point_in_time_recovery_every_cursor_from_the_lost_future_gets_history_rewritten() {
    let cluster = PrivatePostgres::start(&[
        ("fsync", "on"),
        ("wal_level", "replica"),
        ("max_wal_senders", "4"),
        ("archive_mode", "on"),
        ("archive_command", ARCHIVE),
    ])
    .unwrap();
    let database = Database::migrated_in(&cluster);
    let key = database.mint("bot");
    let late = database.mint_with("late", &["--delay", "1s"]);
    let backup = cluster.dir().join("backup");
    let (url, backup) = (cluster.url("postgres"), backup.to_str().unwrap());
    database.insert(5);
    run(&cluster, "pg_basebackup", &["-d", &url, "-D", backup, "--checkpoint=fast"]);
    database.insert(3);
    database.sql("select pg_create_restore_point('good')");

    // The future that will be lost: 9 to 18, and every client has seen it.
    let server = Server::ready(&database, &[]);
    let mut live = server.stream_from(&key, 8);
    live.connected();
    let mut delayed = server.stream_from(&late, 8);
    delayed.connected();
    let bot = bot(&server, &key);
    until("the bot has its cursor", || state(&bot)["cursor"].as_i64());
    let mut command = Command::new(env!("CARGO_BIN_EXE_signal-feed"));
    let feed = format!("http://{}/feed", server.address());
    command.args(["tail", "--feed-url", &feed, "--feed-api-key-file", "key", "--cursor", "8", "--count", "11"]);
    let mut tail = Follower::start("tail", command, &key);
    database.insert(10);
    let seen = live.signals(10);
    let time_of_12 = seen[3].data["event_time"].as_str().unwrap().to_owned();
    assert_eq!((seen[3].feed_seq(), seen[9].feed_seq()), (Some(12), Some(18)));
    assert_eq!(delayed.signals(10)[9].feed_seq(), Some(18));
    until("the bot has seen the last", || (state(&bot)["cursor"] == 18).then_some(()));
    let mut printed = BufReader::new(tail.child.stdout.take().unwrap());
    for _ in 0..10 {
        assert!(printed.read_line(&mut String::new()).unwrap() > 0);
    }
    database.sql("select pg_switch_wal()");

    recover(&cluster);
    assert_eq!(database.number("select max(feed_seq) from stock_market.signal_feed_event"), 8);
    // Open streams get history_rewritten at once, before any command was run.
    assert_eq!(told(&mut live), rewritten(18, 8));
    assert_eq!(told(&mut delayed), rewritten(18, 8));
    let doctor = signal_feed(&database.url, &["doctor"]);
    assert!(doctor.code == 1 && doctor.stdout.contains("timeline 2 and not 1"), "{}", doctor.stdout);
    signal_feed(&database.url, &["migrate"]).ok();
    signal_feed(&database.url, &["restored"]).ok();
    signal_feed(&database.url, &["doctor"]).ok();

    // A client that reconnects with a cursor from there gets it too.
    server.wait_ready();
    let asked = [
        Request::feed(&key).last_event_id(18),
        Request::feed_at("/feed?cursor=18", &key),
        Request::feed_at(&format!("/feed?cursor=12&cursor_time={time_of_12}"), &key),
    ];
    for (request, cursor) in asked.iter().zip([18, 18, 12]) {
        let mut stream = request.open(server.address());
        stream.connected();
        assert_eq!(told(&mut stream), rewritten(cursor, 8));
    }
    // A cursor from before the restore point is still good.
    let mut old = server.stream_from(&key, 6);
    old.connected();
    assert_eq!((next(&mut old).feed_seq(), next(&mut old).feed_seq()), (Some(7), Some(8)));
    // The first number after it lies above everything that was lost.
    database.insert(1);
    for stream in [&mut old, &mut live, &mut delayed] {
        let event = next(stream);
        assert_eq!((event.prev_seq(), event.feed_seq()), (Some(8), Some(1_000_009)));
    }
    let mut stream = server.stream_from(&late, 18);
    stream.connected();
    assert_eq!(told(&mut stream), rewritten(18, 1_000_009));

    until("the bot closes only", || (state(&bot)["mode"] == "close_only").then_some(()));
    assert_eq!(state(&bot)["reason"], "history_rewritten");
    let mut line = String::new();
    printed.read_line(&mut line).unwrap();
    assert!(line.contains("\"feed_seq\":1000009"), "{line}");
    assert_eq!(tail.end(), Some(1));
}
