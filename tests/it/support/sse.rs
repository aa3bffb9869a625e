//! A raw-socket client of the feed that is strict about bytes: every head, chunk and block must be exactly what the
//! contract says, or it panics.

use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::wait::PATIENCE;

/// A request that is not sent yet.
#[derive(Debug, Clone)]
pub struct Request {
    method: String,
    target: String,
    version: &'static str,
    host: String,
    fields: Vec<(String, String)>,
    receive_buffer: Option<usize>,
}

impl Request {
    /// Any method and target.
    pub fn new(method: &str, target: &str) -> Self {
        let (method, target) = (method.to_owned(), target.to_owned());
        Self {
            method,
            target,
            version: "HTTP/1.1",
            host: "feed.test".to_owned(),
            fields: Vec::new(),
            receive_buffer: None,
        }
    }

    pub fn get(target: &str) -> Self {
        Self::new("GET", target)
    }

    /// `GET /feed` with a key.
    pub fn feed(key: &str) -> Self {
        Self::get("/feed").key(key)
    }

    /// `GET` of this target with a key.
    pub fn feed_at(target: &str, key: &str) -> Self {
        Self::get(target).key(key)
    }

    pub fn key(self, key: &str) -> Self {
        self.field("Authorization", &format!("Bearer {key}"))
    }

    pub fn last_event_id(self, cursor: i64) -> Self {
        self.field("Last-Event-ID", &cursor.to_string())
    }

    pub fn field(mut self, name: &str, value: &str) -> Self {
        self.fields.push((name.to_owned(), value.to_owned()));
        self
    }

    pub fn host(mut self, host: &str) -> Self {
        host.clone_into(&mut self.host);
        self
    }

    pub fn http_10(mut self) -> Self {
        self.version = "HTTP/1.0";
        self
    }

    /// The smallest receive buffer that the kernel gives: a client that stalls soon.
    pub fn receive_buffer(mut self, bytes: usize) -> Self {
        self.receive_buffer = Some(bytes);
        self
    }

    fn bytes(&self) -> String {
        let mut text = format!("{} {} {}\r\nHost: {}\r\n", self.method, self.target, self.version, self.host);
        for (name, value) in &self.fields {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        text + "\r\n"
    }

    /// Connects and sends the request without waiting for an answer.
    pub fn post(&self, address: SocketAddr) -> Connection {
        let mut connection = Connection::connect(address, self.receive_buffer);
        connection.socket.write_all(self.bytes().as_bytes()).unwrap();
        connection
    }

    /// Sends it and reads a short answer to its end.
    pub fn send(&self, address: SocketAddr) -> Answer {
        self.post(address).answer(PATIENCE)
    }

    /// Sends it and begins to read a stream: the answer's head must be there, and right, byte for byte.
    pub fn open(&self, address: SocketAddr) -> Stream {
        self.post(address).stream(PATIENCE)
    }

    /// The same if there may be no server, or one that refuses: then returns the status, if any.
    pub fn try_open(&self, address: SocketAddr) -> Result<Stream, Option<u16>> {
        let mut connection = Connection::try_connect(address, self.receive_buffer).map_err(|_| None)?;
        connection.socket.write_all(self.bytes().as_bytes()).map_err(|_| None)?;
        let head = connection.head(PATIENCE).ok_or(None)?;
        match head.get(9..12) {
            Some("200") => Ok(connection.stream_behind(head, PATIENCE)),
            status => Err(status.and_then(|status| status.parse().ok())),
        }
    }
}

/// A connection to the server.
#[derive(Debug)]
pub struct Connection {
    pub socket: TcpStream,
    bytes: Vec<u8>,
    taken: usize,
    ended: bool,
}

/// A short answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// The value of a header field, which must be there at most once.
    pub fn field(&self, name: &str) -> Option<&str> {
        field(&self.head, name)
    }

    /// The body, which must be JSON.
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.body).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }

    /// The code of an error, whose form is checked.
    pub fn code(&self) -> String {
        assert_eq!(self.field("Content-Type"), Some("application/json"), "{self:?}");
        let body = self.json();
        let object = body.as_object().unwrap();
        assert_eq!(object.keys().collect::<Vec<_>>(), ["error", "message"], "{self:?}");
        assert!(!object["message"].as_str().unwrap().is_empty());
        object["error"].as_str().unwrap().to_owned()
    }

    /// Status and code in one.
    pub fn refusal(&self) -> (u16, String) {
        (self.status, self.code())
    }
}

fn field<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    let mut values = head.split("\r\n").skip(1).filter_map(|line| {
        let (known, value) = line.split_once(": ")?;
        known.eq_ignore_ascii_case(name).then_some(value)
    });
    let value = values.next();
    assert_eq!(values.next(), None, "{name} is there twice: {head}");
    value
}

