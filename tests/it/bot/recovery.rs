//! `--recovery` from a real database, with only the rights of `signal_feed_bot`.

use std::time::{Duration, Instant};

use super::feed::{Feed, Open, row};
use super::process::{Bot, Place};
use super::real::Market;

fn recover(place: &Place, feed: &Feed, market: &Market) -> Bot {
    place.start(&feed.url, &["--recovery", "--database-url", &market.bot_url()])
}

/// The two connections of a run with `--recovery`: the first only reads the feed's identity.
fn open_both(feed: &Feed, market: &Market) -> (Option<i64>, Open) {
    let mut first = feed.accept().open();
    first.connected_as(&market.feed_id(), 1, 0, "null");
    first.wait_closed();
    let request = feed.accept();
    let cursor = request.cursor();
    let mut stream = request.open();
    stream.connected_as(&market.feed_id(), cursor.unwrap(), 0, "null");
    (cursor, stream)
}

#[test]
fn recovery_places_what_was_missed_once_oldest_first_and_leaves_close_only_mode() {
    let (feed, place, market) = (Feed::new(), Place::new(), Market::new());
    let known = market.signal("KNOWN", "entry", 0);
    let blocked = market.signal("BLOCKED", "entry", 0);
    let bot = place.start(&feed.url, &[]);
    let mut stream = feed.accept().open();
    stream.connected_as(&market.feed_id(), 0, 0, "null");
    let row_of = |id: i64| -> String {
        let sql = "select to_jsonb(s)::text from stock_market.signal s where id = $1";
        market.database.connect().query_one(sql, &[&id]).unwrap().get(0)
    };
    stream.insert(1, &row_of(known));
    stream.system("{\"reason\":\"replay_truncated\",\"requested\":1,\"earliest\":2}");
    stream.insert(2, &row_of(blocked));
    place.wait_cursor(2);
    bot.stop();
    let (known, blocked) = (format!("sf-{known}-entry"), format!("sf-{blocked}-entry"));
    assert_eq!(place.paper(), std::slice::from_ref(&known));

    let younger = market.signal("YOUNGER", "entry", 10);
    let older = market.signal("OLDER", "exit", 20);
    let _ancient = market.signal("ANCIENT", "entry", 60 * 24 * 30);
    market.execute("update stock_market.signal set action = 'exit' where symbol = 'BLOCKED'");
    let bot = recover(&place, &feed, &market);
    let (cursor, mut stream) = open_both(&feed, &market);
    assert_eq!(cursor, Some(market.counter()));
    let exit = blocked.replace("entry", "exit");
    let mut expected = vec![known, format!("sf-{older}-exit"), format!("sf-{younger}-entry"), exit];
    // The scripted time of the bot's last event is long ago, so recovery looks at the ancient row, too.
    expected.retain(|reference| place.paper().contains(reference));
    assert_eq!(expected.len(), 4, "{:?}", place.paper());
    let order: Vec<String> = place.paper().into_iter().filter(|reference| expected.contains(reference)).collect();
    assert_eq!(order, expected);
    assert!(!place.paper().contains(&blocked));
    assert_eq!(place.state()["mode"], "normal");
    assert_eq!(place.cursor(), cursor);
    let seq = cursor.unwrap() + 1;
    stream.insert(seq, &row(7777, "entry"));
    place.wait_cursor(seq);
    bot.stop();
    // Once more: everything is known.
    let placed = place.paper();
    assert!(placed.contains(&"sf-7777-entry".to_owned()));
    let bot = recover(&place, &feed, &market);
    let (cursor, _stream) = open_both(&feed, &market);
    assert_eq!(cursor, Some(market.counter()));
    assert_eq!(place.paper(), placed);
    bot.stop();
}

