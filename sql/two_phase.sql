-- Subscriptions that stop at their first prepared transaction. PostgreSQL 15 and newer have them, and only some roles may read
-- the list.
select distinct pg_catalog.format('the subscription %1$I has two_phase: the first prepared transaction that writes a signal stops it, because PostgreSQL refuses PREPARE TRANSACTION after NOTIFY; make it again with two_phase = false',
    s.subname)
from pg_catalog.pg_subscription_rel as r
join pg_catalog.pg_subscription as s on s.oid = r.srsubid
where s.subtwophasestate <> 'd' and (r.srrelid = pg_catalog.to_regclass('stock_market.signal')
    or r.srrelid in (select i.inhrelid from pg_catalog.pg_inherits as i
        where i.inhparent = pg_catalog.to_regclass('stock_market.signal')))
