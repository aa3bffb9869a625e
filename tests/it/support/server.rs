//! The server as a process: `signal-feed serve` on a port of its own choice, its log, its signals, its end.

use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use super::database::Database;
use super::program;
use super::sse::{Request, Stream};
use super::wait::{PATIENCE, until};

/// A running server; dropping it kills it.
pub struct Server {
    child: Child,
    address: Option<SocketAddr>,
    log: Arc<Mutex<Vec<String>>>,
    log_reader: Option<JoinHandle<()>>,
}

impl Server {
    /// Starts it on a free port. Blocks until it listens.
    pub fn start(database: &Database, options: &[&str]) -> Self {
        let mut command = Self::command(&database.url, "127.0.0.1:0");
        command.args(options);
        Self::spawn(command)
    }

    /// Starts it and waits until it is ready.
    pub fn ready(database: &Database, options: &[&str]) -> Self {
        let server = Self::start(database, options);
        server.wait_ready();
        server
    }

    /// The command that [`start`](Self::start) runs.
    pub fn command(url: &str, listen: &str) -> Command {
        let mut command = program::command(url);
        command.args(["serve", "--listen", listen]);
        command
    }

    /// Runs a command that is, or becomes, the server. Blocks until it listens.
    pub fn spawn(command: Command) -> Self {
        let mut server = Self::spawn_unheard(command);
        let address = until("the server listens", || {
            let log = server.log();
            if server.child.try_wait().unwrap().is_some() {
                panic!("the server ended: {log:?}");
            }
            log.iter().find_map(|line| {
                let (_, rest) = line.split_once("listening on ")?;
                rest.split_whitespace().next()?.parse().ok()
            })
        });
        server.address = Some(address);
        server
    }

    /// Runs a command that may end before it listens.
    pub fn spawn_unheard(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let log = Arc::new(Mutex::new(Vec::new()));
        let errors = BufReader::new(child.stderr.take().unwrap());
        let lines = log.clone();
        let log_reader = std::thread::spawn(move || {
            for line in errors.lines().map_while(Result::ok) {
                lines.lock().unwrap().push(line);
            }
        });
        Self { child, address: None, log, log_reader: Some(log_reader) }
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address.unwrap()
    }

    /// The address of its operator's port, if it was started with `--ops-listen 127.0.0.1:0`.
    pub fn ops_address(&self) -> SocketAddr {
        let line = self.wait_log(&["status page and metrics at http://"]);
        line.split("http://").nth(1).unwrap().trim_end_matches('/').parse().unwrap()
    }

    /// `/status` of its operator's port.
    pub fn status(&self) -> serde_json::Value {
        serde_json::from_slice(&Request::get("/status").host("localhost").send(self.ops_address()).body).unwrap()
    }

    /// Its log so far.
    pub fn log(&self) -> Vec<String> {
        self.log.lock().unwrap().clone()
    }

    /// Waits for a line of its log that has all these words.
    pub fn wait_log(&self, words: &[&str]) -> String {
        until(&format!("a log line with {words:?}"), || {
            self.log().into_iter().find(|line| words.iter().all(|word| line.contains(word)))
        })
    }

    /// Whether `/readyz` says 200.
    pub fn is_ready(&self) -> bool {
        Request::get("/readyz").send(self.address()).status == 200
    }

    /// Waits for `/readyz` to say 200.
    pub fn wait_ready(&self) {
        until("the server is ready", || self.is_ready().then_some(()));
    }

    /// Opens a stream that begins now.
    pub fn stream(&self, key: &str) -> Stream {
        Request::feed(key).open(self.address())
    }

    /// Opens a stream behind a cursor, as a reconnecting client does.
    pub fn stream_from(&self, key: &str, cursor: i64) -> Stream {
        Request::feed(key).last_event_id(cursor).open(self.address())
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
    }

    /// Waits for its end, at most `patience`.
    pub fn wait_end(&mut self, patience: Duration) -> ExitStatus {
        let end = Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < end, "the server has not ended within {patience:?}: {:?}", self.log());
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it by SIGTERM; it must end with 0.
    pub fn stop(mut self) -> Vec<String> {
        self.signal(Signal::TERM);
        let status = self.wait_end(PATIENCE);
        assert_eq!(status.code(), Some(0), "{:?}", self.log());
        // Its last lines may still be in the pipe.
        self.log_reader.take().unwrap().join().unwrap();
        self.log()
    }

    /// Kills it as a power cut would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How many threads it has.
    pub fn threads(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap().count()
    }

    /// How many of its threads serve a connection.
    pub fn client_threads(&self) -> usize {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        // A thread may end after it was listed.
        let name = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        tasks.flatten().map(name).filter(|name| name.trim() == "client").count()
    }

    /// How often the threads that serve a connection have gone to sleep so far.
    pub fn client_thread_switches(&self) -> u64 {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", self.pid())).unwrap();
        let status = |task: std::fs::DirEntry| std::fs::read_to_string(task.path().join("status")).unwrap_or_default();
        let of_client = |status: &String| status.starts_with("Name:\tclient\n");
        let switches = |status: String| {
            status.lines().find_map(|line| line.strip_prefix("voluntary_ctxt_switches:")?.trim().parse::<u64>().ok())
        };
        tasks.flatten().map(status).filter(of_client).filter_map(switches).sum()
    }

    /// How many TCP sockets it has open, the listening one included. (The database is reached by a unix socket.)
    pub fn tcp_sockets(&self) -> usize {
        let table = std::fs::read_to_string(format!("/proc/{}/net/tcp", self.pid())).unwrap();
        let inodes: std::collections::HashSet<&str> =
            table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(9)).collect();
        let descriptors = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap();
        let links = descriptors.flatten().filter_map(|entry| std::fs::read_link(entry.path()).ok());
        links
            .filter(|link| {
                let inode = link.to_str().and_then(|link| link.strip_prefix("socket:[")?.strip_suffix(']'));
                inode.is_some_and(|inode| inodes.contains(inode))
            })
            .count()
    }

    /// How many descriptors it has open.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).unwrap().count()
    }
}

impl Drop for Server {
    #[allow(clippy::print_stderr, reason = "a failed test shows what the server said")]
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            let log = self.log();
            let from = log.len().saturating_sub(40);
            for line in &log[from..] {
                eprintln!("server: {line}");
            }
        }
    }
}
