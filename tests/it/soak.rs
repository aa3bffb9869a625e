//! Mixed life: writers that commit, roll back and break off, with small rows and large ones; streams that come and go,
//! slow and stalled ones, delayed ones; keys that are revoked; PostgreSQL and the server restarted and killed; clocks that
//! leap; backups that are restored. In the end every stream has, byte for byte, what the table says. A stream loses only
//! what a restore lost, and is told.
//!
//! A minute of it is a test like all others. `SOAK=1h` makes it an hour, with three hundred streams.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::Hasher;
use std::net::SocketAddr;
use std::ops::RangeInclusive;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use postgres::{Client, NoTls};
use rustix::process::Signal;
use signal_feed::demo::postgres::PrivatePostgres;
use signal_feed::random::{random_between, random_u64};

use crate::live::fake_clock;
use crate::support::cluster::Cluster as _;
use crate::support::database::Database;
use crate::support::program::signal_feed;
use crate::support::server::Server;
use crate::support::sse::{Block, Item, Request, Stream};
use crate::support::wait::PATIENCE;

/// How long the short form lives.
const SHORT: Duration = Duration::from_secs(50);
/// Streams of the short form, and of the long one.
const STREAMS: (usize, usize) = (60, 300);
const WRITERS: usize = 3;
/// Keys that the streams share; one more is delayed.
const KEYS: usize = 8;
const DELAY: &str = "2s";
const OPTIONS: [&str; 14] = [
    "--queue-capacity",
    "100",
    "--write-timeout",
    "4s",
    "--heartbeat",
    "1s",
    "--max-stream-age",
    "30s",
    "--max-clients-per-key",
    "400",
    "--shutdown-grace",
    "2s",
    "--replay-connections",
    "2",
];

/// State shared by all threads.
struct Life {
    url: String,
    address: Mutex<Option<SocketAddr>>,
    /// `None` while a key is being revoked and replaced.
    keys: Mutex<Vec<Option<String>>>,
    /// Whether the writers have stopped.
    is_written: AtomicBool,
    /// The last number, once that is known.
    end: AtomicI64,
    /// Numbers that restores have lost: only who was there may be told `history_rewritten`.
    lost: Mutex<Vec<RangeInclusive<i64>>>,
    /// How long the slowest stream may take to catch up in the end.
    catch_up: Duration,
    streams: usize,
    connects: AtomicU64,
    drops: AtomicU64,
    writes: AtomicU64,
}

/// What a stream has received so far.
#[derive(Default)]
struct Account {
    /// The number behind which its chain began: 0, or the head when the stream was told `history_rewritten`.
    began: i64,
    cursor: i64,
    digest: DefaultHasher,
}

/// How a stream's client behaves.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Habit {
    Prompt,
    Slow,
    /// Takes nothing for seconds, again and again.
    StandsStill,
}

