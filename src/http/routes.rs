//! From a request to its answer: the feed listener's routes, and the order in which a request can fail.

use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use super::connections::{Place, STRANGERS};
use super::head::{self, Head, HeadError};
use super::outlet::{self, Outlet};
use super::page::Page;
use super::proxy;
use super::response::{self, Code, Response};
use super::rfc3339::WrittenTime;
use crate::db::keys::Key;
use crate::event::FeedSeq;
use crate::feed::Feed;
use crate::feed::client::{Client, Full, Limits};
use crate::feed::keys::{Credential, Refused, SESSION_LASTS, Unjudged};
use crate::feed::reason::End;
use crate::feed::stream::{Asked, Stream};

static WATCH_PAGE: LazyLock<Page> = LazyLock::new(|| Page::new(include_str!("watch.html")));
/// The session cookie's name.
const COOKIE: &str = "signal_feed_session";
/// A held request is looked at this often: has its client left?
const HOLD_LOOK: Duration = Duration::from_millis(250);

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
            let response = head_error(error);
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
        Route::Stream(key, asked) => request.stream(key, asked),
        Route::Nothing => {}
    }
}

fn count_stranger(feed: &Feed, place: &Place, address: SocketAddr) {
    if place.is_stranger() {
        feed.stats.evicted.inc();
        log::warn!(
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
            log::warn!("refused: {name}: {key}{address}");
        }
        Code::TooManyStreams | Code::Degraded | Code::AtCapacity => log::warn!("refused: {name}: {key}{address}"),
        _ => log::info!("refused: {name}: {key}{address}"),
    }
}

/// What is wrong with a head, told to whoever sent it.
pub(crate) fn head_error(error: HeadError) -> Response {
    match error {
        HeadError::Version => Response::error(Code::HttpVersion, "this server speaks HTTP/1.1 and HTTP/1.0"),
        HeadError::TooLarge => Response::error(Code::HeadTooLarge, "the request head is larger than 16 KiB"),
        HeadError::TimedOut => Response::error(Code::RequestTimeout, "the request head was not complete within 10 s"),
        HeadError::Unreadable | HeadError::Gone => Response::error(Code::BadRequest, "the request cannot be read"),
    }
}

struct Request<'a> {
    feed: &'a Arc<Feed>,
    stream: &'a Arc<TcpStream>,
    /// Who is connected: the client, or a proxy.
    peer: SocketAddr,
    /// The client.
    address: SocketAddr,
    place: &'a Place,
    head: Head,
    arrived: Instant,
}

/// What becomes of a request.
enum Route {
    Answer(Response),
    Stream(Arc<Key>, Asked),
    /// The client has left, or the server ends: nobody is answered.
    Nothing,
}

/// How a hold ended.
enum Held {
    /// The feed is live.
    Live,
    /// The outage is older than `--degraded-hold`.
    TooLong,
    /// The client has left, or the server ends.
    Over,
}

