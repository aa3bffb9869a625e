//! The feed as a service: the units and their files, messages to the service manager, and a port that stays open over a
//! restart and an upgrade. systemd itself does not run here: the tests hold its ends of the protocols, the notification
//! socket (sd_notify(3)) and the listening one (sd_listen_fds(3)).

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::TcpStream;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, setrlimit};
use signal_feed::consumer::follow::{Cause, FeedEvent, FollowOptions, Follower};
use signal_feed::consumer::stop::Stop;
use signal_feed::consumer::stream::{ApiKey, Cursor};
use signal_feed::demo::postgres::PrivatePostgres;

use crate::support::cluster::Cluster as _;
use crate::support::database::{Database, Frozen};
use crate::support::outside::{Port, Scratch, free_address, nginx};
use crate::support::server::Server;
use crate::support::sse::{Connection, Request, Stream};
use crate::support::wait::{PATIENCE, until};

/// Streams that are open at once, directly and behind nginx.
const STREAMS: usize = 1_000;
const BEHIND_NGINX: usize = 200;

fn unit_files(ending: &str) -> Vec<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("systemd");
    let files = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    files.filter(|path| path.to_str().unwrap().ends_with(ending)).collect()
}

#[test]
fn units_are_clean_and_well_confined_for_systemd_analyze() {
    let scratch = Scratch::new("units");
    let mut copies = Vec::new();
    for path in [".service", ".socket", ".timer"].into_iter().flat_map(unit_files) {
        // Only the programs' paths differ from an installation.
        let text = fs::read_to_string(&path).unwrap();
        let text = text.replace("/usr/bin/signal-feed ", concat!(env!("CARGO_BIN_EXE_signal-feed"), " "));
        let text = text.replace("/usr/bin/trader-bot", env!("CARGO_BIN_EXE_trader-bot"));
        let copy = scratch.0.join(path.file_name().unwrap());
        fs::write(&copy, text).unwrap();
        copies.push(copy);
    }
    assert!(copies.len() >= 7, "{copies:?}");
    let verify = Command::new("systemd-analyze").args(["verify", "--man=no"]).args(&copies).output().unwrap();
    let said = String::from_utf8_lossy(&verify.stderr);
    assert!(verify.status.success() && said.is_empty(), "{said}");
    for service in unit_files(".service") {
        let analysed = Command::new("systemd-analyze")
            .args(["security", "--offline=yes", "--threshold=20"])
            .arg(&service)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&analysed.stdout).into_owned();
        assert!(analysed.status.success(), "{}: {}", service.display(), said.lines().last().unwrap_or_default());
    }
}

/// Every option that a program's help names, as its environment variable, with its default.
fn options(program: &str, arguments: &[&str]) -> BTreeMap<String, String> {
    let help = Command::new(program).args(arguments).arg("--help").env_clear().output().unwrap();
    let help = String::from_utf8(help.stdout).unwrap();
    let mut options = BTreeMap::new();
    let mut last = String::new();
    for line in help.lines().map(str::trim) {
        if let Some(rest) = line.strip_prefix("[env: ") {
            last = rest.trim_end_matches([']', '=']).to_owned();
            options.insert(last.clone(), String::new());
        } else if let Some(rest) = line.strip_prefix("[default: ") {
            options.insert(last.clone(), rest.trim_end_matches(']').to_owned());
        }
    }
    options
}

