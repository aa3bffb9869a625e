//! The pages for people, in a real browser: the watch page and the status page.

use std::time::Duration;

use serde_json::{Value, json};

use crate::support::browser::Browser;
use crate::support::database::Database;
use crate::support::program::signal_feed;
use crate::support::server::Server;
use crate::support::wait::{until, until_within};

/// Types a key into the watch page and begins to watch, without a mouse.
fn log_in(browser: &Browser, key: &str) {
    until("the page asks for a key", || browser.text("state").contains("Paste a key").then_some(()));
    browser.eval("document.getElementById('key').focus()");
    browser.type_keys(key);
    browser.type_keys("\u{e007}");
    browser.wait_text("state", |state| state == "Connected.");
}

#[test]
fn watch_page_shows_signals_proves_completeness_and_survives_a_killed_server() {
    let database = Database::migrated();
    let key = database.mint("viewer");
    let server = Server::ready(&database, &[]);
    let address = server.address();
    let browser = Browser::open(1200, 900);
    browser.go(address, "/");
    log_in(&browser, &key);
    // What is written from now on is live for the page, not replayed.
    browser.wait_text("cursor", |cursor| cursor == "0");
    database.insert(20);
    browser.wait_text("count", |count| count == "20");
    assert_eq!((browser.text("missed"), browser.text("reconnects")), ("0".into(), "0".into()));
    assert_eq!(browser.text("verdict"), "Complete: 20 signals, none missing, 0 reconnects.");
    assert_eq!(browser.eval("return document.querySelectorAll('#rows tr').length"), 20);
    browser.picture("watch");

    // The viewer keeps the page open; what is written meanwhile is replayed.
    server.kill();
    browser.wait_text("state", |state| state.contains("Reconnecting") || state.contains("cannot be reached"));
    database.insert(30);
    let _server = Server::spawn(Server::command(&database.url, &address.to_string()));
    browser.wait_text("count", |count| count == "50");
    browser.wait_text("verdict", |verdict| verdict == "Complete: 50 signals, none missing, 1 reconnect.");
    assert_eq!(
        (browser.text("missed"), browser.text("repeated"), browser.text("replayed")),
        ("0".into(), "0".into(), "30".into())
    );
    assert_eq!(browser.text("cursor"), "50");
    browser.picture("watch-after-restart");
    browser.color_scheme("dark");
    browser.picture("watch-dark");
}

#[test]
fn a_signals_text_is_never_html_and_the_page_loads_nothing_from_elsewhere() {
    let database = Database::migrated();
    let key = database.mint("viewer");
    let server = Server::ready(&database, &[]);
    let browser = Browser::open(1200, 900);
    browser.go(server.address(), "/");
    log_in(&browser, &key);
    let hostile = "<img src=x onerror=\"document.title='taken'\"><script>document.title='taken'</script>";
    database
        .connect()
        .execute(
            "insert into stock_market.signal (symbol, action, side, strategy) values ($1, 'entry', 'BUY', $1)",
            &[&hostile],
        )
        .unwrap();
    browser.wait_text("count", |count| count == "1");
    until("the row is there", || browser.text("rows").contains(hostile).then_some(()));
    assert_eq!(browser.eval("return document.querySelectorAll('#rows img, #rows script').length"), 0);
    assert_eq!(browser.eval("return document.title"), "✓ signal-feed");
    // Its policy blocks everything that is not in the file, even if the page had a fault.
    browser.eval("const made = document.createElement('script'); made.textContent = \"document.title='taken'\"; document.body.append(made)");
    assert_eq!(browser.eval("return document.title"), "✓ signal-feed");
    assert!(browser.console().iter().any(|line| line.contains("Content Security Policy")), "{:?}", browser.console());
    let asked = browser.eval("return performance.getEntriesByType('resource').map(entry => new URL(entry.name).host)");
    let own = format!("localhost:{}", server.address().port());
    assert!(asked.as_array().unwrap().iter().all(|host| host == &own), "{asked}");
}