#[test]
fn mixed_life_ends_with_every_stream_having_what_the_table_says() {
    let length = std::env::var("SOAK").ok().map(|text| humantime::parse_duration(&text).unwrap());
    let streams = if length.is_some() { STREAMS.1 } else { STREAMS.0 };
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&cluster);
    database.sql("create table public.leap (by interval not null); grant select on public.leap to public");
    fake_clock(&database, "return timeofday()::timestamptz + (select coalesce(max(by), ''0'') from public.leap);");
    let mut keys: Vec<Option<String>> = (0..KEYS).map(|key| Some(database.mint(&name(key)))).collect();
    keys.push(Some(database.mint_with(&name(KEYS), &["--delay", DELAY])));
    let mut server = Server::ready(&database, &OPTIONS);
    let life = Life {
        url: database.url.clone(),
        address: Mutex::new(Some(server.address())),
        keys: Mutex::new(keys),
        is_written: AtomicBool::new(false),
        end: AtomicI64::new(i64::MAX),
        lost: Mutex::default(),
        catch_up: length.unwrap_or(PATIENCE * 4),
        streams,
        connects: AtomicU64::new(0),
        drops: AtomicU64::new(0),
        writes: AtomicU64::new(0),
    };
    let began = Instant::now();
    let mut blows = 0;
    let accounts: Vec<Account> = std::thread::scope(|scope| {
        let life = &life;
        let clients: Vec<_> = (0..streams).map(|number| scope.spawn(move || consume(life, number))).collect();
        let writers: Vec<_> = (0..WRITERS).map(|_| scope.spawn(move || write(life))).collect();
        while began.elapsed() < length.unwrap_or(SHORT) {
            std::thread::sleep(random_between(Duration::from_secs(2), Duration::from_secs(6)));
            life.strike(blows, &cluster, &database, &mut server);
            blows += 1;
        }
        life.is_written.store(true, Ordering::Release);
        for writer in writers {
            writer.join().unwrap();
        }
        // The last row has the true time, so it is due for a delayed key whatever leaps there were before.
        database.insert(1);
        life.end.store(database.head(), Ordering::Release);
        clients.into_iter().map(|client| client.join().unwrap()).collect()
    });
    let table = expected(&mut database.connect());
    let end = table.last().unwrap().0;
    let mut digests = HashMap::new();
    for (number, account) in accounts.iter().enumerate() {
        assert_eq!(account.cursor, end, "stream {number}");
        let digest = *digests.entry(account.began).or_insert_with(|| digest_after(&table, account.began));
        assert_eq!(account.digest.finish(), digest, "stream {number} had something else than the table");
    }
    let faults: Vec<String> = server.log().into_iter().filter(|line| line.contains("panicked")).collect();
    assert!(faults.is_empty(), "{faults:?}");
    tell(&format!(
        "{streams} streams for {:?}: {} events in {} transactions, {} restores, {} connects, {} times dropped, {blows} blows",
        began.elapsed(),
        table.len(),
        life.writes.into_inner(),
        life.lost.into_inner().unwrap().len(),
        life.connects.into_inner(),
        life.drops.into_inner(),
    ));
}

#[allow(clippy::print_stderr, reason = "the figures of a long run are for whoever started it")]
fn tell(what: &str) {
    eprintln!("{what}");
}

fn name(key: usize) -> String {
    format!("soak {key}")
}

fn one_in(count: u64) -> bool {
    random_u64().is_multiple_of(count)
}

impl Life {
    /// Causes one failure, each kind in turn.
    fn strike(&self, blow: usize, cluster: &PrivatePostgres, database: &Database, server: &mut Server) {
        match blow % 7 {
            0 => self.revoke(blow / 7, database),
            1 | 4 => {
                *self.address.lock().unwrap() = None;
                server.signal(if blow % 7 == 1 { Signal::KILL } else { Signal::TERM });
                server.wait_end(PATIENCE);
                *server = Server::start(database, &OPTIONS);
                *self.address.lock().unwrap() = Some(server.address());
            }
            2 | 6 => {
                cluster.stop(blow % 7 == 2);
                std::thread::sleep(random_between(Duration::ZERO, Duration::from_secs(1)));
                cluster.start_again();
            }
            3 => leap(database),
            _ => self.restore(database),
        }
    }

    /// Replaces the database by a backup that lacks the last events, and does what the operator does then.
    fn restore(&self, database: &Database) {
        database.restore(|backup| {
            let ends = backup.head();
            backup.sql(
                "alter table stock_market.signal_feed_event disable trigger user; \
                 delete from stock_market.signal_feed_event where feed_seq in \
                 (select feed_seq from stock_market.signal_feed_event order by feed_seq desc limit 30); \
                 alter table stock_market.signal_feed_event enable always trigger signal_feed_refuse_row; \
                 alter table stock_market.signal_feed_event enable always trigger signal_feed_refuse_statement; \
                 update stock_market.signal_feed_counter \
                 set value = (select coalesce(max(feed_seq), 0) from stock_market.signal_feed_event)",
            );
            self.lost.lock().unwrap().push(backup.head() + 1..=ends);
            signal_feed(&backup.url, &["restored"]).ok();
        });
    }

