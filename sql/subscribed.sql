-- Subscriptions that write the log itself: migrate refuses the database. Only some roles may read the list of subscriptions.
select pg_catalog.format('the subscription %s writes this database''s log itself: publish only stock_market.signal, and let this database number what arrives',
    s.subname)
from pg_catalog.pg_subscription_rel as r
join pg_catalog.pg_subscription as s on s.oid = r.srsubid
join pg_catalog.pg_class as c on c.oid = r.srrelid
join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
where n.nspname = 'stock_market' and c.relname in ('signal_feed_event', 'signal_feed_counter')
