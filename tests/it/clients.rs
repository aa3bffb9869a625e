//! Real clients, unmodified: the programs of `tests/clients/`, directly and through nginx and haproxy with default settings,
//! over a restart of the server. `.ci/install tests` has put their libraries into `target/clients`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::support::database::Database;
use crate::support::server::Server;
use crate::support::wait::until;

/// A program that is ended with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A directory of the test's own.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("signal-feed-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// What holds the port while no server runs, as systemd does.
struct Port(TcpListener);

impl Port {
    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    /// Starts a server on it, by the protocol of sd_listen_fds(3).
    fn serve(&self, database: &Database) -> Server {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "exec 3<&0 0</dev/null; LISTEN_FDS=1 LISTEN_PID=$$ exec \"$1\" serve", "sh"]);
        command.arg(env!("CARGO_BIN_EXE_signal-feed")).env("DATABASE_URL", &database.url);
        command.stdin(Stdio::from(OwnedFd::from(self.0.try_clone().unwrap())));
        Server::spawn(command)
    }
}

fn installed(path: &str) -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/clients").join(path);
    assert!(path.exists(), "{} is missing: run .ci/install tests", path.display());
    path
}

fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/clients").join(name)
}

/// Every client, by name.
fn clients() -> BTreeMap<&'static str, Command> {
    let python = |name| {
        let mut command = Command::new(installed("python/bin/python"));
        command.arg(program(name));
        command
    };
    let node = |version: &str| {
        let mut command = Command::new("node");
        command.arg(program("eventsource.cjs")).env("NODE_PATH", installed(&format!("{version}/node_modules")));
        command
    };
    let mut fetch = Command::new("node");
    fetch.arg(program("fetch.mjs"));
    let mut curl = Command::new("/bin/sh");
    curl.arg(program("curl.sh"));
    BTreeMap::from([
        ("requests + sseclient-py", python("requests_client.py")),
        ("httpx-sse", python("httpx_client.py")),
        ("aiohttp-sse-client", python("aiohttp_client.py")),
        ("eventsource 2", node("eventsource2")),
        ("eventsource 4", node("eventsource4")),
        ("fetch", fetch),
        ("curl", curl),
    ])
}

fn nginx(scratch: &Scratch, upstream: SocketAddr) -> (Running, SocketAddr) {
    let (dir, address) = (scratch.0.display(), free_address());
    let configuration = format!(
        "daemon off; master_process off; pid {dir}/nginx.pid; error_log {dir}/nginx.log;\nevents {{}}\nhttp {{\n  access_log off;\n  \
         client_body_temp_path {dir}/body; proxy_temp_path {dir}/proxy; fastcgi_temp_path {dir}/fastcgi; \
         uwsgi_temp_path {dir}/uwsgi; scgi_temp_path {dir}/scgi;\n  \
         server {{ listen {address}; location / {{ proxy_pass http://{upstream}; }} }}\n}}\n"
    );
    let path = scratch.0.join("nginx.conf");
    fs::write(&path, configuration).unwrap();
    let child = Command::new("nginx").arg("-c").arg(&path).stderr(Stdio::null()).spawn().unwrap();
    (Running(child), address)
}

fn haproxy(scratch: &Scratch, upstream: SocketAddr) -> (Running, SocketAddr) {
    let address = free_address();
    let configuration = format!(
        "defaults\n  mode http\n  timeout connect 5s\n  timeout client 50s\n  timeout server 50s\n\
         frontend feed\n  bind {address}\n  default_backend feed\nbackend feed\n  server feed {upstream}\n"
    );
    let path = scratch.0.join("haproxy.cfg");
    fs::write(&path, configuration).unwrap();
    let child = Command::new("haproxy").arg("-f").arg(&path).stderr(Stdio::null()).spawn().unwrap();
    (Running(child), address)
}

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

/// Starts every client against an address; gives where each writes what it sees.
fn start_all(scratch: &Scratch, way: &str, address: SocketAddr, key: &str) -> Vec<(String, PathBuf, Running)> {
    clients()
        .into_iter()
        .map(|(name, mut command)| {
            let name = format!("{name} {way}");
            let seen = scratch.0.join(&name);
            command.env("FEED_URL", format!("http://{address}/feed")).env("FEED_KEY", key).env("FEED_CURSOR", "0");
            command.stdin(Stdio::null()).stdout(File::create(&seen).unwrap()).stderr(Stdio::null());
            (name, seen, Running(command.spawn().unwrap()))
        })
        .collect()
}

#[test]
fn real_clients_see_every_event_once_over_a_restart_directly_and_behind_proxies() {
    let database = Database::migrated();
    let key = database.mint_with("clients", &[]);
    let port = Port(TcpListener::bind("127.0.0.1:0").unwrap());
    let scratch = Scratch::new("clients");
    let server = port.serve(&database);
    server.wait_ready();
    // The pieces of a haproxy or nginx that is not installed would be missed here, not skipped.
    let (_nginx, behind_nginx) = nginx(&scratch, port.address());
    let (_haproxy, behind_haproxy) = haproxy(&scratch, port.address());
    for address in [behind_nginx, behind_haproxy] {
        until("the proxy listens", || std::net::TcpStream::connect(address).ok());
    }
    let other = database.mint_with("others", &[]);
    let third = database.mint_with("thirds", &[]);
    let mut running = start_all(&scratch, "directly", port.address(), &key);
    running.extend(start_all(&scratch, "behind nginx", behind_nginx, &other));
    running.extend(start_all(&scratch, "behind haproxy", behind_haproxy, &third));

    let expect = |last: i64| {
        let mut expected = String::new();
        for seq in 1..=last {
            writeln!(expected, "{seq}").unwrap();
        }
        for (name, seen, _) in &running {
            until(&format!("{name} sees events 1 to {last}"), || {
                let seen = fs::read_to_string(seen).unwrap();
                assert!(expected.starts_with(&seen) || seen == expected, "{name} saw {seen:?}");
                (seen == expected).then_some(())
            });
        }
    };
    database.insert(50);
    expect(50);
    server.stop();
    database.insert(50);
    let server = port.serve(&database);
    expect(100);
    server.kill();
    database.insert(50);
    let _server = port.serve(&database);
    expect(150);
}
