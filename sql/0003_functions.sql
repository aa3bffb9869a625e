-- The functions: capture at once, number at commit; immutability; prune; what `restored` and the server need.
--
-- Each belongs to the role that can do what the function does and nothing else. None can be hung on a stranger's table:
-- EXECUTE is taken from PUBLIC. Every name in them is found in pg_catalog or is written with its schema.

-- Its owner has no rights at all, for a column's type can have a cast to json, which is then the writer's own code.
create or replace function stock_market.signal_feed_render(signal_row record) returns jsonb
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
    return to_jsonb(signal_row);
exception
    when others then
        -- No row's content makes a write fail: this one is logged without its content.
        return null;
end
$function$;
comment on function stock_market.signal_feed_render(record) is
    'A row as jsonb; NULL where it cannot become that (a json column with \u0000)';

create or replace function stock_market.signal_feed_capture() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set enable_seqscan = off
set timezone = 'UTC'
set datestyle = 'ISO'
set intervalstyle = 'postgres'
set extra_float_digits = 1
set bytea_output = 'hex'
as $function$
declare
    image jsonb := stock_market.signal_feed_render(new);
    earlier jsonb;
    told text;
begin
    if tg_op = 'UPDATE' then
        earlier := stock_market.signal_feed_render(old);
        -- As text: jsonb finds 1.0 and 1.00 equal. Two rows that both cannot be rendered differ unless they are the same bytes.
        if (image - 'updated_at')::text is not distinct from (earlier - 'updated_at')::text
            and (image is not null or new operator(pg_catalog.*=) old)
        then
            return null;
        end if;
    end if;
    insert into stock_market.signal_feed_outbox (xact, op, signal)
    select pg_current_xact_id(), tg_op, image
    where exists (select from stock_market.signal_feed_first as f where f.xact = pg_current_xact_id());
    if not found then
        insert into stock_market.signal_feed_first (xact, op, signal) values (pg_current_xact_id(), tg_op, image);
    end if;
    if tg_nargs > 0 and tg_op = 'INSERT' then
        -- Notified in an expression and not in a query: that is cheaper.
        told := image::text;
        -- PostgreSQL takes payloads of less than 8000 bytes.
        if told is null or octet_length(told) > 7999 then
            told := jsonb_build_object('oversize', true)::text;
            if image ? 'id' then
                told := jsonb_build_object('id', image -> 'id', 'oversize', true)::text;
                if octet_length(told) > 7999 then
                    told := jsonb_build_object('oversize', true)::text;
                end if;
            end if;
        end if;
        if pg_notify('signal_inserted', told) is null then null; end if;
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
        set constraints stock_market.signal_feed_gather, stock_market.signal_feed_number deferred;
        update stock_market.signal_feed_first as f set seq = f.seq where f.xact = new.xact;
    else
        update stock_market.signal_feed_first as f set armed = true where f.xact = new.xact;
    end if;
    return null;
end
$function$;
comment on function stock_market.signal_feed_gather() is
    'Fires among the deferred constraints of the transaction''s statements, and lets signal_feed_number fire after all of them';

create or replace function stock_market.signal_feed_number() returns trigger
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
set enable_seqscan = off
as $function$
declare
    kind text;
    image jsonb;
    more bigint;
    last bigint;
    moment timestamptz;
begin
    if pg_trigger_depth() > 1 then
        set constraints stock_market.signal_feed_gather, stock_market.signal_feed_number deferred;
        update stock_market.signal_feed_first as f set armed = true where f.xact = new.xact;
        return null;
    end if;
    delete from stock_market.signal_feed_first as f where f.xact = new.xact returning f.op, f.signal into kind, image;
    if not found then
        -- An earlier firing has numbered everything.
        return null;
    end if;
    -- A fair queue. Held until the transaction has committed, so numbers become visible in their order.
    lock table stock_market.signal_feed_lock in exclusive mode;
    moment := clock_timestamp();
    -- A number that was delivered must survive a crash, or it would be given to another event.
    if current_setting('synchronous_commit') in ('off', 'local') then
        perform set_config('synchronous_commit', 'on', true);
    end if;
    update stock_market.signal_feed_counter as c set value = c.value + 1 + n.rows
    from (select count(*) as rows from stock_market.signal_feed_outbox as o where o.xact = new.xact) as n
    where c.value = (select l.value from stock_market.signal_feed_counter as l order by l.value desc limit 1)
    returning c.value, n.rows into last, more;
    if last is null then
        raise exception 'the counter of the feed has no row: refused, or this event would be lost'
            using errcode = 'object_not_in_prerequisite_state',
                hint = 'Run "signal-feed migrate".';
    end if;
    insert into stock_market.signal_feed_event (feed_seq, event_time, op, signal)
    values (last - more, moment, kind, image);
    if more > 0 then
        insert into stock_market.signal_feed_event (feed_seq, event_time, op, signal)
        select last - more + row_number() over (order by o.seq), moment, o.op, o.signal
        from stock_market.signal_feed_outbox as o where o.xact = new.xact;
        delete from stock_market.signal_feed_outbox as o where o.xact = new.xact;
    end if;
    if pg_notify('signal_feed', last::text) is null then null; end if;
    return null;
