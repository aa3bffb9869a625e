//! More than one machine: several feeds, a primary and its standby, haproxy in front, and each part killed in turn
//! while signals are written. Every client gets every event once and in order.

use std::fs;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use postgres::{Client, NoTls};
use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::cluster::Cluster as _;
use crate::support::crowd::Crowd;
use crate::support::database::{Database, insert_signals};
use crate::support::readme;
use crate::support::server::Server;
use crate::support::standby::Standby;
use crate::support::wait::until;

/// Enough that every feed has many, few enough for the descriptors that a test process has by default.
const CLIENTS: usize = 300;
/// Events that must come through after each loss.
const EVENTS: i64 = 20;

/// A haproxy with the settings of the example for several feeds, which can be killed and started again.
struct Haproxy {
    configuration: PathBuf,
    address: SocketAddr,
    child: Child,
}

impl Haproxy {
    fn start(dir: PathBuf, feeds: &[SocketAddr]) -> Self {
        let address = free_address();
        let example = readme::example_with("proxies/haproxy.cfg", &[]);
        let (_, backend) = example.split_once("\nbackend feeds\n").unwrap();
        let settings = backend.lines().filter(|line| !line.trim_start().starts_with("server "));
        let mut text = format!(
            "frontend feed\n  mode http\n  timeout client 60s\n  bind {address}\n  default_backend feeds\nbackend feeds\n{}\n",
            settings.collect::<Vec<_>>().join("\n")
        );
        for (number, feed) in feeds.iter().enumerate() {
            text.push_str(&format!("  server feed{number} {feed}\n"));
        }
        fs::create_dir_all(&dir).unwrap();
        let configuration = dir.join("haproxy.cfg");
        fs::write(&configuration, text).unwrap();
        let child = Self::run(&configuration, address);
        Self { configuration, address, child }
    }

    fn run(configuration: &PathBuf, address: SocketAddr) -> Child {
        let child = Command::new("haproxy").arg("-f").arg(configuration).stderr(Stdio::null()).spawn().unwrap();
        until("haproxy listens", || TcpStream::connect(address).ok());
        child
    }

    fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    fn start_again(&mut self) {
        self.child = Self::run(&self.configuration, self.address);
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if let Some(dir) = self.configuration.parent() {
            let _ = fs::remove_dir_all(dir);
        }
    }
}

/// A free port that no outgoing connection can get meanwhile: below the kernel's range for those.
fn free_address() -> SocketAddr {
    until("there is a free port", || {
        let port = u16::try_from(10_000 + signal_feed::random::random_u64() % 20_000).unwrap();
        TcpListener::bind(("127.0.0.1", port)).ok()?.local_addr().ok()
    })
}

fn feed(url: &str, address: SocketAddr) -> Server {
    let mut command = Server::command(url, &address.to_string());
    command.args(["--max-clients-per-key", "1000"]);
    Server::spawn(command)
}

/// Writes one signal after another to the current primary, until it is stopped.
fn write(url: &str, written: &AtomicI64, over: &AtomicBool) {
    let mut client: Option<Client> = None;
    while !over.load(Ordering::Relaxed) {
        match client.as_mut().map(|client| client.batch_execute(&insert_signals(1))) {
            Some(Ok(())) => {
                written.fetch_add(1, Ordering::Relaxed);
            }
            // It may have been committed or not. That does not matter: clients must have what the log has.
            Some(Err(_)) | None => client = Client::connect(url, NoTls).ok(),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn every_client_gets_every_event_once_whichever_part_is_lost() {
    let primary = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&primary);
    let key = database.mint("bot");
    let standby = Standby::start(&primary, &[]);
    // Nothing that was acknowledged is lost with the primary.
    database.sql("alter system set synchronous_standby_names = '*'");
    database.sql("select pg_reload_conf()");
    let both = standby.both(&database, "read-write");
    let urls = [both.clone(), both.clone(), standby.url(&database)];
    let addresses = [free_address(), free_address(), free_address()];
    let mut feeds: Vec<Option<Server>> = Vec::new();
    for (url, address) in urls.iter().zip(addresses) {
        feeds.push(Some(feed(url, address)));
    }
    for one in feeds.iter().flatten() {
        one.wait_ready();
    }
    let scratch = std::env::temp_dir().join(format!("signal-feed-scale-{}", std::process::id()));
    let mut proxy = Haproxy::start(scratch, &addresses);
    let (written, over) = (AtomicI64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| write(&both, &written, &over));
        // Also on failure: otherwise the scope would wait for ever.
        let _over = Over(&over);
        let mut crowd = Crowd::start(proxy.address, &key, CLIENTS);
        let mut goes_on = |what: &str| {
            let from = written.load(Ordering::Relaxed);
            until(&format!("signals are written {what}"), || {
                (written.load(Ordering::Relaxed) >= from + EVENTS).then_some(())
            });
            // Every acknowledged signal is in the log: its numbers reach at least this far.
            crowd.wait(what, from + EVENTS);
        };
        goes_on("at the beginning");
        for (number, one) in feeds.iter().flatten().enumerate() {
            assert!(one.client_threads() >= CLIENTS / 6, "feed {number} has {}", one.client_threads());
        }
        for number in 0..feeds.len() {
            feeds[number].take().unwrap().kill();
            goes_on(&format!("while feed {number} is gone"));
            feeds[number] = Some(feed(&urls[number], addresses[number]));
            feeds[number].as_ref().unwrap().wait_ready();
        }
        feeds[1].take().unwrap().stop();
        goes_on("while feed 1 is being upgraded");
        feeds[1] = Some(feed(&urls[1], addresses[1]));
        proxy.kill();
        proxy.start_again();
        goes_on("behind another haproxy");
        standby.stop();
        until("the feed on the standby says so", || (!feeds[2].as_ref().unwrap().is_ready()).then_some(()));
        standby.start_again();
        goes_on("with the standby back");
        primary.stop(false);
        standby.promote();
        goes_on("from the new primary");
        for one in feeds.iter().flatten() {
            one.wait_ready();
        }
        over.store(true, Ordering::Relaxed);
        let query = "select max(value) from stock_market.signal_feed_counter";
        let head = until("nothing is written any more", || {
            let before = standby.number(&database, query);
            std::thread::sleep(Duration::from_millis(200));
            (standby.number(&database, query) == before).then_some(before)
        });
        crowd.wait("at the end", head);
        let connections = crowd.end();
        assert!(connections > CLIENTS, "nobody had to reconnect");
    });
}
