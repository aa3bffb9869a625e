-- The functions: capture at once, number at commit; immutability; prune; what `restored` and the server need.
--
-- Each belongs to a role that can do what the function does and no more (wanted.sql says which). Nobody else can use
-- one as a trigger function, because install.sql revokes EXECUTE from PUBLIC. Every name in them is found in
-- pg_catalog or is written with its schema.

-- A column's type can have a cast to json, and that cast is the writer's own code. So the owner of this function has no
-- rights. The role does own this function, which that code could alter; and code that runs as the role could make
-- objects that keep its rights. So the conversion happens in a subtransaction that is always rolled back: only the
-- variables keep what it found. It is read-only too, which that code can undo before PostgreSQL 16 (RESET), but not later.
-- In this function and in signal_feed_capture() every function and operator from the conversion on is written with its
-- schema, so a search_path that the code changes matters to neither.
create or replace function stock_market.signal_feed_render(now record, before record) returns jsonb
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
declare
    converted jsonb;
    image jsonb;
    earlier jsonb;
begin
    begin
        if pg_catalog.set_config('transaction_read_only', 'on', true) is null then null; end if;
        converted := pg_catalog.to_jsonb(now);
        -- Twelve bytes of jsonb can be a number of 131,072 digits. PostgreSQL allows a text of 1 GB, and a server that reads
        -- the log would wait for it. So the text may be as large as the largest jsonb, 256 MB. 8 kB never become more.
        if pg_catalog.pg_column_size(converted) operator(pg_catalog.<) 8000
            or pg_catalog.octet_length(converted::pg_catalog.text) operator(pg_catalog.<) 268435456
        then
            image := converted;
        end if;
        earlier := pg_catalog.to_jsonb(before);
        raise exception 'rolls the conversion back';
    exception
        -- No row's content makes a write fail: one that could not be converted is logged without its content.
        when others then null;
    end;
    -- Not "is null", which a row of nothing but NULLs is too.
    if before is not distinct from null then
        return image;
    end if;
    if image is null then
        -- Two rows that both cannot become jsonb differ unless they are the same bytes, except for updated_at.
        begin
            now.updated_at := before.updated_at;
        exception
            -- There is no such column.
            when others then null;
        end;
        if now operator(pg_catalog.*=) before then
            return 'false';
        end if;
        return null;
    end if;
    if earlier is null then
        return image;
    end if;
    earlier := earlier operator(pg_catalog.-) 'updated_at'::pg_catalog.text;
    -- As bytes: jsonb finds 1.0 and 1.00 equal, and the text of the row as it was can be too large.
    if row(image operator(pg_catalog.-) 'updated_at'::pg_catalog.text)::pg_catalog.record
        operator(pg_catalog.*=) row(earlier)::pg_catalog.record
    then
        return 'false';
    end if;
    return image;
end
$function$;
comment on function stock_market.signal_feed_render(record, record) is
    'A row as jsonb; NULL where it cannot become that (a json column with \u0000) or its text has 256 MB; false where it was the same before, except for updated_at';

create or replace function stock_market.signal_feed_render_pinned(now record, before record) returns jsonb
language plpgsql
set search_path = pg_catalog, pg_temp
set timezone = 'UTC'
set datestyle = 'ISO'
set intervalstyle = 'postgres'
set extra_float_digits = 1
set bytea_output = 'hex'
set lc_monetary = 'C'
set quote_all_identifiers = off
as $function$
begin
    return stock_market.signal_feed_render(now, before);
end
$function$;
comment on function stock_market.signal_feed_render_pinned(record, record) is
    'The same for a writer whose own settings would render it differently';

create or replace function stock_market.signal_feed_capture() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $function$
declare
    image jsonb;
    told text;
