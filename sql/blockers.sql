-- Who holds a lock that makes writers, the server or an administrator wait for a table of the feed, for signal, for the
-- feed's own lock or for a catalog: an identity of the hold, who holds what, and what to do. Reads no table.
-- $1: also who can make migrate wait. It waits for every lock on a table, and for the advisory lock of another migrate.
select pg_catalog.format('%s %s', h.holder, h.relation), pg_catalog.format('%s holds %s on %s', h.who, h.modes, h.tab), h.fix
from (
    select l.virtualtransaction as holder, l.relation, coalesce(l.relation::regclass::text, 'the advisory lock of migrate') as tab,
        pg_catalog.string_agg(l.mode, ', ' order by l.mode) as modes,
        coalesce(max(pg_catalog.format('prepared transaction %L of %s', p.gid, p.owner)) filter (where p.gid is not null),
            pg_catalog.format('session %s of %s (%s, %s, since %s)', max(l.pid), coalesce(max(a.usename), '?'),
                coalesce(nullif(max(a.application_name), ''), 'no name'), coalesce(max(a.state), '?'),
                coalesce(max(coalesce(a.xact_start, a.backend_start))::text, '?'))) as who,
        max(coalesce(p.prepared, a.xact_start, a.backend_start)) as since,
        coalesce(max(pg_catalog.format('as %s or a superuser: rollback prepared %L', p.owner, p.gid)) filter (where p.gid is not null),
            pg_catalog.format('as a superuser, a member of pg_signal_backend or %s: select pg_terminate_backend(%s)',
                coalesce(max(a.usename), '?'), max(l.pid))) as fix
    from pg_catalog.pg_locks as l
    left join pg_catalog.pg_stat_activity as a on a.pid = l.pid
    left join pg_catalog.pg_prepared_xacts as p on l.virtualtransaction = '-1/' || p.transaction::text
    left join pg_catalog.pg_class as c on l.locktype = 'relation' and c.oid = l.relation
    left join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where l.granted and l.pid is distinct from pg_backend_pid()
        and l.database in (0, (select d.oid from pg_catalog.pg_database as d where d.datname = current_database()))
        and case
            -- The two halves of migrate's key.
            when l.locktype = 'advisory' then $1::boolean and l.classid = 7563623 and l.objid = 1717921124 and l.objsubid = 1
            when n.nspname = 'pg_catalog' then l.mode = 'AccessExclusiveLock'
            when n.nspname = 'signal_feed_private'
                or n.nspname = 'stock_market' and (c.relname = 'signal' or pg_catalog.starts_with(c.relname::text, 'signal_feed_'))
            then $1::boolean or l.mode in ('ShareLock', 'ShareRowExclusiveLock', 'ExclusiveLock', 'AccessExclusiveLock')
                or c.relname = 'signal_feed_lock' and l.mode = 'ShareUpdateExclusiveLock'
        end
    group by l.virtualtransaction, l.relation
) as h order by h.tab = 'signal_feed_private.signal_feed_lock' desc, h.since, h.holder, h.tab
