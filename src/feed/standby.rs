//! The role of the feed's database, and how far behind a standby is. The threads `reader` and `listen` find both.
//!
//! A hot standby sends no notifications, so `reader` and `upkeep` poll; nothing is recorded; a cursor that the log has
//! not reached waits; a missing key is never called unknown, because the primary may have it; and the feed is degraded
//! while the standby does not stream from a primary.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// What the feed's database is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It accepts writes and sends notifications.
    Primary,
    /// A hot standby.
    Standby,
}

impl Role {
    /// Its name in `/status` and in the log.
    pub fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }
}

/// The role of the feed's database, as last found.
#[derive(Debug, Default)]
pub struct Replication {
    is_standby: AtomicBool,
    lag_micros: AtomicU64,
}

impl Replication {
    /// The role of the database that the log is read from: a primary until the first reading.
    pub fn role(&self) -> Role {
        if self.is_standby.load(Ordering::Acquire) { Role::Standby } else { Role::Primary }
    }

    /// How far a standby is behind its primary, zero if it has replayed all that it received; `None` on a primary.
    pub fn lag(&self) -> Option<Duration> {
        (self.role() == Role::Standby).then(|| Duration::from_micros(self.lag_micros.load(Ordering::Relaxed)))
    }

    /// Records the role of the database that the log is read from.
    pub(super) fn found(&self, role: Role) {
        let is_standby = role == Role::Standby;
        if self.is_standby.swap(is_standby, Ordering::AcqRel) == is_standby {
            return;
        }
        match role {
            Role::Standby => log::info!("the database is a hot standby: the feed polls it and records nothing"),
            Role::Primary => {
                log::warn!("the database is a primary now: a standby was promoted, or the feed switched hosts")
            }
        }
    }

    /// Records how far the standby is behind.
    pub(super) fn set_lag(&self, lag: Duration) {
        self.lag_micros.store(u64::try_from(lag.as_micros()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}
