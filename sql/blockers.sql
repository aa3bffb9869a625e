-- Who holds a lock that makes writers, the server or an administrator wait for a table of the feed, for signal, for the
-- feed's own lock or for a catalog: an identity of the hold, who holds what, and what to do. Reads no table.
-- $1: also who can make migrate wait. It waits for every lock on a table, and for the advisory lock of another migrate.
with session as (
    select a.pid, coalesce(a.xact_start, a.backend_start) as since,
        pg_catalog.format('session %s of %s (%s, %s, since %s)%s', a.pid, coalesce(a.usename, '?'),
            coalesce(nullif(a.application_name, ''), 'no name'), coalesce(a.state, '?'),
            coalesce(coalesce(a.xact_start, a.backend_start)::text, '?'),
            case when a.wait_event = 'SyncRep' then ', which waits for a synchronous standby,' end) as who,
        case when a.wait_event = 'SyncRep'
            then 'do not end that session, because its commit is already on this machine''s disk: start the standby that synchronous_standby_names asks for, or as a superuser: alter system set synchronous_standby_names = ''''; select pg_reload_conf()'
            else pg_catalog.format('end its transaction, or as a superuser, a member of pg_signal_backend or %s: select pg_terminate_backend(%s)',
                coalesce(a.usename, '?'), a.pid) end as fix
    from pg_catalog.pg_stat_activity as a
), hold as (
    select l.virtualtransaction as holder, l.relation, coalesce(l.relation::regclass::text, 'the advisory lock of migrate') as tab,
        max(l.pid) as pid, pg_catalog.string_agg(l.mode, ', ' order by l.mode) as modes,
        coalesce(max(pg_catalog.format('prepared transaction %L of %s', p.gid, p.owner)) filter (where p.gid is not null),
            max(s.who), pg_catalog.format('session %s', max(l.pid))) as who,
        max(coalesce(p.prepared, s.since)) as since,
        coalesce(max(pg_catalog.format('as %s or a superuser: rollback prepared %L', p.owner, p.gid)) filter (where p.gid is not null),
            max(s.fix), pg_catalog.format('as a superuser: select pg_terminate_backend(%s)', max(l.pid))) as fix
    from pg_catalog.pg_locks as l
    left join session as s on s.pid = l.pid
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
)
select pg_catalog.format('%s %s', h.holder, h.relation),
    pg_catalog.format('%s holds %s on %s', h.who, h.modes, h.tab)
        || case when cause.pid is null then '' else ' and waits for ' || coalesce(s.who, 'a prepared transaction') end,
    case when cause.pid is null then h.fix
        else coalesce(s.fix, 'as a superuser: roll back the prepared transaction (select * from pg_prepared_xacts)') end
from hold as h
-- Who makes a commit wait that has the feed's lock: the end of the queue of those who wait for each other. PostgreSQL
-- names a prepared transaction 0.
left join lateral (
    with recursive waiting (pid, depth) as (
        select b.pid, 1 from unnest(pg_catalog.pg_blocking_pids(h.pid)) as b (pid)
        where h.tab = 'signal_feed_private.signal_feed_lock'
        union
        select b.pid, w.depth + 1 from waiting as w cross join lateral unnest(pg_catalog.pg_blocking_pids(w.pid)) as b (pid)
        where w.depth < 10
    )
    select w.pid from waiting as w order by w.depth desc limit 1
) as cause on true
left join session as s on s.pid = cause.pid
order by h.tab = 'signal_feed_private.signal_feed_lock' desc, h.since, h.holder, h.tab