impl Request<'_> {
    fn answer(&self, response: Response) {
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
        answer(self)
    }

    fn feed(&self) -> Route {
        match asked(&self.head) {
            Err(message) => Route::Answer(Response::error(Code::BadCursor, message)),
            Ok(asked) => match self.judge(credential(&self.head)) {
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

    fn session(&self) -> Route {
        let is_https = proxy::is_https(&self.feed.options.trusted_proxies, self.peer, &self.head);
        let attributes =
            if is_https { "HttpOnly; SameSite=Strict; Path=/; Secure" } else { "HttpOnly; SameSite=Strict; Path=/" };
        if self.head.method == "DELETE" {
            let cookie = format!("{COOKIE}=; {attributes}; Max-Age=0");
            return Route::Answer(Response::empty("204 No Content").with("Set-Cookie", cookie));
        }
        let bearer = bearer(&self.head).map(|key| Credential::from_key(&key));
        match self.judge(bearer) {
            Err(route) => route,
            Ok(key) => match self.feed.keys.session_token(&key, &self.feed.clock) {
                None => Route::Answer(degraded()),
                Some(token) => {
                    let cookie = format!("{COOKIE}={token}; {attributes}; Max-Age={}", SESSION_LASTS.as_secs());
                    Route::Answer(Response::empty("204 No Content").with("Set-Cookie", cookie))
                }
            },
        }
    }

    /// Whose request it is. Held while the feed is not live; refused only from knowledge that is newer than the request.
    fn judge(&self, credential: Option<Credential>) -> Result<Arc<Key>, Route> {
        let feed = self.feed;
        let known = credential.as_ref().and_then(|credential| feed.keys.recall(credential, &feed.clock));
        if let Some(key) = &known
            && self.head.path == "/session"
        {
            return Ok(key.clone());
        }
        loop {
            match self.hold(known.is_some()) {
                Held::Live => {}
                Held::TooLong => return Err(Route::Answer(degraded())),
                Held::Over => return Err(Route::Nothing),
            }
            let Some(credential) = &credential else {
                return Err(Route::Answer(refused(Code::MissingKey)));
            };
            match self.judge_in_time(credential) {
                Ok(Ok(key)) => return Ok(key),
                Ok(Err(Refused::Unknown)) => return Err(Route::Answer(refused(Code::UnknownKey))),
                Ok(Err(Refused::Expired)) => return Err(Route::Answer(refused(Code::ExpiredKey))),
                Ok(Err(Refused::Revoked)) => return Err(Route::Answer(refused(Code::RevokedKey))),
                Err(Held::Live) => {}
                Err(Held::TooLong) => return Err(Route::Answer(not_replayed())),
                Err(Held::Over) => return Err(Route::Nothing),
            }
        }
    }

    /// Judges a credential, which a standby may have yet to replay: then the request is held as in an outage. Without a
    /// judgement, says how that ended; live is whatever was interrupted.
    fn judge_in_time(&self, credential: &Credential) -> Result<Result<Arc<Key>, Refused>, Held> {
        let feed = self.feed;
        let mut is_marked = false;
        loop {
            match feed.keys.judge(credential, self.arrived, &feed.clock, &feed.health) {
                Ok(judgement) => {
                    self.place.is_known();
                    return Ok(judgement);
                }
                Err(Unjudged::NotLive) => return Err(Held::Live),
                Err(Unjudged::NotReplayed) => {}
            }
            if self.arrived.elapsed() >= feed.options.degraded_hold {
                return Err(Held::TooLong);
            }
            if !is_marked {
                is_marked = true;
                count_stranger(feed, self.place, self.address);
            }
            if outlet::is_closed(self.stream) {
                return Err(Held::Over);
            }
            feed.keys.wait_refreshed(HOLD_LOOK);
        }
    }

    /// Holds the request through a short outage: many standard clients give up for ever on a 503.
    fn hold(&self, is_known: bool) -> Held {
        let feed = self.feed;
        let mut is_marked = false;
        loop {
            if feed.health.is_stopping() {
                return Held::Over;
            }
            let Some(outage) = feed.health.outage() else {
                self.place.is_known();
                return Held::Live;
            };
            let Some(left) = feed.options.degraded_hold.checked_sub(outage).filter(|left| !left.is_zero()) else {
                return Held::TooLong;
            };
            if !is_known && !is_marked && feed.keys.is_filled() {
                is_marked = true;
                count_stranger(feed, self.place, self.address);
            }
            if outlet::is_closed(self.stream) {
                return Held::Over;
            }
            feed.health.wait_change(left.min(HOLD_LOOK));
        }
    }

    fn log_refusal(&self, response: &Response) {
        let name = credential(&self.head).and_then(|credential| self.feed.keys.name_of(&credential));
        log_refusal(response, self.address, name.as_deref());
    }

    fn stream(&self, key: Arc<Key>, asked: Asked) {
        let feed = self.feed;
        let limits = Limits {
            clients: feed.options.max_clients,
            clients_per_key: feed.options.max_clients_per_key,
            queue_events: feed.options.queue_capacity,
        };
        let client = match feed.clients.admit(key, self.address, self.stream, feed.clock.now(), limits) {
            Ok(client) => client,
            Err(full) => {
                let response = match full {
                    Full::Key => Response::error(Code::TooManyStreams, "this key has as many streams as it may"),
                    Full::Server => Response::error(Code::AtCapacity, "this server has as many streams as it may"),
                };
                return self.answer(response);
            }
        };
        let guard = Admitted { feed, client: &client };
        // Between the list and this look the server may have begun to stop: nobody else would end this stream.
        if feed.health.is_stopping() {
            return;
        }
        // And the key may have ended between its judgement and the list, where the next refresh would find it only later.
        feed.keys.tell(&client, feed.clock.now());
        feed.key_used(&client);
        let after = asked.cursor.map_or("from now".to_owned(), |cursor| format!("after event {cursor}"));
        log::info!("stream begins: key {:?} from {}, {after}", client.key.name, client.address);
        feed.stats.answered("200");
        let mut outlet = Outlet::new(self.stream, self.head.is_http_11, feed.options.write_timeout, &feed.stats.bytes);
        let end =
            match outlet.write(&mut [std::io::IoSlice::new(stream_head(self.head.is_http_11).as_bytes())], || false) {
                Ok(()) => Stream::new(feed, &client, &mut outlet).run(asked),
                Err(_) => End::ClientGone,
            };
        guard.finish(end);
        if end.is_told() || end == End::Dropped {
            response::close_in_order(self.stream);
        }
    }
}

/// Takes a stream off every list when it ends, also when its thread panics.
struct Admitted<'a> {
    feed: &'a Feed,
    client: &'a Arc<Client>,
}

impl Admitted<'_> {
    fn finish(self, end: End) {
        self.leave(end);
        std::mem::forget(self);
    }

    fn leave(&self, end: End) {
        self.feed.clients.leave(self.client);
        self.feed.stats.ended(end);
        log::info!(
            "stream ended: {}: key {:?} from {}, at event {}, {} delivered, {} dropped",
            end.name(),
            self.client.key.name,
            self.client.address,
            self.client.cursor(),
            self.client.delivered_events(),
            self.client.dropped_events(),
        );
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.leave(if std::thread::panicking() { End::Panicked } else { End::Shutdown });
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

fn degraded() -> Response {
    Response::error(Code::Degraded, "the database is away; nothing is missed: come again with the same cursor")
}

fn not_replayed() -> Response {
    Response::error(
        Code::Degraded,
        "this key is not known here, and this server's standby is not proven to have replayed so far: come again",
    )
}

fn refused(code: Code) -> Response {
    let message = match code {
        Code::MissingKey => "a key is needed: Authorization: Bearer KEY, or X-API-Key: KEY",
        Code::ExpiredKey => "this key has expired",
        Code::RevokedKey => "this key was revoked",
        _ => "this key is not known",
    };
    Response::error(code, message)
}

/// The first present decides: `Authorization: Bearer`, `X-API-Key`, the session cookie.
fn credential(head: &Head) -> Option<Credential> {
    if let Some(key) = bearer(head) {
        return Some(Credential::from_key(&key));
    }
    if let Some(key) = head.fields("x-api-key").next() {
        return Some(Credential::from_key(&String::from_utf8_lossy(key)));
    }
    let cookies = head.fields("cookie").filter_map(|value| std::str::from_utf8(value).ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, token)| Credential::Session(token.to_owned()))
}

/// The key in `Authorization: Bearer`. One that is not text is nobody's.
fn bearer(head: &Head) -> Option<String> {
    let is_bearer = |value: &&[u8]| value.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer"));
    if let Some(value) = head.fields("authorization").find(is_bearer) {
        let rest = &value[6..];
        if rest.is_empty() || rest.starts_with(b" ") {
            return Some(String::from_utf8_lossy(rest.trim_ascii()).into_owned());
        }
    }
    None
}

/// What the request asks for: a non-empty `Last-Event-ID`, else `?cursor=`, else from now.
fn asked(head: &Head) -> Result<Asked, &'static str> {
    let mut ids = head.fields("last-event-id");
    let from_header = match (ids.next(), ids.next()) {
        (_, Some(_)) => return Err("Last-Event-ID is given twice"),
        (None | Some(b""), None) => None,
        (Some(id), None) => {
            let id = std::str::from_utf8(id).ok().and_then(parse_cursor);
            Some(id.ok_or("Last-Event-ID must be a decimal number from 0 to 9223372036854775807")?)
        }
    };
    let from_query = match once(head, "cursor")? {
        None => None,
        Some(text) => Some(parse_cursor(&text).ok_or("cursor must be a decimal number from 0 to 9223372036854775807")?),
    };
    let time = match once(head, "cursor_time")? {
        None => None,
        Some(text) => Some(WrittenTime::parse(&text).ok_or("cursor_time must be an RFC 3339 time")?),
    };
    let cursor = from_header.or(from_query);
    // The time belongs to the cursor of the query; a header with another number is a newer place.
    let time = time.filter(|_| from_query.is_some() && cursor == from_query);
    Ok(Asked { cursor, time })
}

