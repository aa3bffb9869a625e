//! Real clients, unmodified: the programs of `tests/clients/`, directly and through nginx and haproxy with default
//! settings, over a restart of the server. `.ci/install tests` has put their libraries into `target/clients`.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::fs::{self, File};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::support::database::Database;
use crate::support::outside::{Port, Running, Scratch, free_address, nginx};
use crate::support::wait::{PATIENCE, until, until_within};

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
    let mut polyfill = Command::new("node");
    polyfill.arg(program("polyfill.cjs")).env("NODE_PATH", installed("polyfill/node_modules"));
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
        ("event-source-polyfill", polyfill),
        ("fetch", fetch),
        ("curl", curl),
    ])
}

fn behind_nginx(scratch: &Scratch, upstream: SocketAddr) -> (Running, SocketAddr) {
    let address = free_address();
    let server = format!("server {{ listen {address}; location / {{ proxy_pass http://{upstream}; }} }}");
    (nginx(scratch, &server), address)
}

fn behind_haproxy(scratch: &Scratch, upstream: SocketAddr) -> (Running, SocketAddr) {
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

/// Starts every client against an address; returns the file that each writes to.
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
    let port = Port::open();
    let scratch = Scratch::new("clients");
    let server = port.serve(&database);
    server.wait_ready();
    // The pieces of a haproxy or nginx that is not installed would be missed here, not skipped.
    let (_nginx, nginx) = behind_nginx(&scratch, port.address());
    let (_haproxy, haproxy) = behind_haproxy(&scratch, port.address());
    for address in [nginx, haproxy] {
        until("the proxy listens", || std::net::TcpStream::connect(address).ok());
    }
    let other = database.mint_with("others", &[]);
    let third = database.mint_with("thirds", &[]);
    let mut running = start_all(&scratch, "directly", port.address(), &key);
    running.extend(start_all(&scratch, "behind nginx", nginx, &other));
    running.extend(start_all(&scratch, "behind haproxy", haproxy, &third));

    let expect = |last: i64| {
        let mut expected = String::new();
        for seq in 1..=last {
            writeln!(expected, "{seq}").unwrap();
        }
        for (name, seen, _) in &running {
            until_within(4 * PATIENCE, &format!("{name} sees events 1 to {last}"), || {
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
