-- Owners, rows, the change from the sequence to the counter, grants and triggers. Runs in migrate's
-- transaction, which holds the lock on signal and has just checked the owners again. Safe to run again: migrate repairs with it.

do $owners$
declare
    wanted record;
begin
    for wanted in {wanted}
        select pg_catalog.format('alter %s %I.%I owner to signal_feed_owner',
            case w.kind when 'v' then 'view' else 'table' end, w.schema, w.name) as command
        from wanted_relation as w
        join pg_catalog.pg_class as c on c.oid = pg_catalog.to_regclass(pg_catalog.format('%I.%I', w.schema, w.name))
        -- A sequence follows the table whose column it fills.
        where w.kind <> 'S' and c.relowner <> 'signal_feed_owner'::regrole
    loop
        execute wanted.command;
    end loop;
    for wanted in {wanted} select w.* from wanted_function as w
    loop
        execute pg_catalog.format('alter function stock_market.%s owner to %I', wanted.signature, wanted.owner);
        execute pg_catalog.format('revoke all on function stock_market.%s from public', wanted.signature);
        if wanted.may_execute <> '{}' then
            execute pg_catalog.format('grant execute on function stock_market.%s to %s', wanted.signature,
                pg_catalog.array_to_string(wanted.may_execute, ', '));
        end if;
    end loop;
end
$owners$;

-- Row-level security would hide the feed's rows from its own roles, and a rule would send them elsewhere.
do $plain$
declare
    odd record;
begin
    for odd in
        select c.oid::regclass as tab, r.rulename as rule
        from pg_catalog.pg_class as c left join pg_catalog.pg_rewrite as r on r.ev_class = c.oid
        where c.relnamespace in ('stock_market'::regnamespace, 'signal_feed_private'::regnamespace) and c.relkind = 'r'
            and c.relowner = 'signal_feed_owner'::regrole and pg_catalog.starts_with(c.relname::text, 'signal_feed_')
            and (c.relrowsecurity or c.relforcerowsecurity or r.oid is not null)
    loop
        execute pg_catalog.format('alter table %s disable row level security, no force row level security', odd.tab);
        if odd.rule is not null then
            execute pg_catalog.format('drop rule %I on %s', odd.rule, odd.tab);
        end if;
    end loop;
end
$plain$;

insert into stock_market.signal_feed_identity default values on conflict do nothing;
insert into stock_market.signal_feed_pruned default values on conflict do nothing;
insert into stock_market.signal_feed_choice default values on conflict do nothing;
update stock_market.signal_feed_choice as c set signal_inserted = {choice} where c.signal_inserted <> {choice};
-- 244 strong random bits, hashed: gen_random_bytes would need an extension.
insert into signal_feed_private.signal_feed_session_secret (secret)
    values (pg_catalog.sha256(pg_catalog.uuid_send(pg_catalog.gen_random_uuid())
        || pg_catalog.uuid_send(pg_catalog.gen_random_uuid())))
    on conflict do nothing;

-- Moves from the sequence to the counter. Writers wait meanwhile; no event is renumbered or lost.
do $era$
declare
    era_value bigint := 0;
    hook name;
    numbers regclass;
begin
    for hook in
        select t.tgname from pg_catalog.pg_trigger as t
        where t.tgrelid = 'stock_market.signal'::regclass and t.tgparentid = 0
            and t.tgfoid = pg_catalog.to_regprocedure('stock_market.signal_feed_append()')
    loop
        execute pg_catalog.format('drop trigger %I on stock_market.signal', hook);
    end loop;
    drop function if exists stock_market.signal_feed_append();
    numbers := coalesce(
        pg_catalog.pg_get_serial_sequence('stock_market.signal_feed_event', 'feed_seq'),
        pg_catalog.to_regclass('stock_market.signal_feed_event_feed_seq_seq')::text);
    if numbers is not null then
        execute pg_catalog.format(
            'select case when s.is_called then s.last_value else s.last_value - 1 end from %s as s', numbers)
            into era_value;
        alter table stock_market.signal_feed_event alter column feed_seq drop default;
        alter table stock_market.signal_feed_event alter column event_time drop default;
        alter table stock_market.signal_feed_event alter column signal drop not null;
        execute pg_catalog.format('drop sequence %s', numbers);
    end if;
    if not exists (select from stock_market.signal_feed_counter) then
        insert into stock_market.signal_feed_counter (value)
        select greatest(
            0, era_value,
            (select max(e.feed_seq) from stock_market.signal_feed_event as e),
            (select max(s.to_seq) from stock_market.signal_feed_skipped as s),
            (select max(p.pruned_through) from stock_market.signal_feed_pruned as p),
            (select max(i.counter_start) from stock_market.signal_feed_identity as i));
    end if;
    update stock_market.signal_feed_identity as i
    set counter_start = (select c.value from stock_market.signal_feed_counter as c order by c.value desc limit 1)
    where i.counter_start is null;
    if not exists (select from stock_market.signal_feed_cluster) then
        perform stock_market.signal_feed_nothing_lost();
    end if;
    -- Migrations 1 to 4 did not record it.
    update stock_market.signal_feed_cluster as c
    set database_oid = (select d.oid from pg_catalog.pg_database as d where d.datname = pg_catalog.current_database())
    where c.database_oid is null;
