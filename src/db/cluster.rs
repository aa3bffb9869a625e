//! Whether the log is in the cluster and database that were recorded: a restore or a failover changes them.

use super::{Connection, Error};

/// The result of the comparison. A managed server may not show its cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cluster {
    /// Nothing was recorded.
    Unrecorded,
    /// The cluster, timeline or database differs from the recorded one; the text says which.
    Changed(String),
    /// It is as recorded.
    Same(String),
}

/// Compares the cluster and the database with what was recorded.
///
/// # Errors
/// See [`Error`].
pub fn compare(connection: &mut Connection) -> Result<Cluster, Error> {
    let row = connection.query_opt(
        "select case
                when c.system_identifier <> n.system_identifier then pg_catalog.format('the log is in another cluster \
                    than recorded (%s and not %s): it was restored from a backup or copied', n.system_identifier, c.system_identifier)
                when c.timeline <> n.timeline then pg_catalog.format('the cluster is on timeline %s and not %s: it was \
                    recovered to a point in time, or failed over', n.timeline, c.timeline)
                when c.database_oid <> d.oid then pg_catalog.format('the log is in another database of the cluster than \
                    recorded (OID %s and not %s): it was restored from a dump, or copied', d.oid, c.database_oid)
            end,
            case when n.system_identifier is null or n.timeline is null
                then 'this PostgreSQL does not show its cluster or timeline: after a restore, always run \"signal-feed restored\"'
                else pg_catalog.format('cluster %s, timeline %s, database %s, as recorded', n.system_identifier, n.timeline, d.oid)
            end
        from stock_market.signal_feed_cluster as c cross join stock_market.signal_feed_cluster_now() as n
        cross join pg_catalog.pg_database as d where d.datname = current_database()",
        &[],
    )?;
    let Some(row) = row else { return Ok(Cluster::Unrecorded) };
    Ok(row.get::<_, Option<String>>(0).map_or_else(|| Cluster::Same(row.get(1)), Cluster::Changed))
}
