//! The routes of the feed port, and the order in which a request can fail.

use std::sync::{Arc, LazyLock};
use std::time::Instant;

use super::credential::credential;
use super::request::{Request, send};
use super::{cursor, stream};
use crate::feed::Feed;
use crate::http::connections::HttpConnection;
use crate::http::head::{self, HeadError};
use crate::http::page::Page;
use crate::http::proxy;
use crate::http::response::{Code, Response};

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

impl Request<'_> {
    /// The answer; `None` after a stream, or if the request gets no answer.
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
        match self.authenticate(credential(&self.head)) {
            Ok(key) => {
                stream::run(self, key, asked);
                None
            }
            Err(response) => response,
        }
    }

    fn readiness(&self) -> Response {
        match (self.feed.health.is_ready(), !self.feed.facts().is_capture_off) {
            (false, _) => text("503 Service Unavailable", "not ready\n"),
            (true, true) => text("200 OK", "ready\n"),
            // The watch page reads this. The status stays 200: the feed itself works.
            (true, false) => text("200 OK", "ready, but capture is off\n"),
        }
    }
}

fn text(status: &'static str, body: &'static str) -> Response {
    Response::with_body(status, "text/plain; charset=utf-8", body).with("Cache-Control", "no-store")
}
