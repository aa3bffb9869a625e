//! Many clients in a few threads: each follows the feed from the beginning, always reconnects from its cursor,
//! and checks that it gets every event once and in order.
//!
//! They speak HTTP/1.0, so that no chunks lie between the blocks, however a proxy cuts them.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::wait::until;

/// How many clients a thread serves.
const CLIENTS_A_THREAD: usize = 100;
/// How long a thread waits for bytes before it looks at those that are to connect.
const POLL: Timespec = Timespec { tv_sec: 0, tv_nsec: 20_000_000 };
/// How long a client waits before it connects again: from, and by how much more at most.
const PAUSE: (u64, u64) = (100, 400);
/// After this much silence a client treats its stream as dead, as every client should.
const SILENCE: Duration = Duration::from_secs(35);

/// Clients that run until this is dropped.
pub struct Crowd {
    cursors: Arc<Vec<AtomicI64>>,
    over: Arc<AtomicBool>,
    threads: Vec<JoinHandle<Result<usize, String>>>,
}

impl Crowd {
    /// Starts `count` clients with one key.
    pub fn start(address: SocketAddr, key: &str, count: usize) -> Self {
        let cursors: Arc<Vec<AtomicI64>> = Arc::new((0..count).map(|_| AtomicI64::new(0)).collect());
        let over = Arc::new(AtomicBool::new(false));
        let threads = (0..count)
            .step_by(CLIENTS_A_THREAD)
            .map(|from| {
                let (cursors, over, key) = (cursors.clone(), over.clone(), key.to_owned());
                std::thread::spawn(move || {
                    let numbers = from..count.min(from + CLIENTS_A_THREAD);
                    let outcome = serve(numbers.map(Client::new).collect(), address, &key, &cursors, &over);
                    // A test that waits for the others need not wait for the whole patience.
                    over.fetch_or(outcome.is_err(), Ordering::Relaxed);
                    outcome
                })
            })
            .collect();
        Self { cursors, over, threads }
    }

    /// Waits until every client has event `seq`. Panics at once if one got something wrong.
    pub fn wait(&mut self, what: &str, seq: i64) {
        let behind = || self.cursors.iter().filter(|cursor| cursor.load(Ordering::Relaxed) < seq).count();
        until(&format!("everybody has event {seq} {what}"), || {
            (behind() == 0 || self.over.load(Ordering::Relaxed)).then_some(())
        });
        if self.over.load(Ordering::Relaxed) {
            self.end();
        }
    }

    /// Ends all clients; returns how often they connected. Panics if one got something wrong.
    pub fn end(&mut self) -> usize {
        self.over.store(true, Ordering::Relaxed);
        self.threads.drain(..).map(|thread| thread.join().unwrap().unwrap()).sum()
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
    }
}

struct Client {
    number: usize,
    cursor: i64,
    socket: Option<TcpStream>,
    /// Bytes that were read and not yet parsed.
    bytes: Vec<u8>,
    has_head: bool,
    heard: Instant,
    connect_at: Instant,
    attempts: u64,
}

impl Client {
    fn new(number: usize) -> Self {
        let now = Instant::now();
        let bytes = Vec::new();
        Self { number, cursor: 0, socket: None, bytes, has_head: false, heard: now, connect_at: now, attempts: 0 }
    }

    fn connect(&mut self, address: SocketAddr, key: &str) {
        self.attempts += 1;
        let request = format!(
            "GET /feed HTTP/1.0\r\nHost: feed.test\r\nAuthorization: Bearer {key}\r\nLast-Event-ID: {}\r\n\r\n",
            self.cursor
        );
        let connected = TcpStream::connect(address).and_then(|mut socket| {
            socket.write_all(request.as_bytes())?;
            socket.set_nonblocking(true)?;
            Ok(socket)
        });
        self.bytes.clear();
        self.has_head = false;
        self.heard = Instant::now();
        match connected {
            Ok(socket) => self.socket = Some(socket),
            Err(_) => self.lose(),
        }
    }