end
$era$;

create index if not exists signal_feed_event_event_time_idx on stock_market.signal_feed_event (event_time);
comment on index stock_market.signal_feed_event_event_time_idx is
    'Finds where the replay window begins, and what a delayed key may see';

do $grants$
declare
    wanted record;
begin
    for wanted in {wanted}
        select pg_catalog.format('grant usage on schema %I to %s', w.schema, pg_catalog.array_to_string(w.roles, ', ')) as command
        from wanted_usage as w
        union all
        select pg_catalog.format('grant %s%s on %s %I.%I to %s', w.privilege,
            case when w.columns = '' then '' else pg_catalog.format(' (%I)', w.columns) end,
            case r.kind when 'S' then 'sequence' else 'table' end, w.schema, w.name,
            pg_catalog.array_to_string(w.roles, ', '))
        from wanted_grant as w join wanted_relation as r on r.schema = w.schema and r.name = w.name
        union all
        select pg_catalog.format('comment on %s %I.%I is %L',
            case w.kind when 'S' then 'sequence' when 'v' then 'view' else 'table' end, w.schema, w.name, w.comment)
        from wanted_relation as w
    loop
        execute wanted.command;
    end loop;
    if not pg_catalog.has_table_privilege('signal_feed_bot', 'stock_market.signal', 'select') then
        grant select on stock_market.signal to signal_feed_bot;
    end if;
end
$grants$;

-- Creates each trigger that is missing or differs from wanted.sql. All are ENABLE ALWAYS, so that they fire under every
-- setting of session_replication_role.
do $triggers$
declare
    wanted record;
    part record;
    tells_inserts boolean;
