-- The checks of doctor that are one query each. "-- check NAME" begins one. Each returns one row: whether it passed, what was
-- found, and what to do. {migrate}: how to run migrate. Those after "-- on a primary" are skipped on a hot standby.
-- {faults}: triggers.sql and inspect.sql. {remarks}: remarks.sql.

-- check triggers
select count(*) = 0,
    coalesce('capture is off: ' || string_agg(f.text, '; ' order by f.text), 'every write of signal is captured and numbered'),
    case when count(*) > 0 then '{migrate}; it switches capture on and sends consumers a notice that they missed something' end
from ({faults}) as f where f."check" = 'triggers'

-- check immutability
select count(*) = 0,
    coalesce('the log can be changed: ' || string_agg(f.text, '; ' order by f.text), 'the log refuses every change'),
    case when count(*) > 0 then '{migrate}' end
from ({faults}) as f where f."check" = 'immutability'

-- check owners
select count(*) = 0,
    coalesce(string_agg(f.text, '; ' order by f.text), 'tables and functions belong to the feed''s own roles and are as shipped'),
    case when count(*) > 0 then '{migrate}' end
from ({faults}) as f where f."check" = 'owners'

-- check privileges
select f.texts is null and r.dangers is null,
    coalesce(f.texts, r.dangers, 'every role has its rights and no more') || coalesce(r.warnings, ''),
    case when f.texts is not null then '{migrate}'
        when r.dangers is not null then 'unless you know why it is there, revoke or drop it as a superuser' end
from (select string_agg(f.text, '; ' order by f.text) as texts from ({faults}) as f where f."check" = 'privileges') as f
cross join (select string_agg(r.text, '; ') filter (where r.danger) as dangers,
    string_agg('; warning: ' || r.text, '') filter (where not r.danger) as warnings from ({remarks}) as r) as r

-- check members
-- Never a fault: the role that first ran migrate is one of them, unless it is a superuser.
select true, coalesce('these logins may act as the feed''s own roles: ' || string_agg(r.rolname, ', ' order by r.rolname),
    'only superusers may act as the feed''s own roles'), null
from pg_catalog.pg_roles as r
where r.rolcanlogin and not r.rolsuper and exists (
    select from pg_catalog.pg_roles as o
    where o.rolname in ('signal_feed_owner', 'signal_feed_capture', 'signal_feed_render', 'signal_feed_signal')
        and pg_catalog.pg_has_role(r.oid, o.oid, 'member'))

-- check log
-- One statement, so one snapshot: the counter and the log change in one commit. {newest}: how many numbers to look at.
with base as (
    select greatest(coalesce(i.counter_start, 0), p.pruned_through,
            (select max(c.value) from stock_market.signal_feed_counter as c) - {newest}) as start,
        coalesce(i.counter_start, 0) as counter_start, p.pruned_through
    from stock_market.signal_feed_identity as i cross join stock_market.signal_feed_pruned as p
), events as (
    select count(*) as rows, max(e.feed_seq) as last from stock_market.signal_feed_event as e
    where e.feed_seq > (select b.start from base as b)
), skipped as (
    select coalesce(max(s.to_seq), 0) as last, coalesce(sum(case
            when s.to_seq > b.start and s.to_seq <= coalesce((select e.last from events as e), 0)
            then s.to_seq - greatest(s.from_seq, b.start + 1) + 1 end), 0)::bigint as numbers
    from base as b left join stock_market.signal_feed_skipped as s on true
), seen as (
    select b.start, e.rows, coalesce(e.last, b.start) as last, s.numbers as skipped,
        greatest((select max(l.feed_seq) from stock_market.signal_feed_event as l),
            b.pruned_through, b.counter_start, s.last) as should,
        (select max(c.value) from stock_market.signal_feed_counter as c) as value,
        (select count(*) from stock_market.signal_feed_counter) as counters
    from (values (1)) as one (one) left join base as b on true cross join events as e left join skipped as s on true
), hole as materialized (
    select h.before + 1 as first, h.feed_seq - 1 as last from (
        select e.feed_seq, coalesce(lag(e.feed_seq) over (order by e.feed_seq), s.start) as before
        from seen as s join stock_market.signal_feed_event as e on e.feed_seq > s.start
        where s.rows + s.skipped <> s.last - s.start) as h
    where h.feed_seq <> h.before + 1
        and not exists (select from stock_market.signal_feed_skipped as s
            where s.from_seq <= h.before + 1 and s.to_seq >= h.feed_seq - 1)
    order by h.feed_seq limit 1
), verdict as (
    select s.*, case
        when s.start is null then pg_catalog.concat_ws(' and ',
            case when not exists (select from stock_market.signal_feed_identity) then 'signal_feed_identity' end,
            case when not exists (select from stock_market.signal_feed_pruned) then 'signal_feed_pruned' end) || ' has no row'
        when s.value is null then 'the counter has no row: signals cannot be written'
        when s.counters <> 1 then pg_catalog.format('the counter has %s rows, of which %s is the highest', s.counters, s.value)
        when s.value < s.should then pg_catalog.format('the counter is at %s, behind %s: signals cannot be written', s.value, s.should)
        when s.value > s.should then pg_catalog.format('the counter is at %s, ahead of %s: events were lost', s.value, s.should)
        when s.rows + s.skipped <> s.last - s.start then pg_catalog.format('the log has a hole after the counter''s start: %s',
            coalesce((select pg_catalog.format('numbers %s to %s are missing', h.first, h.last) from hole as h),
                pg_catalog.format('%s events from %s to %s', s.rows, s.start + 1, s.last)))
        end as wrong
    from seen as s
)
select v.wrong is null,
    coalesce(v.wrong, pg_catalog.format('%s events without a hole from %s on; the counter is at %s', v.rows, v.start + 1, v.value)),
    case when v.wrong is null then null
        when v.start is null or v.value is null then '{migrate}'
        when v.counters <> 1 then pg_catalog.format('as a superuser: delete from stock_market.signal_feed_counter where value < %s', v.value)
        when v.value <> v.should then
            'was the log restored, or changed by hand? as a member of signal_feed_admin run "signal-feed restored", which continues the numbers above every number in doubt'
        else 'somebody deleted events by hand, or the log was damaged. Bots that had not yet received these events are not told: run them once with --recovery. This check passes again once prune has removed the log up to there'
    end
