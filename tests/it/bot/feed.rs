//! A feed that does what the test says, one connection at a time.

use std::io::{BufRead, BufReader, ErrorKind, Write};
use std::net::{TcpListener, TcpStream};
use std::time::{Duration, Instant};

use crate::support::wait::PATIENCE;

pub(super) const FEED_ID: &str = "11111111-2222-3333-4444-555555555555";

/// A listener whose connections the test answers.
pub(super) struct Feed {
    listener: TcpListener,
    pub(super) url: String,
}

/// A request that waits for its answer.
pub(super) struct Request {
    stream: TcpStream,
    pub(super) line: String,
    pub(super) headers: Vec<(String, String)>,
}

/// A stream that the test writes to.
pub(super) struct Open {
    stream: TcpStream,
}

impl Feed {
    pub(super) fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        listener.set_nonblocking(true).unwrap();
        let url = format!("http://{}/feed", listener.local_addr().unwrap());
        Self { listener, url }
    }

    /// The next request; panics where none comes.
    pub(super) fn accept(&self) -> Request {
        self.accept_within(PATIENCE).expect("the bot sent no request")
    }

    pub(super) fn accept_within(&self, patience: Duration) -> Option<Request> {
        let until = Instant::now() + patience;
        loop {
            let request = self.accept_any(until)?;
            // A bot that ended while it connected leaves an empty connection.
            if !request.line.is_empty() {
                return Some(request);
            }
        }
    }

    fn accept_any(&self, until: Instant) -> Option<Request> {
        let stream = loop {
            match self.listener.accept() {
                Ok((stream, _)) => break stream,
                Err(error) if error.kind() == ErrorKind::WouldBlock && Instant::now() < until => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(_) => return None,
            }
        };
        stream.set_nonblocking(false).unwrap();
        stream.set_nodelay(true).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut reader = BufReader::new(stream.try_clone().unwrap());
        let mut line = String::new();
        let _ = reader.read_line(&mut line);
        let mut headers = Vec::new();
        loop {
            let mut header = String::new();
            let _ = reader.read_line(&mut header);
            match header.trim_end().split_once(": ") {
                Some((name, value)) => headers.push((name.to_ascii_lowercase(), value.to_owned())),
                None => break,
            }
        }
        Some(Request { stream, line: line.trim_end().to_owned(), headers })
    }

    /// Accepts and opens a stream, which begins with `connected`.
    pub(super) fn open(&self, cursor: i64) -> Open {
        let mut open = self.accept().open();
        open.connected(cursor);
        open
    }
}

impl Request {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    /// The cursor in the bot's request; header and query must agree.
    pub(super) fn cursor(&self) -> Option<i64> {
        let header = self.header("last-event-id").map(|id| id.parse().unwrap());
        assert_eq!(self.query("cursor").map(|cursor| cursor.parse().unwrap()), header, "{}", self.line);
        header
    }

    pub(super) fn query(&self, name: &str) -> Option<&str> {
        let path = self.line.split(' ').nth(1).unwrap();
        let (_, query) = path.split_once('?')?;
        query.split('&').find_map(|pair| pair.strip_prefix(name)?.strip_prefix('='))
    }

    /// Answers with a whole response and closes.
    pub(super) fn answer(mut self, status: &str, headers: &str, body: &str) {
        let length = body.len();
        let text = format!("HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}");
        self.stream.write_all(text.as_bytes()).unwrap();
    }

    pub(super) fn open(mut self) -> Open {
        let head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n";
        self.stream.write_all(head.as_bytes()).unwrap();
        Open { stream: self.stream }
    }

    /// Answers with exactly these bytes and keeps the connection open until it is dropped.
    pub(super) fn raw(mut self, bytes: &str) -> Open {
        self.stream.write_all(bytes.as_bytes()).unwrap();
        Open { stream: self.stream }
    }
}

impl Open {
    /// Writes bytes; it is no failure if the bot has ended.
    pub(super) fn send(&mut self, text: &str) {
        let _ = self.stream.write_all(text.as_bytes());
    }

    pub(super) fn system(&mut self, data: &str) {
        self.send(&format!("event: system\ndata: {data}\n\n"));
    }

    pub(super) fn connected(&mut self, cursor: i64) {
        self.connected_with(cursor, "null");
    }

    pub(super) fn connected_with(&mut self, cursor: i64, key_expires_at: &str) {
        self.connected_as(FEED_ID, cursor, 0, key_expires_at);
    }

    pub(super) fn connected_as(&mut self, feed_id: &str, cursor: i64, delay_seconds: u32, key_expires_at: &str) {
        self.send(&format!(
            "retry: 2000\nid: {cursor}\nevent: system\ndata: {{\"reason\":\"connected\",\"feed_id\":\"{feed_id}\",\
             \"cursor\":{cursor},\"head\":{cursor},\"earliest\":1,\"delay_seconds\":{delay_seconds},\"heartbeat_seconds\":15,\
             \"key_expires_at\":{key_expires_at}}}\n\n"
        ));
    }

    /// An INSERT whose row was made just now.
    pub(super) fn insert(&mut self, feed_seq: i64, row: &str) {
        self.event(feed_seq, feed_seq - 1, "INSERT", row);
    }

    pub(super) fn update(&mut self, feed_seq: i64, row: &str) {
        self.event(feed_seq, feed_seq - 1, "UPDATE", row);
    }

    pub(super) fn event(&mut self, feed_seq: i64, prev_seq: i64, op: &str, row: &str) {
        let event_time = time_of(feed_seq);
        self.send(&format!(
            "id: {feed_seq}\nevent: signal\ndata: {{\"feed_seq\":{feed_seq},\"prev_seq\":{prev_seq},\
             \"event_time\":\"{event_time}\",\"op\":\"{op}\",\"signal\":{row}}}\n\n"
        ));
    }

    /// Whether the bot has closed the connection.
    pub(super) fn is_closed(&self) -> bool {
        let mut byte = [0];
        self.stream.set_read_timeout(Some(Duration::from_millis(1))).unwrap();
        match std::io::Read::read(&mut &self.stream, &mut byte) {
            Ok(count) => count == 0,
            Err(error) => !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut),
        }
    }

    /// Whether the bot has closed the connection; waits for it.
    pub(super) fn wait_closed(&self) {
        let mut byte = [0];
        self.stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let got = std::io::Read::read(&mut &self.stream, &mut byte);
        assert!(matches!(got, Ok(0)) || got.is_err_and(|error| error.kind() != ErrorKind::WouldBlock), "still open");
    }
}

/// The event time of an event of a scripted feed.
pub(super) fn time_of(feed_seq: i64) -> String {
    let seconds = feed_seq % 60;
    let minutes = feed_seq / 60 % 60;
    format!("2026-11-20T12:{minutes:02}:{seconds:02}.123456Z")
}

/// A row; `action` and the rest as usual.
pub(super) fn row(id: i64, action: &str) -> String {
    row_of(id, action, "ACME", "BUY")
}

pub(super) fn row_of(id: i64, action: &str, symbol: &str, side: &str) -> String {
    format!(
        "{{\"id\": {id}, \"meta\": {{}}, \"side\": \"{side}\", \"price\": 12.50, \"action\": \"{action}\", \
         \"symbol\": \"{symbol}\", \"quantity\": 100, \"created_at\": \"2099-11-20T12:00:00+00:00\"}}"
    )
}
