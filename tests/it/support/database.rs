//! One database a test, in a cluster that the whole test process shares or in one of the test's own.
//!
//! `SIGNAL_FEED_TEST_DATABASE_URL` names an existing server instead (a superuser's connection string, with a database in it).

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

use postgres::{Client, NoTls};
use signal_feed::demo::postgres::PrivatePostgres;

/// Shared by the tests that leave the cluster as it is. Its keeper stops it when the test process ends.
static SHARED: OnceLock<PrivatePostgres> = OnceLock::new();
static COUNT: AtomicU32 = AtomicU32::new(0);

/// A database of a test's own, dropped with it.
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

    /// An empty database in a cluster of the test's own, which it may stop, kill and freeze.
    pub fn empty_in(cluster: &PrivatePostgres) -> Self {
        Self::at(cluster.url("postgres"))
    }

    fn at(admin_url: String) -> Self {
        let name = format!("test_{}_{}", std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
        Client::connect(&admin_url, NoTls).unwrap().batch_execute(&format!("create database {name}")).unwrap();
        let url = with_database(&admin_url, &name);
        Self { admin_url, name, url }
    }

    /// A new session of the superuser, by a driver that is not the code under test.
    pub fn connect(&self) -> Client {
        Client::connect(&self.url, NoTls).unwrap()
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
