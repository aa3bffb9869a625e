//! Short answers: everything but the stream.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use super::head::HeadError;
use crate::random::random_u64;

/// The longest time that writing a short answer may take.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);
/// How long the rest of a request is read after its answer, so that a reset does not overtake the answer.
pub const LINGER: Duration = Duration::from_millis(500);

/// The error codes of the contract's table, each with its status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// 400: the cursor, or its time, is invalid.
    BadCursor,
    /// 400: the request is unreadable.
    BadRequest,
    /// 401: there is no key.
    MissingKey,
    /// 401: there is no such key.
    UnknownKey,
    /// 401: the key, or the session, has ended.
    ExpiredKey,
    /// 403: the key was revoked.
    RevokedKey,
    /// 403: on a loopback address of the operator's port, a request whose `Host` is not a loopback name.
    ForeignHost,
    /// 404.
    NotFound,
    /// 405.
    MethodNotAllowed,
    /// 408: the head was not complete in time.
    RequestTimeout,
    /// 429: the stream limit of the key is reached.
    TooManyStreams,
    /// 431: the head is too large.
    HeadTooLarge,
    /// 503: the database is unavailable.
    Degraded,
    /// 503: the stream limit of the server is reached.
    AtCapacity,
    /// 505: not HTTP/1.x.
    HttpVersion,
}

impl Code {
    /// Its status line, and its name in the body.
    pub fn status_and_name(self) -> (&'static str, &'static str) {
        match self {
            Self::BadCursor => ("400 Bad Request", "bad_cursor"),
            Self::BadRequest => ("400 Bad Request", "bad_request"),
            Self::MissingKey => ("401 Unauthorized", "missing_key"),
            Self::UnknownKey => ("401 Unauthorized", "unknown_key"),
            Self::ExpiredKey => ("401 Unauthorized", "expired_key"),
            Self::RevokedKey => ("403 Forbidden", "revoked_key"),
            Self::ForeignHost => ("403 Forbidden", "foreign_host"),
            Self::NotFound => ("404 Not Found", "not_found"),
            Self::MethodNotAllowed => ("405 Method Not Allowed", "method_not_allowed"),
            Self::RequestTimeout => ("408 Request Timeout", "request_timeout"),
            Self::TooManyStreams => ("429 Too Many Requests", "too_many_streams"),
            Self::HeadTooLarge => ("431 Request Header Fields Too Large", "head_too_large"),
            Self::Degraded => ("503 Service Unavailable", "degraded"),
            Self::AtCapacity => ("503 Service Unavailable", "at_capacity"),
            Self::HttpVersion => ("505 HTTP Version Not Supported", "http_version"),
        }
    }
}

/// A short answer.
#[derive(Debug)]
pub struct Response {
    status: &'static str,
    code: Option<Code>,
    fields: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Response {
    /// An answer without a body.
    pub fn empty(status: &'static str) -> Self {
        Self { status, code: None, fields: Vec::new(), body: Vec::new() }
    }

    /// An answer with a body.
    pub fn with_body(status: &'static str, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, code: None, fields: vec![("Content-Type", content_type.into())], body: body.into() }
    }

    /// The code of an error.
    pub fn code(&self) -> Option<Code> {
        self.code
    }

    /// The error `code` with a message for people.
    pub fn error(code: Code, message: &str) -> Self {
        let (status, name) = code.status_and_name();
        let body = serde_json::json!({"error": name, "message": message}).to_string();
        let mut response = Self { code: Some(code), ..Self::with_body(status, "application/json", body) };
        match code {
            Code::MissingKey | Code::UnknownKey | Code::ExpiredKey => response.add("WWW-Authenticate", "Bearer"),
            // Jittered, so that clients that were refused together do not return together.
            Code::TooManyStreams => response.add("Retry-After", (5 + random_u64() % 26).to_string()),
            Code::Degraded | Code::AtCapacity => response.add("Retry-After", (1 + random_u64() % 10).to_string()),
            _ => {}
        }
        response
    }

    /// The answer to a request whose head cannot be read.
    pub fn head_error(error: HeadError) -> Self {
        match error {
            HeadError::Version => Self::error(Code::HttpVersion, "this server speaks HTTP/1.1 and HTTP/1.0"),
            HeadError::TooLarge => Self::error(Code::HeadTooLarge, "the request head is larger than 16 KiB"),
            HeadError::TimedOut => Self::error(Code::RequestTimeout, "the request head was not complete within 10 s"),
            HeadError::Unreadable | HeadError::Gone => Self::error(Code::BadRequest, "the request cannot be read"),
        }
    }

    /// Its status code: three digits.
    pub fn status(&self) -> &'static str {
        &self.status[..3]
    }

    /// Adds a header field.
    pub fn add(&mut self, name: &'static str, value: impl Into<String>) {
        self.fields.push((name, value.into()));
    }

    /// The same with one more header field.
    pub fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.add(name, value);
        self
    }

    /// Writes it and closes the connection. Blocks for some seconds at most. `head_only` leaves out the body.
    pub fn send(self, mut stream: &TcpStream, head_only: bool) {
        let mut bytes = format!("HTTP/1.1 {}\r\n{}", self.status, common_fields()).into_bytes();
        for (name, value) in &self.fields {
            let _ = write!(bytes, "{name}: {value}\r\n");
        }
        if !self.status.starts_with("204") {
            let _ = write!(bytes, "Content-Length: {}\r\n", self.body.len());
        }
        bytes.extend_from_slice(b"\r\n");
        if !head_only {
            bytes.extend_from_slice(&self.body);
        }
        let _ = stream.set_write_timeout(Some(WRITE_DEADLINE));
        if stream.write_all(&bytes).is_ok() {
            close_in_order(stream, LINGER);
        }
    }
}

/// Header fields of every answer. An origin server with a clock must send `Date` (RFC 9110 §6.6.1).
pub fn common_fields() -> String {
    let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
    format!("Date: {date}\r\nConnection: close\r\nX-Content-Type-Options: nosniff\r\n")
}

/// Closes our side, then reads what the other side still sends until it closes, at most for `linger`: closing a socket with
/// unread bytes resets the connection, and the reset can overtake the answer (RFC 9112 §9.6).
pub fn close_in_order(mut stream: &TcpStream, linger: Duration) {
    if stream.shutdown(Shutdown::Write).is_err() {
        return;
    }
    let until = Instant::now() + linger;
    let mut rest = [0; 1024];
    loop {
        // A limit for all reads together: a byte now and then would otherwise hold the thread for ever.
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() || stream.set_read_timeout(Some(left)).is_err() || !matches!(stream.read(&mut rest), Ok(1..))
        {
            return;
        }
    }
}
