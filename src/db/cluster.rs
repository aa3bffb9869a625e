//! Which cluster the log lives on, and whether it is the one that was recorded: a restore or a failover changes it.

use super::{Connection, Error};

/// What is known of the cluster. Managed servers may not tell.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cluster {
    /// Nothing was recorded.
    Unrecorded,
    /// It is another one, or on another timeline, than recorded; the text says which.
    Changed(String),
    /// It is as recorded.
    Same(String),
}

/// Compares the cluster with the recorded one.
///
/// # Errors
/// See [`Error`].
pub fn compare(connection: &mut Connection) -> Result<Cluster, Error> {
    let row = connection.query_opt(
        "select c.system_identifier, c.timeline, n.system_identifier, n.timeline \
         from stock_market.signal_feed_cluster as c cross join stock_market.signal_feed_cluster_now() as n",
        &[],
    )?;
    let Some(row) = row else { return Ok(Cluster::Unrecorded) };
    let recorded: (Option<String>, Option<i32>) = (row.try_get(0)?, row.try_get(1)?);
    let now: (Option<String>, Option<i32>) = (row.try_get(2)?, row.try_get(3)?);
    Ok(match (recorded, now) {
        ((Some(recorded), _), (Some(now), _)) if recorded != now => Cluster::Changed(format!(
            "the log lives on another cluster than recorded ({now} and not {recorded}): it was restored from a backup or copied"
        )),
        ((_, Some(recorded)), (_, Some(now))) if recorded != now => Cluster::Changed(format!(
            "the cluster is on timeline {now} and not {recorded}: it was recovered to a point in time, or failed over"
        )),
        (_, (Some(system), Some(timeline))) => {
            Cluster::Same(format!("cluster {system}, timeline {timeline}, as recorded"))
        }
        _ => Cluster::Same(
            "this PostgreSQL does not tell its cluster or timeline: after a restore, run \"signal-feed restored\" unasked"
                .into(),
        ),
    })
}
