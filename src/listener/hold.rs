//! Authentication, and the hold: while the database is unavailable, or cannot be asked about a key, a request waits.
//! Many standard clients give up for ever after a 503, and every client after a 401 or 403.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::db::keys::Key;
use crate::feed::Feed;
use crate::feed::keys::{Credential, Denied};
use crate::http::connections::HttpConnection;
use crate::http::response::Response;
use crate::http::socket;

/// How often a waiting request checks whether its client has disconnected.
const CHECK_EVERY: Duration = Duration::from_millis(250);
/// The longest wait for an answer about a key while the log can be read, and for the first answers of the database after a
/// start, if `--degraded-hold` is not longer.
const AUTH_DEADLINE: Duration = Duration::from_secs(5);
/// While the log can be read, a connection whose authentication is pending for longer than this is unauthenticated.
const AUTH_LATE_AFTER: Duration = Duration::from_secs(1);

/// The key of a credential that arrived at `arrived`. Blocks during an outage, until it is `--degraded-hold` old, and
/// while authentication is pending. Without `needs_log`, a key that memory knows is enough during an outage too.
///
/// # Errors
/// The answer instead; `None` if the client has disconnected or the server stops.
pub(super) fn authenticate(
    feed: &Feed,
    connection: &HttpConnection,
    credential: Option<Credential>,
    arrived: Instant,
    needs_log: bool,
) -> Result<Arc<Key>, Option<Response>> {
    let longest_hold = feed.options.degraded_hold.max(AUTH_DEADLINE);
    loop {
        let verdict = credential.as_ref().map(|credential| feed.keys.check(credential, arrived, feed.now()));
        let is_known = matches!(verdict, Some(Ok(_)));
        let outage = feed.health.outage().filter(|_| needs_log || !is_known);
        let (waited, deadline, late_after) = match (outage, verdict) {
            // A healthy server that starts answers nobody 503.
            (Some(outage), _) if !feed.health.is_tried() => (outage, longest_hold, Duration::ZERO),
            (Some(outage), _) => (outage, feed.options.degraded_hold, Duration::ZERO),
            (None, Some(Ok(key))) => {
                connection.set_busy();
                return Ok(key);
            }
            (None, None) => {
                let message = "an API key is needed: Authorization: Bearer KEY, or X-API-Key: KEY";
                return Err(Some(refused("missing_key", message)));
            }
            (None, Some(Err(Denied::Unknown))) => return Err(Some(refused("unknown_key", "this key is unknown"))),
            (None, Some(Err(Denied::Expired))) => return Err(Some(refused("expired_key", "this key has expired"))),
            (None, Some(Err(Denied::Revoked))) => {
                return Err(Some(Response::error("403 Forbidden", "revoked_key", "this key was revoked")));
            }
            (None, Some(Err(Denied::Pending))) => (arrived.elapsed(), longest_hold, AUTH_LATE_AFTER),
        };
        let left = deadline.saturating_sub(waited);
        if feed.health.is_stopping() || socket::is_closed(&connection.socket) {
            return Err(None);
        }
        if left.is_zero() {
            return Err(Some(degraded()));
        }
        if !is_known && feed.keys.is_filled() && arrived.elapsed() >= late_after {
            connection.set_unauthenticated();
        }
        match outage {
            Some(_) => feed.health.wait_change(left.min(CHECK_EVERY)),
            None => feed.keys.wait_refreshed(left.min(CHECK_EVERY)),
        }
    }
}

pub(super) fn degraded() -> Response {
    let message = "the database is unavailable; no event is lost: retry with the same cursor";
    Response::error("503 Service Unavailable", "degraded", message)
}

fn refused(code: &'static str, message: &str) -> Response {
    Response::error("401 Unauthorized", code, message)
}
