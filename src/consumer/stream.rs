//! One connection to a feed: a GET, its answer, then the stream's events.
//!
//! What is deliberately absent: redirects (the key goes nowhere else), proxies from the environment, compression,
//! pooling.

use std::fmt;
use std::io::Read;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::time::{Duration, Instant, SystemTime};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Map, Value};
use ureq::config::Config;
use ureq::http::{HeaderMap, Response, header};
use ureq::{Agent, Body, Timeout};

pub use super::address::{ApiKey, Cursor, FeedUrl};
use super::json;
use super::sse::{Event, MAX_BLOCK_BYTES, Parser};
#[cfg(feature = "tls")]
use crate::logging::LIMITED;

/// Longest time to look up the feed's name, and again to connect to it.
const CONNECT_PATIENCE: Duration = Duration::from_secs(10);
const MAX_RETRY_AFTER: Duration = Duration::from_secs(3600);
/// The codes of the feed's own 401 and 403.
const KEY_REFUSALS: [&str; 4] = ["missing_key", "unknown_key", "expired_key", "revoked_key"];
/// How much of an error's body is read (a piece may end beyond this), and for how long, to find its code.
const MAX_ERROR_BODY_BYTES: usize = 4096;
const ERROR_BODY_PATIENCE: Duration = Duration::from_millis(500);
/// Longest wait for an event or a retry: the caller has other work too.
pub(super) const TURN: Duration = Duration::from_millis(250);
/// Characters of a time that need no escape in a query.
const KEPT_IN_TIMES: &AsciiSet = &NON_ALPHANUMERIC.remove(b':').remove(b'.').remove(b'-');
const ENDED: &str = "the feed ended the stream";
const READ_BYTES: usize = 64 << 10;

/// Why a stream did not open, or ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cause {
    /// Any other status than 200, redirects included.
    Status {
        /// The status.
        status: u16,
        /// The feed's error code, if it gave one.
        code: Option<String>,
        /// The earliest retry, from now.
        retry_after: Option<Duration>,
    },
    /// Events after the cursor did not come, or one is too large. The feed sends them again after the cursor.
    Missing(String),
    /// Anything else: the connection failed or ended, nothing came, or it is not a stream of a feed.
    Broke(String),
}

impl Cause {
    /// Whether the feed refuses the key, and will refuse it again. Without the feed's own code it is a proxy's answer,
    /// which may change soon.
    pub(super) fn refuses_key(&self) -> bool {
        matches!(self, Self::Status { status: 401 | 403, code: Some(code), .. } if KEY_REFUSALS.contains(&code.as_str()))
    }
}

impl fmt::Display for Cause {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
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
            Self::Missing(text) | Self::Broke(text) => f.write_str(text),
        }
    }
}

/// The settings of a connection. One without a byte for `read_timeout` counts as dead.
///
/// For `https` the server's certificate must be signed by an authority that the system trusts, or that the file
/// named by the environment variable `SSL_CERT_FILE` holds, as they are now.
fn config(url: &FeedUrl, read_timeout: Duration) -> Config {
    let config = Agent::config_builder();
    #[cfg(feature = "tls")]
    let config = if url.0.starts_with("https:") { config.tls_config(tls_config()) } else { config };
    #[cfg(not(feature = "tls"))]
    let _ = url;
    config
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
        .build()
}

/// Bytes of a body, or why there are no more; an error's status comes before its body.
type Piece = Result<Vec<u8>, Cause>;

/// A stream that is open, or that its thread is opening. Dropping it closes the connection.
pub(super) struct FeedStream {
    pieces: Receiver<Piece>,
    agent: Agent,
    parser: Parser,
    /// When its first bytes came.
    began: Option<Instant>,
}

impl FeedStream {
    /// Begins to open the stream after `cursor`, or from now. Does not block: the stream reports the result. `Err` if no
    /// thread can be started.
    pub(super) fn open(
        url: &FeedUrl,
        key: &ApiKey,
        cursor: Option<&Cursor>,
        read_timeout: Duration,
    ) -> Result<Self, Cause> {
        let mut address = url.0.clone();
        if let Some(cursor) = cursor {
            address.push_str(&format!("?cursor={}", cursor.feed_seq));
            if let Some(time) = &cursor.event_time {
                address.push_str("&cursor_time=");
                address.extend(utf8_percent_encode(time, KEPT_IN_TIMES));
            }
        }
        let agent = Agent::from(config(url, read_timeout));
        let mut request = agent
            .get(&address)
            .header(header::AUTHORIZATION, format!("Bearer {}", key.0))
            .header(header::CACHE_CONTROL, "no-store");
        if let Some(cursor) = cursor {
            request = request.header("Last-Event-ID", cursor.feed_seq.to_string());
        }
        let (sender, pieces) = mpsc::sync_channel(1);
        // The thread ends with the connection, or when its receiver is dropped.
        let read = move || {
            let broke = |error| Cause::Broke(named_error(error, read_timeout));
            let response = match request.call() {
                Ok(response) => response,
                Err(error) => return drop(sender.send(Err(broke(error)))),
            };
            // An error's body follows its status.
            if let Err(cause) = judge(&response) {
                let _ = sender.send(Err(cause));
            }
            let mut body = response.into_body().into_reader();
            let mut buffer = vec![0; READ_BYTES];
            loop {
                let piece = match body.read(&mut buffer) {
                    Ok(0) => Err(Cause::Broke(ENDED.to_owned())),
                    Ok(count) => Ok(buffer[..count].to_vec()),
                    Err(error) => Err(broke(ureq::Error::from(error))),
                };
                let is_over = piece.is_err();
                if sender.send(piece).is_err() || is_over {
                    return;
                }
            }
        };
        let started = std::thread::Builder::new().name("feed".into()).spawn(read);
        started.map_err(|error| Cause::Broke(format!("start a thread: {error}")))?;
        Ok(Self { pieces, agent, parser: Parser::new(MAX_BLOCK_BYTES), began: None })
    }