impl Connection {
    pub fn connect(address: SocketAddr, receive_buffer: Option<usize>) -> Self {
        Self::try_connect(address, receive_buffer).unwrap()
    }

    fn try_connect(address: SocketAddr, receive_buffer: Option<usize>) -> std::io::Result<Self> {
        let socket = socket2::Socket::new(socket2::Domain::for_address(address), socket2::Type::STREAM, None)?;
        if let Some(bytes) = receive_buffer {
            socket.set_recv_buffer_size(bytes)?;
        }
        socket.connect(&address.into())?;
        socket.set_tcp_nodelay(true)?;
        Ok(Self { socket: socket.into(), bytes: Vec::new(), taken: 0, ended: false })
    }

    /// Bytes that have arrived and were not consumed.
    fn pending(&self) -> &[u8] {
        &self.bytes[self.taken..]
    }

    fn take(&mut self, count: usize) -> Vec<u8> {
        let taken = self.bytes[self.taken..self.taken + count].to_vec();
        self.taken += count;
        if self.taken > 1 << 16 {
            self.bytes.drain(..self.taken);
            self.taken = 0;
        }
        taken
    }

    /// Reads once, at most until `end`. Returns false if nothing came.
    fn fill(&mut self, end: Instant) -> bool {
        let left = end.saturating_duration_since(Instant::now()).max(Duration::from_millis(1));
        self.socket.set_read_timeout(Some(left)).unwrap();
        let mut chunk = [0; 65_536];
        match self.socket.read(&mut chunk) {
            Ok(0) => self.ended = true,
            Ok(count) => self.bytes.extend_from_slice(&chunk[..count]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {
                return Instant::now() < end;
            }
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            // A reset is an end, too.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => self.ended = true,
            Err(error) => panic!("read from the server: {error}"),
        }
        true
    }

    /// Reads up to the blank line of the head; `None` if the connection ended without a byte.
    pub fn head(&mut self, patience: Duration) -> Option<String> {
        let end = Instant::now() + patience;
        loop {
            if let Some(at) = self.pending().windows(4).position(|four| four == b"\r\n\r\n") {
                return Some(String::from_utf8(self.take(at + 4)).unwrap());
            }
            if self.ended {
                assert!(self.pending().is_empty(), "half a head: {:?}", String::from_utf8_lossy(self.pending()));
                return None;
            }
            assert!(self.fill(end), "no head within {patience:?}: {:?}", String::from_utf8_lossy(self.pending()));
        }
    }

    /// Reads to the connection's end; returns whether it came in time.
    pub fn ends_within(&mut self, patience: Duration) -> bool {
        let end = Instant::now() + patience;
        while !self.ended {
            if !self.fill(end) {
                return false;
            }
        }
        true
    }

    /// Everything that has been read.
    pub fn all(&self) -> &[u8] {
        &self.bytes
    }

    /// Reads a short answer to its end.
    pub fn answer(self, patience: Duration) -> Answer {
        self.try_answer(patience).expect("the connection was closed without an answer")
    }

    /// The same; `None` if the connection was closed without an answer.
    pub fn try_answer(mut self, patience: Duration) -> Option<Answer> {
        let head = self.head(patience)?;
        assert!(self.ends_within(patience), "the connection stays open after {head}");
        let body = self.pending().to_vec();
        let status = head.strip_prefix("HTTP/1.1 ").and_then(|rest| rest.get(..3)).unwrap().parse().unwrap();
        let answer = Answer { status, head, body };
        assert_eq!(answer.field("Connection"), Some("close"), "{answer:?}");
        assert_eq!(answer.field("Access-Control-Allow-Origin"), None);
        Some(answer)
    }

    /// Reads the head of a stream, which must be right.
    pub fn stream(mut self, patience: Duration) -> Stream {
        let head = self.head(patience).expect("the connection was closed without an answer");
        self.stream_behind(head, patience)
    }

    fn stream_behind(mut self, head: String, patience: Duration) -> Stream {
        let is_chunked = match field(&head, "Transfer-Encoding") {
            Some("chunked") => true,
            None => false,
            Some(other) => panic!("Transfer-Encoding: {other}"),
        };
        if !head.starts_with("HTTP/1.1 200 OK\r\n") {
            let rest = self.ends_within(patience);
            panic!("no stream: {head}{} ({rest})", String::from_utf8_lossy(self.pending()));
        }
        assert_eq!(field(&head, "Content-Type"), Some("text/event-stream"), "{head}");
        assert_eq!(field(&head, "Cache-Control"), Some("no-cache, no-transform"), "{head}");
        assert_eq!(field(&head, "X-Accel-Buffering"), Some("no"), "{head}");
        assert_eq!(field(&head, "Connection"), Some("close"), "{head}");
        for absent in ["Content-Encoding", "Content-Length", "Access-Control-Allow-Origin"] {
            assert_eq!(field(&head, absent), None, "{head}");
        }
        Stream { connection: self, head, is_chunked, items: VecDeque::new(), ending: None, cursor: None }
    }
}

/// An item of a stream.
#[derive(Debug, Clone, PartialEq)]
pub enum Item {
    Block(Block),
    Ping,
}

/// One block.
#[derive(Debug, Clone, PartialEq)]
pub struct Block {
    pub id: Option<i64>,
    pub event: String,
    pub retry: Option<u64>,
    pub data: Value,
    /// Its bytes.
    pub text: String,
}

impl Block {
    fn parse(text: &str) -> Self {
        let mut lines = text.split('\n').peekable();
        let mut value = |name: &str| {
            let line = lines.peek()?.strip_prefix(name)?.strip_prefix(": ")?.to_owned();
            lines.next();
            Some(line)
        };
        let id = value("id").map(|id| id.parse().unwrap());
        let event = value("event").unwrap_or_else(|| panic!("no event: {text:?}"));
        let retry = value("retry").map(|retry| retry.parse().unwrap());
        let data = value("data").unwrap_or_else(|| panic!("no data: {text:?}"));
        assert_eq!(lines.next(), None, "something beside id, event, retry and data: {text:?}");
        assert!(!text.contains('\r'), "{text:?}");
        let data = serde_json::from_str(&data).unwrap_or_else(|_| short_numbers(&data, text));
        Self { id, event, retry, data, text: format!("{text}\n\n") }
    }

