//! One connection to a feed: a GET, its answer, then the stream's events.
//!
//! What is deliberately absent: redirects (the key goes nowhere else), proxies from the environment, compression,
//! pooling.

use std::fmt;
use std::io::Read;
use std::sync::mpsc::{self, RecvTimeoutError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde::Deserialize;
use ureq::config::Config;
use ureq::http::{HeaderMap, Response, header};
use ureq::{Agent, Body, Timeout};

pub use super::address::{ApiKey, Cursor, FeedUrl};
use super::json;
use super::sse::{Event, Parser};
use super::stop::Stop;

/// Longest time to look up the feed's name, and again to connect to it.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
/// The longest `Retry-After` that counts.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// The codes of the feed's own 401 and 403.
const KEY_REFUSALS: [&str; 4] = ["missing_key", "unknown_key", "expired_key", "revoked_key"];
/// How much of an error's body is read, and for how long, to find its code.
const MAX_ERROR_BODY_BYTES: u64 = 4096;
const ERROR_BODY_PATIENCE: Duration = Duration::from_millis(500);
/// Longest wait for an event or a retry: the caller has other work too.
pub(super) const TURN: Duration = Duration::from_millis(250);
/// Characters of a time that need no escape in a query.
const KEPT_IN_TIMES: &AsciiSet = &NON_ALPHANUMERIC.remove(b':').remove(b'.').remove(b'-');
/// Bytes read from the connection at once.
const READ_BYTES: usize = 64 << 10;

/// Why a stream did not open, or ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum StreamError {
    /// 401 or 403 with one of the feed's own codes: the feed refuses the key, and will refuse it again.
    Unauthorized {
        /// The status.
        status: u16,
        /// The feed's error code.
        code: String,
    },
    /// Any other status than 200, redirects included.
    Status {
        /// The status.
        status: u16,
        /// The feed's error code, if it gave one.
        code: Option<String>,
        /// The earliest retry, from now.
        retry_after: Option<Duration>,
    },
    /// 200, but not an event stream that can be read.
    NoEventStream(String),
    /// The connection failed or broke.
    Connection(String),
    /// No byte came for this long, not even a heartbeat.
    Silence(Duration),
    /// The server ended the stream.
    Ended,
    /// An event is larger than any that a feed sends.
    TooLarge(String),
    /// [`Stop`] was requested.
    Stopped,
}

impl fmt::Display for StreamError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unauthorized { status, code } => write!(f, "the feed answered {status} ({code})"),
            Self::Status { status, code, .. } => {
                write!(f, "the feed answered {status}")?;
                if let Some(code) = code {
                    write!(f, " ({code})")?;
                }
                if (300..400).contains(status) {
                    f.write_str(", a redirect, which is never followed")?;
                }
                Ok(())
            }
            Self::NoEventStream(why) => write!(f, "the feed answered 200, but {why}"),
            Self::Connection(cause) => f.write_str(cause),
            Self::Silence(after) => {
                write!(f, "nothing arrived for {}", crate::text::duration(*after))
            }
            Self::Ended => f.write_str("the feed ended the stream"),
            Self::TooLarge(what) => f.write_str(what),
            Self::Stopped => f.write_str("stopped"),
        }
    }
}

/// Opens streams with one key.
#[derive(Debug)]
pub struct Client {
    config: Config,
    /// The agent of the newest connection; shutting it down ends that connection.
    agent: Arc<Mutex<Agent>>,
    key: ApiKey,
    read_timeout: Duration,
    stop: Stop,
}

impl Client {
    /// A client for these addresses. A connection without a byte for `read_timeout` counts as dead. `stop` ends
    /// its streams.
    ///
    /// For `https` the server's certificate must be signed by an authority that the system trusts, or that the file
    /// named by the environment variable `SSL_CERT_FILE` holds, as they are now.
    pub fn new(urls: &[FeedUrl], key: &ApiKey, read_timeout: Duration, stop: Stop) -> Self {
        let config = Agent::config_builder();
        #[cfg(not(feature = "tls"))]
        let _ = urls;
        #[cfg(feature = "tls")]
        let config =
            if urls.iter().any(|url| url.0.starts_with("https:")) { config.tls_config(tls_config()) } else { config };
        let config = config
            .http_status_as_error(false)
            .proxy(None)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .max_idle_connections(0)
            .user_agent(concat!("signal-feed/", env!("CARGO_PKG_VERSION")))
            .accept("text/event-stream")
            .accept_encoding(ureq::config::AutoHeaderValue::None)
            .timeout_resolve(Some(CONNECT_PATIENCE))
            .timeout_connect(Some(CONNECT_PATIENCE))
            .timeout_send_request(Some(CONNECT_PATIENCE))
            .timeout_recv_response(Some(read_timeout * 2))
            .timeout_per_read(Some(read_timeout))
            .build();
        let agent = Arc::new(Mutex::new(Agent::from(config.clone())));
        let interrupted = Arc::clone(&agent);
        stop.on_ask(move || interrupted.lock().unwrap_or_else(PoisonError::into_inner).clone().shutdown());
        Self { config, agent, key: key.clone(), read_timeout, stop }
    }

