-- Why migrate refuses this database, one line each. Reads only the catalog.
select 'this PostgreSQL is a standby: run migrate on its primary' as text where pg_catalog.pg_is_in_recovery()
union all
select pg_catalog.format('this PostgreSQL is %s: signal-feed needs 13 or newer', pg_catalog.current_setting('server_version'))
where pg_catalog.current_setting('server_version_num')::integer < 130000
union all
select pg_catalog.format('stock_market.signal is %s, and no trigger fires for its rows: the feed needs the table itself under this name',
    case c.relkind when 'v' then 'a view' when 'm' then 'a materialized view' when 'f' then 'a foreign table' else 'no table' end)
from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
where n.nspname = 'stock_market' and c.relname = 'signal' and c.relkind not in ('r', 'p')
union all
select 'stock_market.signal has inheritance children, and its triggers do not fire for their rows: make it a partitioned table, or detach them (alter table ... no inherit)'
from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
where n.nspname = 'stock_market' and c.relname = 'signal' and exists (
    select from pg_catalog.pg_inherits as i join pg_catalog.pg_class as k on k.oid = i.inhrelid
    where i.inhparent = c.oid and not k.relispartition)
union all
select pg_catalog.format('the table %s also has a trigger of the sequence era, %I, which writes its rows to the log: drop that trigger first (the table may be an earlier stock_market.signal)',
    t.tgrelid::regclass, t.tgname)
from pg_catalog.pg_trigger as t
join pg_catalog.pg_proc as p on p.oid = t.tgfoid
join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
where n.nspname = 'stock_market' and p.proname = 'signal_feed_append' and t.tgparentid = 0
    and t.tgrelid <> coalesce(pg_catalog.to_regclass('stock_market.signal'), 0)
union all
select pg_catalog.format('stock_market.signal_feed_event is not a log of this feed: its column %s should be %s and is %s',
    w.name, w.type, coalesce(pg_catalog.format_type(a.atttypid, a.atttypmod), 'missing'))
from (values ('feed_seq', 'bigint'), ('event_time', 'timestamp with time zone'), ('op', 'text'), ('signal', 'jsonb')) as w (name, type)
join pg_catalog.pg_namespace as n on n.nspname = 'stock_market'
join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = 'signal_feed_event'
left join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attname = w.name and not a.attisdropped
where a.attnum is null or pg_catalog.format_type(a.atttypid, a.atttypmod) <> w.type
union all
-- The feed writes only its own four columns.
select pg_catalog.format('stock_market.signal_feed_event is not a log of this feed: its column %I is NOT NULL and has no default', a.attname)
from pg_catalog.pg_namespace as n
join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = 'signal_feed_event' and c.relkind = 'r'
join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attnum > 0 and not a.attisdropped
where n.nspname = 'stock_market' and a.attnotnull and not a.atthasdef and a.attidentity = ''
    and a.attname not in ('feed_seq', 'event_time', 'op', 'signal')
union all
select 'stock_market.signal_feed_event is not a log of this feed: its primary key is not feed_seq: alter table stock_market.signal_feed_event add primary key (feed_seq)'
from pg_catalog.pg_namespace as n
join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = 'signal_feed_event' and c.relkind = 'r'
join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attname = 'feed_seq'
where n.nspname = 'stock_market' and not exists (select from pg_catalog.pg_index as i
    where i.indrelid = c.oid and i.indisprimary and i.indkey::text = a.attnum::text)
