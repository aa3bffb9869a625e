-- Appends the event that tells consumers that signals are missing. Returns its number.
with counted as (
    update stock_market.signal_feed_counter as c set value = c.value + 1
    where c.value = (select l.value from stock_market.signal_feed_counter as l order by l.value desc limit 1)
    returning c.value
), appended as (
    insert into stock_market.signal_feed_event (feed_seq, event_time, op, signal)
    select c.value, clock_timestamp(), 'INSERT', null from counted as c
), quarantined as (
    insert into stock_market.signal_feed_quarantine (feed_seq, error)
    select c.value, 'capture was off' from counted as c
)
select c.value, pg_notify('signal_feed', c.value::text) from counted as c
