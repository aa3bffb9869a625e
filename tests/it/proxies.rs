//! Behind a reverse proxy with TLS: nginx, haproxy, Caddy and Apache with the configurations of `tests/proxies`.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};

use crate::support::database::Database;
use crate::support::outside::{Port, Running, Scratch, free_address, nginx};
use crate::support::readme::example_with;
use crate::support::server::Server;
use crate::support::sse::Request;
use crate::support::wait::until;

/// The clients' address in these tests; the proxies reach the feed from 127.0.0.1.
const CLIENT: &str = "127.0.0.2";

struct Proxy {
    address: SocketAddr,
    _program: Running,
}

/// A certificate for feed.example: alone, its key, and both in one file.
fn certificate(scratch: &Scratch) -> [String; 3] {
    let [certificate, key, both] = ["feed.pem", "feed.key", "both.pem"].map(|name| scratch.0.join(name));
    let made = Command::new("openssl")
        .args(["req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"])
        .args(["-subj", "/CN=feed.example", "-addext", "subjectAltName=DNS:feed.example"])
        .arg("-keyout")
        .arg(&key)
        .arg("-out")
        .arg(&certificate)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    fs::write(&both, [fs::read(&certificate).unwrap(), fs::read(&key).unwrap()].concat()).unwrap();
    [certificate, key, both].map(|path| path.to_str().unwrap().to_owned())
}