from verdict as v

-- check clock
-- Up to counter_start the log is the sequence era's, whose times are in no order. A time beyond the year 9999 is unusable.
with history as (
    select coalesce(max(i.counter_start), 0) as last from stock_market.signal_feed_identity as i
), ahead as (
    select e.feed_seq, e.event_time from stock_market.signal_feed_event as e
    where e.event_time > clock_timestamp() + interval '1 second' and e.event_time < '10000-01-01 00:00:00+00'
        and e.feed_seq > (select h.last from history as h)
    order by e.event_time desc limit 1
), newest as (
    select e.feed_seq, e.event_time from stock_market.signal_feed_event as e
    where e.feed_seq > (select h.last from history as h) order by e.feed_seq desc limit 10000
), back as (
    select t.feed_seq, t.before - t.event_time as step from (
        select n.feed_seq, n.event_time, lag(n.event_time) over (order by n.feed_seq) as before from newest as n
        where n.event_time < '10000-01-01 00:00:00+00' and n.event_time >= '0001-01-01 00:00:00+00') as t
    where t.event_time < t.before order by t.feed_seq desc limit 1
)
select a.feed_seq is null and b.feed_seq is null,
    case when a.feed_seq is not null then pg_catalog.format('event %s has the time %s, which is in the future: the clock jumped back', a.feed_seq, a.event_time)
        when b.feed_seq is not null then pg_catalog.format('the clock jumped back by %s before event %s', b.step, b.feed_seq)
        else 'times ascend along the log, and none is in the future' end,
    case when a.feed_seq is not null then 'correct the clock of the database''s machine (NTP); until it has caught up, replay windows and delayed keys are off by the difference'
        when b.feed_seq is not null then 'let NTP slew the clock and never step it; this check passes again after 10,000 more events' end
from (values (1)) as one (one) left join ahead as a on true left join back as b on true

-- check fsync
select f.fsync and f.full_page_writes,
    case when not f.fsync then 'fsync is off: a crash of the machine can lose events that were delivered, and give their numbers to others'
        when not f.full_page_writes then 'full_page_writes is off: a crash of the machine can damage the log'
        else 'fsync and full_page_writes are on' end,
    case when not f.fsync then 'in postgresql.conf, as the machine''s administrator: fsync = on; then reload'
        when not f.full_page_writes then 'in postgresql.conf: full_page_writes = on, unless the file system never tears a page; then reload' end
from (select current_setting('fsync')::boolean as fsync, current_setting('full_page_writes')::boolean as full_page_writes) as f

