//! Short answers: everything but the stream.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::head::HeadError;
use crate::random::random_u64;

/// The longest time that writing a short answer may take.
const WRITE_DEADLINE: Duration = Duration::from_secs(5);
/// How long the rest of a request is read after its answer, so that a reset does not overtake the answer.
pub(crate) const LINGER: Duration = Duration::from_millis(500);

#[derive(Debug)]
pub(crate) struct Response {
    status: &'static str,
    code: Option<&'static str>,
    fields: Vec<(&'static str, String)>,
    body: Vec<u8>,
}

impl Response {
    pub(crate) fn empty(status: &'static str) -> Self {
        Self { status, code: None, fields: Vec::new(), body: Vec::new() }
    }

    pub(crate) fn with_body(status: &'static str, content_type: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Self { status, code: None, fields: vec![("Content-Type", content_type.into())], body: body.into() }
    }

    pub(crate) fn code(&self) -> Option<&'static str> {
        self.code
    }

    /// A page in one file with one `<script>` and one `<style>` element without attributes. The Content-Security-Policy
    /// lets these run and nothing else.
    pub(crate) fn page(html: &'static str) -> Self {
        let policy = format!(
            "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            hash_source(html, "script"),
            hash_source(html, "style")
        );
        Self::with_body("200 OK", "text/html; charset=utf-8", html)
            .with("Content-Security-Policy", policy)
            .with("Referrer-Policy", "no-referrer")
            .with("Cache-Control", "no-cache")
    }

    /// An error: its code for programs, and a message for people.
    pub(crate) fn error(status: &'static str, code: &'static str, message: &str) -> Self {
        let body = serde_json::json!({"error": code, "message": message}).to_string();
        let response = Self { code: Some(code), ..Self::with_body(status, "application/json", body) };
        match response.status() {
            "401" => response.with("WWW-Authenticate", "Bearer"),
            // Jittered, so that clients that were refused together do not return together.
            "429" => response.with("Retry-After", (5 + random_u64() % 26).to_string()),
            "503" => response.with("Retry-After", (1 + random_u64() % 10).to_string()),
            _ => response,
        }
    }

    pub(crate) fn method_not_allowed(allowed: &str) -> Self {
        let message = format!("this path takes {allowed}");
        Self::error("405 Method Not Allowed", "method_not_allowed", &message).with("Allow", allowed)
    }

    pub(crate) fn head_error(error: HeadError) -> Self {
        let (status, code, message) = match error {
            HeadError::Version => {
                ("505 HTTP Version Not Supported", "http_version", "this server speaks HTTP/1.1 and HTTP/1.0")
            }
            HeadError::TooLarge => {
                ("431 Request Header Fields Too Large", "head_too_large", "the request head is larger than 16 KiB")
            }
            HeadError::TimedOut => {
                ("408 Request Timeout", "request_timeout", "the request head was not complete within 10 s")
            }
            HeadError::Unreadable | HeadError::Gone => ("400 Bad Request", "bad_request", "the request cannot be read"),
        };
        Self::error(status, code, message)
    }

    /// Its status code: three digits.
    pub(crate) fn status(&self) -> &'static str {
        &self.status[..3]
    }

    pub(crate) fn with(mut self, name: &'static str, value: impl Into<String>) -> Self {
        self.fields.push((name, value.into()));
        self
    }

    /// Writes it and closes the connection. Blocks for some seconds at most. `head_only` leaves out the body.
    pub(crate) fn send(self, mut stream: &TcpStream, head_only: bool) {
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
pub(crate) fn common_fields() -> String {
    let date = jiff::Timestamp::now().strftime("%a, %d %b %Y %H:%M:%S GMT");
    format!("Date: {date}\r\nConnection: close\r\nX-Content-Type-Options: nosniff\r\n")
}

/// The source expression of an element's content (Content Security Policy Level 3, section 2.3.1, hash-source).
fn hash_source(html: &str, element: &str) -> String {
    let content = html
        .split_once(&format!("<{element}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{element}>")))
        .map_or("", |(content, _)| content);
    format!("sha256-{}", STANDARD.encode(Sha256::digest(content)))
}

/// Closes our side, then reads what the other side still sends until it closes, at most for `linger`: closing a socket with
/// unread bytes resets the connection, and the reset can overtake the answer (RFC 9112 §9.6).
pub(crate) fn close_in_order(mut stream: &TcpStream, linger: Duration) {
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
