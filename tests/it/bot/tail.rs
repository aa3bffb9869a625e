//! `signal-feed tail`, the consumer for the shell, against the scripted feed.

use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, Stdio};

use super::feed::{Feed, row};
use super::process::{KEY, Place};
use crate::support::wait::until;

fn tail(place: &Place, url: &str, more: &[&str]) -> Child {
    std::fs::write(place.path("key"), format!("{KEY}\n")).unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_signal-feed"));
    command.current_dir(&place.dir).args(["tail", "--feed-url", url, "--feed-api-key-file", "key"]).args(more);
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

fn code(child: &mut Child) -> Option<i32> {
    until("the end of tail", || child.try_wait().unwrap()).code()
}

fn text(mut from: impl Read) -> String {
    let mut text = String::new();
    from.read_to_string(&mut text).unwrap();
    text
}

#[test]
fn tail_prints_each_event_once_across_a_reconnect_and_ends_after_its_count() {
    let (feed, place) = (Feed::new(), Place::new());
    let mut child = tail(&place, &feed.url, &["--cursor", "5", "--count", "3"]);
    let request = feed.accept();
    assert_eq!(request.cursor(), Some(5));
    assert_eq!(request.header("authorization"), Some(format!("Bearer {KEY}").as_str()));
    let mut stream = request.open();
    stream.connected(5);
    stream.insert(6, &row(1, "entry"));
    stream.system("{\"reason\":\"degraded\"}");
    drop(stream);
    let request = feed.accept();
    assert_eq!(request.cursor(), Some(6));
    let mut stream = request.open();
    stream.connected(6);
    stream.insert(6, &row(1, "entry"));
    stream.insert(7, &row(2, "entry"));
    stream.insert(8, &row(3, "entry"));
    stream.insert(9, &row(4, "entry"));
    assert_eq!(code(&mut child), Some(0));
    let lines = text(child.stdout.take().unwrap());
    let numbers: Vec<i64> = lines
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["feed_seq"].as_i64().unwrap())
        .collect();
    assert_eq!(numbers, [6, 7, 8]);
    let notices = text(child.stderr.take().unwrap());
    assert!(notices.contains("degraded") && notices.contains("trying again"), "{notices}");
    assert!(!notices.contains(KEY));
}

#[test]
fn tail_continues_after_a_loss_and_exits_1() {
    let (feed, place) = (Feed::new(), Place::new());
    let mut child = tail(&place, &feed.url, &["--cursor", "5", "--count", "1"]);
    let mut stream = feed.open(5);
    stream.system("{\"reason\":\"replay_truncated\",\"requested\":5,\"earliest\":50}");
    stream.event(50, 49, "INSERT", &row(1, "entry"));
    assert_eq!(code(&mut child), Some(1));
    assert_eq!(text(child.stdout.take().unwrap()).lines().count(), 1);
    assert!(text(child.stderr.take().unwrap()).contains("error: replay_truncated"));
}

#[test]
fn tail_exits_77_if_the_key_is_refused() {
    let (feed, place) = (Feed::new(), Place::new());
    let mut child = tail(&place, &feed.url, &[]);
    feed.accept().answer("403 Forbidden", "", "{\"error\":\"revoked_key\"}");
    assert_eq!(code(&mut child), Some(77));
}

/// A TLS proxy with this certificate in front of the feed; it ends with the test.
#[cfg(feature = "tls")]
struct Proxy(Child);

#[cfg(feature = "tls")]
impl Proxy {
    fn start(place: &Place, certificate: &str, feed: &str) -> (Self, String) {
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let both =
            format!("{}{}", place.read(&format!("{certificate}.crt")), place.read(&format!("{certificate}.key")));
        let shown = place.path(&format!("{certificate}.pem"));
        std::fs::write(&shown, both).unwrap();
        let upstream = feed.trim_start_matches("http://").trim_end_matches("/feed");
        let configuration = place.path(&format!("{certificate}.cfg"));
        let text = format!(
            "defaults\n  mode http\n  timeout connect 5s\n  timeout client 50s\n  timeout server 50s\n\
             listen feed\n  bind 127.0.0.1:{port} ssl crt {}\n  server feed {upstream}\n",
            shown.display()
        );
        std::fs::write(&configuration, text).unwrap();
        let proxy = Command::new("haproxy").arg("-f").arg(configuration).stderr(Stdio::null()).spawn().unwrap();
        until("the proxy listens", || std::net::TcpStream::connect(("127.0.0.1", port)).ok());
        (Self(proxy), format!("https://localhost:{port}/feed"))
    }
}