    /// Uses another key from now on. Returns false if it is the same.
    pub fn change_key(&mut self, key: ApiKey) -> bool {
        let differs = self.key.0 != key.0;
        self.key = key;
        differs
    }

    /// Begins to open the stream after `cursor`, or from now. Does not block: the stream reports the result.
    ///
    /// # Errors
    /// See [`StreamError`].
    pub fn open(&self, url: &FeedUrl, cursor: Option<&Cursor>) -> Result<Stream, StreamError> {
        let mut address = url.0.clone();
        if let Some(cursor) = cursor {
            address.push_str(&format!("?cursor={}", cursor.feed_seq));
            if let Some(time) = &cursor.event_time {
                address.push_str("&cursor_time=");
                address.extend(utf8_percent_encode(time, KEPT_IN_TIMES));
            }
        }
        let agent = Agent::from(self.config.clone());
        *self.agent.lock().unwrap_or_else(PoisonError::into_inner) = agent.clone();
        if self.stop.is_asked() {
            return Err(StreamError::Stopped);
        }
        let mut request = agent
            .get(&address)
            .header(header::AUTHORIZATION, format!("Bearer {}", self.key.0))
            .header(header::CACHE_CONTROL, "no-store");
        if let Some(cursor) = cursor {
            request = request.header("Last-Event-ID", cursor.feed_seq.to_string());
        }
        let (sender, pieces) = mpsc::sync_channel(1);
        let (read_timeout, stop) = (self.read_timeout, self.stop.clone());
        // The thread ends with the connection, or when its receiver is dropped.
        let read = move || {
            let name = |error| named_error(error, read_timeout, &stop);
            let mut body = match request.call().map_err(name).and_then(judge) {
                Ok(response) => response.into_body().into_reader(),
                Err(trouble) => return drop(sender.send(Err(trouble))),
            };
            let mut piece = Ok(Piece::Opened);
            let mut buffer = vec![0; READ_BYTES];
            while sender.send(piece).is_ok() {
                piece = match body.read(&mut buffer) {
                    Ok(0) => return drop(sender.send(Err(StreamError::Ended))),
                    Ok(count) => Ok(Piece::Bytes(buffer[..count].to_vec())),
                    Err(error) => return drop(sender.send(Err(name(ureq::Error::from(error))))),
                };
            }
        };
        let started = std::thread::Builder::new().name("feed".into()).spawn(read);
        started.map_err(|error| StreamError::Connection(format!("start a thread: {error}")))?;
        let (parser, opened, stop) = (Parser::default(), Instant::now(), self.stop.clone());
        Ok(Stream { pieces, agent, parser, opened, stop })
    }
}

/// A message from the thread of a stream.
enum Piece {
    /// The feed has answered with a stream.
    Opened,
    Bytes(Vec<u8>),
}

/// A stream that is open, or that its thread is opening. Dropping it closes the connection.
pub struct Stream {
    pieces: mpsc::Receiver<Result<Piece, StreamError>>,
    agent: Agent,
    parser: Parser,
    opened: Instant,
    stop: Stop,
}

impl Stream {
    /// The next event; `None` if none came for a moment, so that the caller can do other work.
    ///
    /// # Errors
    /// See [`StreamError`]; the stream is over then.
    pub fn next_event(&mut self) -> Result<Option<Event>, StreamError> {
        if self.stop.is_asked() {
            return Err(StreamError::Stopped);
        }
        if let Some(event) = self.parser.next_event() {
            return Ok(Some(event));
        }
        match self.pieces.recv_timeout(TURN) {
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(StreamError::Ended),
            Ok(Err(StreamError::Ended)) if self.stop.is_asked() => Err(StreamError::Stopped),
            Ok(Err(trouble)) => Err(trouble),
            Ok(Ok(Piece::Opened)) => {
                self.opened = Instant::now();
                Ok(None)
            }
            Ok(Ok(Piece::Bytes(bytes))) => {
                let pushed = self.parser.push(&bytes);
                match (self.parser.next_event(), pushed) {
                    (Some(event), _) => Ok(Some(event)),
                    (None, Ok(())) => Ok(None),
                    (None, Err(error)) => Err(StreamError::TooLarge(error.to_string())),
                }
            }
        }
    }

    /// How long ago the stream was opened.
    pub fn age(&self) -> Duration {
        self.opened.elapsed()
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.agent.clone().shutdown();
    }
}

impl fmt::Debug for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Stream").field("opened", &self.opened).finish_non_exhaustive()
    }
}