#[test]
fn watch_page_begins_with_the_whole_window_and_marks_what_it_missed() {
    let database = Database::migrated();
    let key = database.mint("viewer");
    database.insert(40);
    let server = Server::ready(&database, &[]);
    let browser = Browser::open(400, 800);
    browser.go(server.address(), "/");
    until("the page asks for a key", || browser.text("state").contains("Paste a key").then_some(()));
    browser.eval("document.getElementById('begin').value = 'all'");
    log_in(&browser, &key);
    browser.wait_text("count", |count| count == "40");
    assert_eq!((browser.text("replayed"), browser.text("missed")), ("40".into(), "0".into()));
    database.log_row(41, "now()", "null");
    browser.wait_text("rows", |rows| rows.contains("cannot be delivered to anybody"));
    assert_eq!(browser.text("missed"), "0");
    browser.wait_text("cursor", |cursor| cursor == "41");
}

#[test]
fn a_fresh_page_begins_without_an_alarm_behind_numbers_that_a_restore_skipped() {
    let database = Database::migrated();
    let key = database.mint("viewer");
    database.insert(30);
    signal_feed(&database.url, &["restored"]).ok();
    database.insert(1);
    let server = Server::ready(&database, &[]);
    let browser = Browser::open(1200, 900);
    browser.go(server.address(), "/");
    log_in(&browser, &key);
    server.wait_log(&["history rewritten"]);
    database.insert(1);
    browser.wait_text("count", |count| count == "1");
    assert_eq!(browser.text("verdict"), "Complete: 1 signal, none missing, 0 reconnects.");
}

#[test]
fn a_fresh_page_begins_with_the_last_20_signals_and_shows_every_digit() {
    let database = Database::migrated();
    let key = database.mint("viewer");
    database.insert(50);
    database.sql(
        "alter table stock_market.signal add column venue text;
         insert into stock_market.signal (symbol, action, side, quantity, price, venue)
             values ('DIGITS', 'exit', 'SELL', 12345678901234567890.123456789, 0.10, 'XNYS');
         update stock_market.signal set price = 0.20 where symbol = 'DIGITS'",
    );
    let server = Server::ready(&database, &[]);
    let browser = Browser::open(1280, 900);
    browser.go(server.address(), "/");
    log_in(&browser, &key);
    browser.wait_text("count", |count| count == "20");
    assert_eq!(browser.text("verdict"), "Complete: 20 signals, none missing, 0 reconnects.");
    let head = browser.eval("return [...document.querySelectorAll('#head th')].map(cell => cell.textContent)");
    let head: Vec<&str> = head.as_array().unwrap().iter().map(|title| title.as_str().unwrap()).collect();
    assert!(head[1].starts_with("Time (") && head[1].len() > 7, "the zone is named: {head:?}");
    assert_eq!(head[2..6], ["symbol", "action", "side", "quantity"]);
    assert!(head.contains(&"venue"), "{head:?}");
    let row = "return document.querySelector('#rows tr').innerText";
    let newest = browser.eval(row).as_str().unwrap().to_owned();
    for text in ["✎", "12345678901234567890.123456789", "0.20", "▼ SELL", "XNYS"] {
        assert!(newest.contains(text), "{text} is not in {newest}");
    }
    // A click shows the whole row, and its JSON as it was sent.
    browser.eval("document.querySelector('#rows tr').click()");
    let detail = browser.eval("return document.querySelector('tr.detail').innerText").as_str().unwrap().to_owned();
    for text in ["operation", "UPDATE", "created_at", "\"quantity\": 12345678901234567890.123456789"] {
        assert!(detail.contains(text), "{text} is not in {detail}");
    }
    browser.picture("watch-detail");
    browser.eval("document.querySelector('#rows tr').click()");
    assert_eq!(browser.eval("return document.querySelectorAll('tr.detail').length"), 0);
    browser.eval("document.getElementById('search').focus()");
    browser.type_keys("digits");
    browser.wait_text("found", |found| found == "2 matches in the last 20");
    assert_eq!(browser.eval("return document.querySelectorAll('#rows tr').length"), 2);
    // Rows that do not match stay hidden during a search.
    database.insert(1);
    browser.wait_text("count", |count| count == "21");
    assert_eq!(browser.eval("return document.querySelectorAll('#rows tr').length"), 2);
    // Opening the page sent no request that needs a key.
    assert!(!server.log().iter().any(|line| line.contains("missing_key")), "{:?}", server.log());
}