#[test]
fn the_lookback_bounds_what_a_fresh_bot_recovers() {
    let (feed, place, market) = (Feed::new(), Place::new(), Market::new());
    let inside = market.signal("INSIDE", "entry", 60);
    market.signal("OUTSIDE", "entry", 60 * 80);
    let _bot = recover(&place, &feed, &market);
    open_both(&feed, &market);
    assert_eq!(place.paper(), [format!("sf-{inside}-entry")]);
}

#[test]
fn a_bot_that_was_away_longer_than_the_lookback_recovers_from_its_last_event() {
    let (feed, place, market) = (Feed::new(), Place::new(), Market::new());
    let bot = place.start(&feed.url, &[]);
    let mut stream = feed.accept().open();
    stream.connected_as(&market.feed_id(), 0, 0, "null");
    // The scripted event times are of the 20th of November 2026; the row is an hour younger.
    stream.insert(1, &row(7777, "entry"));
    place.wait_cursor(1);
    bot.stop();
    let id = market.signal("MISSED", "exit", 0);
    market.execute(
        "set session_replication_role = replica; \
         update stock_market.signal set created_at = '2026-11-20 13:00Z', updated_at = '2026-11-20 13:00Z'",
    );
    let bot_url = market.bot_url();
    let _bot = place.start(&feed.url, &["--recovery", "--database-url", &bot_url, "--recovery-lookback", "1s"]);
    open_both(&feed, &market);
    assert_eq!(place.paper(), ["sf-7777-entry".to_owned(), format!("sf-{id}-exit")]);
}

#[test]
fn a_recovery_that_might_miss_rows_ends_the_bot_before_any_order() {
    let market = Market::new();
    market.signal("A", "entry", 5);
    let alter = |how: &str| {
        if !how.is_empty() {
            market.execute(&format!("alter table stock_market.signal {how}"));
        }
    };
    let other_log = "99999999-2222-3333-4444-555555555555";
    // What is done to the table before, and undone after.
    for (what, before, after, word) in [
        ("a delay", "", "", "delay"),
        ("another log", "", "", other_log),
        ("row security", "enable row level security", "disable row level security", "row-level security"),
        (
            "a time without a zone",
            "alter created_at type timestamp",
            "alter created_at type timestamptz",
            "signal.created_at to be of type timestamp with time zone",
        ),
        ("no column", "drop column updated_at", "", "column updated_at"),
    ] {
        let (feed, place) = (Feed::new(), Place::new());
        alter(before);
        let mut bot = recover(&place, &feed, &market);
        let mut stream = feed.accept().open();
        let feed_id = if what == "another log" { other_log.to_owned() } else { market.feed_id() };
        stream.connected_as(&feed_id, 1, u32::from(what == "a delay") * 900, "null");
        assert_eq!(bot.exit_code(), Some(1), "{what}");
        assert!(place.read("log").lines().last().is_some_and(|line| line.contains(word)), "{}", place.read("log"));
        assert_eq!(place.paper(), Vec::<String>::new(), "{what}");
        alter(after);
    }
}

#[test]
fn without_a_database_the_bot_does_not_start_as_if_it_had_recovered() {
    let (feed, place) = (Feed::new(), Place::new());
    let mut bot = place.start(&feed.url, &["--recovery", "--database-url", "postgres://nobody:geheim@127.0.0.1:9/x"]);
    let _stream = feed.open(5);
    assert_eq!(bot.exit_code(), Some(1));
    let log = place.read("log");
    assert!(log.contains("connect to the database") && !log.contains("geheim"), "{log}");
    assert!(feed.accept_within(std::time::Duration::from_millis(100)).is_none());
}

