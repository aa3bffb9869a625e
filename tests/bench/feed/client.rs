//! The client: many streams in one thread of a process of its own, so that it costs little and its cost is not the
//! server's.
//!
//! It parses only what it needs: the number of each block, to see that nothing is missing or comes twice, and when the
//! row was sent. It says `ready` on standard output when every stream has had its first block, and what it measured, as
//! one line of JSON, when every stream has what was expected, or nothing has come for a while.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use memchr::memmem::{self, Finder};
use rustix::buffer::spare_capacity;
use rustix::event::{Timespec, epoll};
use serde::{Deserialize, Serialize};

/// What stands before the time at which a row was sent, microseconds since 1970.
pub const SENT: &str = "\"sent_us\": ";
/// How many streams may wait for their first block at once: the benchmark does not measure the accept queue.
const CONNECTING: usize = 512;
/// The run ends if nothing came for this long.
const SILENCE: Duration = Duration::from_secs(20);
const READ_BYTES: usize = 256 * 1024;

/// The client's options.
#[derive(Debug, Clone, clap::Args)]
pub struct Task {
    /// Where the server is.
    #[arg(long)]
    pub address: SocketAddr,
    /// The key.
    #[arg(long)]
    pub key: String,
    /// How many streams read.
    #[arg(long)]
    pub streams: usize,
    /// How many more never do.
    #[arg(long, default_value_t = 0)]
    pub stalled: usize,
    /// Behind which event the streams begin; the newest where this is left out.
    #[arg(long)]
    pub cursor: Option<i64>,
    /// How many events each stream is to get.
    #[arg(long)]
    pub events: u64,
    /// Look at the time of every event.
    #[arg(long)]
    pub timed: bool,
}

/// What the client measured.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct Measured {
    /// Events that arrived, on all streams.
    pub deliveries: u64,
    /// Missing events: holes, and events that never came.
    pub missing: u64,
    /// Events that came twice.
    pub repeated: u64,
    /// From sent to received, milliseconds: p50, p90, p99, p99.9.
    pub latency_ms: [f64; 4],
    /// When the last event came, seconds since 1970.
    pub last_at: f64,
    /// The client's own processor time, seconds.
    pub cpu_s: f64,
}

/// Seconds since 1970.
pub fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

#[derive(Default)]
struct Counts {
    ready: usize,
    complete: usize,
    deliveries: u64,
    missing: u64,
    repeated: u64,
    latencies_us: Vec<u32>,
    last_at: f64,
}

struct Stream {
    socket: TcpStream,
    in_head: bool,
    chunk: Chunk,
    /// Decoded bytes that no complete block has been found in yet.
    rest: Vec<u8>,
    last_id: Option<u64>,
    events: u64,
}

/// The position of a stream within its chunks.
enum Chunk {
    Size(usize),
    Data(usize),
    /// The line end after the data.
    End(usize),
}

/// The client's whole life.
pub fn run(task: &Task) {
    let request = format!(
        "GET /feed HTTP/1.1\r\nHost: bench\r\nAuthorization: Bearer {}\r\n{}\r\n",
        task.key,
        task.cursor.map(|cursor| format!("Last-Event-ID: {cursor}\r\n")).unwrap_or_default(),
    );
    let poll = epoll::create(epoll::CreateFlags::CLOEXEC).unwrap();
    let connect = || {
        let mut socket = TcpStream::connect(task.address).unwrap();
        socket.write_all(request.as_bytes()).unwrap();
        socket.set_nonblocking(true).unwrap();
        socket
    };
    let _stalled: Vec<TcpStream> = (0..task.stalled).map(|_| connect()).collect();
    let (mut streams, mut counts) = (Vec::with_capacity(task.streams), Counts::default());
    let mut buffer = vec![0; READ_BYTES];
    let mut last_seen = Instant::now();
    let mut told_ready = false;
    while counts.complete < task.streams && last_seen.elapsed() < SILENCE {
        while streams.len() < task.streams && streams.len() < counts.ready + CONNECTING {
            let socket = connect();
            let data = epoll::EventData::new_u64(streams.len() as u64);
            epoll::add(&poll, &socket, data, epoll::EventFlags::IN).unwrap();
            streams.push(Stream::new(socket));
        }
        if !told_ready && counts.ready == task.streams {
            told_ready = true;
            println!("ready");
        }
        for index in ready_streams(&poll) {
            last_seen = Instant::now();
            read(&mut streams[index], &mut buffer, task, &mut counts);
        }
    }
    let lacking: u64 = streams.iter().map(|stream| task.events.saturating_sub(stream.events)).sum();
    counts.latencies_us.sort_unstable();
    let quantile = |share: f64| {
        let last = counts.latencies_us.len().saturating_sub(1);
        let at = (counts.latencies_us.len() as f64 * share) as usize;
        counts.latencies_us.get(at.min(last)).map_or(0.0, |&us| f64::from(us) / 1e3)
    };
    let measured = Measured {
        deliveries: counts.deliveries,
        missing: counts.missing.max(lacking),
        repeated: counts.repeated,
        latency_ms: [0.5, 0.9, 0.99, 0.999].map(quantile),
        last_at: counts.last_at,
        cpu_s: super::usage::cpu_s(std::process::id()),
    };
    println!("{}", serde_json::to_string(&measured).unwrap());
}

