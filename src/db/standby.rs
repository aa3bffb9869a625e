//! What a hot standby knows about its primary.

use std::time::Duration;

use super::{Connection, Error};
use crate::event::EventTime;

/// A reading of a server's clock, and of its replication.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Reading {
    pub now: EventTime,
    /// Its replication, if it is a hot standby.
    pub standby: Option<Standby>,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Standby {
    /// Whether its WAL receiver streams from a primary. A silent primary counts as one until `wal_receiver_timeout`.
    pub is_streaming: bool,
    /// How old the last replayed commit is (without one, the server's start); zero if everything received is replayed.
    pub lag: Duration,
}

pub(crate) fn read(connection: &mut Connection) -> Result<Reading, Error> {
    // A role without pg_read_all_stats sees in the view only that there is a WAL receiver: that is enough.
    let row = connection.query_one(
        "select clock_timestamp(), pg_catalog.pg_is_in_recovery(), \
                exists (select from stock_market.signal_feed_wal_receiver() as r \
                        where r.pid is not null and coalesce(r.status, 'streaming') = 'streaming'), \
                case when pg_catalog.pg_last_wal_receive_lsn() > pg_catalog.pg_last_wal_replay_lsn() \
                     then extract(epoch from clock_timestamp() - coalesce(pg_catalog.pg_last_xact_replay_timestamp(), \
                              pg_catalog.pg_postmaster_start_time()))::float8 end",
        &[],
    )?;
    let standby = row.try_get::<_, bool>(1)?.then_some(Standby {
        is_streaming: row.try_get(2)?,
        lag: Duration::try_from_secs_f64(row.try_get::<_, Option<f64>>(3)?.unwrap_or(0.0)).unwrap_or_default(),
    });
    Ok(Reading { now: row.try_get(0)?, standby })
}

pub(crate) fn is_standby(connection: &mut Connection) -> Result<bool, Error> {
    Ok(connection.query_one("select pg_catalog.pg_is_in_recovery()", &[])?.try_get(0)?)
}