    /// The reason of a system block.
    pub fn reason(&self) -> Option<&str> {
        (self.event == "system").then(|| self.data["reason"].as_str().unwrap())
    }

    /// The number of an event, quarantined ones included.
    pub fn feed_seq(&self) -> Option<i64> {
        self.data["feed_seq"].as_i64()
    }

    pub fn prev_seq(&self) -> Option<i64> {
        self.data["prev_seq"].as_i64()
    }

    pub fn number(&self, name: &str) -> i64 {
        self.data[name].as_i64().unwrap_or_else(|| panic!("no number {name}: {self:?}"))
    }

    /// The symbol of a signal.
    pub fn symbol(&self) -> &str {
        self.data["signal"]["symbol"].as_str().unwrap()
    }
}

/// The same JSON with numbers cut that are too long for the parser; look for those in the text.
fn short_numbers(data: &str, text: &str) -> Value {
    let mut short = String::new();
    let mut digits = 0;
    for character in data.chars() {
        digits = if character.is_ascii_digit() { digits + 1 } else { 0 };
        if digits <= 15 {
            short.push(character);
        }
    }
    serde_json::from_str(&short).unwrap_or_else(|error| panic!("{error}: {text:?}"))
}

/// How a stream ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Normally, after a whole block.
    Whole,
    /// The connection broke; a partial block is not counted.
    Cut,
}

/// A stream that is being read.
#[derive(Debug)]
pub struct Stream {
    connection: Connection,
    pub head: String,
    is_chunked: bool,
    items: VecDeque<Item>,
    ending: Option<Ending>,
    /// The last id that was seen, as a standard client keeps it.
    pub cursor: Option<i64>,
}

impl Stream {
    /// The next item; `Err(true)` if the stream has ended, `Err(false)` if nothing came in time.
    pub fn try_item(&mut self, patience: Duration) -> Result<Item, bool> {
        let end = Instant::now() + patience;
        loop {
            if let Some(item) = self.items.pop_front() {
                if let Item::Block(Block { id: Some(id), .. }) = &item {
                    self.cursor = Some(*id);
                }
                return Ok(item);
            }
            if self.ending.is_some() {
                return Err(true);
            }
            if self.take_piece() {
                continue;
            }
            if !self.connection.fill(end) {
                return Err(false);
            }
        }
    }