fn ready_streams(poll: &OwnedFd) -> Vec<usize> {
    let mut events = Vec::with_capacity(1024);
    let patience = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };
    match epoll::wait(poll.as_fd(), spare_capacity(&mut events), Some(&patience)) {
        Ok(_) => events.iter().map(|event| event.data.u64() as usize).collect(),
        Err(_) => Vec::new(),
    }
}

fn read(stream: &mut Stream, buffer: &mut [u8], task: &Task, counts: &mut Counts) {
    loop {
        match stream.socket.read(buffer) {
            Ok(0) => panic!("the server closed a stream after {} events", stream.events),
            Ok(count) => {
                let at = now();
                stream.take(&buffer[..count], task, at, counts);
                if count < buffer.len() {
                    return;
                }
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => return,
            Err(error) => panic!("a stream broke after {} events: {error}", stream.events),
        }
    }
}

impl Stream {
    fn new(socket: TcpStream) -> Self {
        Self { socket, in_head: true, chunk: Chunk::Size(0), rest: Vec::new(), last_id: None, events: 0 }
    }

    fn take(&mut self, mut bytes: &[u8], task: &Task, at: f64, counts: &mut Counts) {
        if self.in_head {
            self.rest.extend_from_slice(bytes);
            let Some(end) = memmem::find(&self.rest, b"\r\n\r\n") else { return };
            assert!(self.rest.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&self.rest));
            let body = self.rest.split_off(end + 4);
            self.rest.clear();
            self.in_head = false;
            return self.take(&body, task, at, counts);
        }
        while let Some(&first) = bytes.first() {
            match self.chunk {
                Chunk::Size(size) => {
                    self.chunk = match (char::from(first).to_digit(16), first) {
                        (Some(digit), _) => Chunk::Size(size * 16 + digit as usize),
                        (None, b'\n') => Chunk::Data(size),
                        (None, _) => Chunk::Size(size),
                    };
                    bytes = &bytes[1..];
                }
                Chunk::Data(left) => {
                    let (data, after) = bytes.split_at(left.min(bytes.len()));
                    self.rest.extend_from_slice(data);
                    self.chunk = if data.len() == left { Chunk::End(2) } else { Chunk::Data(left - data.len()) };
                    bytes = after;
                }
                Chunk::End(left) => {
                    self.chunk = if left == 1 { Chunk::Size(0) } else { Chunk::End(left - 1) };
                    bytes = &bytes[1..];
                }
            }
        }
        self.take_blocks(task, at, counts);
    }

    fn take_blocks(&mut self, task: &Task, at: f64, counts: &mut Counts) {
        let end_of_block = Finder::new(b"\n\n");
        let sent = Finder::new(SENT.as_bytes());
        let rest = std::mem::take(&mut self.rest);
        let mut from = 0;
        while let Some(length) = end_of_block.find(&rest[from..]) {
            let mut block = &rest[from..from + length];
            from += length + 2;
            while let Some(after) = block.strip_prefix(b":ping\n") {
                block = after;
            }
            let Some((id, fields)) = block.strip_prefix(b"id: ").map(number) else { continue };
            if fields.starts_with(b"\nevent: signal") {
                self.count(id, task, counts);
                if task.timed
                    && let Some(place) = sent.find(fields)
                {
                    let (sent_us, _) = number(&fields[place + SENT.len()..]);
                    counts.latencies_us.push((at * 1e6 - sent_us as f64) as u32);
                }
            } else {
                counts.ready += 1;
                self.last_id = Some(id);
            }
        }
        counts.last_at = at;
        self.rest = rest;
        self.rest.drain(..from);
    }

    fn count(&mut self, id: u64, task: &Task, counts: &mut Counts) {
        let last = self.last_id.unwrap_or(id.saturating_sub(1));
        if id <= last {
            counts.repeated += 1;
            return;
        }
        counts.missing += id - last - 1;
        counts.deliveries += 1;
        self.last_id = Some(id);
        self.events += 1;
        if self.events == task.events {
            counts.complete += 1;
        }
    }
}

/// The number at the beginning, and what follows it.
fn number(bytes: &[u8]) -> (u64, &[u8]) {
    let digits = bytes.iter().take_while(|byte| byte.is_ascii_digit()).count();
    let value = bytes[..digits].iter().fold(0, |value, digit| value * 10 + u64::from(digit - b'0'));
    (value, &bytes[digits..])
}