    /// The connection is lost: opens another, a little later.
    fn lose(&mut self) {
        self.socket = None;
        let jitter = (self.number as u64 * 37 + self.attempts * 101) % PAUSE.1;
        self.connect_at = Instant::now() + Duration::from_millis(PAUSE.0 + jitter);
    }

    fn read(&mut self) -> Result<(), String> {
        let mut buffer = [0; 64 * 1024];
        let Some(socket) = &mut self.socket else { return Ok(()) };
        match socket.read(&mut buffer) {
            Ok(0) => self.lose(),
            Ok(count) => {
                self.heard = Instant::now();
                self.bytes.extend_from_slice(&buffer[..count]);
                self.understand()?;
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            Err(_) => self.lose(),
        }
        Ok(())
    }

    fn understand(&mut self) -> Result<(), String> {
        if !self.has_head {
            let Some(end) = self.bytes.windows(4).position(|four| four == b"\r\n\r\n") else { return Ok(()) };
            let head = String::from_utf8_lossy(&self.bytes[..end]).into_owned();
            match head.get(9..12) {
                Some("200") => {}
                // Only these two are final.
                Some("401" | "403") | None => return Err(format!("client {} was refused: {head}", self.number)),
                Some(_) => {
                    self.lose();
                    return Ok(());
                }
            }
            self.has_head = true;
            self.bytes.drain(..end + 4);
        }
        let whole = self.bytes.windows(2).rposition(|two| two == b"\n\n").map_or(0, |at| at + 2);
        let text = String::from_utf8(self.bytes.drain(..whole).collect()).map_err(|error| error.to_string())?;
        text.split_terminator("\n\n").try_for_each(|block| self.take(block))
    }

    fn take(&mut self, block: &str) -> Result<(), String> {
        let fault = |what: &str| Err(format!("client {} at event {}: {what}: {block}", self.number, self.cursor));
        let number = |name: &str| {
            let (_, rest) = block.split_once(&format!("\"{name}\":"))?;
            rest.split(|character: char| !character.is_ascii_digit()).next()?.parse::<i64>().ok()
        };
        if block.contains("event: system\n") {
            let known = ["connected", "degraded", "recovered", "closing"];
            let is_known = known.iter().any(|reason| block.contains(&format!("\"reason\":\"{reason}\"")));
            return if is_known { Ok(()) } else { fault("something was missed") };
        }
        match (number("prev_seq"), number("feed_seq")) {
            (Some(prev), Some(seq)) if prev == self.cursor && seq == prev + 1 => self.cursor = seq,
            _ => return fault("not the next event"),
        }
        Ok(())
    }
}

fn serve(
    mut clients: Vec<Client>,
    address: SocketAddr,
    key: &str,
    cursors: &[AtomicI64],
    over: &AtomicBool,
) -> Result<usize, String> {
    while !over.load(Ordering::Relaxed) {
        for client in &mut clients {
            if client.socket.is_some() && client.heard.elapsed() > SILENCE {
                client.lose();
            }
            if client.socket.is_none() && Instant::now() >= client.connect_at {
                client.connect(address, key);
            }
        }
        let ready: Vec<usize> = {
            let open = clients.iter().enumerate().filter_map(|(index, client)| Some((index, client.socket.as_ref()?)));
            let (indices, mut polled): (Vec<usize>, Vec<PollFd<'_>>) =
                open.map(|(index, socket)| (index, PollFd::new(socket, PollFlags::IN))).unzip();
            poll(&mut polled, Some(&POLL)).map_err(|error| error.to_string())?;
            let is_ready = |(index, polled): (usize, &PollFd<'_>)| (!polled.revents().is_empty()).then_some(index);
            indices.into_iter().zip(&polled).filter_map(is_ready).collect()
        };
        for index in ready {
            let client = &mut clients[index];
            client.read()?;
            cursors[client.number].store(client.cursor, Ordering::Relaxed);
        }
    }
    Ok(clients.iter().map(|client| usize::try_from(client.attempts).unwrap()).sum())
}
