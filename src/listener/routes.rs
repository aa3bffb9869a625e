//! The routes of the feed port, and the order in which a request can fail.

use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock};
use std::time::Instant;

use super::{cursor, session, stream};
use crate::db::keys::Key;
use crate::feed::Feed;
use crate::feed::stream::Asked;
use crate::http::connections::{Place, STRANGERS};
use crate::http::head::{self, Head, HeadError};
use crate::http::page::Page;
use crate::http::proxy;
use crate::http::response::{Code, Response};
use crate::logging::LIMITED;

static WATCH_PAGE: LazyLock<Page> = LazyLock::new(|| Page::new(include_str!("watch.html")));

/// Serves one connection. Blocks for as long as it lasts.
pub fn serve(feed: &Arc<Feed>, stream: &Arc<TcpStream>, address: SocketAddr, place: &Place) {
    let evict = || count_stranger(feed, place, address);
    let outcome = head::read(stream, evict);
    // On SIGTERM no status is answered any more: a refused connection is retried by everybody, a status by few.
    if feed.health.is_stopping() {
        return;
    }
    let head = match outcome {
        Ok(head) => head,
        Err(HeadError::Gone) => return,
        Err(error) => {
            let response = Response::head_error(error);
            log_refusal(&response, address, None);
            feed.stats.answered(response.status());
            return response.send(stream, false);
        }
    };
    place.head_complete();
    let peer = address;
    let address = proxy::client_address(&feed.options.trusted_proxies, peer, &head);
    let request = Request { feed, stream, peer, address, place, head, arrived: Instant::now() };
    match request.route() {
        Route::Answer(response) => request.answer(response),
        Route::Stream(key, asked) => stream::run(&request, key, asked),
        Route::Nothing => {}
    }
}

pub(super) fn count_stranger(feed: &Feed, place: &Place, address: SocketAddr) {
    if place.is_stranger() {
        feed.stats.evicted.inc();
        log::warn!(
            target: LIMITED,
        "closed the oldest of {STRANGERS} connections without a request or a known key, for that from {address}"
        );
    }
}

/// One line a refusal. Three places in the program, so that a flood of one kind hides none of another.
fn log_refusal(response: &Response, address: SocketAddr, key: Option<&str>) {
    let Some(code) = response.code() else { return };
    let name = code.status_and_name().1;
    let key = key.map(|key| format!("key {key:?} from ")).unwrap_or_default();
    match code {
        Code::MissingKey | Code::UnknownKey | Code::ExpiredKey | Code::RevokedKey => {
            log::warn!(target: LIMITED, "refused: {name}: {key}{address}");
        }
        Code::TooManyStreams | Code::Degraded | Code::AtCapacity => {
            log::warn!(target: LIMITED, "refused: {name}: {key}{address}")
        }
        _ => log::info!(target: LIMITED, "refused: {name}: {key}{address}"),
    }
}

/// A request whose head is complete.
pub(super) struct Request<'a> {
    pub(super) feed: &'a Arc<Feed>,
    pub(super) stream: &'a Arc<TcpStream>,
    /// Who is connected: the client, or a proxy.
    pub(super) peer: SocketAddr,
    /// The client.
    pub(super) address: SocketAddr,
    pub(super) place: &'a Place,
    pub(super) head: Head,
    pub(super) arrived: Instant,
}

/// What becomes of a request.
pub(super) enum Route {
    Answer(Response),
    Stream(Arc<Key>, Asked),
    /// The client has left, or the server ends: nobody is answered.
    Nothing,
}

impl Request<'_> {
    pub(super) fn answer(&self, response: Response) {
        self.log_refusal(&response);
        self.feed.stats.answered(response.status());
        response.send(self.stream, self.head.method == "HEAD");
    }

    fn route(&self) -> Route {
        let (allowed, answer): (&[&str], fn(&Self) -> Route) = match self.head.path.as_str() {
            "/feed" => (&["GET"], Self::feed),
            "/" => (&["GET", "HEAD"], Self::watch_page),
            "/session" => (&["POST", "DELETE"], Self::session),
            "/healthz" => (&["GET", "HEAD"], |_| Route::Answer(text("200 OK", "alive\n"))),
            "/readyz" => (&["GET", "HEAD"], Self::readiness),
            _ => {
                return Route::Answer(Response::error(
                    Code::NotFound,
                    "there is nothing at this path; the stream is at /feed",
                ));
            }
        };
        if !allowed.contains(&self.head.method.as_str()) {
            let allowed = allowed.join(", ");
            let message = format!("this path takes {allowed}");
            return Route::Answer(Response::error(Code::MethodNotAllowed, &message).with("Allow", allowed));
        }
        if let Err(message) = self.head.check() {
            return Route::Answer(Response::error(Code::BadRequest, message));
        }
        answer(self)
    }

    fn feed(&self) -> Route {
        match cursor::asked(&self.head) {
            Err(message) => Route::Answer(Response::error(Code::BadCursor, message)),
            Ok(asked) => match self.judge(session::credential(&self.head)) {
                Ok(key) => Route::Stream(key, asked),
                Err(route) => route,
            },
        }
    }

    fn watch_page(&self) -> Route {
        Route::Answer(WATCH_PAGE.response())
    }

    fn readiness(&self) -> Route {
        Route::Answer(match self.feed.health.is_ready() {
            true => text("200 OK", "ready\n"),
            false => text("503 Service Unavailable", "not ready\n"),
        })
    }

    fn log_refusal(&self, response: &Response) {
        let name = session::credential(&self.head).and_then(|credential| self.feed.keys.name_of(&credential));
        log_refusal(response, self.address, name.as_deref());
    }
}

fn text(status: &'static str, body: &'static str) -> Response {
    Response::with_body(status, "text/plain; charset=utf-8", body).with("Cache-Control", "no-store")
}
