-- Whether the log is in the cluster and database that were recorded: a restore or a failover changes them. One row, as of a
-- check of doctor; none if nothing was recorded. A managed server may not show its cluster or timeline.
select v.wrong is null, coalesce(v.wrong, v.found), case when v.wrong is not null then
    'as a member of signal_feed_admin: "signal-feed restored" if events may be lost; "signal-feed restored --nothing-lost" if you are certain that none are' end
from stock_market.signal_feed_cluster_now() as n
join pg_catalog.pg_database as d on d.datname = pg_catalog.current_database()
join stock_market.signal_feed_cluster as c on c.database_oid is not null
cross join lateral (select
    case when c.system_identifier <> n.system_identifier then pg_catalog.format('the log is in another cluster than recorded (%s and not %s): it was restored from a backup or copied',
            n.system_identifier, c.system_identifier)
        when c.timeline <> n.timeline then pg_catalog.format('the cluster is on timeline %s and not %s: it was recovered to a point in time, or failed over',
            n.timeline, c.timeline)
        when c.database_oid <> d.oid then pg_catalog.format('the log is in another database of the cluster than recorded (OID %s and not %s): it was restored from a dump, or copied',
            d.oid, c.database_oid)
    end as wrong,
    case when n.system_identifier is null or n.timeline is null
        then 'this PostgreSQL does not show its cluster or timeline: after a restore, always run "signal-feed restored"'
        else pg_catalog.format('cluster %s, timeline %s, database %s, as recorded', n.system_identifier, n.timeline, d.oid)
    end as found) as v