#[test]
fn an_unusable_row_raises_an_alert_and_does_not_stop_recovery() {
    let (feed, place, market) = (Feed::new(), Place::new(), Market::new());
    market.execute("alter table stock_market.signal add column note json");
    let id = market.signal("GOOD", "entry", 5);
    market.execute("update stock_market.signal set note = '{\"x\":\"\\u0000\"}'");
    market.execute("alter table stock_market.signal drop constraint if exists signal_side_check");
    market.execute(
        "do $$ declare c name; begin for c in select conname from pg_constraint where conrelid = \
                    'stock_market.signal'::regclass and contype = 'c' loop execute format('alter table \
                    stock_market.signal drop constraint %I', c); end loop; end $$",
    );
    market.execute("insert into stock_market.signal (symbol, action, side) values ('BAD', 'entry', 'LONG')");
    let _bot = recover(&place, &feed, &market);
    open_both(&feed, &market);
    assert_eq!(place.paper(), [format!("sf-{id}-entry")]);
    place.wait_alert("unusable_event");
}

#[test]
fn a_recovery_that_was_killed_is_repeated_and_places_each_order_once() {
    let (feed, place, market) = (Feed::new(), Place::new(), Market::new());
    market.execute(
        "insert into stock_market.signal (symbol, action, side) select 'S' || n, 'entry', 'BUY' from generate_series(1, 100) n",
    );
    // The program kills the bot itself: before it has sent the 30th and the 60th order, and after the 45th and the 75th.
    place.script(
        "broker",
        "read -r line || exit 1\n\
         ref=${line#*'\"order_ref\":\"'}; ref=${ref%%'\"'*}\n\
         case $line in *'\"type\":\"lookup\"'*) grep -qx \"$ref\" book && exit 0; exit 66;; esac\n\
         die() { [ -e \"killed.$1\" ] && return; touch \"killed.$1\"; kill -9 $PPID; exit 1; }\n\
         next=$(($(cat book | wc -l) + 1))\n\
         case $next in 30|60) die $next;; esac\n\
         echo \"$ref\" >> book\n\
         case $next in 45|75) die $next;; esac",
    );
    let bot_url = market.bot_url();
    let options = ["--broker", "exec:./broker", "--recovery", "--database-url", &bot_url];
    for _ in 0..4 {
        let mut bot = place.start(&feed.url, &options);
        let mut first = feed.accept().open();
        first.connected_as(&market.feed_id(), 1, 0, "null");
        assert_eq!(bot.exit_code(), None, "{}", place.read("log"));
    }
    let _bot = place.start(&feed.url, &options);
    assert_eq!(open_both(&feed, &market).0, Some(market.counter()));
    let mut placed: Vec<String> = place.read("book").lines().map(ToOwned::to_owned).collect();
    assert_eq!(placed.len(), 100);
    placed.sort();
    placed.dedup();
    assert_eq!(placed.len(), 100);
}

#[test]
fn an_unknown_outcome_is_looked_up_before_recovery_even_if_the_feed_is_away() {
    let (feed, place, market) = (Feed::new(), Place::new(), Market::new());
    place.script("broker", "grep -o '\"type\":\"[a-z]*\"' >> asked; exit 1");
    let bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "exit"));
    place.wait_alert("outcome_unknown");
    bot.stop();
    std::fs::remove_file(place.path("asked")).unwrap();
    let (url, bot_url) = (feed.url.clone(), market.bot_url());
    drop((feed, stream));
    let _bot = place.start(&url, &["--broker", "exec:./broker", "--recovery", "--database-url", &bot_url]);
    place.wait("a look-up", || place.read("asked").contains("lookup"));
    assert!(!place.read("asked").contains("order"));
}

