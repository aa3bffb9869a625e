//! The bots of the README in Python and bash, and the one in JavaScript that it names, against a real server.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;

use serde_json::Value;

use super::desk::{Desk, Job};
use crate::history::replace_log;
use crate::support::browser::Browser;
use crate::support::database::Database;
use crate::support::outside::free_address;
use crate::support::program::signal_feed;
use crate::support::readme::{block_with, example_with};
use crate::support::server::Server;
use crate::support::wait::{PATIENCE, until, until_within};

/// A server at a fixed address that writes so often that a silence of three seconds is a dead stream; `tail` waits for
/// 35 s.
fn serve(database: &Database, address: SocketAddr) -> Server {
    let mut command = Server::command(&database.url, &address.to_string());
    command.args(["--heartbeat", "1s"]);
    let server = Server::spawn(command);
    server.wait_ready();
    server
}

/// One row with these columns.
fn row(database: &Database, symbol: &str, quantity: &str, meta: &str) {
    database.sql(&format!(
        "insert into stock_market.signal (symbol, action, side, quantity, meta) \
         values ('{symbol}', 'entry', 'BUY', {quantity}, {meta})"
    ));
}

/// A row that most JSON parsers cannot read.
fn deep_row(database: &Database) {
    row(database, "DEEP", "1", "(repeat('[', 1200) || repeat(']', 1200))::jsonb");
}

/// Whether a client has closed a connection to this address that the server has not closed yet: CLOSE_WAIT.
fn has_closed(address: SocketAddr) -> bool {
    let local = format!(":{:04X} ", address.port());
    let table = std::fs::read_to_string("/proc/net/tcp").unwrap();
    let mut sockets = table.lines().filter_map(|line| line.split_once(": ")).map(|(_, line)| line);
    sockets.any(|line| line.get(8..).is_some_and(|line| line.starts_with(&local)) && line.contains(" 08 "))
}

/// What a bot did, and what it must have said.
trait Bot {
    /// Waits until it has written this.
    fn wait(&self, words: &str);
    /// How often it has written this.
    fn count(&self, words: &str) -> usize;
    /// Once it has saved this cursor, kills it and starts it again; false if it keeps its cursor in memory only.
    fn again(&mut self, cursor: i64) -> bool;
}

/// The life of a bot, until its key is revoked.
fn live(database: &Database, address: SocketAddr, bot: &mut dyn Bot, reads_deep_rows: bool) -> Server {
    let server = serve(database, address);
    server.wait_log(&["stream begins"]);
    // It continues from the first block's cursor although it has seen no event yet.
    server.stop();
    row(database, "FIRST", "1", "'{}'");
    let server = serve(database, address);
    bot.wait("FIRST");
    // Digits, depth, and the row after them.
    row(database, "DIGITS", "1234567890123456789.0123456789", "'{}'");
    bot.wait("1234567890123456789.0123456789");
    row(database, "LONG", "('1' || repeat('0', 4999))::numeric", "'{}'");
    deep_row(database);
    row(database, "AFTER", "1", "'{}'");
    bot.wait("AFTER");
    bot.wait(&format!("1{}", "0".repeat(4_999)));
    assert!(reads_deep_rows || bot.count("ALERT: cannot read event") == 1);
    // A stream that is silent is dead.
    server.signal(rustix::process::Signal::STOP);
    until_within(2 * PATIENCE, "the bot closes its connection", || has_closed(address).then_some(()));
    server.signal(rustix::process::Signal::CONT);
    row(database, "AWAKE", "1", "'{}'");
    bot.wait("AWAKE");
    if bot.again(database.head()) {
        row(database, "AGAIN", "1", "'{}'");
        bot.wait("AGAIN");
    }
    database.sql("alter table stock_market.signal disable trigger all");
    row(database, "LOST", "1", "'{}'");
    database.migrate();
    bot.wait("capture was off");
    row(database, "FOUND", "1", "'{}'");
    bot.wait("FOUND");
    // Away for longer than the log reaches back.
    server.kill();
    for symbol in ["GONE", "KEPT"] {
        row(database, symbol, "1", "'{}'");
    }
    database.prune_through(database.head() - 1);
    let server = serve(database, address);
    bot.wait("replay_truncated");
    bot.wait("KEPT");
    assert_eq!(bot.count("GONE") + bot.count("LOST"), 0);
    for symbol in ["FIRST", "DIGITS", "AFTER", "AWAKE", "FOUND", "KEPT"] {
        assert_eq!(bot.count(symbol), 1, "{symbol}");
    }
    // A restored log has lower numbers, and the bot takes them.
    server.kill();
    replace_log(database, 2, 2);
    database.sql("update stock_market.signal_feed_pruned set pruned_through = 0");
    let server = serve(database, address);
    bot.wait("history_rewritten");
    row(database, "REBORN", "1", "'{}'");
    bot.wait("REBORN");
    signal_feed(&database.url, &["key", "revoke", "bot"]).ok();
    server
}

/// A bot that is a program.
struct Program<'a> {
    desk: &'a Desk,
    program: String,
    arguments: Vec<String>,
    job: Option<Job>,
    keeps_cursor: bool,
}

