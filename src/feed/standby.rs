//! Which role the feed's database has, and how far behind a standby is: found by the threads `reader` and `listen`, read by all.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use super::lock;
use crate::db::standby::Reading;

/// What the feed's database is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// It takes writes, and notifies.
    Primary,
    /// A hot standby, which replays what its primary has written.
    Standby,
}

impl Role {
    /// Its name in `/status` and in log lines.
    pub fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
        }
    }
}

#[derive(Debug, Default)]
struct Lag {
    /// When it last had all that its primary had.
    caught_up_at: Option<Instant>,
    /// Since when it is known to be behind; `None` where it is not, or where nothing is known.
    behind_since: Option<Instant>,
}

/// The role of the feed's database, as last found.
#[derive(Debug, Default)]
pub struct Replication {
    is_standby: AtomicBool,
    /// No notification can come: the session that would LISTEN is on a standby.
    is_deaf: AtomicBool,
    lag: Mutex<Lag>,
}

impl Replication {
    /// What the database is that the log is read from. A primary until it was first asked.
    pub fn role(&self) -> Role {
        if self.is_standby.load(Ordering::Acquire) { Role::Standby } else { Role::Primary }
    }

    /// How far a standby is behind its primary, zero where it has all that it knows of; `None` on a primary.
    ///
    /// While it does not hear from its primary, this is the time since it last had everything.
    pub fn lag(&self) -> Option<Duration> {
        if self.role() == Role::Primary {
            return None;
        }
        Some(lock(&self.lag).behind_since.map_or(Duration::ZERO, |since| since.elapsed()))
    }

    /// Whether news must be asked for: none will be told.
    pub fn must_poll(&self) -> bool {
        self.role() == Role::Standby || self.is_deaf.load(Ordering::Acquire)
    }

    /// Notes what the database is that the log is read from.
    pub(super) fn found(&self, role: Role) {
        let is_standby = role == Role::Standby;
        if self.is_standby.swap(is_standby, Ordering::AcqRel) == is_standby {
            return;
        }
        match role {
            Role::Standby => log::info!("the database is a hot standby: it is polled, and nothing is written there"),
            Role::Primary => {
                log::warn!("the database is a primary now: the standby was promoted, or another host was found")
            }
        }
    }

    /// Notes whether notifications can come.
    pub(super) fn set_deaf(&self, is_deaf: bool) {
        self.is_deaf.store(is_deaf, Ordering::Release);
    }

    /// Takes over a reading that was asked for at `asked`.
    pub(super) fn observe(&self, reading: &Reading, asked: Instant) {
        let Some(standby) = reading.standby else { return };
        let mut lag = lock(&self.lag);
        if standby.is_caught_up() && standby.trouble(reading.now, true).is_none() {
            *lag = Lag { caught_up_at: Some(asked), behind_since: None };
            return;
        }
        // Behind since it was last seen to be caught up, or since the last commit that it has: whichever is later.
        let commit = standby.replayed_commit.and_then(|at| asked.checked_sub(reading.now.since(at)));
        lag.behind_since = lag.caught_up_at.max(commit).or(lag.behind_since).or(Some(asked));
    }
}