begin
    -- Looking at the writer's settings costs less than replacing them. For money it looks at the effect, because locales
    -- have many names. OLD is NULL for an INSERT.
    if current_setting('TimeZone') in ('UTC', 'Etc/UTC', 'GMT') and current_setting('DateStyle') like 'ISO%'
        and current_setting('IntervalStyle') = 'postgres' and current_setting('extra_float_digits') in ('1', '2', '3')
        and current_setting('bytea_output') = 'hex' and current_setting('quote_all_identifiers') = 'off'
        and (-1234.5)::money::text = '-$1,234.50'
    then
        image := stock_market.signal_feed_render(new, old);
    else
        image := stock_market.signal_feed_render_pinned(new, old);
    end if;
    if image operator(pg_catalog.=) 'false'::pg_catalog.jsonb then
        return null;
    end if;
    insert into signal_feed_private.signal_feed_outbox (round, op, signal)
    select f.round, tg_op, image from signal_feed_private.signal_feed_first as f
    where f.xact operator(pg_catalog.=) pg_catalog.pg_current_xact_id();
    if not found then
        insert into signal_feed_private.signal_feed_first (xact, op, signal)
        values (pg_catalog.pg_current_xact_id(), tg_op, image);
    end if;
    if tg_nargs operator(pg_catalog.>) 0 and tg_op operator(pg_catalog.=) 'INSERT'::pg_catalog.text then
        -- Notified in an expression and not in a query: that is cheaper.
        told := image::pg_catalog.text;
        -- PostgreSQL takes payloads of less than 8000 bytes.
        if told is null or pg_catalog.octet_length(told) operator(pg_catalog.>) 7999 then
            told := pg_catalog.jsonb_build_object('oversize', true)::pg_catalog.text;
            if image operator(pg_catalog.?) 'id'::pg_catalog.text then
                told := pg_catalog.jsonb_build_object(
                    'id', image operator(pg_catalog.->) 'id'::pg_catalog.text, 'oversize', true)::pg_catalog.text;
                if pg_catalog.octet_length(told) operator(pg_catalog.>) 7999 then
                    told := pg_catalog.jsonb_build_object('oversize', true)::pg_catalog.text;
                end if;
            end if;
        end if;
        if pg_catalog.pg_notify('signal_inserted', told) is null then null; end if;
    end if;
    return null;
end
$function$;
comment on function stock_market.signal_feed_capture() is
    'Puts the row as it now is into the outbox, unless an UPDATE changed nothing but updated_at; with an argument it also notifies channel signal_inserted of an INSERT';

-- A deferred trigger that fires in the depth of another statement was made immediate (SET CONSTRAINTS ALL IMMEDIATE):
-- then it puts itself off again. At commit it fires at depth 1.
create or replace function stock_market.signal_feed_gather() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
as $function$
begin
    if pg_trigger_depth() > 1 then
        set constraints signal_feed_private.signal_feed_gather, signal_feed_private.signal_feed_number deferred;
        update signal_feed_private.signal_feed_first as f set round = f.round where f.xact = new.xact;
    else
        delete from signal_feed_private.signal_feed_first as f where f.xact = new.xact;
    end if;
    return null;
end
$function$;
comment on function stock_market.signal_feed_gather() is
    'Fires among the deferred constraints of the transaction''s statements, and takes the first event away: so signal_feed_number fires after all of them';

-- A transaction has one round at a time: a signal that is written after the first event was taken away begins another.
create or replace function stock_market.signal_feed_number() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $function$
declare
    other bigint;
    more bigint := 0;
    last bigint;
    moment timestamptz;