#[test]
fn environment_files_have_every_option_with_its_default() {
    let signal_feed = options(env!("CARGO_BIN_EXE_signal-feed"), &["serve"]);
    let trader_bot = options(env!("CARGO_BIN_EXE_trader-bot"), &[]);
    assert!(signal_feed.len() > 15 && trader_bot.len() > 15, "{signal_feed:?} {trader_bot:?}");
    for (name, expected) in [("signal-feed.env", signal_feed), ("trader-bot.env", trader_bot)] {
        let [path] = &unit_files(name)[..] else { panic!("{name}") };
        let text = fs::read_to_string(path).unwrap();
        let mut told = BTreeMap::new();
        for line in text.lines() {
            // A line that is not commented out sets an option without a default.
            let Some((option, value)) = line.trim_start_matches('#').split_once('=') else { continue };
            if option.bytes().all(|byte| byte.is_ascii_uppercase() || byte == b'_') {
                let value = if line.starts_with('#') { value } else { "" };
                assert_eq!(told.insert(option.to_owned(), value.to_owned()), None, "{name}: {option} twice");
            }
        }
        // A switch has no default in the help.
        told.values_mut().filter(|value| *value == "false").for_each(String::clear);
        assert_eq!(told, expected, "{name}");
    }
}

/// The service manager's end of the notification socket.
struct Manager {
    socket: UnixDatagram,
    path: PathBuf,
}

impl Manager {
    fn new(scratch: &Scratch) -> Self {
        let path = scratch.0.join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        Self { socket, path }
    }

    /// Starts a server that reports to it.
    fn start(&self, mut command: Command) -> Server {
        command.env("NOTIFY_SOCKET", &self.path).env("WATCHDOG_USEC", "60000000");
        Server::spawn(command)
    }

    /// The next assignment or assignments, at most after `patience`.
    fn next(&self, patience: Duration) -> Option<String> {
        self.socket.set_read_timeout(Some(patience.max(Duration::from_millis(1)))).unwrap();
        let mut bytes = [0; 4096];
        match self.socket.recv(&mut bytes) {
            Ok(count) => Some(String::from_utf8(bytes[..count].to_vec()).unwrap()),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => None,
            Err(error) => panic!("{error}"),
        }
    }

    /// Waits for a message that begins so.
    fn wait(&self, beginning: &str) -> String {
        let end = Instant::now() + PATIENCE;
        let mut heard = Vec::new();
        loop {
            let Some(message) = self.next(end.saturating_duration_since(Instant::now())) else {
                panic!("no {beginning} within {PATIENCE:?}, but {heard:?}");
            };
            if message.starts_with(beginning) {
                return message;
            }
            heard.push(message);
        }
    }

    /// Discards the messages that are already there.
    fn drain(&self) {
        while self.next(Duration::ZERO).is_some() {}
    }
}

#[test]
fn the_service_manager_hears_of_readiness_outages_and_the_end_and_the_watchdog_is_fed() {
    let scratch = Scratch::new("notify");
    let manager = Manager::new(&scratch);
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&cluster);
    let key = database.mint("bot");
    let server = manager.start(Server::command(&database.url, "127.0.0.1:0"));
    manager.wait("READY=1\n");
    // READY=1 means that the server accepts connections: this request needs no wait.
    assert_eq!(Request::get("/healthz").send(server.address()).status, 200);
    manager.wait("STATUS=live: streams 0, head 0\n");
    let mut stream = server.stream(&key);
    stream.connected();
    database.insert(2);
    stream.signals(2);
    manager.wait("STATUS=live: streams 1, head 2\n");
    manager.wait("WATCHDOG=1\n");

    cluster.stop(true);
    let status = manager.wait("STATUS=degraded: ");
    assert!(status.contains("streams 1, head 2"), "{status}");
    manager.drain();
    for _ in 0..3 {
        manager.wait("WATCHDOG=1\n");
    }
    cluster.start_again();
    manager.wait("STATUS=live: streams 1, head 2\n");

    // A silent database takes longest: each call has to time out.
    let began = Instant::now();
    let frozen = Frozen::new(&cluster);
    manager.wait("STATUS=degraded: ");
    manager.drain();
    for _ in 0..2 {
        manager.wait("WATCHDOG=1\n");
    }
    let twice_fed = began.elapsed();
    drop(frozen);
    assert!(twice_fed < Duration::from_secs(40), "fed twice in {twice_fed:?} with WatchdogSec=60s");
    manager.wait("STATUS=live: ");

    server.signal(Signal::TERM);
    let last = manager.wait("STOPPING=1\n");
    assert!(last.contains("STATUS=stopping: streams 1"), "{last}");
    stream.system("degraded");
}

