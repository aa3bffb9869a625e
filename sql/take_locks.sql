-- migrate takes these before any other lock that a writer could hold: every session that has written a signal holds a lock on
-- signal. It waits for readers only if the owner of signal changes or a trigger of the sequence era is dropped.
do $lock$
declare
    signal regclass := pg_catalog.to_regclass('stock_market.signal');
begin
    if exists (select from pg_catalog.pg_trigger as t join pg_catalog.pg_proc as p on p.oid = t.tgfoid
            where t.tgrelid = signal and p.proname = 'signal_feed_append')
        or exists (select from pg_catalog.pg_class as c where c.oid = signal
            and pg_catalog.pg_get_userbyid(c.relowner) = 'signal_feed_owner')
    then
        lock table stock_market.signal in access exclusive mode;
    elsif signal is not null then
        lock table stock_market.signal in share row exclusive mode;
    end if;
    if exists (select from pg_catalog.pg_attrdef as d
        where d.adrelid = pg_catalog.to_regclass('stock_market.signal_feed_event'))
    then
        lock table stock_market.signal_feed_event in access exclusive mode;
    end if;
end $lock$
