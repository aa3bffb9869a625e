-- Rows that an installation must have and lacks. Run it only if inspect.sql finds no table missing.
select 'installation', pg_catalog.format('the table stock_market.%s has no row', m.name), false
from (values
    ('signal_feed_counter', exists (select from stock_market.signal_feed_counter)),
    ('signal_feed_identity', exists (select from stock_market.signal_feed_identity as i where i.counter_start is not null)),
    ('signal_feed_pruned', exists (select from stock_market.signal_feed_pruned)),
    ('signal_feed_choice', exists (select from stock_market.signal_feed_choice)),
    ('signal_feed_cluster', exists (select from stock_market.signal_feed_cluster as c where c.database_oid is not null))
) as m (name, is_there) where not m.is_there
union all
select 'installation', 'the outbox holds events that were committed and never numbered', true
where exists (select from signal_feed_private.signal_feed_first) or exists (select from signal_feed_private.signal_feed_outbox)