#[test]
fn signals_stand_above_the_fold_of_a_phone_and_nothing_breaks() {
    let database = Database::migrated();
    let key = database.mint("viewer");
    database.insert(20);
    let server = Server::ready(&database, &[]);
    let browser = Browser::phone();
    browser.go(server.address(), "/");
    log_in(&browser, &key);
    browser.wait_text("count", |count| count == "20");
    browser.picture("watch-phone");
    assert_eq!(browser.eval("return document.documentElement.scrollWidth <= window.innerWidth"), true);
    let third = "return document.querySelectorAll('#rows tr')[2].getBoundingClientRect().bottom";
    assert!(browser.eval(third).as_f64().unwrap() < 420.0, "{}", browser.eval(third));
    let shown = browser.eval(
        "return [...document.querySelectorAll('#head th')].filter(cell => cell.offsetWidth > 0).map(cell => cell.textContent)",
    );
    assert_eq!(shown.as_array().unwrap()[1..], ["symbol", "action", "side", "quantity", "price"].map(Value::from));
    // One line a row: a word or number that broke would make it higher.
    let heights =
        browser.eval("return Math.max(...[...document.querySelectorAll('#rows tr')].map(row => row.offsetHeight))");
    assert!(heights.as_f64().unwrap() < 32.0, "{heights}");
    browser.color_scheme("dark");
    browser.picture("watch-phone-dark");
}

#[test]
fn capture_that_is_off_is_told_in_red_and_counted_as_missed() {
    let database = Database::migrated();
    let key = database.mint("viewer");
    let server = Server::ready(&database, &[]);
    let browser = Browser::open(1280, 900);
    browser.go(server.address(), "/");
    log_in(&browser, &key);
    assert_eq!(browser.text("verdict"), "No signals yet.");
    database.insert(3);
    browser.wait_text("count", |count| count == "3");
    database.sql("alter table stock_market.signal disable trigger all");
    until("the alarm", || (browser.eval("return document.getElementById('alarm').hidden") == false).then_some(()));
    assert!(browser.text("alarm").contains("SIGNALS ARE BEING LOST: capture is switched off"));
    browser.wait_text("missed", |missed| missed == "1");
    browser.picture("watch-capture-off");
    database.insert(1);
    signal_feed(&database.url, &["migrate"]).ok();
    browser.wait_text("rows", |rows| rows.contains("SIGNALS WERE LOST: capture was switched off for a while"));
    until("the alarm ends", || (browser.eval("return document.getElementById('alarm').hidden") == true).then_some(()));
    assert_eq!((browser.text("missed"), browser.text("undeliverable")), ("1".into(), "0".into()));
    assert_eq!(browser.text("verdict"), "NOT complete: 1 gap in 3 signals, 0 reconnects.");
    assert_eq!(browser.eval("return document.title"), "✓ ! signals missed – signal-feed");
    // A page that was opened later shows it too.
    browser.go(server.address(), "/");
    browser.wait_text("missed", |missed| missed == "1");
    browser.picture("watch-capture-was-off");
}

#[test]
fn a_tab_hidden_for_a_minute_closes_its_connection_and_continues_later() {
    let database = Database::migrated();
    let key = database.mint("viewer");
    let server = Server::ready(&database, &["--ops-listen", "127.0.0.1:0"]);
    let browser = Browser::open(1280, 900);
    browser.go(server.address(), "/");
    log_in(&browser, &key);
    let visible = |state: &str| {
        browser.eval(&format!(
            "Object.defineProperty(document, 'visibilityState', {{ value: '{state}', configurable: true }}); \
             document.dispatchEvent(new Event('visibilitychange'))"
        ));
    };
    let streams = || server.status()["clients"].as_array().unwrap().len();
    until("the stream is open", || (streams() == 1).then_some(()));
    visible("hidden");
    until_within(Duration::from_secs(90), "the stream is closed", || (streams() == 0).then_some(()));
    assert!(browser.text("state").starts_with("Paused: this tab was hidden"), "{}", browser.text("state"));
    database.insert(7);
    visible("visible");
    browser.wait_text("count", |count| count == "7");
    browser.wait_text("verdict", |verdict| verdict == "Complete: 7 signals, none missing, 1 reconnect.");
}

