//! `tests/clients/broker.py`, the example of an `exec:` program that the README names.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};

use super::feed::{Feed, Open, row, row_of};
use super::process::Place;
use crate::support::wait::until;

const BROKER: &str = include_str!("../../clients/broker.py");

/// Keeps orders by their reference; after every third one it breaks the connection.
fn serve(listener: TcpListener, book: Arc<Mutex<Vec<String>>>) {
    for stream in listener.incoming().flatten() {
        answer(stream, &book);
    }
}

fn answer(mut stream: TcpStream, book: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut head = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).unwrap();
        match line.trim_end() {
            "" => break,
            line => head.push(line.to_owned()),
        }
    }
    let length = head.iter().find_map(|line| line.strip_prefix("Content-Length: "));
    let mut body = vec![0; length.map_or(0, |length| length.parse().unwrap())];
    reader.read_exact(&mut body).unwrap();
    let mut book = book.lock().unwrap();
    let status = if let Some(path) = head[0].strip_prefix("GET /orders/") {
        let reference = path.split(' ').next().unwrap();
        if book.iter().any(|known| known == reference) { "200 OK" } else { "404 Not Found" }
    } else {
        let order: serde_json::Value = serde_json::from_slice(&body).unwrap();
        if order["symbol"] == "UNKNOWN" {
            "422 Unprocessable Content"
        } else {
            book.push(order["order_ref"].as_str().unwrap().to_owned());
            if book.len().is_multiple_of(3) {
                return;
            }
            "201 Created"
        }
    };
    let _ = stream.write_all(format!("HTTP/1.1 {status}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n").as_bytes());
}

#[test]
fn the_python_broker_places_each_order_once_even_if_answers_are_lost() {
    let (feed, place) = (Feed::new(), Place::new());
    place.program("broker.py", BROKER);
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let mut command = place.command(&["--feed-url", &feed.url, "--broker", "exec:broker.py"]);
    let mut bot = command.env("BROKER_URL", format!("http://{address}")).spawn().unwrap();
    let send_rest = |stream: &mut Open, cursor: i64| {
        stream.connected(cursor);
        for seq in cursor + 1..=12 {
            let id = seq - 5;
            stream.insert(seq, &if id == 2 { row_of(2, "exit", "UNKNOWN", "SELL") } else { row(id, "entry") });
        }
    };
    let mut stream = feed.accept().open();
    send_rest(&mut stream, 5);
    // No server listens there yet: the broker is away.
    place.wait_alert("broker_away");
    stream.wait_closed();
    let book = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&book);
    let listener = TcpListener::bind(address).unwrap();
    std::thread::spawn(move || serve(listener, shared));
    let mut streams = Vec::new();
    until("all orders", || {
        if let Some(request) = feed.accept_within(std::time::Duration::from_millis(50)) {
            let cursor = request.cursor().unwrap();
            let mut stream = request.open();
            send_rest(&mut stream, cursor);
            streams.push(stream);
        }
        (place.cursor() == Some(12)).then_some(())
    });
    let expected: Vec<String> = [1, 3, 4, 5, 6, 7].map(|id| format!("sf-{id}-entry")).into();
    assert_eq!(*book.lock().unwrap(), expected);
    assert_eq!(place.count_alerts("exit_rejected"), 1);
    bot.kill().unwrap();
    bot.wait().unwrap();
}

/// Runs the program for one line; returns its exit code.
fn run(place: &Place, address: SocketAddr, line: &str) -> Option<i32> {
    let mut command = Command::new("python3");
    command.arg(place.path("broker.py")).env("BROKER_URL", format!("http://{address}"));
    let mut program = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let _ = program.stdin.take().unwrap().write_all(line.as_bytes());
    program.wait().unwrap().code()
}

#[test]
fn the_python_broker_places_and_looks_up_orders_of_rows_that_python_cannot_parse() {
    let place = Place::new();
    place.program("broker.py", BROKER);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let book = Arc::new(Mutex::new(Vec::new()));
    let shared = Arc::clone(&book);
    std::thread::spawn(move || serve(listener, shared));
    let deep = format!("{{\"meta\":{}{}}}", "[".repeat(1_200), "]".repeat(1_200));
    let many_digits = format!("1{}", "0".repeat(4_999));
    for (number, (quantity, row)) in
        [("100", deep.as_str()), (&many_digits, "{}"), ("1e999999999999999999999", "{}")].into_iter().enumerate()
    {
        let line = |kind: &str| {
            format!(
                "{{\"type\":\"{kind}\",\"order_ref\":\"sf-{number}-exit\",\"signal_id\":{number},\"action\":\"exit\",\
                 \"symbol\":\"ACME\",\"side\":\"SELL\",\"quantity\":{quantity},\"price\":12.50,\"feed_seq\":1,\
                 \"event_time\":\"2026-11-20T12:00:00Z\",\"signal\":{row}}}\n"
            )
        };
        assert_eq!(run(&place, address, &line("lookup")), Some(66), "{number}");
        // A number beyond what Python can hold is rejected, and never stops the bot.
        let (placed, known) = if number < 2 { (Some(0), Some(0)) } else { (Some(65), Some(66)) };
        assert_eq!(run(&place, address, &line("order")), placed, "{number}");
        assert_eq!(run(&place, address, &line("lookup")), known, "{number}");
        // Cut off: the bot was killed while it wrote.
        assert_eq!(run(&place, address, line("order").trim_end()), Some(1), "{number}");
    }
}
