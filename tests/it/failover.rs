//! A primary that is lost, and its standby in its place: the feed follows its connection string.

use std::process::Stdio;

use postgres::{Client, NoTls};
use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::database::{Database, insert_signals};
use crate::support::server::Server;
use crate::support::wait::until;

/// A streaming standby in the primary's own directory, on the socket's next port. Stopped with the test.
struct Standby<'a> {
    primary: &'a PrivatePostgres,
    data: String,
}

impl<'a> Standby<'a> {
    fn start(primary: &'a PrivatePostgres) -> Self {
        let data = primary.dir().join("standby").to_str().unwrap().to_owned();
        let standby = Self { primary, data };
        let (url, log) = (primary.url("postgres"), primary.dir().join("standby.log"));
        standby.run("pg_basebackup", &["-d", &url, "-D", &standby.data, "--checkpoint=fast", "--write-recovery-conf"]);
        let options = format!(
            "-c unix_socket_directories={} -c port=5433 -c max_connections=200 -c listen_addresses=",
            primary.dir().display()
        );
        standby.run("pg_ctl", &["-D", &standby.data, "-o", &options, "-l", log.to_str().unwrap(), "-w", "start"]);
        standby
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let mut command = self.primary.command(self.primary.programs().join(program));
        let status = command.args(arguments).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
        assert!(status.unwrap().success(), "{program} {arguments:?}");
    }
}

impl Drop for Standby<'_> {
    fn drop(&mut self) {
        let mut command = self.primary.command(self.primary.programs().join("pg_ctl"));
        let stop = command.args(["-D", &self.data, "-m", "immediate", "stop"]);
        let _ = stop.stdout(Stdio::null()).stderr(Stdio::null()).status();
    }
}

#[test]
fn open_streams_follow_a_failover_to_another_host_and_miss_nothing() {
    let primary = PrivatePostgres::start(&[("wal_level", "replica"), ("max_wal_senders", "4")]).unwrap();
    let database = Database::migrated_in(&primary);
    let key = database.mint("bot");
    let standby = Standby::start(&primary);
    let on_standby = database.url.replace("port=5432", "port=5433");
    // Both hosts, of which only a primary is wanted.
    let dir = primary.dir().display().to_string();
    let name = &database.name;
    let both = format!("host={dir},{dir} port=5432,5433 user=postgres dbname={name} target_session_attrs=read-write");
    let server = Server::spawn(Server::command(&both, "127.0.0.1:0"));
    server.wait_ready();
    let mut stream = server.stream(&key);
    stream.connected();
    database.insert(3);
    let last = stream.signals(3)[2].feed_seq();
    until("the standby has every event", || {
        let mut client = Client::connect(&on_standby, NoTls).ok()?;
        let head = "select max(feed_seq) from stock_market.signal_feed_event";
        (client.query_one(head, &[]).ok()?.get::<_, Option<i64>>(0) == last).then_some(())
    });
    primary.stop(false).unwrap();
    stream.system("degraded");
    standby.run("pg_ctl", &["-D", &standby.data, "-w", "promote"]);
    stream.system("recovered");
    Client::connect(&on_standby, NoTls).unwrap().batch_execute(&insert_signals(2)).unwrap();
    assert_eq!(stream.signals(2)[0].prev_seq(), last);
    // Nothing was lost, but nobody knows that yet: the operator is told.
    server.wait_log(&["WARN", "timeline", "restored --nothing-lost"]);
}
