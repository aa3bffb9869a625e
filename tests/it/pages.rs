//! The pages for people, in a real browser: the watch page and the status page.

use std::time::Duration;

use crate::support::browser::Browser;
use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::wait::until;

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
    database.insert(20);
    browser.wait_text("count", |count| count == "20");
    assert_eq!((browser.text("missed"), browser.text("reconnects")), ("0".into(), "0".into()));
    assert_eq!(browser.eval("return document.querySelectorAll('#rows tr').length"), 20);
    browser.picture("watch");

    // The viewer keeps the page open; what is written meanwhile is replayed.
    server.kill();
    browser.wait_text("state", |state| state.contains("coming back") || state.contains("cannot be reached"));
    database.insert(30);
    let _server = Server::spawn(Server::command(&database.url, &address.to_string()));
    browser.wait_text("count", |count| count == "50");
    browser.wait_text("verdict", |verdict| {
        verdict.starts_with("Whole: each of 50 signals") && verdict.contains("1 reconnect.")
    });
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
fn signals_text_is_never_html_and_the_page_asks_nobody_else() {
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
    assert!(browser.text("rows").contains(hostile));
    assert_eq!(browser.eval("return document.querySelectorAll('#rows img, #rows script').length"), 0);
    assert_eq!(browser.eval("return document.title"), "signal-feed");
    // Its policy stops what is not in the file itself, also what a fault of the page would let in.
    browser.eval("const made = document.createElement('script'); made.textContent = \"document.title='taken'\"; document.body.append(made)");
    assert_eq!(browser.eval("return document.title"), "signal-feed");
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
    // A phone: nothing sticks out at the side.
    assert_eq!(browser.eval("return document.documentElement.scrollWidth <= window.innerWidth"), true);
    browser.picture("watch-phone");
    database.log_row(41, "now()", "null");
    browser.wait_text("rows", |rows| rows.contains("cannot be delivered to anybody"));
    assert_eq!(browser.text("missed"), "0");
    browser.wait_text("cursor", |cursor| cursor == "41");
}

#[test]
fn wrong_key_is_told_and_forgetting_the_key_ends_the_session() {
    let database = Database::migrated();
    let key = database.mint("viewer");
    let server = Server::ready(&database, &[]);
    let browser = Browser::open(1200, 900);
    browser.go(server.address(), "/");
    until("the page asks for a key", || browser.text("state").contains("Paste a key").then_some(()));
    browser.eval("document.getElementById('key').focus()");
    browser.type_keys("sf_wrong");
    browser.type_keys("\u{e007}");
    browser.wait_text("state", |state| state.contains("not known"));
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
fn status_page_draws_the_feed_and_tells_of_an_outage() {
    let database = Database::migrated();
    let key = database.mint("<b>bot</b>");
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
    let drawn = "return document.querySelector('#rate-chart path').getAttribute('d').length > 10";
    until("the rate is drawn", || (browser.eval(drawn) == true).then_some(()));
    browser.picture("status");
    browser.color_scheme("dark");
    browser.picture("status-dark");
    assert_eq!(browser.console(), Vec::<String>::new());

    server.kill();
    browser.wait_text("state", |state| state == "unreachable");
    assert!(browser.text("notice").contains("does not answer"));
}