begin
    if pg_trigger_depth() > 1 and not old.put_off then
        set constraints signal_feed_private.signal_feed_gather, signal_feed_private.signal_feed_number deferred;
        -- Back to where it was taken from. Another round may have begun meanwhile: the two become one.
        select f.round into other from signal_feed_private.signal_feed_first as f where f.xact = old.xact;
        if other is null then
            insert into signal_feed_private.signal_feed_first (xact, round, put_off, op, signal)
            values (old.xact, old.round, true, old.op, old.signal);
        elsif other < old.round then
            insert into signal_feed_private.signal_feed_outbox (round, seq, op, signal)
            values (other, old.round, old.op, old.signal);
            update signal_feed_private.signal_feed_outbox as o set round = other where o.round = old.round;
        else
            insert into signal_feed_private.signal_feed_outbox (round, seq, op, signal)
            select old.round, f.round, f.op, f.signal from signal_feed_private.signal_feed_first as f where f.xact = old.xact;
            update signal_feed_private.signal_feed_outbox as o set round = old.round where o.round = other;
            update signal_feed_private.signal_feed_first as f
            set round = old.round, put_off = true, op = old.op, signal = old.signal where f.xact = old.xact;
        end if;
        return null;
    end if;
    -- The sequence tells without a look at the outbox that this session has written nothing after the first event.
    if nextval('signal_feed_private.signal_feed_outbox_seq_seq') <> old.round + 1 then
        select count(*) into more from signal_feed_private.signal_feed_outbox as o where o.round = old.round;
    end if;
    -- A number that was delivered must survive a crash, or it would be given to another event.
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    -- A fair queue. Held until the transaction has committed, so numbers become visible in their order. The weakest mode
    -- that conflicts with itself: for a stronger one PostgreSQL looks through the locks of every session.
    lock table signal_feed_private.signal_feed_lock in share update exclusive mode;
    moment := clock_timestamp();
    update stock_market.signal_feed_counter as c set value = c.value + 1 + more
    where c.ctid = (select l.ctid from stock_market.signal_feed_counter as l order by l.value desc limit 1)
    returning c.value into last;
    if last is null then
        if current_setting('transaction_isolation') <> 'read committed' then
            raise exception 'could not serialize access: the counter of the feed has no row, or had none yet when this transaction began'
                using errcode = 'serialization_failure',
                    hint = 'Retry the transaction. If it fails again, run "signal-feed migrate".';
        end if;
        raise exception 'the counter of the feed has no row: refused, or this event would be lost'
            using errcode = 'object_not_in_prerequisite_state',
                hint = 'Run "signal-feed migrate".';
    end if;
    insert into stock_market.signal_feed_event (feed_seq, event_time, op, signal)
    values (last - more, moment, old.op, old.signal);
    if more > 0 then
        insert into stock_market.signal_feed_event (feed_seq, event_time, op, signal)
        select last - more + row_number() over (order by o.seq), moment, o.op, o.signal
        from signal_feed_private.signal_feed_outbox as o where o.round = old.round;
        delete from signal_feed_private.signal_feed_outbox as o where o.round = old.round;
    end if;
    if pg_notify('signal_feed', last::text) is null then null; end if;
    return null;
end
$function$;
comment on function stock_market.signal_feed_number() is
    'At the end of a transaction: moves a round of its events to the log under the feed''s lock, and notifies channel signal_feed';

create or replace function stock_market.signal_feed_refuse() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
    if tg_op = 'DELETE' and old.feed_seq <= (select p.pruned_through from stock_market.signal_feed_pruned as p) then
        return old;
    end if;
    raise exception '% of stock_market.signal_feed_event is refused: the log is append-only', tg_op
        using errcode = 'object_not_in_prerequisite_state',
            hint = 'Old events are removed with "signal-feed prune".';
end
$function$;
comment on function stock_market.signal_feed_refuse() is
    'Refuses to change the log; lets only rows go that are not above pruned_through';

create or replace function stock_market.signal_feed_prune_to(through bigint) returns bigint
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $function$
declare
    before bigint;
begin
    select p.pruned_through into strict before from stock_market.signal_feed_pruned as p for update;
    if through <= before then
        return before;
    end if;
    if not exists (select from stock_market.signal_feed_event as e where e.feed_seq = through) then
        raise exception 'cannot prune to %: the log has no such event', through
            using errcode = 'invalid_parameter_value';
    end if;
    -- A time beyond the year 9999 is unusable: such a row is as old as the one before it.
    if exists (
        select from stock_market.signal_feed_event as e
        where e.feed_seq <= through and e.feed_seq > before
            and e.event_time > clock_timestamp() - interval '1 hour' and e.event_time < '10000-01-01 00:00:00+00')
    then
        raise exception 'cannot prune to %: that would remove an event younger than an hour', through
            using errcode = 'invalid_parameter_value';
    end if;
    update stock_market.signal_feed_pruned as p set pruned_through = through;
    return through;
end
$function$;
comment on function stock_market.signal_feed_prune_to(bigint) is
    'Raises pruned_through to the number of an event, never past one younger than an hour; the rows up to it can then be deleted';

create or replace function stock_market.signal_feed_cluster_now(out system_identifier text, out timeline integer)
language plpgsql stable security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
    begin
        select c.system_identifier::text into system_identifier from pg_control_system() as c;
    exception
        when insufficient_privilege then null;
    end;
    begin
        if pg_is_in_recovery() then
            select c.timeline_id into timeline from pg_control_checkpoint() as c;
        else
            -- The control file learns of a promotion only with the next checkpoint.
            timeline := ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::integer;
        end if;
    exception
        when insufficient_privilege then null;
    end;