end
$function$;
comment on function stock_market.signal_feed_number() is
    'At the end of a transaction: moves its events to the log under the feed''s lock, and notifies channel signal_feed once';

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

-- PostgreSQL hides it from all but members of pg_read_all_stats, which the owner is and the server need not be.
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
alter function stock_market.signal_feed_wal_receiver() owner to signal_feed_owner;
revoke all on function stock_market.signal_feed_wal_receiver() from public;
grant execute on function stock_market.signal_feed_wal_receiver() to signal_feed_server, signal_feed_admin;

create or replace function stock_market.signal_feed_nothing_lost() returns void
language plpgsql security definer
set search_path = pg_catalog, pg_temp
as $function$
begin
    insert into stock_market.signal_feed_cluster (system_identifier, timeline)
    select n.system_identifier, n.timeline from stock_market.signal_feed_cluster_now() as n
    on conflict on constraint signal_feed_cluster_pkey
    do update set system_identifier = excluded.system_identifier, timeline = excluded.timeline;
end
$function$;
comment on function stock_market.signal_feed_nothing_lost() is
    'Records the present cluster and timeline as the ones the log lives on';

create or replace function stock_market.signal_feed_restored(skip bigint, out from_seq bigint, out to_seq bigint)
language plpgsql security definer
set search_path = pg_catalog, pg_temp
set jit = off
as $function$
begin
    if skip is null or skip < 1 then
        raise exception 'cannot skip % numbers', skip using errcode = 'invalid_parameter_value';
    end if;
    lock table stock_market.signal_feed_lock in exclusive mode;
    perform set_config('synchronous_commit', 'on', true)
        where current_setting('synchronous_commit') in ('off', 'local');
    select greatest(
        (select c.value from stock_market.signal_feed_counter as c order by c.value desc limit 1),
        (select max(e.feed_seq) from stock_market.signal_feed_event as e),
        (select p.pruned_through from stock_market.signal_feed_pruned as p)) + 1
    into from_seq;
    to_seq := from_seq + (skip - 1);
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
    'Lets the numbers go on that far above the counter and records the range, so that cursors from a lost future are known as such';

create or replace function stock_market.signal_feed_touch() returns trigger
language plpgsql
set search_path = pg_catalog, pg_temp
as $function$
begin
    if new.updated_at is not distinct from old.updated_at then
        new.updated_at := now();
    end if;
    return new;
end
$function$;
comment on function stock_market.signal_feed_touch() is
    'Sets updated_at of a signal table that migrate made, where an UPDATE leaves it alone';

alter function stock_market.signal_feed_render(record) owner to signal_feed_render;
alter function stock_market.signal_feed_capture() owner to signal_feed_capture;
alter function stock_market.signal_feed_gather() owner to signal_feed_owner;
alter function stock_market.signal_feed_number() owner to signal_feed_owner;
alter function stock_market.signal_feed_refuse() owner to signal_feed_owner;
alter function stock_market.signal_feed_prune_to(bigint) owner to signal_feed_owner;
alter function stock_market.signal_feed_cluster_now() owner to signal_feed_owner;
alter function stock_market.signal_feed_nothing_lost() owner to signal_feed_owner;
alter function stock_market.signal_feed_restored(bigint) owner to signal_feed_owner;
alter function stock_market.signal_feed_touch() owner to signal_feed_owner;

revoke all on function
    stock_market.signal_feed_render(record), stock_market.signal_feed_capture(), stock_market.signal_feed_gather(),
    stock_market.signal_feed_number(), stock_market.signal_feed_refuse(), stock_market.signal_feed_prune_to(bigint),
    stock_market.signal_feed_cluster_now(), stock_market.signal_feed_nothing_lost(),
    stock_market.signal_feed_restored(bigint), stock_market.signal_feed_touch()
    from public;
grant execute on function stock_market.signal_feed_render(record) to signal_feed_capture;
grant execute on function stock_market.signal_feed_cluster_now() to signal_feed_server, signal_feed_admin;
grant execute on function stock_market.signal_feed_prune_to(bigint), stock_market.signal_feed_nothing_lost(),
    stock_market.signal_feed_restored(bigint) to signal_feed_admin;