fn proxies(scratch: &Scratch, upstream: SocketAddr) -> [(&'static str, Proxy); 4] {
    let [certificate, key, both] = certificate(scratch);
    let upstream = upstream.to_string();
    let feed = ("127.0.0.1:8080", upstream.as_str());
    let pem = ("/etc/ssl/feed.example.pem", certificate.as_str());
    let pem_key = ("/etc/ssl/feed.example.key", key.as_str());
    let started = |address, program| {
        until("the proxy listens", || TcpStream::connect(address).ok());
        Proxy { address, _program: program }
    };

    let address = free_address();
    let listen = address.to_string();
    let server = example_with("proxies/nginx.conf", &[feed, pem, pem_key, ("listen 443", &format!("listen {listen}"))]);
    let nginx = started(address, nginx(scratch, &server));

    let address = free_address();
    let bind = format!("bind {address}");
    let text =
        example_with("proxies/haproxy.cfg", &[feed, ("/etc/ssl/feed.example.both.pem", &both), ("bind :443", &bind)]);
    let file = scratch.0.join("haproxy.cfg");
    fs::write(&file, text).unwrap();
    let haproxy = Command::new("haproxy").arg("-f").arg(&file).stderr(Stdio::null()).spawn().unwrap();
    let haproxy = started(address, Running(haproxy));

    let address = free_address();
    let site = format!("feed.example:{} {{", address.port());
    let text = example_with("proxies/Caddyfile", &[feed, pem, pem_key, ("feed.example {", &site)]);
    let file = scratch.0.join("Caddyfile");
    // Its own port for administration, and the one for plain http, are another program's here.
    fs::write(&file, format!("{{\n\tadmin off\n\tauto_https disable_redirects\n}}\n{text}")).unwrap();
    let mut caddy = Command::new("caddy");
    caddy.args(["run", "--adapter", "caddyfile", "--config"]).arg(&file).env("HOME", &scratch.0);
    caddy.env_remove("XDG_DATA_HOME").env_remove("XDG_CONFIG_HOME").stdout(Stdio::null()).stderr(Stdio::null());
    let caddy = started(address, Running(caddy.spawn().unwrap()));

    let address = free_address();
    let dir = scratch.0.display();
    let site = example_with("proxies/apache.conf", &[feed]);
    // Around the example's lines: what Debian's files and a virtual host with TLS contain.
    let modules = ["mpm_event", "authz_core", "proxy", "proxy_http", "headers", "ssl", "socache_shmcb"];
    let mut text = format!("ServerRoot {dir}\nPidFile {dir}/apache.pid\nErrorLog {dir}/apache-errors\n");
    for module in modules {
        text.push_str(&format!("LoadModule {module}_module /usr/lib/apache2/modules/mod_{module}.so\n"));
    }
    text.push_str(&format!(
        "Mutex file:{dir}\nListen {address}\n<VirtualHost {address}>\nServerName feed.example\nSSLEngine on\n\
         SSLCertificateFile {certificate}\nSSLCertificateKeyFile {key}\n{site}</VirtualHost>\n"
    ));
    let file = scratch.0.join("apache.conf");
    fs::write(&file, text).unwrap();
    let mut apache = Command::new("apache2");
    // One process: others would outlive it when the test kills it.
    apache.arg("-f").arg(&file).arg("-X").stdout(Stdio::null()).stderr(Stdio::null());
    let apache = started(address, Running(apache.spawn().unwrap()));

    [("nginx", nginx), ("haproxy", haproxy), ("Caddy", caddy), ("Apache", apache)]
}

/// A curl that speaks https to a proxy, from the clients' address.
fn curl(scratch: &Scratch, proxy: &Proxy, path: &str) -> Command {
    let port = proxy.address.port();
    let mut curl = Command::new("curl");
    curl.args(["--silent", "--show-error", "--no-buffer", "--max-time", "60", "--interface", CLIENT, "--cacert"]);
    curl.arg(scratch.0.join("feed.pem")).arg("--resolve").arg(format!("feed.example:{port}:127.0.0.1"));
    curl.arg(format!("https://feed.example:{port}{path}")).stdin(Stdio::null());
    curl
}

/// The cookie that a session through a proxy gives, whole.
fn cookie(mut curl: Command, key: &str) -> String {
    let output = curl
        .args(["--request", "POST", "--dump-header", "-", "--header", &format!("Authorization: Bearer {key}")])
        .output()
        .unwrap();
    let head = String::from_utf8(output.stdout).unwrap();
    let mut fields = head.lines().filter_map(|line| line.split_once(": "));
    let cookie = fields.find(|(name, _)| name.eq_ignore_ascii_case("set-cookie"));
    cookie.unwrap_or_else(|| panic!("{head:?} {}", String::from_utf8_lossy(&output.stderr))).1.to_owned()
}

#[test]
fn behind_each_proxy_with_tls_streams_flow_clients_have_their_address_and_cookies_are_secure() {
    let scratch = Scratch::new("proxies");
    let database = Database::migrated();
    let port = Port::open();
    let program = Path::new(env!("CARGO_BIN_EXE_signal-feed"));
    let proxies = proxies(&scratch, port.address());
    let mut server = port.serve_with(program, &database, &["--trusted-proxy", "127.0.0.1"]);
    server.wait_ready();
    for (name, proxy) in &proxies {
        let key = database.mint(name);
        let set = cookie(curl(&scratch, proxy, "/session"), &key);
        assert!(set.contains("; Secure") && set.contains("; HttpOnly; SameSite=Strict; Path=/"), "{name}: {set}");
        // What the client says of itself is not what the proxy says.
        let head = database.head();
        let mut stream = curl(&scratch, proxy, "/feed");
        stream.args(["--header", &format!("Cookie: {}", set.split(';').next().unwrap())]);
        stream.args(["--header", "X-Forwarded-For: 10.6.6.6", "--header", "X-Forwarded-For: <script>"]);
        let mut stream = Running(stream.stdout(Stdio::piped()).spawn().unwrap());
        let mut lines = BufReader::new(stream.0.stdout.take().unwrap()).lines().map(Result::unwrap);
        assert_eq!(lines.next().unwrap(), format!("id: {head}"), "{name}");
        server.wait_log(&[&format!("stream begins: key \"{name}\" from {CLIENT}:")]);
        // Each comes at once: an event that a proxy held back would never come here.
        for seq in head + 1..=head + 3 {
            database.insert(1);
            assert!(lines.any(|line| line == format!("id: {seq}")), "{name}");
        }
        // The last block comes through, and a client that connects while no server runs waits for the next one.
        let stopping = std::thread::spawn(move || server.stop());
        assert!(lines.any(|line| line.contains("\"reason\":\"closing\",\"cause\":\"shutdown\"")), "{name}");
        stopping.join().unwrap();
        let mut waiting = curl(&scratch, proxy, &format!("/feed?cursor={}", head + 2));
        waiting.args(["--header", &format!("Authorization: Bearer {key}"), "--dump-header", "-"]);
        let mut waiting = Running(waiting.stdout(Stdio::piped()).spawn().unwrap());
        server = port.serve_with(program, &database, &["--trusted-proxy", "127.0.0.1"]);
        let mut lines = BufReader::new(waiting.0.stdout.take().unwrap()).lines().map(Result::unwrap);
        let status = lines.next().unwrap();
        assert!(status.contains(" 200"), "{name}: {status}");
        assert!(lines.any(|line| line == format!("id: {}", head + 3)), "{name}");
        server.wait_ready();
    }
}

#[test]
fn headers_from_an_untrusted_peer_are_ignored() {
    let database = Database::migrated();
    let key = database.mint("bot");
    for trusted in [&[][..], &["--trusted-proxy", "10.0.0.0/8,::1"]] {
        let server = Server::ready(&database, trusted);
        let request = Request::new("POST", "/session").key(&key).field("X-Forwarded-Proto", "https");
        let answer = request.send(server.address());
        let set = answer.field("Set-Cookie").unwrap();
        assert!(!set.contains("Secure"), "{set}");
        let mut stream = Request::feed(&key).field("X-Forwarded-For", "203.0.113.9").open(server.address());
        stream.connected();
        server.wait_log(&["stream begins: key \"bot\" from 127.0.0.1:"]);
        assert!(server.log().iter().all(|line| !line.contains("203.0.113.9")));
    }
}

#[test]
fn any_header_that_a_trusted_proxy_passes_on_does_no_harm() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &["--trusted-proxy", "127.0.0.0/8", "--trusted-proxy", "fd00::/8"]);
    let long = "203.0.113.9, ".repeat(1_000);
    for (value, told) in [
        ("203.0.113.9", "203.0.113.9:0,"),
        ("198.51.100.1, 203.0.113.8", "203.0.113.8:0,"),
        (long.trim_end_matches(", "), "203.0.113.9:0,"),
        ("not an address", "127.0.0.1:"),
        ("999.999.999.999", "127.0.0.1:"),
        ("<script>alert(1)</script>", "127.0.0.1:"),
        (",,,,", "127.0.0.1:"),
        ("", "127.0.0.1:"),
    ] {
        let before = server.log().len();
        let mut stream = Request::feed(&key).field("X-Forwarded-For", value).open(server.address());
        stream.connected();
        let begins = format!("stream begins: key \"bot\" from {told}");
        until("the stream's line", || server.log()[before..].iter().any(|line| line.contains(&begins)).then_some(()));
    }
    assert!(server.log().iter().all(|line| !line.contains("script") && line.len() < 300));
    // With it, a head that is too large, or none at all, is still refused.
    let refused = Request::feed(&key).field("X-Forwarded-For", &long.repeat(3)).send(server.address());
    assert_eq!(refused.refusal(), (431, "head_too_large".into()));
    let refused = Request::feed(&key).field("X-Forwarded-For", "\u{1b}[2J").send(server.address());
    assert_eq!(refused.refusal(), (400, "bad_request".into()));
}