begin
    select h.signal_inserted = 'on' or h.signal_inserted = 'auto' and not exists (
        select from pg_catalog.pg_trigger as t
        join pg_catalog.pg_proc as p on p.oid = t.tgfoid
        where t.tgrelid = 'stock_market.signal'::regclass and not t.tgisinternal and t.tgenabled <> 'D'
            and p.oid <> 'stock_market.signal_feed_capture()'::regprocedure
            and (p.prosrc like '%signal_inserted%'
                or pg_catalog.encode(t.tgargs, 'escape') like '%signal_inserted%'))
    into strict tells_inserts from stock_market.signal_feed_choice as h;
    for wanted in {wanted}
        select w.*, pg_catalog.format('%I.%I', w.schema, w.tab)::regclass as rel,
            case when w.tab = 'signal' and tells_inserts then '''signal_inserted''' else '' end as arguments,
            -- PostgreSQL allows no constraint trigger on a table with a foreign table as a partition.
            w.deferred or w.tab = 'signal' and not exists (
                select from pg_catalog.pg_partition_tree('stock_market.signal') as r
                join pg_catalog.pg_class as c on c.oid = r.relid where c.relkind = 'f') as is_constraint
        from wanted_trigger as w
    loop
        -- A table that was attached as a partition may have kept a trigger of the same name. PostgreSQL would then
        -- refuse to create the trigger on the parent.
        for part in
            select t.tgrelid::regclass as rel from pg_catalog.pg_trigger as t
            where t.tgname = wanted.name and t.tgparentid = 0 and t.tgrelid <> wanted.rel
                and t.tgrelid in (select r.relid from pg_catalog.pg_partition_tree(wanted.rel) as r)
        loop
            execute pg_catalog.format('drop trigger %I on %s', wanted.name, part.rel);
        end loop;
        if not exists (
            select from pg_catalog.pg_trigger as t
            where t.tgrelid = wanted.rel and t.tgname = wanted.name and t.tgtype = wanted.kind
                and t.tgfoid = pg_catalog.to_regprocedure('stock_market.' || wanted.function || '()')
                and t.tgnargs = (wanted.arguments <> '')::integer and t.tgdeferrable = wanted.deferred
                and t.tginitdeferred = wanted.deferred and t.tgqual is null
                and (t.tgattr::text <> '') = wanted.of_columns)
        then
            execute pg_catalog.format('drop trigger if exists %I on %s', wanted.name, wanted.rel);
            execute pg_catalog.format('create %s trigger %I %s on %s %s for each %s execute function stock_market.%I(%s)',
                case when wanted.is_constraint then 'constraint' else '' end, wanted.name, wanted.events, wanted.rel,
                case when wanted.deferred then 'deferrable initially deferred' else '' end,
                case when wanted.kind & 1 = 1 then 'row' else 'statement' end, wanted.function, wanted.arguments);
        end if;
        execute pg_catalog.format('comment on trigger %I on %s is %L', wanted.name, wanted.rel, wanted.comment);
        for part in
            select t.tgrelid::regclass as rel from pg_catalog.pg_trigger as t
            where t.tgname = wanted.name and t.tgenabled <> 'A'
                and (t.tgrelid = wanted.rel or t.tgrelid in (select r.relid from pg_catalog.pg_partition_tree(wanted.rel) as r))
        loop
            execute pg_catalog.format('alter table %s enable always trigger %I', part.rel, wanted.name);
        end loop;
    end loop;
    -- Only a signal table that migrate created has this trigger.
    if exists (
            select from pg_catalog.pg_class as c join pg_catalog.pg_attribute as a on a.attrelid = c.oid
            where c.oid = 'stock_market.signal'::regclass and c.relowner = 'signal_feed_signal'::regrole
                and a.attname = 'updated_at' and not a.attisdropped)
        and not exists (
            select from pg_catalog.pg_trigger as t
            where t.tgrelid = 'stock_market.signal'::regclass and t.tgname = 'signal_feed_touch')
    then
        create trigger signal_feed_touch before update on stock_market.signal
            for each row execute function stock_market.signal_feed_touch();
        comment on trigger signal_feed_touch on stock_market.signal is
            'Sets updated_at where an UPDATE leaves it unchanged';
    end if;
end
$triggers$;

-- VACUUM would cut free pages off the end of a table under a lock for which a commit waits.
alter table stock_market.signal_feed_event set (vacuum_truncate = false, toast.vacuum_truncate = false);
alter table signal_feed_private.signal_feed_outbox set (toast.vacuum_truncate = false);
alter table signal_feed_private.signal_feed_first set (toast.vacuum_truncate = false);

do $columns$
declare
    wanted record;