end
$function$;
comment on function stock_market.signal_feed_cluster_now() is
    'The cluster and the timeline of this moment; NULL where this PostgreSQL does not let its users see them';

-- PostgreSQL shows it to members of pg_read_all_stats alone, which the owner is and the server need not be.
create or replace function stock_market.signal_feed_wal_receiver()
returns table (pid integer, status text, sent timestamptz, received timestamptz, log_end pg_lsn)
language sql security definer
set search_path = pg_catalog, pg_temp
as $function$
    select r.pid, r.status, r.last_msg_send_time, r.last_msg_receipt_time, r.latest_end_lsn
    from pg_stat_wal_receiver as r
$function$;
comment on function stock_market.signal_feed_wal_receiver() is
    'On a standby: whether it streams, and what its primary''s last message was; no row where there is no WAL receiver';

create or replace function stock_market.signal_feed_nothing_lost() returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
    insert into stock_market.signal_feed_cluster (system_identifier, timeline, database_oid)
    select n.system_identifier, n.timeline, (select d.oid from pg_database as d where d.datname = current_database())
    from stock_market.signal_feed_cluster_now() as n
    on conflict on constraint signal_feed_cluster_pkey
    do update set system_identifier = excluded.system_identifier, timeline = excluded.timeline,
        database_oid = excluded.database_oid;
end
$function$;
comment on function stock_market.signal_feed_nothing_lost() is
    'Records the present cluster, timeline and database as the ones the log lives in';

create or replace function stock_market.signal_feed_restored(skip bigint, out from_seq bigint, out to_seq bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $function$
begin
    -- Consumers keep numbers in a double, which is exact below 2^53.
    if skip is null or skip < 1 or skip >= 9007199254740992 then
        raise exception 'cannot skip % numbers: the numbers stay below 2^53', skip using errcode = 'invalid_parameter_value';
    end if;
    lock table signal_feed_private.signal_feed_lock in share update exclusive mode;
    perform set_config('synchronous_commit', 'on', true)
        where current_setting('synchronous_commit') in ('off', 'local');
    -- From the first number that is not history yet. Where the counter is ahead of the log, the numbers between them
    -- were given to events that are lost.
    select greatest(
        (select max(e.feed_seq) from stock_market.signal_feed_event as e),
        (select p.pruned_through from stock_market.signal_feed_pruned as p),
        (select max(s.to_seq) from stock_market.signal_feed_skipped as s),
        (select i.counter_start from stock_market.signal_feed_identity as i), 0) + 1
    into from_seq;
    to_seq := greatest(
        from_seq - 1,
        (select c.value from stock_market.signal_feed_counter as c order by c.value desc limit 1)) + skip;
    -- The next event gets the number after it.
    if to_seq >= 9007199254740991 then
        raise exception 'cannot skip to %: the numbers stay below 2^53', to_seq using errcode = 'invalid_parameter_value';
    end if;
    update stock_market.signal_feed_counter as c set value = to_seq;
    if not found then
        raise exception 'the counter of the feed has no row'
            using errcode = 'object_not_in_prerequisite_state', hint = 'Run "signal-feed migrate".';
    end if;
    insert into stock_market.signal_feed_skipped (from_seq, to_seq) values (from_seq, to_seq);
    perform stock_market.signal_feed_nothing_lost();
end
$function$;
comment on function stock_market.signal_feed_restored(bigint) is
    'Continues the numbers that far above the counter and records the range, so that cursors from the lost future are recognised';

create or replace function stock_market.signal_feed_touch() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
begin
    if new.updated_at is not distinct from old.updated_at then
        new.updated_at := now();
    end if;
    return new;
exception
    -- The column was dropped or renamed since.
    when undefined_column then
        return new;
end
$function$;
comment on function stock_market.signal_feed_touch() is
    'Sets updated_at of a signal table that migrate made, where an UPDATE leaves it unchanged';

create or replace function stock_market.signal_feed_key_changed() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
begin
    perform pg_notify('signal_feed_key', '');
    return null;
end
$function$;
comment on function stock_market.signal_feed_key_changed() is 'Tells the servers that keys were added, changed or removed';
