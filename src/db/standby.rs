//! What a hot standby knows of its primary, and what that proves.

use std::time::Duration;

use tokio_postgres::types::PgLsn;

use super::{Connection, Error};
use crate::event::EventTime;

/// Added to every time that is said to be replayed, 500 ms: the two hosts' clocks may differ by a little, and a commit
/// with `synchronous_commit = off` is acknowledged before it is sent.
const MARGIN: Duration = Duration::from_millis(500);
/// A message of the primary that was its last for so long, 500 ms, had nothing more behind it.
const QUIET: Duration = Duration::from_millis(500);
/// The longest silence of a primary that is at work.
pub const SILENCE: Duration = Duration::from_secs(10);
/// How long the answer to the WAL receiver's own question may take.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);

/// A moment at a server.
#[derive(Debug, Clone, Copy)]
pub struct Reading {
    /// The server's clock.
    pub now: EventTime,
    /// What it knows of its primary, where it is a hot standby.
    pub standby: Option<Standby>,
}

/// What a hot standby knows of its primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standby {
    /// Up to where in the write-ahead log it has received.
    pub received: Option<PgLsn>,
    /// Up to where it has replayed.
    pub replayed: Option<PgLsn>,
    /// When the last transaction that it replayed was committed, by the primary's clock.
    pub replayed_commit: Option<EventTime>,
    /// Its connection to the primary.
    pub receiver: Receiver,
    /// Its setting `wal_receiver_timeout`; zero for never.
    pub receiver_timeout: Duration,
}

/// The WAL receiver of a standby.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Receiver {
    /// There is none that is connected.
    Absent,
    /// There is one, which does not stream (yet, or any more).
    Idle,
    /// It streams; what the primary's last message said, where the database lets its users see that.
    Streaming(Option<Heard>),
}

/// The last message of a primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Heard {
    /// When it was sent, by the primary's clock.
    pub sent: EventTime,
    /// When it arrived, by the standby's clock.
    pub received: EventTime,
    /// Where the primary's write-ahead log then ended.
    pub end: Option<PgLsn>,
}

/// Why a standby cannot be relied upon to have what its primary has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// Its WAL receiver does not stream.
    NotStreaming,
    /// Its WAL receiver has heard nothing for so long.
    Silent(Duration),
}

impl std::fmt::Display for Trouble {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::NotStreaming => f.write_str("the standby's WAL receiver does not stream from a primary"),
            Self::Silent(age) => write!(
                f,
                "the standby's WAL receiver has heard nothing of its primary for {}",
                crate::text::duration(Duration::from_secs(age.as_secs()))
            ),
        }
    }
}

/// Reads the clock, and on a hot standby what it knows of its primary.
///
/// # Errors
/// See [`Error`].
pub fn read(connection: &mut Connection) -> Result<Reading, Error> {
    let row = connection.query_one(
        "select clock_timestamp(), pg_catalog.pg_is_in_recovery(), pg_catalog.pg_last_wal_receive_lsn(), \
                pg_catalog.pg_last_wal_replay_lsn(), pg_catalog.pg_last_xact_replay_timestamp(), \
                r.pid is not null, r.status, r.sent, r.received, r.log_end, \
                (extract(epoch from current_setting('wal_receiver_timeout')::interval) * 1000)::bigint \
         from (values (1)) as one (one) left join stock_market.signal_feed_wal_receiver() as r on true",
        &[],
    )?;
    let now = row.try_get(0)?;
    if !row.try_get::<_, bool>(1)? {
        return Ok(Reading { now, standby: None });
    }
    let receiver = match (row.try_get::<_, bool>(5)?, row.try_get::<_, Option<&str>>(6)?) {
        (false, _) => Receiver::Absent,
        (true, Some("streaming")) => {
            let times: (Option<EventTime>, Option<EventTime>) = (row.try_get(7)?, row.try_get(8)?);
            let end = row.try_get(9)?;
            Receiver::Streaming(match times {
                (Some(sent), Some(received)) => Some(Heard { sent, received, end }),
                _ => None,
            })
        }
        (true, Some(_)) => Receiver::Idle,
        // A role that may not see more sees that there is one.
        (true, None) => Receiver::Streaming(None),
    };
    Ok(Reading {
        now,
        standby: Some(Standby {
            received: row.try_get(2)?,
            replayed: row.try_get(3)?,
            replayed_commit: row.try_get(4)?,
            receiver,
            receiver_timeout: Duration::from_millis(u64::try_from(row.try_get::<_, i64>(10)?).unwrap_or(0)),
        }),
    })
}

/// Whether the server is a hot standby.
///
/// # Errors
/// See [`Error`].
pub fn is_standby(connection: &mut Connection) -> Result<bool, Error> {
    Ok(connection.query_one("select pg_catalog.pg_is_in_recovery()", &[])?.try_get(0)?)
}

