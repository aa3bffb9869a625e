-- Who notifies channel signal_inserted: what was chosen, the name of another trigger whose function or argument names the
-- channel, a text that says it all, and whether it is as chosen. {chosen} is read where the feed is installed.
select s.chosen, s.other,
    pg_catalog.format('signal_inserted: %s; %s', s.chosen, case
        when s.other is not null and s.sends then pg_catalog.format('BOTH the feed and the trigger %s notify it', s.other)
        when s.other is not null then pg_catalog.format('the trigger %s notifies it', s.other)
        when s.sends then 'the feed notifies it'
        else 'nothing notifies it' end),
    s.sends = (s.chosen = 'on' or s.chosen = 'auto' and s.other is null)
from (select {chosen} as chosen, exists (
        select from pg_catalog.pg_trigger as t
        where t.tgrelid = pg_catalog.to_regclass('stock_market.signal') and t.tgname = '!signal_feed_capture' and t.tgnargs > 0) as sends,
    (select t.tgname::text from pg_catalog.pg_trigger as t
        join pg_catalog.pg_proc as p on p.oid = t.tgfoid
        join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
        where t.tgrelid = pg_catalog.to_regclass('stock_market.signal') and not t.tgisinternal and t.tgenabled <> 'D'
            -- The feed's own, and that of the sequence era, which migrate removes.
            and (p.proname not in ('signal_feed_capture', 'signal_feed_append') or n.nspname <> 'stock_market')
            and (p.prosrc like '%signal_inserted%' or pg_catalog.encode(t.tgargs, 'escape') like '%signal_inserted%')
        order by 1 limit 1) as other) as s