#[test]
fn a_server_that_starts_without_its_database_is_ready_and_says_what_is_missing() {
    let scratch = Scratch::new("notify-starting");
    let manager = Manager::new(&scratch);
    let cluster = PrivatePostgres::start(&[]).unwrap();
    let database = Database::migrated_in(&cluster);
    cluster.stop(true);
    let _server = manager.start(Server::command(&database.url, "127.0.0.1:0"));
    manager.wait("READY=1\n");
    manager.wait("STATUS=starting: ");
    manager.wait("WATCHDOG=1\n");
}

#[test]
fn a_hanging_reader_stops_the_watchdog_messages_although_everything_else_works() {
    let scratch = Scratch::new("notify-frozen");
    let manager = Manager::new(&scratch);
    let database = Database::migrated();
    let key = database.mint("bot");
    let freeze = scratch.0.join("freeze");
    let serve = Server::command(&database.url, "127.0.0.1:0");
    let mut command = Command::new("python3");
    command.arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/freeze_thread.py")).arg(&freeze).arg("reader");
    command.arg(serve.get_program()).args(serve.get_args());
    command.envs(serve.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let server = manager.start(command);
    server.wait_ready();
    for _ in 0..3 {
        manager.wait("WATCHDOG=1\n");
    }
    fs::write(&freeze, "").unwrap();
    until("the reader is frozen", || scratch.0.join("freeze.done").exists().then_some(()));
    manager.drain();
    // The thread that reports to the service manager still runs.
    let _stream = Request::feed(&key).post(server.address());
    manager.wait("STATUS=live: streams 1, head 0\n");
    let end = Instant::now() + Duration::from_secs(8);
    let heard = std::iter::from_fn(|| {
        manager.next(end.saturating_duration_since(Instant::now())).filter(|_| Instant::now() < end)
    });
    let fed = heard.filter(|message| message.starts_with("WATCHDOG")).count();
    // The reader's loop may have turned just before.
    assert!(fed <= 1, "fed {fed} times with its reader frozen");
    assert_eq!(Request::get("/healthz").send(server.address()).status, 200);
}

/// Opens streams from their cursors: every connection is there before the first is read from.
fn reconnect(port: &Port, key: &str, cursors: &[i64]) -> Vec<Connection> {
    cursors.iter().map(|&cursor| Request::feed(key).last_event_id(cursor).post(port.address())).collect()
}

/// Reads the events up to `head`, or to the last block: none is missing, none comes twice. Returns the last.
fn catch_up(stream: &mut Stream, mut cursor: i64, head: i64) -> i64 {
    while cursor < head {
        let block = stream.block();
        if block.reason() == Some("closing") {
            return cursor;
        }
        assert_eq!(block.prev_seq(), Some(cursor), "{block:?}");
        cursor = block.feed_seq().unwrap();
    }
    cursor
}

/// Ends the followers if their test fails, which would otherwise wait for them.
struct EndOnDrop(Stop);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.ask();
    }
}

/// Follows a feed behind nginx until `last`, as a bot does, and returns what interrupted it.
fn follow(address: &str, key: &str, last: &Mutex<i64>, stop: &Stop) -> Vec<Cause> {
    let mut options = FollowOptions::new(vec![address.parse().unwrap()], ApiKey::new(key).unwrap());
    (options.backoff_min, options.backoff_max) = (Duration::from_millis(10), Duration::from_millis(100));
    let mut follower = Follower::new(&options, Some(Cursor { feed_seq: 0, event_time: None }), stop.clone());
    let mut interruptions = Vec::new();
    let mut cursor = 0;
    while cursor == 0 || cursor < *last.lock().unwrap() {
        match follower.next_event().unwrap() {
            FeedEvent::Signal(event) => {
                assert_eq!(event.prev_seq, Some(cursor));
                cursor = event.feed_seq;
                follower.acknowledge(Cursor { feed_seq: cursor, event_time: None });
            }
            FeedEvent::Interrupted { cause, .. } => interruptions.push(cause),
            FeedEvent::Missed(missed) => panic!("{missed:?}"),
            _ => {}
        }
    }
    interruptions
}