-- check snapshots
-- Always reported; fails after fifteen minutes. A transaction that has written holds back vacuum as a snapshot does.
with held as (
    select pg_catalog.format('session %s of %s (%s, %s)', a.pid, coalesce(a.usename, '?'),
            coalesce(nullif(a.application_name, ''), 'no name'), coalesce(a.state, '?')) as who,
        clock_timestamp() - coalesce(a.xact_start, clock_timestamp()) as age,
        pg_catalog.format('end its transaction, or as a superuser, a member of pg_signal_backend or %s: select pg_terminate_backend(%s)',
            coalesce(a.usename, '?'), a.pid) as fix
    from pg_catalog.pg_stat_activity as a
    where a.pid <> pg_backend_pid() and a.datname = current_database() and a.backend_type = 'client backend'
        and (a.backend_xmin is not null or a.backend_xid is not null)
    union all
    select pg_catalog.format('replication slot %s (%s)', s.slot_name, case when s.active then 'active' else 'nobody reads it' end),
        case when s.active then interval '0' else interval '1 day' end,
        pg_catalog.format('if nobody needs it, as a superuser: select pg_drop_replication_slot(%L)', s.slot_name)
    from pg_catalog.pg_replication_slots as s where s.xmin is not null
    union all
    select pg_catalog.format('prepared transaction %L of %s', p.gid, p.owner), clock_timestamp() - p.prepared,
        pg_catalog.format('as %s or a superuser: commit prepared %L, or rollback prepared %2$L', p.owner, p.gid)
    from pg_catalog.pg_prepared_xacts as p where p.database = current_database()
    union all
    select pg_catalog.format('standby %s (hot_standby_feedback)', coalesce(nullif(r.application_name, ''), r.client_addr::text)),
        interval '0', 'end the long query there'
    from pg_catalog.pg_stat_replication as r where r.backend_xmin is not null
), oldest as (
    select h.*, row_number() over (order by h.age desc) as nth from held as h order by h.age desc limit 5
)
select coalesce(max(o.age) < interval '15 minutes', true),
    coalesce('held back by ' || string_agg(pg_catalog.format('%s for %s', o.who, date_trunc('second', greatest(o.age, interval '0'))),
            ', ' order by o.nth), 'no visible session holds an old snapshot')
        || case when pg_catalog.pg_has_role('pg_read_all_stats', 'usage') then ''
            else '; other roles'' sessions cannot be seen: as a superuser, grant pg_monitor to signal_feed_admin' end,
    case when max(o.age) >= interval '15 minutes' then max(o.fix) filter (where o.nth = 1) end
from oldest as o

-- check quarantine
-- Never a fault: consumers were told.
select true,
    case when count(*) = 0 then 'every quarantined event is settled'
        else pg_catalog.format('%s quarantined events are not settled, the last is %s', count(*), max(q.feed_seq)) end
        || coalesce('; capture was off before event ' || max(q.feed_seq) filter (where q.error = 'capture was off'), ''),
    case when count(*) > 0 then
        coalesce(max('find the rows of signal that no event covers, in psql as a member of signal_feed_bot: set timezone = ''UTC''; select s.* from stock_market.signal as s where not exists (select from stock_market.signal_feed_event as e where e.signal - ''updated_at'' = to_jsonb(s) - ''updated_at''); (rows whose events were pruned, or that are older than the feed, are among them); then ')
            filter (where q.error = 'capture was off'), '')
        || 'as a member of signal_feed_admin: signal-feed quarantine list, and for each event that is dealt with: signal-feed quarantine settle NUMBER' end
from stock_market.signal_feed_quarantine as q where q.settled_at is null

-- on a primary

-- check outbox
select not o.has_rows, case when o.has_rows then 'the outbox holds events that were committed and never numbered' else 'nothing is left in the outbox' end,
    case when o.has_rows then '{migrate}' end
from (select exists (select from signal_feed_private.signal_feed_first)
    or exists (select from signal_feed_private.signal_feed_outbox) as has_rows) as o

-- check notify_queue
select q.usage < 0.25, pg_catalog.format('the notification queue is %s %% full', round((q.usage * 100)::numeric, 1))
    || case when q.usage < 0.25 then '' else coalesce('; the oldest open transaction is ' || o.who, '; no open transaction is visible') end,
    case when q.usage >= 0.25 then pg_catalog.format('when the queue is full every commit that notifies fails: end the session that LISTENs in an old transaction, as a superuser or a member of pg_signal_backend: select pg_terminate_backend(%s)', coalesce(o.pid::text, 'PID')) end
from (select pg_catalog.pg_notification_queue_usage() as usage) as q
left join lateral (
    select a.pid, pg_catalog.format('session %s of %s (%s, %s, since %s)', a.pid, coalesce(a.usename, '?'),
        coalesce(nullif(a.application_name, ''), 'no name'), coalesce(a.state, '?'), a.xact_start) as who
    from pg_catalog.pg_stat_activity as a
    where a.backend_type = 'client backend' and a.pid <> pg_backend_pid() and a.xact_start is not null
    order by a.xact_start limit 1) as o on true
