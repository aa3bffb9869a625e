//! A feed on a hot standby: it polls, writes nothing, waits for what is not replayed yet, and becomes a primary's feed.

use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::sse::Stream;
use crate::support::standby::Standby;

/// A feed on the standby at this address, that of a role which has the server's rights alone.
fn on_standby(standby: &Standby<'_>, database: &Database, options: &[&str]) -> Server {
    let mut command = Server::command(&as_feed(&standby.url(database)), "127.0.0.1:0");
    command.args(options);
    let server = Server::spawn(command);
    server.wait_ready();
    server
}

fn as_feed(url: &str) -> String {
    url.replace("user=postgres", "user=feed")
}

/// A primary with the feed installed, and a login for servers.
fn primary() -> (PrivatePostgres, Database) {
    let primary = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&primary);
    database.sql("create role feed login in role signal_feed_server");
    (primary, database)
}

fn open(server: &Server, key: &str) -> Stream {
    let mut stream = server.stream(key);
    stream.connected();
    stream
}

#[test]
fn a_feed_on_a_standby_delivers_what_its_primary_commits() {
    let (primary, database) = primary();
    let key = database.mint("bot");
    let standby = Standby::start(&primary, &[]);
    let server = on_standby(&standby, &database, &[]);
    let mut stream = open(&server, &key);
    for _ in 0..20 {
        database.insert(1);
    }
    assert_eq!(stream.signals(20)[0].prev_seq(), Some(0));
}