#[cfg(feature = "tls")]
impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(feature = "tls")]
#[test]
fn tail_follows_an_https_feed_whose_authority_it_is_told_and_gives_its_key_to_no_other() {
    let (feed, place) = (Feed::new(), Place::new());
    crate::support::authority::make_certificates(Command::new("sh"), &place.dir);
    std::fs::write(place.path("key"), KEY).unwrap();
    let follow = |certificate: &str, trusted: &str| {
        let (proxy, url) = Proxy::start(&place, certificate, &feed.url);
        let mut command = Command::new(env!("CARGO_BIN_EXE_signal-feed"));
        command.args(["tail", "--feed-url", &url, "--count", "1", "--feed-api-key-file"]).arg(place.path("key"));
        command.env("SSL_CERT_FILE", place.path(trusted)).stdout(Stdio::piped()).stderr(Stdio::piped());
        (proxy, command.spawn().unwrap())
    };
    for (certificate, trusted, why) in [
        ("good", "other.crt", "SSL_CERT_FILE"),
        ("wrong_name", "ours.crt", "not valid for name"),
        ("expired", "ours.crt", "expired"),
    ] {
        let (_proxy, mut child) = follow(certificate, trusted);
        let mut said = String::new();
        BufReader::new(child.stderr.take().unwrap()).read_line(&mut said).unwrap();
        assert!(said.contains(why) && said.contains("trying again"), "{said}");
        child.kill().unwrap();
        child.wait().unwrap();
    }
    // None of that reached the feed: its first request is the trusted one.
    let (_proxy, mut child) = follow("good", "ours.crt");
    let request = feed.accept();
    assert_eq!(request.header("authorization"), Some(format!("Bearer {KEY}").as_str()));
    let mut stream = request.open();
    stream.connected(5);
    stream.insert(6, &row(1, "entry"));
    assert_eq!(code(&mut child), Some(0));
    assert!(text(child.stdout.take().unwrap()).contains("\"feed_seq\":6"));
}

#[test]
fn tail_exits_when_its_pipe_closes_on_a_quiet_feed() {
    let (feed, place) = (Feed::new(), Place::new());
    std::fs::write(place.path("key"), KEY).unwrap();
    let program = env!("CARGO_BIN_EXE_signal-feed");
    let pipeline =
        format!("set -o pipefail; {program} tail --feed-url {} --feed-api-key-file key | head -n 1", feed.url);
    let mut shell = Command::new("bash");
    shell.current_dir(&place.dir).args(["-c", &pipeline]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut shell = shell.spawn().unwrap();
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    assert_eq!(code(&mut shell), Some(0), "{}", text(shell.stderr.take().unwrap()));
    assert_eq!(text(shell.stdout.take().unwrap()).lines().count(), 1);
}

#[test]
fn tail_exits_0_when_its_pipe_closes_and_on_sigint() {
    let (feed, place) = (Feed::new(), Place::new());
    let mut child = tail(&place, &feed.url, &[]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(1, "entry"));
    let mut reader = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).unwrap();
    assert!(line.contains("\"feed_seq\":6"));
    drop(reader);
    stream.insert(7, &row(2, "entry"));
    assert_eq!(code(&mut child), Some(0));

    let mut child = tail(&place, &feed.url, &[]);
    let _stream = feed.open(5);
    let interrupted = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupted.success());
    assert_eq!(code(&mut child), Some(0));
}

#[test]
fn a_first_truncation_is_not_a_loss_for_tail_from_the_earliest_event() {
    for (start, expected) in [("earliest", 0), ("0", 1)] {
        let (feed, place) = (Feed::new(), Place::new());
        let mut child = tail(&place, &feed.url, &["--cursor", start, "--count", "1"]);
        let request = feed.accept();
        assert_eq!(request.cursor(), Some(0));
        let mut stream = request.open();
        stream.connected(0);
        stream.system("{\"reason\":\"replay_truncated\",\"requested\":0,\"earliest\":50}");
        stream.event(50, 49, "INSERT", &row(1, "entry"));
        assert_eq!(code(&mut child), Some(expected), "{start}");
    }
    let (feed, place) = (Feed::new(), Place::new());
    let mut child = tail(&place, &feed.url, &["--cursor", "earliest", "--count", "2"]);
    let mut stream = feed.open(0);
    stream.event(50, 0, "INSERT", &row(1, "entry"));
    stream.system("{\"reason\":\"replay_truncated\",\"requested\":50,\"earliest\":90}");
    stream.event(90, 89, "INSERT", &row(2, "entry"));
    assert_eq!(code(&mut child), Some(1), "a later truncation is a loss");
}