fn once(head: &Head, name: &'static str) -> Result<Option<String>, &'static str> {
    let mut values = head.parameters(name);
    match (values.next(), values.next()) {
        (None, _) => Ok(None),
        (Some(Some(value)), None) => Ok(Some(value)),
        (Some(None), None) => Err("the query is not UTF-8"),
        (Some(_), Some(_)) => Err("cursor or cursor_time is given twice"),
    }
}

fn parse_cursor(text: &str) -> Option<FeedSeq> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    digits.then(|| text.parse().ok().map(FeedSeq)).flatten()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> Head {
        Head::parse(text.as_bytes()).unwrap().unwrap()
    }

    fn asked_by(request: &str) -> Result<Asked, &'static str> {
        asked(&head(&format!("{request}\r\n\r\n")))
    }

    #[test]
    fn a_cursor_comes_from_the_header_then_from_the_query() {
        let cursor = |request: &str| asked_by(request).unwrap().cursor.map(|cursor| cursor.0);
        assert_eq!(cursor("GET /feed HTTP/1.1"), None);
        assert_eq!(cursor("GET /feed?cursor=5 HTTP/1.1"), Some(5));
        assert_eq!(cursor("GET /feed?cursor=5 HTTP/1.1\r\nLast-Event-ID: 7"), Some(7));
        assert_eq!(cursor("GET /feed?cursor=5 HTTP/1.1\r\nLast-Event-ID:"), Some(5));
        assert_eq!(cursor("GET /feed?cursor=9223372036854775807 HTTP/1.1"), Some(i64::MAX));
    }

    #[test]
    fn a_cursor_that_is_none_is_refused() {
        for request in [
            "GET /feed?cursor= HTTP/1.1",
            "GET /feed?cursor HTTP/1.1",
            "GET /feed?cursor=-1 HTTP/1.1",
            "GET /feed?cursor=%2B1 HTTP/1.1",
            "GET /feed?cursor=1e3 HTTP/1.1",
            "GET /feed?cursor=9223372036854775808 HTTP/1.1",
            "GET /feed?cursor=1&cursor=1 HTTP/1.1",
            "GET /feed?cursor=1&cursor_time=now HTTP/1.1",
            "GET /feed HTTP/1.1\r\nLast-Event-ID: x",
            "GET /feed HTTP/1.1\r\nLast-Event-ID: 1\r\nLast-Event-ID: 1",
        ] {
            assert!(asked_by(request).is_err(), "{request}");
        }
    }

    #[test]
    fn a_cursor_time_counts_only_with_the_cursor_it_was_given_for() {
        let time = |request: &str| asked_by(request).unwrap().time.map(|written| written.time.to_string());
        for written in [
            "2026-11-20T12:00:00.5Z",
            "2026-11-20T14:00:00.5%2B02:00",
            "2026-11-20T14:00:00.5+02:00",
            "2026-11-20T14:00:00.5%2002:00",
            "2026-11-20%2014:00:00.5%2002:00",
            "2026-11-20T07:00:00.5-05:00",
        ] {
            let request = format!("GET /feed?cursor=5&cursor_time={written} HTTP/1.1");
            assert_eq!(time(&request).as_deref(), Some("2026-11-20T12:00:00.500000Z"), "{written}");
        }
        assert_eq!(time("GET /feed?cursor=5&cursor_time=2026-11-20T12:00:00Z HTTP/1.1\r\nLast-Event-ID: 6"), None);
        assert!(time("GET /feed?cursor=5&cursor_time=2026-11-20T12:00:00Z HTTP/1.1\r\nLast-Event-ID: 5").is_some());
    }

    #[test]
    fn the_first_present_credential_decides() {
        let of = |fields: &str| credential(&head(&format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n")));
        let all = "Cookie: a=b; signal_feed_session=tok\r\nX-API-Key: second\r\nAuthorization: bearer first";
        assert_eq!(of(all), Some(Credential::from_key("first")));
        assert_eq!(of("Cookie: signal_feed_session=tok\r\nX-API-Key: second"), Some(Credential::from_key("second")));
        assert_eq!(of("Cookie: a=b; signal_feed_session=tok"), Some(Credential::Session("tok".into())));
        assert_eq!(of("Authorization: Basic abc"), None);
        assert_eq!(of("Authorization: Bearer"), Some(Credential::from_key("")));
    }

    proptest! {
        #[test]
        fn a_cursor_is_digits_up_to_the_largest_number_and_nothing_else(text in "[0-9]{0,24}|\\PC{0,8}|[+ -]?[0-9]{1,20}") {
            let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
            let value = text.trim_start_matches('0').parse::<u128>().unwrap_or(0);
            let expected = (digits && value <= i64::MAX as u128).then(|| i64::try_from(value).unwrap());
            prop_assert_eq!(parse_cursor(&text).map(|cursor| cursor.0), expected);
        }

        #[test]
        fn a_key_is_found_wherever_it_stands(key in "[!-~]{1,60}", noise in "[ -~]{0,40}") {
            let of = |field: &str| credential(&head(&format!("GET / HTTP/1.1\r\nA: {noise}\r\n{field}\r\n\r\n")));
            let expected = Some(Credential::from_key(&key));
            prop_assert_eq!(of(&format!("Authorization: Bearer {key}")), expected.clone());
            prop_assert_eq!(of(&format!("X-API-Key: {key}")), expected);
            let _ = of(&format!("Cookie: {noise}"));
            let token = key.replace([';', '='], "");
            prop_assert_eq!(
                of(&format!("Cookie: a=b; {COOKIE}={token}")),
                Some(Credential::Session(token))
            );
        }
    }
}
