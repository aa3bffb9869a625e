-- Who notifies channel signal_inserted: what was chosen, whether the feed's trigger does, and the name of another trigger
-- whose function or argument names the channel. {chosen} is read where the feed is installed.
select {chosen}, exists (
        select from pg_catalog.pg_trigger as t
        where t.tgrelid = pg_catalog.to_regclass('stock_market.signal') and t.tgname = '!signal_feed_capture' and t.tgnargs > 0),
    (select t.tgname::text from pg_catalog.pg_trigger as t
        join pg_catalog.pg_proc as p on p.oid = t.tgfoid
        join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
        where t.tgrelid = pg_catalog.to_regclass('stock_market.signal') and not t.tgisinternal and t.tgenabled <> 'D'
            -- The feed's own, and that of the sequence era, which migrate removes.
            and (p.proname not in ('signal_feed_capture', 'signal_feed_append') or n.nspname <> 'stock_market')
            and (p.prosrc like '%signal_inserted%' or pg_catalog.encode(t.tgargs, 'escape') like '%signal_inserted%')
        order by 1 limit 1)
