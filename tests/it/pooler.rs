//! A PgBouncer between the feed and PostgreSQL.

use std::net::TcpListener;
use std::process::{Child, Stdio};

use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::database::Database;
use crate::support::program::signal_feed;
use crate::support::server::Server;
use crate::support::wait::until;

struct Pooler(Child);

impl Drop for Pooler {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A PgBouncer before a database, and the connection string through it.
fn pooler(cluster: &PrivatePostgres, database: &Database, mode: &str) -> (Pooler, String) {
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let (dir, name) = (cluster.dir().display(), &database.name);
    let configuration = format!(
        "[databases]\n{name} = host={dir} port=5432 user=postgres\n[pgbouncer]\nlisten_addr = 127.0.0.1\n\
         listen_port = {port}\nauth_type = any\npool_mode = {mode}\nunix_socket_dir =\n"
    );
    let path = cluster.dir().join(format!("pooler-{mode}.ini"));
    std::fs::write(&path, configuration).unwrap();
    // It refuses root, as PostgreSQL does.
    let child = cluster.command("/usr/sbin/pgbouncer").arg(&path).stderr(Stdio::null()).spawn().unwrap();
    let pooler = Pooler(child);
    until("the pooler listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
    (pooler, format!("postgresql://postgres@127.0.0.1:{port}/{name}"))
}

#[test]
fn a_pooler_in_transaction_mode_is_named_at_the_start_and_requests_wait() {
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&cluster);
    let (_pooler, url) = pooler(&cluster, &database, "transaction");
    let server = Server::spawn(Server::command(&url, "127.0.0.1:0"));
    // Lost prepared statements show it, or the lost notification, whichever comes first.
    server.wait_log(&["ERROR", "PgBouncer in transaction mode"]);
    assert!(!server.is_ready());
    let log = server.stop();
    assert!(!log.iter().any(|line| line.contains("quarantined") || line.contains("live: ")), "{log:?}");
}

#[test]
fn doctor_fails_through_a_pooler_in_transaction_mode() {
    let cluster = PrivatePostgres::start(&[("fsync", "on")]).unwrap();
    let database = Database::migrated_in(&cluster);
    let (_pooler, url) = pooler(&cluster, &database, "transaction");
    let doctor = signal_feed(&url, &["doctor"]);
    assert_eq!(doctor.code, 1);
    assert!(doctor.stdout.contains("a notification did not reach another session"), "{}", doctor.stdout);
    signal_feed(&database.url, &["doctor"]).ok();
}

#[test]
fn a_pooler_in_session_mode_does_no_harm() {
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&cluster);
    let key = database.mint("bot");
    let (_pooler, url) = pooler(&cluster, &database, "session");
    let server = Server::spawn(Server::command(&url, "127.0.0.1:0"));
    server.wait_ready();
    let mut stream = server.stream(&key);
    stream.connected();
    database.insert(3);
    stream.signals(3);
}
