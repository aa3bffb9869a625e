//! A primary's streaming standby, by `pg_basebackup`, in the primary's own directory and on a socket of its own.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use postgres::{Client, NoTls};
use signal_feed::demo::postgres::PrivatePostgres;

use super::database::Database;
use super::wait::until;

/// What every standby of the tests runs with: the README's settings, and quick attempts to find its primary again.
const SETTINGS: [(&str, &str); 5] = [
    ("wal_receiver_timeout", "8s"),
    ("wal_retrieve_retry_interval", "200ms"),
    ("hot_standby_feedback", "on"),
    ("max_connections", "200"),
    // The copy has the settings of the tests' primary, which does not sync.
    ("fsync", "on"),
];

/// The socket's port; the primary's is 5432, in the same directory.
const PORT: u16 = 5433;

/// A streaming standby. Stopped with the test. It borrows nothing of its primary, which may be stopped and started
/// again.
pub struct Standby {
    dir: PathBuf,
    programs: PathBuf,
    data: String,
    options: String,
}

impl Standby {
    /// Copies a running primary and starts the copy as its standby, with `settings` on top of the tests' own.
    pub fn start(primary: &PrivatePostgres, settings: &[(&str, &str)]) -> Self {
        let data = primary.dir().join("standby").to_str().unwrap().to_owned();
        let mut options =
            format!("-c unix_socket_directories={} -c port={PORT} -c listen_addresses=", primary.dir().display());
        for (name, value) in SETTINGS.iter().chain(settings) {
            options.push_str(&format!(" -c {name}={value}"));
        }
        let standby = Self { dir: primary.dir().to_owned(), programs: primary.programs().to_owned(), data, options };
        let url = primary.url("postgres");
        standby.run("pg_basebackup", &["-d", &url, "-D", &standby.data, "--checkpoint=fast", "--write-recovery-conf"]);
        standby.start_again();
        standby
    }

    /// Starts it again after [`stop`](Self::stop).
    pub fn start_again(&self) {
        let log = self.dir.join("standby.log");
        self.run("pg_ctl", &["-D", &self.data, "-o", &self.options, "-l", log.to_str().unwrap(), "-w", "start"]);
    }

    /// Kills it as in a crash. Blocks until it has ended.
    pub fn stop(&self) {
        self.run("pg_ctl", &["-D", &self.data, "-m", "immediate", "-w", "stop"]);
    }

    /// Promotes it to primary. Blocks until it accepts writes.
    pub fn promote(&self) {
        self.run("pg_ctl", &["-D", &self.data, "-w", "promote"]);
    }

    /// The connection string of a database of its primary, here.
    pub fn url(&self, database: &Database) -> String {
        database.url.replace("port=5432", &format!("port={PORT}"))
    }

    /// A new session of the superuser.
    pub fn connect(&self, database: &Database) -> Client {
        Client::connect(&self.url(database), NoTls).unwrap()
    }

    /// The single number that a query returns here.
    pub fn number(&self, database: &Database, query: &str) -> i64 {
        self.connect(database).query_one(query, &[]).unwrap().get(0)
    }

    /// Runs statements here.
    pub fn sql(&self, database: &Database, statements: &str) {
        self.connect(database).batch_execute(statements).unwrap();
    }

    /// Waits until it has replayed all that its primary has.
    pub fn wait_replayed(&self, database: &Database) {
        let end = "select pg_current_wal_lsn()::text";
        let end: String = database.connect().query_one(end, &[]).unwrap().get(0);
        until(&format!("the standby has replayed up to {end}"), || {
            let mut client = Client::connect(&self.url(database), NoTls).ok()?;
            let query = format!("select pg_last_wal_replay_lsn() >= '{end}'::pg_lsn");
            client.query_one(&query, &[]).ok()?.get::<_, Option<bool>>(0)?.then_some(())
        });
    }

    /// Connection parameters that name both hosts, the primary first.
    pub fn both(&self, database: &Database, target_session_attrs: &str) -> String {
        let (dir, name) = (self.dir.display(), &database.name);
        format!(
            "host={dir},{dir} port=5432,{PORT} user=postgres dbname={name} target_session_attrs={target_session_attrs}"
        )
    }

    /// A command that runs as the user that PostgreSQL runs as: the owner of its directory.
    fn command(&self, program: &str) -> Command {
        let owner = fs::metadata(&self.dir).unwrap();
        let mut command = Command::new(self.programs.join(program));
        if rustix::process::geteuid().is_root() {
            command.uid(owner.uid()).gid(owner.gid()).current_dir("/");
        }
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    fn run(&self, program: &str, arguments: &[&str]) {
        let status = self.command(program).args(arguments).status().unwrap();
        let log = || fs::read_to_string(self.dir.join("standby.log")).unwrap_or_default();
        assert!(status.success(), "{program} {arguments:?}: {}", log());
    }
}

impl Drop for Standby {
    fn drop(&mut self) {
        let _ = self.command("pg_ctl").args(["-D", &self.data, "-m", "immediate", "stop"]).status();
    }
}