fn named_error(error: ureq::Error, read_timeout: Duration, stop: &Stop) -> StreamError {
    if stop.is_asked() {
        return StreamError::Stopped;
    }
    match error {
        ureq::Error::Timeout(Timeout::PerRead | Timeout::RecvResponse) => StreamError::Silence(read_timeout),
        ureq::Error::Timeout(during) => StreamError::Connection(format!("connect to the feed: timed out ({during})")),
        ureq::Error::HostNotFound => StreamError::Connection("look up the feed's host name: not found".to_owned()),
        ureq::Error::Io(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof => StreamError::Ended,
        other => StreamError::Connection(format!("connection to the feed: {other}{}", advice(&other))),
    }
}

/// The system's root certificates, not a built-in list: so an operator can add a private authority in one place.
#[cfg(feature = "tls")]
fn tls_config() -> ureq::tls::TlsConfig {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        log::warn!("read the system's root certificates: {error}");
    }
    let roots = found.certs.iter().map(|root| ureq::tls::Certificate::from_der(root).to_owned());
    ureq::tls::TlsConfig::builder()
        .root_certs(roots.collect::<Vec<_>>().into())
        .unversioned_rustls_crypto_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

/// Advice if the authority is not trusted here.
#[cfg(feature = "tls")]
fn advice(error: &ureq::Error) -> &'static str {
    use rustls::{CertificateError::UnknownIssuer, Error::InvalidCertificate};
    let ureq::Error::Io(error) = error else { return "" };
    match error.get_ref().and_then(|cause| cause.downcast_ref()) {
        Some(InvalidCertificate(UnknownIssuer)) => {
            "; add its authority's certificate to the system's, or name a file with it in SSL_CERT_FILE"
        }
        _ => "",
    }
}

#[cfg(not(feature = "tls"))]
fn advice(_: &ureq::Error) -> &'static str {
    ""
}

fn judge(response: Response<Body>) -> Result<Response<Body>, StreamError> {
    let status = response.status().as_u16();
    match status {
        200 => {}
        _ => {
            let retry_after = retry_after(response.headers());
            return Err(match error_code(response) {
                // Without the feed's own code it is a proxy's answer, which may change soon.
                Some(code) if matches!(status, 401 | 403) && KEY_REFUSALS.contains(&code.as_str()) => {
                    StreamError::Unauthorized { status, code }
                }
                code => StreamError::Status { status, code, retry_after },
            });
        }
    }
    let value = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let content_type = value(header::CONTENT_TYPE);
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    if !essence.eq_ignore_ascii_case("text/event-stream") {
        return Err(StreamError::NoEventStream(format!(
            "with content type {content_type:?} instead of text/event-stream"
        )));
    }
    let encoding = value(header::CONTENT_ENCODING);
    if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
        return Err(StreamError::NoEventStream(format!(
            "compressed ({encoding}), although the bot did not ask for that"
        )));
    }
    Ok(response)
}

/// `Retry-After` as seconds or as a date (RFC 9110 §10.2.3), at most an hour.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = match text.parse::<u64>() {
        Ok(seconds) => Duration::from_secs(seconds),
        // Too many digits for a number.
        Err(_) if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) => MAX_RETRY_AFTER,
        Err(_) => {
            let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
            SystemTime::from(at).duration_since(SystemTime::now()).unwrap_or_default()
        }
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// The body of the feed's errors.
#[derive(Deserialize)]
struct ErrorAnswer {
    error: String,
}

/// The code in the feed's `{"error": CODE}`. A separate thread reads it, and is abandoned if the body is slow.
fn error_code(response: Response<Body>) -> Option<String> {
    let (sender, receiver) = mpsc::channel();
    let read = move || {
        let mut bytes = Vec::new();
        let mut body = response.into_body().into_reader().take(MAX_ERROR_BODY_BYTES);
        // What came before a read error may be the whole answer.
        let _ = body.read_to_end(&mut bytes);
        let _ = sender.send(bytes);
    };
    std::thread::Builder::new().name("error-body".into()).spawn(read).ok()?;
    let bytes = receiver.recv_timeout(ERROR_BODY_PATIENCE).ok()?;
    let answer: ErrorAnswer = json::object_from_bytes(&bytes).ok()?;
    let code = answer.error;
    // It goes into log lines and alerts, so only accept what looks like a code.
    let is_code = code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_code.then_some(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retry_after_is_read_as_seconds_and_as_a_date_and_has_a_limit() {
        let after = |text: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::RETRY_AFTER, text.parse().ok()?);
            retry_after(&headers)
        };
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("999999999"), Some(MAX_RETRY_AFTER));
        assert_eq!(after("99999999999999999999999999"), Some(MAX_RETRY_AFTER));
        assert_eq!(after("Fri, 31 Dec 2100 23:59:59 GMT"), Some(MAX_RETRY_AFTER));
        assert_eq!(after("Fri, 31 Dec 1999 23:59:59 GMT"), Some(Duration::ZERO));
        assert_eq!(after("soon"), None);
    }
}