    /// The next event; `None` if none came for a moment, so that the caller can do other work. `Err` says why the stream is
    /// over.
    pub(super) fn next_event(&mut self) -> Result<Option<Event>, Cause> {
        if let Some(event) = self.parser.next_event() {
            return Ok(Some(event));
        }
        let bytes = match self.pieces.recv_timeout(TURN) {
            Ok(Err(Cause::Status { status, retry_after, .. })) => {
                return Err(Cause::Status { status, code: error_code(&self.pieces), retry_after });
            }
            Ok(piece) => piece?,
            Err(RecvTimeoutError::Timeout) => return Ok(None),
            Err(RecvTimeoutError::Disconnected) => return Err(Cause::Broke(ENDED.to_owned())),
        };
        self.began.get_or_insert_with(Instant::now);
        let pushed = self.parser.push(&bytes);
        match (self.parser.next_event(), pushed) {
            (None, Err(too_large)) => Err(Cause::Missing(too_large)),
            (event, _) => Ok(event),
        }
    }

    /// How long ago its first bytes came.
    pub(super) fn age(&self) -> Duration {
        self.began.map_or(Duration::ZERO, |began| began.elapsed())
    }
}

impl Drop for FeedStream {
    fn drop(&mut self) {
        self.agent.clone().shutdown();
    }
}

fn named_error(error: ureq::Error, read_timeout: Duration) -> String {
    match error {
        ureq::Error::Timeout(Timeout::PerRead | Timeout::RecvResponse) => {
            format!("nothing arrived for {}", crate::text::duration(read_timeout))
        }
        ureq::Error::Timeout(during) => format!("connect to the feed: timed out ({during})"),
        ureq::Error::Io(cause) if cause.kind() == std::io::ErrorKind::UnexpectedEof => ENDED.to_owned(),
        other => {
            let text = format!("connection to the feed: {other}");
            let advice = "; add its authority's certificate to the system's, or name a file with it in SSL_CERT_FILE";
            // rustls says this of a certificate whose authority is not trusted here.
            if text.contains("UnknownIssuer") { text + advice } else { text }
        }
    }
}

/// The system's root certificates, not a built-in list: so an operator can add a private authority in one place.
#[cfg(feature = "tls")]
fn tls_config() -> ureq::tls::TlsConfig {
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        log::warn!(target: LIMITED, "read the system's root certificates: {error}");
    }
    let roots = found.certs.iter().map(|root| ureq::tls::Certificate::from_der(root).to_owned());
    ureq::tls::TlsConfig::builder()
        .root_certs(roots.collect::<Vec<_>>().into())
        .unversioned_rustls_crypto_provider(std::sync::Arc::new(rustls::crypto::ring::default_provider()))
        .build()
}

fn judge(response: &Response<Body>) -> Result<(), Cause> {
    let status = response.status().as_u16();
    if status != 200 {
        return Err(Cause::Status { status, code: None, retry_after: retry_after(response.headers()) });
    }
    let value = |name| response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (content_type, encoding) = (value(header::CONTENT_TYPE), value(header::CONTENT_ENCODING));
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    let why = if !essence.eq_ignore_ascii_case("text/event-stream") {
        format!("with content type {content_type:?} instead of text/event-stream")
    } else if !encoding.is_empty() && !encoding.eq_ignore_ascii_case("identity") {
        format!("compressed ({encoding}), although the bot did not ask for that")
    } else {
        return Ok(());
    };
    Err(Cause::Broke(format!("the feed answered 200, but {why}")))
}

/// `Retry-After` as seconds or as a date (RFC 9110 §10.2.3), at most an hour.
fn retry_after(headers: &HeaderMap) -> Option<Duration> {
    let text = headers.get(header::RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        let at = jiff::fmt::rfc2822::DateTimeParser::new().parse_timestamp(text).ok()?;
        SystemTime::from(at).duration_since(SystemTime::now()).unwrap_or_default()
    };
    Some(wait.min(MAX_RETRY_AFTER))
}

/// The code in the feed's `{"error": CODE}`, if that comes in time. What comes before a read error may be all of it.
fn error_code(pieces: &Receiver<Piece>) -> Option<String> {
    let deadline = Instant::now() + ERROR_BODY_PATIENCE;
    let mut body = Vec::new();
    while body.len() < MAX_ERROR_BODY_BYTES
        && let Ok(Ok(piece)) = pieces.recv_timeout(deadline.saturating_duration_since(Instant::now()))
    {
        body.extend(piece);
    }
    let answer: Map<String, Value> = json::object(&body).ok()?;
    let code = answer.get("error")?.as_str()?;
    // It goes into log lines and alerts, so only accept what looks like a code.
    let is_code = code.len() <= 64 && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_');
    is_code.then(|| code.to_owned())
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
