//! The routes of the feed port, and the order in which a request can fail.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::credential::{COOKIE, credential, key};
use super::cursor;
use super::hold::{authenticate, degraded};
use crate::feed::Feed;
use crate::feed::client::{Client, Full};
use crate::feed::keys::SESSION_LASTS;
use crate::feed::reason::End;
use crate::feed::stream;
use crate::http::connections::HttpConnection;
use crate::http::head::{self, HeadError, RequestHead};
use crate::http::proxy;
use crate::http::response::{self, LINGER, Response};
use crate::logging::LIMITED;

/// How long a client's bytes are read after its last block when the server stops.
const LINGER_AT_SHUTDOWN: Duration = Duration::from_millis(2);

/// A request whose head is complete.
struct Request<'a> {
    feed: &'a Arc<Feed>,
    connection: &'a HttpConnection,
    /// The client's address, taken from a trusted proxy's header if there is one.
    address: SocketAddr,
    head: RequestHead,
    arrived: Instant,
}

/// Serves one connection. Blocks for as long as it lasts.
pub(crate) fn serve(feed: &Arc<Feed>, connection: &HttpConnection) {
    match head::read(connection) {
        Ok(head) => {
            let address = proxy::client_address(&feed.options.trusted_proxies, connection.peer, &head);
            let request = Request { feed, connection, address, head, arrived: Instant::now() };
            if let Some(response) = request.route() {
                let name = credential(&request.head).and_then(|credential| feed.keys.name_of(&credential));
                send(feed, connection, address, name.as_deref(), response, request.head.method == "HEAD");
            }
        }
        Err(HeadError::Gone) => {}
        Err(error) => send(feed, connection, connection.peer, None, Response::head_error(error), false),
    }
}

/// Logs, counts and sends a short answer. After SIGTERM it sends none: every client retries a closed connection, but
/// many give up after a status.
fn send(
    feed: &Feed,
    connection: &HttpConnection,
    address: SocketAddr,
    key: Option<&str>,
    response: Response,
    is_head: bool,
) {
    if feed.health.is_stopping() {
        return;
    }
    let key = key.map(|key| format!("key {key:?} from ")).unwrap_or_default();
    if let Some(code) = response.code() {
        let warned_of = ["unknown_key", "expired_key", "revoked_key", "too_many_streams", "degraded", "at_capacity"];
        let level = if warned_of.contains(&code) { log::Level::Warn } else { log::Level::Info };
        // A kind of its own for each code, so that a flood of one does not hide another.
        log::log!(target: &format!("{LIMITED}::{code}"), level, "refused: {code}: {key}{address}");
    }
    feed.stats.answered(response.status());
    response.send(&connection.socket, is_head);
}

impl Request<'_> {
    /// The answer; `None` after a stream, or if the request gets no answer.
    fn route(&self) -> Option<Response> {
        let allowed: &[&str] = match self.head.path.as_str() {
            "/feed" => &["GET"],
            "/session" => &["POST", "DELETE"],
            "/" | "/healthz" | "/readyz" => &["GET", "HEAD"],
            _ => return Some(Response::error("404 Not Found", "not_found", "no such path: the stream is at /feed")),
        };
        if !allowed.contains(&self.head.method.as_str()) {
            return Some(Response::method_not_allowed(&allowed.join(", ")));
        }
        if let Err(message) = self.head.check() {
            return Some(Response::error("400 Bad Request", "bad_request", message));
        }
        match self.head.path.as_str() {
            "/feed" => self.feed(),
            "/session" => self.session(),
            "/" => Some(Response::page(include_str!("watch.html"))),
            "/healthz" => Some(text("200 OK", "alive\n")),
            _ => Some(self.readiness()),
        }
    }

    /// Runs the stream, and blocks for as long as it lasts. Returns the answer if there is none.
    fn feed(&self) -> Option<Response> {
        let asked = match cursor::asked(&self.head) {
            Ok(asked) => asked,
            Err(message) => return Some(Response::error("400 Bad Request", "bad_cursor", message)),
        };
        let key = match authenticate(self.feed, self.connection, credential(&self.head), self.arrived, true) {
            Ok(key) => key,
            Err(response) => return response,
        };
        let (socket, is_chunked) = (&self.connection.socket, self.head.is_http_11);
        let client = Client::new(self.feed, key, self.address, socket.clone(), is_chunked);
        match stream::serve(self.feed, client, stream_head(is_chunked).into_bytes(), asked) {
            // Nobody waits for clients that do not close: what they have sent so far is read, and that has to do.
            Ok(End::Shutdown) => response::close_in_order(socket, LINGER_AT_SHUTDOWN),
            Ok(end) if end.is_told() || end == End::Dropped => response::close_in_order(socket, LINGER),
            Ok(_) => {}
            Err(Full::Key) => {
                let message = "stream limit for this key reached";
                return Some(Response::error("429 Too Many Requests", "too_many_streams", message));
            }
            Err(Full::Server) => {
                let message = "stream limit of this server reached";
                return Some(Response::error("503 Service Unavailable", "at_capacity", message));
            }
        }
        None
    }

    /// `POST /session` sets the session cookie for a valid key, `DELETE /session` clears it.
    fn session(&self) -> Option<Response> {
        let is_https = proxy::is_https(&self.feed.options.trusted_proxies, self.connection.peer, &self.head);
        let cookie = |token: &str, seconds: u64| {
            let secure = if is_https { "; Secure" } else { "" };
            let cookie = format!("{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/; Max-Age={seconds}{secure}");
            Response::empty("204 No Content").with("Set-Cookie", cookie)
        };
        if self.head.method == "DELETE" {
            return Some(cookie("", 0));
        }
        match authenticate(self.feed, self.connection, key(&self.head), self.arrived, false) {
            Err(response) => response,
            Ok(key) => match self.feed.keys.session_token(&key, self.feed.now()) {
                Some(token) => Some(cookie(&token, SESSION_LASTS.as_secs())),
                None => Some(degraded()),
            },
        }
    }

    fn readiness(&self) -> Response {
        match (self.feed.health.is_ready(), self.feed.facts().is_capture_off) {
            (false, _) => text("503 Service Unavailable", "not ready\n"),
            (true, false) => text("200 OK", "ready\n"),
            // The watch page reads this. The status stays 200: the feed itself works.
            (true, true) => text("200 OK", "ready, but capture is off\n"),
        }
    }
}

fn stream_head(is_http_11: bool) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n\
         X-Accel-Buffering: no\r\n{}{}\r\n",
        response::common_fields(),
        if is_http_11 { "Transfer-Encoding: chunked\r\n" } else { "" }
    )
}

fn text(status: &'static str, body: &'static str) -> Response {
    Response::with_body(status, "text/plain; charset=utf-8", body).with("Cache-Control", "no-store")
}