#[test]
fn a_wrong_key_is_reported_and_forgetting_the_key_ends_the_session() {
    let database = Database::migrated();
    let key = database.mint("viewer");
    let server = Server::ready(&database, &[]);
    let browser = Browser::open(1200, 900);
    browser.go(server.address(), "/");
    until("the page asks for a key", || browser.text("state").contains("Paste a key").then_some(()));
    browser.eval("document.getElementById('key').focus()");
    browser.type_keys("sf_wrong");
    browser.type_keys("\u{e007}");
    browser.wait_text("state", |state| state.contains("unknown"));
    browser.eval("document.getElementById('key').value = ''");
    browser.type_keys(&key);
    browser.type_keys("\u{e007}");
    browser.wait_text("state", |state| state == "Connected.");
    // A cookie that no script can read: the page lives on after a reload, and the key is nowhere in it.
    assert_eq!(browser.eval("return document.cookie"), "");
    browser.go(server.address(), "/");
    browser.wait_text("state", |state| state == "Connected.");
    browser.eval("document.getElementById('leave').click()");
    until("the page asks for a key", || browser.text("state").contains("Paste a key").then_some(()));
}

#[test]
fn the_status_page_draws_the_feed_and_reports_an_outage() {
    let database = Database::migrated();
    let key = database.mint("<b>bot</b>");
    database.mint_with("zz-absent", &["--delay", "15m", "--expires-in", "3d"]);
    let server = Server::ready(&database, &["--ops-listen", "127.0.0.1:0"]);
    let mut stream = server.stream(&key);
    stream.connected();
    let browser = Browser::open(1200, 1000);
    browser.go(server.ops_address(), "/");
    browser.wait_text("state", |state| state == "live");
    assert_eq!(browser.text("capture"), "capture on");
    until("events flow past the page", || {
        database.insert(5);
        stream.signals(5);
        std::thread::sleep(Duration::from_millis(200));
        let rate = browser.text("events");
        (rate != "–" && rate != "0" && browser.text("written") != "–").then_some(())
    });
    assert!(browser.text("rows").contains("<b>bot</b>"), "{}", browser.text("rows"));
    assert_eq!(browser.text("streams"), "1");
    // The absent bot comes first.
    assert_eq!(browser.text("away"), "1 of 2 without a stream");
    let first = browser.eval("return document.querySelector('#keys tr').innerText.split('\\t')");
    assert_eq!(first, json!(["zz-absent", "none", "never", "in 3 days", "15 min"]));
    assert!(browser.text("last").starts_with("Last signal "), "{}", browser.text("last"));
    assert!(browser.eval("return document.title").as_str().unwrap().starts_with("✓ live – "));
    let drawn = "return document.querySelector('#rate-chart path').getAttribute('d').length > 10";
    until("the rate is drawn", || (browser.eval(drawn) == true).then_some(()));
    browser.picture("status");
    browser.color_scheme("dark");
    browser.picture("status-dark");
    assert_eq!(browser.console(), Vec::<String>::new());

    let phone = Browser::phone();
    phone.go(server.ops_address(), "/");
    phone.wait_text("state", |state| state == "live");
    until("it draws what it sees", || (phone.eval(drawn) == true).then_some(()));
    assert_eq!(phone.eval("return document.documentElement.scrollWidth <= window.innerWidth"), true);
    phone.picture("status-phone");
    phone.color_scheme("dark");
    phone.picture("status-phone-dark");

    database.sql("alter table stock_market.signal disable trigger all");
    browser.wait_text("capture", |capture| capture == "capture off");
    assert!(browser.text("notice").contains("CAPTURE IS OFF"));
    browser.picture("status-capture-off");
    server.kill();
    browser.wait_text("state", |state| state == "unreachable");
    assert!(browser.text("notice").contains("does not answer"));
    // The last figures are grey.
    let opacity = "return getComputedStyle(document.getElementById('capture')).opacity";
    assert_eq!(browser.eval(opacity), "0.6");
    browser.picture("status-unreachable");
}
