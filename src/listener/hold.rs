//! Whose request it is, and the hold: a request waits through a short outage of the database.

use std::sync::Arc;
use std::time::Duration;

use super::routes::{Request, Route, count_stranger};
use crate::db::keys::Key;
use crate::feed::keys::{Credential, Refused, Unjudged};
use crate::http::outlet;
use crate::http::response::{Code, Response};

/// A held request is looked at this often: has its client left?
const HOLD_LOOK: Duration = Duration::from_millis(250);

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
    /// Whose request it is. Held while the feed is not live; refused only from knowledge that is newer than the request.
    pub(super) fn judge(&self, credential: Option<Credential>) -> Result<Arc<Key>, Route> {
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
}

pub(super) fn degraded() -> Response {
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