impl<'a> Program<'a> {
    fn start(desk: &'a Desk, program: &str, arguments: &[&str], keeps_cursor: bool) -> Self {
        let arguments = arguments.iter().map(|&argument| argument.to_owned()).collect();
        let mut bot = Self { desk, program: program.to_owned(), arguments, job: None, keeps_cursor };
        bot.run();
        bot
    }

    fn run(&mut self) {
        let arguments: Vec<&str> = self.arguments.iter().map(String::as_str).collect();
        self.job = Some(self.desk.start(&self.program, &arguments, &[]));
    }
}

impl Bot for Program<'_> {
    fn wait(&self, words: &str) {
        until_within(3 * PATIENCE, &format!("the bot says {words:?}"), || (self.count(words) > 0).then_some(()));
    }

    fn count(&self, words: &str) -> usize {
        let all = self.desk.read("out") + &self.desk.read("err");
        all.lines().filter(|line| line.contains(words)).count()
    }

    fn again(&mut self, cursor: i64) -> bool {
        if self.keeps_cursor {
            until("the cursor is saved", || (self.desk.read("bot.cursor").trim() == cursor.to_string()).then_some(()));
            self.job = None;
            self.run();
        }
        self.keeps_cursor
    }
}

/// Answers one request like a proxy that refuses everybody.
fn refuse_as_a_proxy(address: SocketAddr) {
    let listener = TcpListener::bind(address).unwrap();
    let (mut stream, _) = listener.accept().unwrap();
    let _ = stream.read(&mut [0; 4096]);
    let page = "<html>forbidden</html>";
    let head = format!("HTTP/1.1 403 Forbidden\r\nContent-Type: text/html\r\nContent-Length: {}\r\n\r\n", page.len());
    stream.write_all((head + page).as_bytes()).unwrap();
}

#[test]
fn the_python_bot_misses_nothing_unnoticed() {
    let (database, desk, address) = (Database::migrated(), Desk::new(), free_address());
    desk.write("bot.key", &database.mint("bot"));
    let place = format!("\"127.0.0.1\", {}", address.port());
    let text = block_with("import http.client", &[("\"127.0.0.1\", 8080", &place), ("timeout=35", "timeout=3")]);
    desk.write("bot.py", &text);
    let mut bot = Program::start(&desk, "python3", &["bot.py"], true);
    refuse_as_a_proxy(address);
    bot.wait("reconnecting: status 403");
    let _server = live(&database, address, &mut bot, false);
    assert_eq!(bot.job.as_mut().unwrap().wait().code(), Some(77));
    bot.wait("ALERT: revoked_key");
}

fn javascript(address: SocketAddr, host: &str, key: &str) -> String {
    let url = format!("http://{host}:{}", address.port());
    example_with("clients/bot.js", &[("http://127.0.0.1:8080", &url), ("sf_…", key), ("35000", "3000")])
}

#[test]
fn the_javascript_bot_misses_nothing_unnoticed_in_node_and_in_a_browser() {
    let (database, desk, address) = (Database::migrated(), Desk::new(), free_address());
    desk.write("bot.js", &javascript(address, "127.0.0.1", &database.mint("bot")));
    let mut bot = Program::start(&desk, "node", &["bot.js"], true);
    refuse_as_a_proxy(address);
    bot.wait("reconnecting: status 403");
    let server = live(&database, address, &mut bot, true);
    assert_eq!(bot.job.as_mut().unwrap().wait().code(), Some(77));
    bot.wait("ALERT: revoked_key");
    drop(server);

    let database = Database::migrated();
    let server = serve(&database, address);
    let browser = Page(Browser::open(800, 600));
    browser.0.go(address, "/");
    let collect = "window.said = []; for (const way of ['log', 'error']) console[way] = (...words) => \
                   said.push(words.map(word => typeof word === 'string' ? word : JSON.stringify(word)).join(' '));";
    browser.0.eval(&format!("{collect}\n{}", javascript(address, "localhost", &database.mint("bot"))));
    server.wait_log(&["stream begins"]);
    server.kill();
    let mut browser = browser;
    let _server = live(&database, address, &mut browser, true);
    browser.wait("ALERT: revoked_key");
}

/// A page in which the bot runs.
struct Page(Browser);

impl Bot for Page {
    fn wait(&self, words: &str) {
        until_within(3 * PATIENCE, &format!("the page says {words:?}"), || (self.count(words) > 0).then_some(()));
    }

    fn count(&self, words: &str) -> usize {
        let said = self.0.eval("return said");
        said.as_array().unwrap().iter().filter_map(Value::as_str).filter(|line| line.contains(words)).count()
    }

    fn again(&mut self, _: i64) -> bool {
        false
    }
}

#[test]
fn the_bash_bot_misses_nothing() {
    let (database, desk, address) = (Database::migrated(), Desk::new(), free_address());
    desk.write("bot.key", &database.mint("bot"));
    let text = block_with("cursor=$(cat bot.cursor", &[("127.0.0.1:8080", &address.to_string())]);
    desk.write("bot.sh", &text);
    let mut bot = Program::start(&desk, "bash", &["bot.sh"], true);
    let _server = live(&database, address, &mut bot, true);
    assert_eq!(bot.job.as_mut().unwrap().wait().code(), Some(77));
    assert!(Path::new(&desk.path("bot.cursor")).exists());
    bot.wait("revoked_key");
}