#[test]
fn a_restart_and_an_upgrade_under_a_thousand_streams_refuse_and_lose_no_client_even_behind_nginx() {
    let most = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }).unwrap();
    let scratch = Scratch::new("upgrade");
    let upgraded = scratch.0.join("signal-feed");
    fs::copy(env!("CARGO_BIN_EXE_signal-feed"), &upgraded).unwrap();
    let database = Database::migrated();
    let key = database.mint("bots");
    let port = Port::open();
    let old = Path::new(env!("CARGO_BIN_EXE_signal-feed"));
    let serve = |program: &Path| {
        let most = &["--max-clients", "2000", "--max-clients-per-key", "2000"];
        port.serve_with(program, &database, most)
    };
    let behind = free_address();
    let http = format!("server {{ listen {behind}; location / {{ proxy_pass http://{}; }} }}", port.address());
    let _nginx = nginx(&scratch, &http);
    until("nginx listens", || TcpStream::connect(behind).ok());
    let (last, url) = (Mutex::new(i64::MAX), format!("http://{behind}/feed"));
    let stop = Stop::new();
    std::thread::scope(|scope| {
        let _end = EndOnDrop(stop.clone());
        let mut server = serve(old);
        server.wait_ready();
        let followers: Vec<_> = (0..BEHIND_NGINX).map(|_| scope.spawn(|| follow(&url, &key, &last, &stop))).collect();
        database.insert(3);
        let mut streams: Vec<Stream> = Vec::new();
        for connection in reconnect(&port, &key, &[0; STREAMS]) {
            let mut stream = connection.stream(PATIENCE);
            stream.connected();
            assert_eq!(catch_up(&mut stream, 0, 3), 3);
            streams.push(stream);
        }
        for (program, head) in [(old, 3), (&upgraded, 9)] {
            database.insert(2);
            let stopping = scope.spawn(move || server.stop());
            // An event written at the last moment comes before the last block, or after the restart.
            let until_closed = |stream: &mut Stream| catch_up(stream, head, i64::MAX);
            let cursors: Vec<i64> = streams.iter_mut().map(until_closed).collect();
            stopping.join().unwrap();
            // No server runs now. Every client reconnects, and something is written.
            let waiting = reconnect(&port, &key, &cursors);
            database.insert(4);
            server = serve(program);
            streams = waiting.into_iter().map(|connection| connection.stream(PATIENCE)).collect();
            for (stream, cursor) in streams.iter_mut().zip(cursors) {
                stream.connected();
                assert_eq!(catch_up(stream, cursor, head + 6), head + 6);
            }
        }
        *last.lock().unwrap() = 16;
        database.insert(1);
        for follower in followers {
            for cause in follower.join().unwrap() {
                assert!(!matches!(cause, Cause::Status { .. }), "{cause}");
            }
        }
        for stream in &mut streams {
            assert_eq!(catch_up(stream, 15, 16), 16);
        }
    });
    // What nginx itself saw: nothing but 200, and no connection that was refused.
    let statuses = fs::read_to_string(scratch.0.join("nginx-statuses")).unwrap();
    assert!(statuses.lines().count() >= 2 * BEHIND_NGINX, "{}", statuses.lines().count());
    assert!(statuses.lines().all(|status| status == "200"), "{statuses}");
    let errors = fs::read_to_string(scratch.0.join("nginx-errors")).unwrap_or_default();
    assert!(!errors.contains("[error]"), "{errors}");
}