#[test]
fn tail_shows_control_characters_and_never_sends_them_to_a_terminal() {
    let (feed, place) = (Feed::new(), Place::new());
    let mut child = tail(&place, &feed.url, &["--count", "1"]);
    let mut stream = feed.open(5);
    stream.send(
        "id: 6\nevent: system\ndata: {\"reason\":\"quarantined\",\"feed_seq\":6,\"prev_seq\":5,\"error\":\"\\u001b[2J\"}\n\n",
    );
    stream.insert(7, &row(1, "entry").replace("ACME", "A\u{9b}2J"));
    assert_eq!(code(&mut child), Some(0));
    let (printed, notices) = (text(child.stdout.take().unwrap()), text(child.stderr.take().unwrap()));
    assert!(!printed.contains('\u{9b}') && printed.contains("A\\u009b2J"), "{printed}");
    assert!(!notices.contains('\u{1b}') && notices.contains("\\u001b[2J"), "{notices}");
}

#[test]
fn tail_reads_its_key_file_again_and_retries_after_a_proxys_403() {
    let (feed, place) = (Feed::new(), Place::new());
    let mut child = tail(&place, &feed.url, &[]);
    feed.accept().answer("403 Forbidden", "Content-Type: text/html\r\n", "<html></html>");
    let request = feed.accept();
    std::fs::write(place.path("key"), "another\n").unwrap();
    request.answer("401 Unauthorized", "", "{\"error\":\"expired_key\"}");
    let request = feed.accept();
    assert_eq!(request.header("authorization"), Some("Bearer another"));
    request.answer("403 Forbidden", "", "{\"error\":\"revoked_key\"}");
    assert_eq!(code(&mut child), Some(77));
}

#[test]
fn a_tail_whose_output_is_a_full_pipe_ends_at_sigterm() {
    let (feed, place) = (Feed::new(), Place::new());
    let mut child = tail(&place, &feed.url, &["--cursor", "5"]);
    let mut stream = feed.open(5);
    let large = row(1, "entry").replace("\"meta\": {}", &format!("\"meta\": \"{}\"", "x".repeat(200_000)));
    stream.insert(6, &large);
    // The pipe has 64 KiB; the thread that writes the rest waits in the kernel.
    let waits = || std::fs::read_to_string(format!("/proc/{}/wchan", child.id())).unwrap().contains("pipe");
    place.wait("a full pipe", waits);
    let began = std::time::Instant::now();
    assert!(Command::new("kill").arg(child.id().to_string()).status().unwrap().success());
    assert_eq!(code(&mut child), Some(0));
    assert!(began.elapsed() < std::time::Duration::from_secs(3), "{:?}", began.elapsed());
}

#[test]
fn no_line_of_tail_on_standard_error_is_long() {
    let (feed, place) = (Feed::new(), Place::new());
    let mut child = tail(&place, &feed.url, &["--cursor", "5"]);
    let mut stream = feed.open(5);
    let long = "x".repeat(100_000);
    stream.system(&format!("{{\"reason\":\"quarantined\",\"feed_seq\":6,\"prev_seq\":5,\"error\":\"{long}\"}}"));
    stream.system(&format!("{{\"reason\":\"party\",\"what\":\"{long}\"}}"));
    drop(stream);
    let request = feed.accept();
    assert_eq!(request.cursor(), Some(6));
    drop(request);
    feed.accept().answer("401 Unauthorized", "", "{\"error\":\"unknown_key\"}");
    assert_eq!(code(&mut child), Some(77));
    let notices = text(child.stderr.take().unwrap());
    assert!(notices.contains("event 6") && notices.contains("unknown_key"), "{notices}");
    assert!(notices.lines().all(|line| line.len() <= 4096), "{:?}", notices.lines().map(str::len).max());
}
