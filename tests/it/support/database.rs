//! One database a test, in a cluster that the whole test process shares or in one of the test's own.
//!
//! `SIGNAL_FEED_TEST_DATABASE_URL` names an existing server instead (a superuser's connection string, with a database
//! in it).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use postgres::{Client, NoTls};
use signal_feed::demo::postgres::PrivatePostgres;

use super::cluster::Cluster as _;
use super::wait::until;

/// Shared by the tests that do not change the cluster. Its keeper stops it when the test process ends.
static SHARED: OnceLock<PrivatePostgres> = OnceLock::new();
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A database for one test, dropped at its end.
pub struct Database {
    admin_url: String,
    /// Its name, as unique as the process.
    pub name: String,
    /// A superuser's connection string.
    pub url: String,
}

impl Database {
    /// An empty database in the shared cluster.
    pub fn empty() -> Self {
        match std::env::var("SIGNAL_FEED_TEST_DATABASE_URL") {
            Ok(url) => Self::at(url),
            Err(_) => {
                let cluster = SHARED.get_or_init(|| PrivatePostgres::start(&[]).unwrap());
                Self::at(cluster.url("postgres"))
            }
        }
    }

    /// An empty database in the shared cluster, made with these options of `create database`.
    pub fn empty_of(options: &str) -> Self {
        let beside = Self::empty();
        Self::create(beside.admin_url.clone(), options)
    }

    /// An empty database in a cluster of the test's own, which it may stop, kill and freeze.
    pub fn empty_in(cluster: &PrivatePostgres) -> Self {
        Self::at(cluster.url("postgres"))
    }

    /// Whether the tests run on a server that is not their own.
    pub fn is_elsewhere() -> bool {
        std::env::var_os("SIGNAL_FEED_TEST_DATABASE_URL").is_some()
    }

    /// A copy of a database without sessions.
    pub fn copy_of(template: &Self) -> Self {
        Self::create(template.admin_url.clone(), &format!("template {}", template.name))
    }

    /// Replaces this database by a copy that `change` has changed, as a restore from backup does. All its
    /// sessions are terminated.
    pub fn restore(&self, change: impl FnOnce(&Self)) {
        self.lock_out();
        let mut admin = Client::connect(&self.admin_url, NoTls).unwrap();
        let restored = Self::copy_of(self);
        change(&restored);
        admin.batch_execute(&format!("drop database {}", self.name)).unwrap();
        admin.batch_execute(&format!("alter database {} rename to {}", restored.name, self.name)).unwrap();
    }

    /// Terminates all sessions and allows no new ones: an outage of this database alone.
    pub fn lock_out(&self) {
        let mut admin = Client::connect(&self.admin_url, NoTls).unwrap();
        admin.batch_execute(&format!("alter database {} allow_connections false", self.name)).unwrap();
        let theirs =
            format!("select pg_terminate_backend(pid)::text from pg_stat_activity where datname = '{}'", self.name);
        until("nobody is connected", || admin.query(&theirs, &[]).unwrap().is_empty().then_some(()));
    }

    /// Ends what [`lock_out`](Self::lock_out) began.
    pub fn let_in(&self) {
        let mut admin = Client::connect(&self.admin_url, NoTls).unwrap();
        admin.batch_execute(&format!("alter database {} allow_connections true", self.name)).unwrap();
    }

    fn at(admin_url: String) -> Self {
        Self::create(admin_url, "")
    }

    fn create(admin_url: String, how: &str) -> Self {
        let name = format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Client::connect(&admin_url, NoTls).unwrap().batch_execute(&format!("create database {name} {how}")).unwrap();
        let url = with_database(&admin_url, &name);
        Self { admin_url, name, url }
    }

    /// A new session of the superuser, by a driver that is not the code under test.
    pub fn connect(&self) -> Client {
        Client::connect(&self.url, NoTls).unwrap()
    }

    /// Runs statements as the superuser.
    pub fn sql(&self, statements: &str) {
        self.connect().batch_execute(statements).unwrap_or_else(|error| panic!("{error:?}: {statements}"));
    }

    /// The single number that a query returns.
    pub fn number(&self, query: &str) -> i64 {
        self.connect().query_one(query, &[]).unwrap().get(0)
    }

    /// Inserts `count` signals with the symbols S1, S2, … in one statement.
    pub fn insert(&self, count: usize) {
        self.sql(&insert_signals(count));
    }

    /// Puts a row into the log as if it had been captured: number, time (an SQL expression), and the row (likewise).
    pub fn log_row(&self, seq: i64, time: &str, signal: &str) {
        self.log_rows(&format!("select {seq}, {time}, 'INSERT', {signal}"));
    }

    /// Puts the rows of a query (number, time, operation, row) into the log as if they had been captured.
    pub fn log_rows(&self, query: &str) {
        self.sql(&format!(
            "begin; \
             insert into stock_market.signal_feed_event (feed_seq, event_time, op, signal) {query}; \
             update stock_market.signal_feed_counter \
             set value = greatest(value, (select max(feed_seq) from stock_market.signal_feed_event)); \
             notify signal_feed, '1'; commit"
        ));
    }

    /// Removes everything up to a number, as prune does but without its conditions.
    pub fn prune_through(&self, seq: i64) {
        self.sql(&format!(
            "update stock_market.signal_feed_pruned set pruned_through = {seq}; \
             delete from stock_market.signal_feed_event where feed_seq <= {seq}"
        ));
    }

    /// The highest number allocated.
    pub fn head(&self) -> i64 {
        self.number("select max(value) from stock_market.signal_feed_counter")
    }

    /// The same database for another user.
    pub fn url_as(&self, user: &str) -> String {
        let separator = if self.url.contains('?') { '&' } else { '?' };
        format!("{}{separator}user={user}", self.url)
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        if let Ok(mut admin) = Client::connect(&self.admin_url, NoTls) {
            let _ = admin.batch_execute(&format!("drop database if exists {} with (force)", self.name));
        }
    }
}

fn with_database(url: &str, name: &str) -> String {
    let (base, query) = url.split_once('?').map_or((url, None), |(base, query)| (base, Some(query)));
    let slash = base.find("://").map_or(0, |at| at + 3);
    let end = base[slash..].find('/').map_or(base.len(), |at| slash + at);
    let query = query.map(|query| format!("?{query}")).unwrap_or_default();
    format!("{}/{name}{query}", &base[..end])
}

/// One statement that inserts `count` signals.
pub fn insert_signals(count: usize) -> String {
    format!(
        "insert into stock_market.signal (symbol, action, side, quantity, price) \
         select 'S' || i, 'entry', 'BUY', 10, 1.50 from generate_series(1, {count}) as i"
    )
}

/// A cluster whose processes are all stopped until this is dropped, even if the test fails.
pub struct Frozen<'a>(&'a PrivatePostgres);

impl<'a> Frozen<'a> {
    pub fn new(cluster: &'a PrivatePostgres) -> Self {
        signal_all(cluster, "STOP");
        Self(cluster)
    }
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        signal_all(self.0, "CONT");
    }
}

/// Sends a signal (`STOP`, `CONT`) to every process of a cluster.
fn signal_all(cluster: &PrivatePostgres, signal: &str) {
    let children = std::fs::read_to_string(format!("/proc/{0}/task/{0}/children", cluster.pid())).unwrap();
    cluster.signal(signal);
    for child in children.split_whitespace() {
        // One may have ended meanwhile.
        let mut kill = std::process::Command::new("kill");
        let _ = kill.args([&format!("-{signal}"), child]).stderr(std::process::Stdio::null()).status();
    }
}