    /// Revokes a key and mints another of the same name.
    fn revoke(&self, round: usize, database: &Database) {
        let key = round % (KEYS + 1);
        self.keys.lock().unwrap()[key] = None;
        signal_feed(&database.url, &["key", "revoke", &name(key)]).ok();
        let delay: &[&str] = if key == KEYS { &["--delay", DELAY] } else { &[] };
        let minted = database.mint_with(&name(key), delay);
        self.keys.lock().unwrap()[key] = Some(minted);
    }

    fn key(&self, key: usize) -> Option<String> {
        self.keys.lock().unwrap()[key].clone()
    }
}

/// The clock of the database is hours ahead for a while. All rows stay inside the replay window: rows of a clock that is
/// behind would begin it.
fn leap(database: &Database) {
    let hours = random_u64() % 60;
    database.sql(&format!("insert into public.leap values (interval '{hours} hours')"));
    std::thread::sleep(random_between(Duration::from_millis(500), Duration::from_secs(3)));
    database.sql("delete from public.leap");
}

/// A screener: small transactions mostly, of which some never commit; now and then a large one.
fn write(life: &Life) {
    while !life.is_written.load(Ordering::Acquire) {
        // A write may fail: only the table counts afterwards.
        if let Ok(mut session) = Client::connect(&life.url, NoTls) {
            while !life.is_written.load(Ordering::Acquire) && session.batch_execute(&transaction()).is_ok() {
                life.writes.fetch_add(1, Ordering::Relaxed);
                // About as many deliveries a second however many streams there are.
                std::thread::sleep(random_between(Duration::ZERO, Duration::from_millis(6 * life.streams as u64)));
            }
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn transaction() -> String {
    let insert = |rows: u64, bytes: u64| {
        format!(
            "insert into stock_market.signal (symbol, action, side, quantity, price, meta) \
             select 'S' || i, 'entry', 'BUY', i, random(), jsonb_build_object('text', repeat('ü', {bytes}), 'is', md5(random()::text)) \
             from generate_series(1, {rows}) as i;"
        )
    };
    let update = "update stock_market.signal set price = random(), status = 'again' \
                  where id in (select id from stock_market.signal order by id desc limit 2);";
    let small = insert(1 + random_u64() % 3, random_u64() % 200);
    match random_u64() % 40 {
        0..=4 => format!("begin; {small} rollback;"),
        5..=9 => format!("begin; {small} savepoint here; {small} rollback to here; {update} commit;"),
        10..=14 => format!("begin; {small} {update} commit;"),
        15 => "update stock_market.signal set price = price where id > 0;".into(),
        16 => "delete from stock_market.signal where id in (select min(id) from stock_market.signal);".into(),
        17 => insert(300, 100),
        18 => insert(3, 30_000),
        // Several MiB in one event, rarely: every stream takes it.
        19 if one_in(10) => insert(1, 1_500_000),
        _ => small,
    }
}

/// A bot, over all its connections, until it has everything.
fn consume(life: &Life, number: usize) -> Account {
    let mut account = Account::default();
    let key_number = number % (KEYS + 1);
    let mut habit = match number % 10 {
        3 => Habit::Slow,
        7 => Habit::StandsStill,
        _ => Habit::Prompt,
    };
    let mut deadline = None;
    loop {
        let end = life.end.load(Ordering::Acquire);
        if account.cursor >= end {
            return account;
        }
        if end < i64::MAX {
            // Now every stream should finish.
            habit = Habit::Prompt;
            let deadline = *deadline.get_or_insert_with(|| Instant::now() + life.catch_up);
            assert!(Instant::now() < deadline, "stream {number} stands at {} of {end}", account.cursor);
        }
        let (key, address) = (life.key(key_number), *life.address.lock().unwrap());
        if let (Some(key), Some(address)) = (key, address) {
            let mut request = Request::feed(&key).last_event_id(account.cursor);
            if habit == Habit::StandsStill {
                request = request.receive_buffer(2048);
            }
            if one_in(4) {
                request = request.http_10();
            }
            match request.try_open(address) {
                Ok(stream) => {
                    life.connects.fetch_add(1, Ordering::Relaxed);
                    account.read(life, stream, habit);
                }
                Err(Some(401 | 403)) => {
                    assert_ne!(life.key(key_number), Some(key), "stream {number} was refused with a live key");
                }
                Err(_) => {}
            }
        }
        std::thread::sleep(random_between(Duration::ZERO, Duration::from_millis(300)));
    }
}

impl Account {
    /// Reads one connection to its end, or until its client leaves.
    fn read(&mut self, life: &Life, mut stream: Stream, habit: Habit) {
        let leaves = Instant::now() + random_between(Duration::from_millis(100), Duration::from_secs(20));
        while Instant::now() < leaves {
            let end = life.end.load(Ordering::Acquire);
            if self.cursor >= end || (habit != Habit::Prompt && end < i64::MAX) {
                return;
            }
            match stream.try_item(Duration::from_millis(200)) {
                Ok(Item::Block(block)) => self.take(life, &block),
                Ok(Item::Ping) | Err(false) => {}
                Err(true) => return,
            }
            match habit {
                Habit::Prompt => {}
                Habit::Slow => std::thread::sleep(Duration::from_millis(random_u64() % 10)),
                Habit::StandsStill if one_in(50) => std::thread::sleep(Duration::from_secs(2)),
                Habit::StandsStill => {}
            }
        }
    }

    fn take(&mut self, life: &Life, block: &Block) {
        match block.reason() {
            None => {
                assert_eq!(block.prev_seq(), Some(self.cursor), "a hole or a repetition: {block:?}");
                self.cursor = block.feed_seq().unwrap();
                self.digest.write(block.text.as_bytes());
            }
            Some("connected") => assert_eq!(block.id, Some(self.cursor), "{block:?}"),
            Some("dropped") => {
                let is_next = block.number("from") == self.cursor + 1;
                assert!(
                    is_next || life.lost.lock().unwrap().iter().any(|range| *range.start() == self.cursor + 1),
                    "{block:?}"
                );
                life.drops.fetch_add(1, Ordering::Relaxed);
            }
            Some("history_rewritten") => {
                assert_eq!(block.number("cursor"), self.cursor, "{block:?}");
                let is_lost = life.lost.lock().unwrap().iter().any(|range| range.contains(&self.cursor));
                assert!(is_lost, "the log still has this stream's last event: {block:?}");
                let head = block.number("head");
                *self = Self { began: head, cursor: head, digest: DefaultHasher::default() };
            }
            Some("degraded" | "recovered" | "closing") => {}
            Some(_) => panic!("nothing was lost: {block:?}"),
        }
    }
}

/// All blocks that should come from the table, with their numbers.
fn expected(session: &mut Client) -> Vec<(i64, String)> {
    let rows = session
        .query(
            "select feed_seq, format(E'id: %s\\nevent: signal\\ndata: {\"feed_seq\":%s,\"prev_seq\":%s,\"event_time\":\"%s\",\"op\":\"%s\",\"signal\":%s}\\n\\n', \
                    feed_seq, feed_seq, lag(feed_seq, 1, 0::bigint) over (order by feed_seq), \
                    to_char(event_time at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"'), op, signal) \
             from stock_market.signal_feed_event order by feed_seq",
            &[],
        )
        .unwrap();
    rows.iter().map(|row| (row.get(0), row.get(1))).collect()
}

/// The digest of all blocks behind a number.
fn digest_after(table: &[(i64, String)], began: i64) -> u64 {
    let mut digest = DefaultHasher::default();
    for (_, block) in table.iter().filter(|(feed_seq, _)| *feed_seq > began) {
        digest.write(block.as_bytes());
    }
    digest.finish()
}