#[test]
fn an_entry_that_an_interrupted_recovery_could_not_send_is_sent_by_the_next_one_and_blocked_without() {
    for again in [true, false] {
        let (feed, place, market) = (Feed::new(), Place::new(), Market::new());
        place.script("broker", "grep -o 'sf-[^\"]*' >> asked; [ -e back ] || exit 75");
        let bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
        let mut stream = feed.accept().open();
        stream.connected_as(&market.feed_id(), 1, 0, "null");
        stream.system("{\"reason\":\"replay_truncated\",\"requested\":1,\"earliest\":9}");
        place.wait_alert("replay_truncated");
        bot.stop();
        let id = market.signal("ENTRY", "entry", 5);
        let bot_url = market.bot_url();
        let options = ["--broker", "exec:./broker", "--recovery", "--database-url", &bot_url];
        let bot = place.start(&feed.url, &options);
        feed.accept().open().connected_as(&market.feed_id(), 1, 0, "null");
        place.wait("the program is asked", || !place.read("asked").is_empty());
        bot.stop();
        assert_eq!(place.state()["mode"], "close_only");
        std::fs::write(place.path("back"), "").unwrap();
        std::fs::remove_file(place.path("asked")).unwrap();
        let _bot = if again {
            let bot = place.start(&feed.url, &options);
            open_both(&feed, &market);
            bot
        } else {
            let bot = place.start(&feed.url, &options[..2]);
            assert_eq!(feed.accept().cursor(), Some(1));
            bot
        };
        let reference = format!("sf-{id}-entry\n");
        assert_eq!(place.read("asked"), if again { reference } else { String::new() });
        assert_eq!(place.journal_has("blocked", id), !again);
        assert_eq!(place.state()["mode"], if again { "normal" } else { "close_only" });
    }
}

#[test]
fn recovery_logs_what_it_will_place_and_what_it_placed() {
    let (feed, place, market) = (Feed::new(), Place::new(), Market::new());
    market.signal("A", "entry", 90);
    market.signal("B", "exit", 30);
    let _bot = recover(&place, &feed, &market);
    open_both(&feed, &market);
    let log = place.read("log");
    let counts = "recovery begins: 2 orders to place (1 entries, 1 exits, the oldest 1h 30m old)";
    assert!(log.contains(counts) && log.contains("recovery ends: placed 2 of 2 orders"), "{log}");
}

#[test]
fn a_dry_run_prints_what_recovery_would_place_and_changes_nothing() {
    let (feed, place, market) = (Feed::new(), Place::new(), Market::new());
    let known = market.signal("KNOWN", "entry", 0);
    let bot = place.start(&feed.url, &[]);
    let mut stream = feed.accept().open();
    stream.connected_as(&market.feed_id(), 0, 0, "null");
    stream.insert(1, &row(known, "entry"));
    place.wait_cursor(1);
    bot.stop();
    let missed = market.signal("MISSED", "exit", 125);
    let intent = concat!(
        r#"{"record":"intent","time":"2020-11-20T12:00:00Z","order":{"order_ref":"sf-w-exit","signal_id":"w","#,
        r#""action":"exit","symbol":"W","side":"SELL","quantity":1,"price":null,"feed_seq":2,"#,
        r#""event_time":"2020-11-20T12:00:00Z","signal":{}}}"#,
        "\n"
    );
    std::fs::write(place.path("trader-bot.journal"), place.read("trader-bot.journal") + intent).unwrap();
    let files = || {
        let entries = std::fs::read_dir(&place.dir).unwrap().map(|entry| entry.unwrap().path());
        let mut files: Vec<_> = entries.map(|path| (path.clone(), std::fs::read(path).unwrap())).collect();
        files.retain(|(path, _)| !path.ends_with("log"));
        files.sort();
        files
    };
    let before = files();
    let url = market.bot_url();
    let mut command = place.command(&["--feed-url", &feed.url, "--recovery-dry-run", "--database-url", &url]);
    let output = command.stdout(std::process::Stdio::piped()).output().unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}{}", place.read("log"));
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines.len(), 4, "{printed}");
    assert!(lines[0].starts_with("sf-w-exit ") && lines[0].ends_with(" old, waits in the journal"), "{printed}");
    assert!(lines[1].starts_with(&format!("sf-{missed}-exit ")) && lines[1].ends_with("2h 5m old"), "{printed}");
    // The order was of another symbol.
    let refused = format!("sf-{known}-entry is refused, id_reused: symbol KNOWN instead of ACME");
    assert!(lines[2].starts_with(&refused), "{printed}");
    assert!(lines[3].contains("1 orders to place (0 entries, 1 exits, the oldest 2h 5m old), 1 waiting"), "{printed}");
    assert!(lines[3].contains("1 with an id used again"), "{printed}");
    assert_eq!(files(), before);
    // A dry run creates no files.
    let empty = Place::new();
    let mut command = empty.command(&["--feed-url", &feed.url, "--recovery-dry-run", "--database-url", &url]);
    assert!(command.output().unwrap().status.success());
    assert!(!empty.path("trader-bot.journal").exists() && !empty.path("trader-bot.journal.lock").exists());
}