begin
    for wanted in
        select w.* from (values
            ('stock_market.signal_feed_migration', 'version', 'The number that the file''s name begins with'),
            ('stock_market.signal_feed_migration', 'name', 'The file''s name without its ending'),
            ('stock_market.signal_feed_migration', 'checksum', 'SHA-256 of the file, in hexadecimal digits'),
            ('stock_market.signal_feed_migration', 'applied_at', 'When it was applied'),
            ('stock_market.signal_feed_identity', 'single', 'Always true: there is one row'),
            ('stock_market.signal_feed_identity', 'feed_id', 'The log''s identity, made by the first migrate'),
            ('stock_market.signal_feed_identity', 'counter_start',
                'Where the counter began: up to this number the log may have holes, which are history'),
            ('stock_market.signal_feed_counter', 'value', 'The last feed_seq allocated'),
            ('stock_market.signal_feed_pruned', 'single', 'Always true: there is one row'),
            ('stock_market.signal_feed_pruned', 'pruned_through',
                'The highest feed_seq that prune has removed (0: none); rows up to it count as gone'),
            ('stock_market.signal_feed_skipped', 'from_seq', 'The first number skipped'),
            ('stock_market.signal_feed_skipped', 'to_seq', 'The last number skipped'),
            ('stock_market.signal_feed_skipped', 'skipped_at', 'When'),
            ('stock_market.signal_feed_cluster', 'single', 'Always true: there is one row'),
            ('stock_market.signal_feed_cluster', 'system_identifier', 'The cluster''s system identifier, as digits'),
            ('stock_market.signal_feed_cluster', 'timeline', 'Its timeline'),
            ('stock_market.signal_feed_cluster', 'database_oid', 'The OID of this database: a dump restored beside it has another'),
            ('stock_market.signal_feed_choice', 'single', 'Always true: there is one row'),
            ('stock_market.signal_feed_choice', 'signal_inserted',
                'Whether an INSERT also notifies the channel signal_inserted; auto: unless another trigger does'),
            ('stock_market.signal_feed_api_key', 'id', 'Names the key in session cookies'),
            ('stock_market.signal_feed_api_key', 'name', 'Whose key it is; during a rotation two keys have it'),
            ('stock_market.signal_feed_api_key', 'key_sha256', 'SHA-256 of the key''s text'),
            ('stock_market.signal_feed_api_key', 'created_at', 'When it was minted'),
            ('stock_market.signal_feed_api_key', 'expires_at', 'When it expires (NULL: never)'),
            ('stock_market.signal_feed_api_key', 'revoked_at', 'When it was revoked (NULL: it was not)'),
            ('stock_market.signal_feed_api_key', 'delay', 'How much later this key receives events (0: at once)'),
            ('stock_market.signal_feed_api_key', 'last_used_at', 'When the server last saw it, roughly'),
            ('stock_market.signal_feed_quarantine', 'feed_seq', 'The event''s number'),
            ('stock_market.signal_feed_quarantine', 'error', 'What is wrong with it'),
            ('stock_market.signal_feed_quarantine', 'quarantined_at', 'When the server found it'),
            ('stock_market.signal_feed_quarantine', 'settled_at',
                'When an operator marked it as dealt with (NULL: not yet); consumers still get the notice'),
            ('stock_market.signal_feed_event', 'feed_seq', 'The event''s number; a reader that sees it sees every lower one'),
            ('stock_market.signal_feed_event', 'event_time', 'When it was numbered, at commit'),
            ('stock_market.signal_feed_event', 'op', 'INSERT or UPDATE'),
            ('stock_market.signal_feed_event', 'signal', 'The whole row as it was; NULL where it could not become jsonb'),
            ('signal_feed_private.signal_feed_session_secret', 'single', 'Always true: there is one row'),
            ('signal_feed_private.signal_feed_session_secret', 'secret', '32 random bytes that only the server can read'),
            ('signal_feed_private.signal_feed_lock', 'nothing', 'Nothing: only the lock on the view is of use'),
            ('signal_feed_private.signal_feed_outbox', 'round', 'The round of the transaction''s first event'),
            ('signal_feed_private.signal_feed_outbox', 'seq', 'The order of the writes within it'),
            ('signal_feed_private.signal_feed_outbox', 'op', 'INSERT or UPDATE'),
            ('signal_feed_private.signal_feed_outbox', 'signal', 'The whole row as it was; NULL where it cannot become jsonb'),
            ('signal_feed_private.signal_feed_first', 'xact', 'The transaction'),
            ('signal_feed_private.signal_feed_first', 'round',
                'Its number in the order of the writes, from the outbox''s sequence; rows of the outbox that go with it have it too'),
            ('signal_feed_private.signal_feed_first', 'put_off',
                'SET CONSTRAINTS has already tried to number this round before the commit'),
            ('signal_feed_private.signal_feed_first', 'op', 'INSERT or UPDATE'),
            ('signal_feed_private.signal_feed_first', 'signal', 'The whole row as it was; NULL where it cannot become jsonb')
        ) as w (tab, name, comment)
    loop
        execute pg_catalog.format('comment on column %s.%I is %L', wanted.tab, wanted.name, wanted.comment);
    end loop;
end
$columns$;

revoke create on schema stock_market from signal_feed_capture, signal_feed_render, signal_feed_signal;
