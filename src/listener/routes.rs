//! The routes of the feed port, and the order in which a request can fail.

use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use super::{cursor, session, stream};
use crate::feed::Feed;
use crate::http::connections::HttpConnection;
use crate::http::head::{self, Head, HeadError};
use crate::http::page::Page;
use crate::http::proxy;
use crate::http::response::{Code, Response};
use crate::logging::LIMITED;

static WATCH_PAGE: LazyLock<Page> = LazyLock::new(|| Page::new(include_str!("watch.html")));

/// Serves one connection. Blocks for as long as it lasts.
pub fn serve(feed: &Arc<Feed>, connection: &HttpConnection) {
    match head::read(connection) {
        Ok(head) => {
            let address = proxy::client_address(&feed.options.trusted_proxies, connection.peer, &head);
            let stream = &connection.socket;
            let request = Request { feed, connection, stream, address, head, arrived: Instant::now() };
            if let Some(response) = request.route() {
                request.answer(response);
            }
        }
        Err(HeadError::Gone) => {}
        Err(error) => send(feed, connection, connection.peer, None, Response::head_error(error), false),
    }
}

/// A request whose head is complete.
pub(super) struct Request<'a> {
    pub(super) feed: &'a Arc<Feed>,
    pub(super) connection: &'a HttpConnection,
    pub(super) stream: &'a Arc<TcpStream>,
    /// The client's address, also behind a trusted proxy.
    pub(super) address: SocketAddr,
    pub(super) head: Head,
    pub(super) arrived: Instant,
}

impl Request<'_> {
    pub(super) fn answer(&self, response: Response) {
        let name = session::credential(&self.head).and_then(|credential| self.feed.keys.name_of(&credential));
        let is_head = self.head.method == "HEAD";
        send(self.feed, self.connection, self.address, name.as_deref(), response, is_head);
    }

    /// The answer; `None` after a stream, or if nobody is to be answered.
    fn route(&self) -> Option<Response> {
        let allowed: &[&str] = match self.head.path.as_str() {
            "/feed" => &["GET"],
            "/session" => &["POST", "DELETE"],
            "/" | "/healthz" | "/readyz" => &["GET", "HEAD"],
            _ => return Some(Response::error(Code::NotFound, "no such path: the stream is at /feed")),
        };
        if !allowed.contains(&self.head.method.as_str()) {
            let allowed = allowed.join(", ");
            let message = format!("this path allows {allowed}");
            return Some(Response::error(Code::MethodNotAllowed, &message).with("Allow", allowed));
        }
        if let Err(message) = self.head.check() {
            return Some(Response::error(Code::BadRequest, message));
        }
        match self.head.path.as_str() {
            "/feed" => self.feed(),
            "/session" => self.session(),
            "/" => Some(WATCH_PAGE.response()),
            "/healthz" => Some(text("200 OK", "alive\n")),
            _ => Some(self.readiness()),
        }
    }

    fn feed(&self) -> Option<Response> {
        let asked = match cursor::asked(&self.head) {
            Ok(asked) => asked,
            Err(message) => return Some(Response::error(Code::BadCursor, message)),
        };
        match self.authenticate(session::credential(&self.head)) {
            Ok(key) => {
                stream::run(self, key, asked);
                None
            }
            Err(response) => response,
        }
    }

    fn readiness(&self) -> Response {
        match (self.feed.health.is_ready(), self.feed.capture_on()) {
            (false, _) => text("503 Service Unavailable", "not ready\n"),
            (true, true) => text("200 OK", "ready\n"),
            // The watch page reads this. The status stays 200: the feed itself works.
            (true, false) => text("200 OK", "ready, but capture is off\n"),
        }
    }
}

/// Logs, counts and sends a short answer. Nobody is answered after SIGTERM: every client retries a closed connection, but
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
    log_refusal(&response, address, key);
    feed.stats.answered(response.status());
    response.send(&connection.socket, is_head);
}

/// Three places in the program, so that a flood of one kind does not hide another kind.
fn log_refusal(response: &Response, address: SocketAddr, key: Option<&str>) {
    let Some(code) = response.code() else { return };
    let name = code.status_and_name().1;
    let key = key.map(|key| format!("key {key:?} from ")).unwrap_or_default();
    match code {
        Code::UnknownKey | Code::ExpiredKey | Code::RevokedKey => {
            log::warn!(target: LIMITED, "refused: {name}: {key}{address}")
        }
        Code::TooManyStreams | Code::Degraded | Code::AtCapacity => {
            log::warn!(target: LIMITED, "refused: {name}: {key}{address}")
        }
        _ => log::info!(target: LIMITED, "refused: {name}: {key}{address}"),
    }
}

fn text(status: &'static str, body: &'static str) -> Response {
    Response::with_body(status, "text/plain; charset=utf-8", body).with("Cache-Control", "no-store")
}
