//! The operator's port: metrics, status, and access.

use std::process::{Command, Stdio};

use rustix::process::Signal;

use crate::support::database::Database;
use crate::support::program::{command, signal_feed};
use crate::support::readme;
use crate::support::server::Server;
use crate::support::sse::Request;
use crate::support::wait::until;

const OPS: [&str; 2] = ["--ops-listen", "127.0.0.1:0"];

/// The value of a metric, labels included in its name.
fn metric(server: &Server, name: &str) -> f64 {
    let text = metrics(server);
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    line.unwrap_or_else(|| panic!("there is no {name} in {text}")).parse().unwrap()
}

fn metrics(server: &Server) -> String {
    let answer = Request::get("/metrics").host("localhost").send(server.ops_address());
    assert_eq!((answer.status, answer.field("Content-Type")), (200, Some("text/plain; version=0.0.4; charset=utf-8")));
    String::from_utf8(answer.body).unwrap()
}

#[test]
fn metrics_follow_what_happens_to_streams() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let delayed = database.mint_with("late", &["--delay", "1h"]);
    let server = Server::ready(&database, &OPS);
    database.insert(5);
    let mut stream = server.stream_from(&key, 0);
    stream.connected();
    stream.signals(5);
    let mut late = server.stream(&delayed);
    late.connected();
    assert_eq!(Request::feed("nobody's").send(server.address()).status, 401);
    assert_eq!(Request::get("/nowhere").send(server.address()).status, 404);
    database.insert(3);
    stream.signals(3);

    assert_eq!(metric(&server, "signal_feed_head"), 8.0);
    until("the counter is read again", || (metric(&server, "signal_feed_allocated") == 8.0).then_some(()));
    assert_eq!(metric(&server, r#"signal_feed_clients{delay_seconds="0"}"#), 1.0);
    assert_eq!(metric(&server, r#"signal_feed_clients{delay_seconds="3600"}"#), 1.0);
    until("the deliveries are counted", || (metric(&server, "signal_feed_deliveries_total") == 8.0).then_some(()));
    assert_eq!(metric(&server, r#"signal_feed_requests_total{status="401"}"#), 1.0);
    assert_eq!(metric(&server, r#"signal_feed_requests_total{status="404"}"#), 1.0);
    // Two streams, and `/readyz` once.
    assert_eq!(metric(&server, r#"signal_feed_requests_total{status="200"}"#), 3.0);
    assert!(metric(&server, "signal_feed_sent_bytes_total") > 8.0 * 100.0);
    assert!(metric(&server, r#"signal_feed_latency_seconds_count{part="commit_to_broadcast"}"#) >= 3.0);
    assert!(metric(&server, r#"signal_feed_latency_seconds_count{part="broadcast_to_written"}"#) >= 1.0);
    assert!(metric(&server, "signal_feed_listen_probe_seconds") > 0.0);
    assert_eq!(metric(&server, r#"signal_feed_state{state="live"}"#), 1.0);
    for name in ["database_up", "listen_up", "capture_on", "allocation_ok"] {
        assert_eq!(metric(&server, &format!("signal_feed_{name}")), 1.0, "{name}");
    }
    assert_eq!(metric(&server, "signal_feed_another_cluster"), 0.0);
    assert!(metric(&server, "process_open_fds") > 0.0);

    drop(stream);
    database.insert(1);
    until("the end of the stream is counted", || {
        (metric(&server, r#"signal_feed_stream_ends_total{reason="client_gone"}"#) == 1.0).then_some(())
    });
    assert_eq!(metric(&server, r#"signal_feed_clients{delay_seconds="0"}"#), 0.0);
}

#[test]
fn status_shows_the_position_of_every_stream() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &OPS);
    database.insert(3);
    let mut stream = server.stream_from(&key, 1);
    stream.connected();
    stream.signals(2);
    let status = until("the stream has caught up", || {
        let status = server.status();
        (status["clients"][0]["cursor"] == 3 && status["database"]["counter"] == 3).then_some(status)
    });
    assert_eq!(
        (&status["state"], &status["capture"], &status["role"]),
        (&"live".into(), &"on".into(), &"primary".into())
    );
    assert_eq!((&status["head"], &status["earliest"]), (&3.into(), &1.into()));
    assert_eq!(status["version"], env!("CARGO_PKG_VERSION"));
    assert!(status["instance"].as_str().unwrap().ends_with(&format!(":{}", server.address().port())));
    assert!(status["standby_lag_seconds"].is_null());
    let client = &status["clients"][0];
    assert_eq!((&client["key"], &client["lag"], &client["queued"]), (&"bot".into(), &0.into(), &0.into()));
    assert_eq!((&client["delivered"], &client["dropped"], &client["delay_seconds"]), (&2.into(), &0.into(), &0.into()));
    assert_eq!(client["address"], stream.socket().local_addr().unwrap().to_string());
    for (name, time) in [("started_at", &status["started_at"]), ("since", &client["since"])] {
        assert!(time.as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{name}: {time}");
    }
    assert_eq!(status["replay"]["connections"], 4);
}

#[test]
fn status_shows_an_outage_and_a_stop_while_they_last() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &OPS);
    // A stalled client delays the shutdown.
    let stalled = Request::feed(&key).receive_buffer(1).post(server.address());
    until("the stream is open", || (server.status()["clients"].as_array().unwrap().len() == 1).then_some(()));
    database.sql(
        "insert into stock_market.signal (symbol, action, side, meta) \
         select 'S', 'entry', 'BUY', jsonb_build_object('much', repeat('x', 100000)) from generate_series(1, 100)",
    );
    until("its queue grows", || (server.status()["clients"][0]["lag"].as_u64() > Some(10)).then_some(()));
    assert_eq!(server.status()["state"], "live");
    database.lock_out();
    let status = until("the outage shows", || {
        let status = server.status();
        (status["state"] == "degraded").then_some(status)
    });
    assert!(status["database"]["outage_seconds"].as_f64() >= Some(0.0));
    assert_eq!(metric(&server, r#"signal_feed_state{state="degraded"}"#), 1.0);
    assert_eq!(metric(&server, "signal_feed_database_up") * metric(&server, "signal_feed_listen_up"), 0.0);
    database.let_in();
    until("it is over", || (server.status()["state"] == "live").then_some(()));

    server.signal(Signal::TERM);
    until("the stop shows", || (server.status()["state"] == "stopping").then_some(()));
    drop(stalled);
}

#[test]
fn capture_that_is_off_shows_in_status_and_metrics() {
    let database = Database::migrated();
    let server = Server::ready(&database, &OPS);
    database.sql("alter table stock_market.signal disable trigger all");
    until("it shows", || (server.status()["capture"] == "off").then_some(()));
    assert_eq!(metric(&server, "signal_feed_capture_on"), 0.0);
}

#[test]
fn a_web_page_whose_name_points_here_is_refused() {
    let database = Database::migrated();
    let server = Server::ready(&database, &OPS);
    let ask = |host: &str, path: &str| Request::get(path).host(host).send(server.ops_address()).status;
    for path in ["/", "/status", "/metrics"] {
        for host in ["localhost", "127.0.0.1:9464", "[::1]:9464", "LocalHost"] {
            assert_eq!(ask(host, path), 200, "{host}{path}");
        }
        for host in ["evil.example", "evil.example:9464", "localhost.evil.example", "192.168.1.5"] {
            assert_eq!(ask(host, path), 403, "{host}{path}");
        }
    }
    let refusal = |method: &str, path: &str| {
        let answer = Request::new(method, path).host("localhost").send(server.ops_address());
        (answer.status, answer.field("Allow").map(str::to_owned))
    };
    assert_eq!(refusal("POST", "/status"), (405, Some("GET, HEAD".into())));
    assert_eq!(refusal("GET", "/feed"), (404, None));
    let head = Request::new("HEAD", "/metrics").host("localhost").send(server.ops_address());
    assert_eq!((head.status, head.body.len()), (200, 0));
}

#[test]
fn the_operators_address_can_be_off_not_on_loopback_or_taken() {
    let database = Database::migrated();
    let off = Server::ready(&database, &["--ops-listen", "off"]);
    assert_eq!(off.tcp_sockets(), 1);
    let open = Server::ready(&database, &["--ops-listen", "0.0.0.0:0"]);
    open.wait_log(&["WARN", "--ops-listen 0.0.0.0", "is not loopback"]);
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    let serve = ["serve", "--listen", "127.0.0.1:0", "--ops-listen", &address];
    let said = signal_feed(&database.url, &serve).failed(1);
    assert!(said.contains(&address), "{said}");
    let said = signal_feed(&database.url, &["serve", "--ops-listen", "here"]).failed(2);
    assert!(said.contains("--ops-listen") && said.contains("or off"), "{said}");
}

#[test]
fn connections_to_the_operators_port_do_not_count_against_streams() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &OPS);
    let _silent: Vec<_> = (0..200).map(|_| std::net::TcpStream::connect(server.ops_address()).unwrap()).collect();
    server.stream(&key).connected();
    // The oldest of them are closed to make room for a real request.
    until("the status is answered all the same", || {
        (Request::get("/status").host("localhost").send(server.ops_address()).status == 200).then_some(())
    });
}

#[test]
fn promtool_finds_nothing_wrong_with_metrics_and_alerts() {
    let database = Database::migrated();
    let key = database.mint("bot");
    let server = Server::ready(&database, &OPS);
    let mut stream = server.stream(&key);
    stream.connected();
    database.insert(1);
    stream.signals(1);
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let promtool = |arguments: &[&str], input: &str| {
        let mut promtool = Command::new("promtool")
            .args(arguments)
            .current_dir(root)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("promtool is there (.ci/install tests)");
        std::io::Write::write_all(&mut promtool.stdin.take().unwrap(), input.as_bytes()).unwrap();
        let output = promtool.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        assert!(output.status.success(), "{arguments:?}: {said}");
        said
    };
    let text = metrics(&server);
    let said = promtool(&["check", "metrics"], &text);
    assert_eq!(said.lines().filter(|line| line.contains("signal_feed")).count(), 0, "{said}");
    promtool(&["check", "rules", "systemd/signal-feed.rules.yml"], "");
    promtool(&["test", "rules", "tests/alerts/signal-feed.test.yml"], "");
    // An alert on a metric that does not exist would never fire.
    let rules = std::fs::read_to_string(root.join("systemd/signal-feed.rules.yml")).unwrap();
    let names =
        rules.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').filter(|word| word.starts_with("signal_feed_"));
    for name in names {
        let family = name.trim_end_matches("_bucket");
        assert!(text.contains(&format!("# TYPE {family} ")), "{name} is in the rules and not in the metrics");
    }
}

#[test]
fn metrics_that_the_readme_names_exist() {
    let database = Database::migrated();
    database.mint("bot");
    let server = Server::ready(&database, &OPS);
    assert_eq!(Request::get("/nothing").send(server.address()).status, 404);
    let readme = readme::text();
    let key_streams = "# HELP signal_feed_key_streams ";
    let text = until("the keys are read", || Some(metrics(&server)).filter(|text| text.contains(key_streams)));
    let named = readme.split("names begin with `signal_feed_`. ").nth(1).unwrap().split("\n\n").next().unwrap();
    let names: Vec<&str> = named.split('`').skip(1).step_by(2).map(|name| name.split('{').next().unwrap()).collect();
    assert!(names.len() > 5, "{named}");
    for name in names {
        assert!(text.contains(&format!("# HELP signal_feed_{name} ")), "{name}");
    }
}

#[test]
fn help_of_serve_names_the_operators_port() {
    let output = command("").args(["serve", "--help"]).output().unwrap();
    assert!(String::from_utf8(output.stdout).unwrap().contains("127.0.0.1:9464"));
}

#[test]
fn status_and_metrics_show_the_streams_of_every_live_key_and_the_time_of_the_newest_event() {
    let database = Database::migrated();
    let bot = database.mint("bot");
    database.mint_with("away", &["--delay", "15m", "--expires-in", "7d"]);
    database.mint("gone");
    signal_feed(&database.url, &["key", "revoke", "gone"]).ok();
    let server = Server::ready(&database, &OPS);
    assert!(server.status()["last_event_at"].is_null());
    assert_eq!(metric(&server, "signal_feed_last_event_timestamp_seconds"), 0.0);
    let mut streams = [server.stream(&bot), server.stream(&bot)];
    streams.iter_mut().for_each(|stream| drop(stream.connected()));
    // During a rotation both keys belong to one bot.
    signal_feed(&database.url, &["key", "rotate", "bot"]).ok();
    database.insert(1);
    let written = streams[0].signals(1)[0].data["event_time"].clone();
    let status = until("the use of the key is recorded", || {
        let status = server.status();
        (!status["keys"][1]["last_used_at"].is_null()).then_some(status)
    });
    assert_eq!(status["last_event_at"], written);
    let keys = status["keys"].as_array().unwrap();
    let facts: Vec<_> =
        keys.iter().map(|key| (key["name"].as_str().unwrap(), key["streams"].as_u64().unwrap())).collect();
    assert_eq!(facts, [("away", 0), ("bot", 2)]);
    assert_eq!((&keys[0]["delay_seconds"], &keys[1]["delay_seconds"]), (&900.into(), &0.into()));
    assert!(keys[0]["last_used_at"].is_null() && keys[0]["expires_at"].as_str().unwrap().ends_with('Z'), "{keys:?}");
    assert!(keys[1]["expires_at"].is_null(), "the new key never expires: {keys:?}");
    assert_eq!(metric(&server, r#"signal_feed_key_streams{key="bot"}"#), 2.0);
    assert_eq!(metric(&server, r#"signal_feed_key_streams{key="away"}"#), 0.0);
    assert!(!metrics(&server).contains(r#"key="gone""#));
    let seconds = written.as_str().unwrap().parse::<jiff::Timestamp>().unwrap().as_microsecond() as f64 / 1e6;
    assert_eq!(metric(&server, "signal_feed_last_event_timestamp_seconds"), seconds);
    // The last use is the end of the last stream.
    let opened = status["keys"][1]["last_used_at"].clone();
    drop(streams);
    until("the end of the streams is recorded", || {
        let key = server.status()["keys"][1].clone();
        (key["streams"] == 0 && key["last_used_at"] != opened).then_some(())
    });
    signal_feed(&database.url, &["key", "revoke", "bot"]).ok();
    until("the revoked key is gone", || (!metrics(&server).contains(r#"key="bot""#)).then_some(()));
}

#[test]
fn newest_event_is_known_after_a_restart() {
    let database = Database::migrated();
    database.insert(2);
    let server = Server::ready(&database, &OPS);
    let status = server.status();
    assert_eq!(status["head"], 2);
    assert!(status["last_event_at"].as_str().unwrap().parse::<jiff::Timestamp>().is_ok(), "{status}");
}

#[test]
fn the_status_command_shows_what_needs_attention_and_its_exit_code_reports_it() {
    let database = Database::migrated();
    let bot = database.mint("bot");
    database.mint("absent-bot");
    let server = Server::ready(&database, &OPS);
    let url = format!("http://{}/", server.ops_address());
    let ask = |options: &[&str]| signal_feed("", &[&["status", "--url", &url], options].concat());
    let mut stream = server.stream(&bot);
    stream.connected();
    database.insert(3);
    stream.signals(3);
    let said = ask(&[]).ok();
    for words in [
        "live, capture on, primary",
        "s ago (20",
        "Keys without a stream (1 of 2):",
        "absent-bot",
        "No stream is behind.",
    ] {
        assert!(said.contains(words), "{words:?} is not in {said}");
    }
    let json: serde_json::Value = serde_json::from_str(&ask(&["--json"]).ok()).unwrap();
    assert_eq!((&json["head"], &json["state"]), (&3.into(), &"live".into()));

    database.sql("alter table stock_market.signal disable trigger all");
    until("capture is off", || (server.status()["capture"] == "off").then_some(()));
    assert!(ask(&[]).failed(1).contains("capture is off"));
    database.lock_out();
    until("the server is degraded", || (server.status()["state"] == "degraded").then_some(()));
    assert!(ask(&["--json"]).failed(1).contains("the server is degraded"));
    let said = ask(&[]).stdout;
    assert!(said.contains("degraded for ") && said.contains("capture was last off"), "{said}");
    database.let_in();

    let feed = format!("http://{}", server.address());
    let said = signal_feed("", &["status", "--url", &feed]).failed(2);
    assert!(said.contains("the server answered 404") && said.contains("--ops-listen"), "{said}");
    server.kill();
    let said = ask(&[]).failed(2);
    assert!(said.contains("--url http://127.0.0.1:"), "{said}");
    assert!(signal_feed("", &["status", "--url", "127.0.0.1:9464"]).failed(2).contains("http://127.0.0.1:9464"));
}

#[test]
fn a_quarantined_event_counts_until_it_is_settled() {
    let database = Database::migrated();
    let server = Server::ready(&database, &OPS);
    let name = "signal_feed_unsettled_quarantined_events";
    assert_eq!(metric(&server, name), 0.0);
    database.log_row(1, "now()", "null");
    until("it counts", || (metric(&server, name) == 1.0).then_some(()));
    let said = signal_feed("", &["status", "--url", &format!("http://{}", server.ops_address())]).ok();
    assert!(said.contains("Quarantined and not settled: 1;"), "{said}");
    signal_feed(&database.url, &["quarantine", "settle", "1"]).ok();
    until("it counts no more", || (metric(&server, name) == 0.0).then_some(()));
    assert_eq!(server.status()["database"]["unsettled_quarantined_events"], 0);
}