impl Standby {
    /// Up to when, by the standby's clock, every commit of the primary is surely replayed here; `None` where nothing is sure.
    ///
    /// Two things prove it. A replayed commit: whatever was acknowledged before it was made lies before it in the log. And
    /// a message of a primary that has nothing to send: it says where the log ends, and is answered to the WAL receiver's
    /// question after half of `wal_receiver_timeout` (PostgreSQL source, walreceiver.c).
    pub fn proven_until(&self, now: EventTime) -> Option<EventTime> {
        let Receiver::Streaming(Some(heard)) = self.receiver else { return None };
        // A message is not received before it is sent: where that seems so, the primary's clock is ahead by at least that.
        let ahead = heard.sent.since(heard.received);
        let by_commit = self.replayed_commit.map(|at| at.minus(ahead));
        // A WAL receiver that has just begun pretends, with both times the same, to have heard something.
        let is_message = heard.sent != heard.received && now.since(heard.received) >= QUIET;
        let by_message = (is_message && self.has_replayed(heard.end)).then(|| heard.sent.min(heard.received));
        by_commit.max(by_message).map(|at| at.minus(MARGIN))
    }

    /// Whether it has replayed all that it knows its primary to have.
    pub fn is_caught_up(&self) -> bool {
        match self.receiver {
            // Where nothing was heard yet, what was received is all that is known.
            Receiver::Streaming(heard) => {
                let end = heard.and_then(|heard| heard.end);
                (end.is_none() || self.has_replayed(end)) && self.replayed >= self.received
            }
            Receiver::Absent | Receiver::Idle => false,
        }
    }

    fn has_replayed(&self, position: Option<PgLsn>) -> bool {
        position.is_some() && self.replayed >= position
    }

    /// Why it cannot be relied upon, if so. A primary that may be idle is given the time in which it would say so.
    pub fn trouble(&self, now: EventTime, may_be_idle: bool) -> Option<Trouble> {
        match self.receiver {
            Receiver::Absent | Receiver::Idle => Some(Trouble::NotStreaming),
            Receiver::Streaming(heard) => {
                let age = now.since(heard?.received);
                let longest = if may_be_idle { self.longest_silence()? } else { SILENCE };
                (age > longest).then_some(Trouble::Silent(age))
            }
        }
    }

    /// How long a primary that lives may be silent; `None` where for ever.
    ///
    /// A primary with nothing to send says nothing but when it is asked, and it is asked after half of
    /// `wal_receiver_timeout`. So only a setting below 10 s makes 10 s of silence a sign.
    pub fn longest_silence(&self) -> Option<Duration> {
        match self.receiver_timeout {
            Duration::ZERO => None,
            timeout => Some(SILENCE.max(timeout / 2 + ANSWER_PATIENCE)),
        }
    }

    /// Whether an idle primary cannot be told from a silent one within 10 s.
    pub fn is_slow_to_notice(&self) -> bool {
        self.longest_silence() != Some(SILENCE)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: i64 = 1_000_000;

    fn standby(receiver: Receiver) -> Standby {
        Standby {
            received: Some(100.into()),
            replayed: Some(100.into()),
            replayed_commit: None,
            receiver,
            receiver_timeout: Duration::from_secs(8),
        }
    }

    fn heard(sent: i64, received: i64, end: u64) -> Receiver {
        let end = Some(end.into());
        Receiver::Streaming(Some(Heard {
            sent: EventTime(sent * SECOND),
            received: EventTime(received * SECOND + 1),
            end,
        }))
    }

    fn proven(standby: Standby, now: i64) -> Option<i64> {
        standby.proven_until(EventTime(now * SECOND)).map(|at| at.0 + SECOND / 2)
    }

    #[test]
    fn a_message_proves_what_lies_before_it_once_it_is_replayed_and_nothing_came_behind_it() {
        assert_eq!(proven(standby(heard(50, 50, 100)), 52), Some(50 * SECOND));
        assert_eq!(proven(standby(heard(50, 50, 101)), 52), None, "not replayed yet");
        assert_eq!(proven(standby(heard(50, 50, 100)), 50), None, "more may follow it");
        let began = Heard { sent: EventTime(50), received: EventTime(50), end: Some(90.into()) };
        assert_eq!(proven(standby(Receiver::Streaming(Some(began))), 52), None, "no message at all");
        assert_eq!(proven(standby(Receiver::Streaming(None)), 52), None);
        assert_eq!(proven(standby(Receiver::Absent), 52), None);
    }

    #[test]
    fn a_primary_whose_clock_is_ahead_proves_nothing_of_the_future() {
        assert_eq!(proven(standby(heard(90, 50, 100)), 52), Some(50 * SECOND + 1));
        let mut behind = standby(heard(90, 50, 101));
        behind.replayed_commit = Some(EventTime(88 * SECOND));
        assert_eq!(proven(behind, 52), Some(48 * SECOND + 1));
    }

    #[test]
    fn a_silent_primary_is_told_from_an_idle_one_as_the_settings_allow() {
        let after = |seconds: i64, timeout: u64| {
            let mut standby = standby(heard(50, 50, 100));
            standby.receiver_timeout = Duration::from_secs(timeout);
            standby.trouble(EventTime((50 + seconds) * SECOND), true).is_some()
        };
        assert!(!after(9, 8) && after(11, 8));
        assert!(!after(34, 60) && after(36, 60), "an idle primary is heard every 30 s");
        assert!(!after(1_000_000, 0));
        let at_work = standby(heard(50, 50, 100));
        assert!(at_work.trouble(EventTime(61 * SECOND), false).is_some(), "whatever the settings");
        assert_eq!(standby(Receiver::Absent).trouble(EventTime(0), true), Some(Trouble::NotStreaming));
        assert_eq!(standby(Receiver::Idle).trouble(EventTime(0), true), Some(Trouble::NotStreaming));
        assert_eq!(standby(Receiver::Streaming(None)).trouble(EventTime(0), true), None);
    }
}