    /// Takes one chunk, or the whole blocks of a body without chunks. Returns false if more must arrive first.
    fn take_piece(&mut self) -> bool {
        let pending = self.connection.pending();
        if !self.is_chunked {
            let whole = pending.windows(2).rposition(|two| two == b"\n\n").map_or(0, |at| at + 2);
            let pings = pending[whole..].chunks_exact(6).take_while(|six| six == b":ping\n").count() * 6;
            let count = whole + pings;
            if count > 0 {
                let piece = self.connection.take(count);
                self.parse(&piece);
                return true;
            }
            if self.connection.ended {
                self.ending = Some(if self.connection.pending().is_empty() { Ending::Whole } else { Ending::Cut });
                return true;
            }
            return false;
        }
        let framed = pending.iter().take(10).position(|&byte| byte == b'\r').and_then(|at| {
            let size = std::str::from_utf8(&pending[..at]).unwrap();
            assert!(size.bytes().all(|digit| digit.is_ascii_hexdigit()), "chunk size {size:?}");
            let size = usize::from_str_radix(size, 16).unwrap();
            (pending.len() >= at + 2 + size + 2).then_some((at + 2, size))
        });
        let Some((from, size)) = framed else {
            assert!(pending.len() < 10 || pending[..10].contains(&b'\r'), "no chunk size in {:?}", &pending[..10]);
            if self.connection.ended {
                self.ending = Some(Ending::Cut);
            }
            return self.connection.ended;
        };
        let piece = self.connection.take(from + size + 2);
        assert_eq!(piece[from - 2], b'\r');
        assert_eq!(piece[from - 1], b'\n');
        assert_eq!(&piece[from + size..], b"\r\n", "a chunk longer than it says");
        if size == 0 {
            self.ending = Some(Ending::Whole);
            assert!(self.connection.ends_within(PATIENCE), "the connection stays open after the last chunk");
            assert!(self.connection.pending().is_empty(), "bytes after the last chunk");
        } else {
            self.parse(&piece[from..from + size]);
        }
        true
    }

    /// Whole blocks and pings, nothing else.
    fn parse(&mut self, piece: &[u8]) {
        let mut rest = std::str::from_utf8(piece).unwrap();
        while !rest.is_empty() {
            if let Some(after) = rest.strip_prefix(":ping\n") {
                self.items.push_back(Item::Ping);
                rest = after;
                continue;
            }
            let Some((block, after)) = rest.split_once("\n\n") else { panic!("part of a block in a chunk: {rest:?}") };
            self.items.push_back(Item::Block(Block::parse(block)));
            rest = after;
        }
    }

    /// The next block within `patience`, without pings; `None` at the end.
    pub fn next_block(&mut self, patience: Duration) -> Option<Block> {
        let end = Instant::now() + patience;
        loop {
            match self.try_item(end.saturating_duration_since(Instant::now())) {
                Ok(Item::Block(block)) => return Some(block),
                Ok(Item::Ping) => {}
                Err(true) => return None,
                Err(false) => panic!("no block within {patience:?} after {:?}", self.cursor),
            }
        }
    }

    /// The next block, which must come.
    pub fn block(&mut self) -> Block {
        self.next_block(PATIENCE).unwrap_or_else(|| panic!("the stream ended ({:?}) at {:?}", self.ending, self.cursor))
    }

    /// The next block, which must be a system block with this reason.
    pub fn system(&mut self, reason: &str) -> Block {
        let block = self.block();
        assert_eq!(block.reason(), Some(reason), "{block:?}");
        block
    }

    /// The block `connected`, which must be the first.
    pub fn connected(&mut self) -> Block {
        self.system("connected")
    }

    /// The next block, which must be a signal.
    pub fn signal(&mut self) -> Block {
        let block = self.block();
        assert_eq!(block.event, "signal", "{block:?}");
        block
    }

    /// The next `count` blocks, which must be signals, each the next after the one before it.
    pub fn signals(&mut self, count: usize) -> Vec<Block> {
        let mut signals: Vec<Block> = Vec::with_capacity(count);
        for _ in 0..count {
            let signal = self.signal();
            assert_eq!(signal.id, signal.feed_seq());
            if let Some(before) = signals.last() {
                assert_eq!(signal.prev_seq(), before.feed_seq(), "a hole or a repetition");
            }
            assert!(signal.prev_seq() < signal.feed_seq());
            signals.push(signal);
        }
        signals
    }

    /// The rest of the stream to its end.
    pub fn rest(&mut self, patience: Duration) -> (Vec<Block>, Ending) {
        let end = Instant::now() + patience;
        let mut blocks = Vec::new();
        while let Some(block) = self.next_block(end.saturating_duration_since(Instant::now())) {
            blocks.push(block);
        }
        (blocks, self.ending.unwrap())
    }

    /// The block `closing` with this cause, and then the end.
    pub fn closing(&mut self, cause: &str) {
        let closing = self.system("closing");
        assert_eq!(closing.data["cause"], cause, "{closing:?}");
        assert_eq!(closing.id, None);
        self.ends();
    }

    /// The stream must end normally, at once.
    pub fn ends(&mut self) {
        let (rest, ending) = self.rest(PATIENCE);
        assert_eq!((rest, ending), (vec![], Ending::Whole));
    }

    /// How it ended, if it did.
    pub fn ending(&self) -> Option<Ending> {
        self.ending
    }

    /// The socket.
    pub fn socket(&self) -> &TcpStream {
        &self.connection.socket
    }
}