#[test]
fn a_floating_point_id_is_the_same_on_the_stream_and_in_recovery() {
    let (feed, place, market) = (Feed::new(), Place::new(), Market::new());
    market.execute("alter table stock_market.signal alter id drop identity");
    market.execute("alter table stock_market.signal alter id type double precision");
    market.execute("insert into stock_market.signal (id, symbol, action, side) values (1e21, 'A', 'exit', 'SELL')");
    let logged: String = market
        .database
        .connect()
        .query_one("select signal::text from stock_market.signal_feed_event order by feed_seq desc limit 1", &[])
        .unwrap()
        .get(0);
    let bot = place.start(&feed.url, &[]);
    let mut stream = feed.accept().open();
    stream.connected_as(&market.feed_id(), 0, 0, "null");
    stream.insert(1, &logged);
    place.wait_cursor(1);
    bot.stop();
    let _bot = recover(&place, &feed, &market);
    open_both(&feed, &market);
    assert_eq!(place.paper(), ["sf-1000000000000000000000-exit"]);
}

#[test]
fn a_recovery_of_many_unusable_rows_ends_at_sigterm() {
    let (feed, place, market) = (Feed::new(), Place::new(), Market::new());
    market.execute(
        "insert into stock_market.signal (symbol, action, side) select '', 'entry', 'BUY' from generate_series(1, 20000) n",
    );
    let mut bot = recover(&place, &feed, &market);
    let mut first = feed.accept().open();
    first.connected_as(&market.feed_id(), 1, 0, "null");
    place.wait("a row was journalled", || place.read("trader-bot.journal").contains("unusable"));
    bot.signal("TERM");
    assert_eq!(bot.exit_code(), Some(0));
    let journalled = place.read("trader-bot.journal").matches("unusable").count();
    assert!(journalled < 20_000, "it went on to the end");
}

#[test]
fn a_recovery_that_waits_for_the_database_ends_at_sigterm() {
    for what in ["a locked table", "a server that does not answer"] {
        let (feed, place, market) = (Feed::new(), Place::new(), Market::new());
        let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let mut locker = market.database.connect();
        let is_locked = what == "a locked table";
        let mut bot = if is_locked {
            locker.batch_execute("begin; lock table stock_market.signal in access exclusive mode").unwrap();
            recover(&place, &feed, &market)
        } else {
            let url = format!("postgres://bot@{}/market", silent.local_addr().unwrap());
            place.start(&feed.url, &["--recovery", "--database-url", &url])
        };
        let mut first = feed.accept().open();
        first.connected_as(&market.feed_id(), 1, 0, "null");
        if is_locked {
            let sql = "select count(*) from pg_locks where relation = 'stock_market.signal'::regclass and not granted";
            place.wait("the bot waits for the lock", || locker.query_one(sql, &[]).unwrap().get::<_, i64>(0) > 0);
        } else {
            silent.accept().unwrap();
        }
        let began = Instant::now();
        bot.signal("TERM");
        assert_eq!(bot.exit_code(), Some(0), "{what}: {}", place.read("log"));
        assert!(began.elapsed() < Duration::from_secs(2), "{what}: {:?}", began.elapsed());
        assert!(place.read("log").contains("stopped, cursor"), "{what}: {}", place.read("log"));
    }
}
