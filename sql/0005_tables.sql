-- Schemas and tables. It makes what is missing, and moves an installation of the migrations 1 to 4 over.
--
-- Only definitions: nothing here reads, writes or runs what somebody else may have left in the schema. migrate checks
-- every object of the feed's names before this file and once more after it. It may run again: that repairs.

do $schemas$
begin
    if not exists (select from pg_catalog.pg_namespace as n where n.nspname = 'stock_market') then
        create schema stock_market authorization signal_feed_owner;
        comment on schema stock_market is 'Trading signals, and the feed that streams them';
    end if;
    if not exists (select from pg_catalog.pg_namespace as n where n.nspname = 'signal_feed_private') then
        create schema signal_feed_private authorization signal_feed_owner;
        comment on schema signal_feed_private is 'What only the feed''s own roles may name, so nobody else can lock it';
    elsif (select n.nspowner from pg_catalog.pg_namespace as n where n.nspname = 'signal_feed_private')
        <> 'signal_feed_owner'::regrole
    then
        -- From a dump that was restored without owners.
        alter schema signal_feed_private owner to signal_feed_owner;
    end if;
end
$schemas$;

-- A role must be able to create in a schema to be given an object there. install.sql takes this back.
grant usage, create on schema stock_market
    to signal_feed_owner, signal_feed_capture, signal_feed_render, signal_feed_signal;

-- From the migrations 1 to 4: the same tables in the private schema. The lock was a table there, and ANALYZE, VACUUM and
-- REINDEX CONCURRENTLY take the same kind of lock on a table as a commit did.
do $move$
declare
    moved text;
begin
    foreach moved in array array['signal_feed_outbox', 'signal_feed_first', 'signal_feed_session_secret'] loop
        if pg_catalog.to_regclass('stock_market.' || moved) is not null then
            execute pg_catalog.format('alter table stock_market.%I set schema signal_feed_private', moved);
        end if;
    end loop;
    if pg_catalog.to_regclass('stock_market.signal_feed_lock') is not null then
        drop table stock_market.signal_feed_lock;
    end if;
    if pg_catalog.to_regclass('signal_feed_private.signal_feed_lock') is null then
        create view signal_feed_private.signal_feed_lock as select false as nothing;
    end if;
end
$move$;

create table if not exists stock_market.signal_feed_migration (
    version integer constraint signal_feed_migration_pkey primary key,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default pg_catalog.clock_timestamp()
);

create table if not exists stock_market.signal_feed_identity (
    single boolean default true constraint signal_feed_identity_pkey primary key
        constraint signal_feed_identity_single check (single),
    feed_id uuid not null default pg_catalog.gen_random_uuid(),
    counter_start bigint
);

-- A commit finds the newest version of the row from the end of the index on value. An UPDATE that finds the row in any
-- other way would read all the old versions that an old snapshot keeps.
create table if not exists stock_market.signal_feed_counter (
    value bigint constraint signal_feed_counter_pkey primary key
) with (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000000, vacuum_truncate = false
);

create table if not exists stock_market.signal_feed_pruned (
    single boolean default true constraint signal_feed_pruned_pkey primary key
        constraint signal_feed_pruned_single check (single),
    pruned_through bigint not null default 0
);

create table if not exists stock_market.signal_feed_skipped (
    from_seq bigint constraint signal_feed_skipped_pkey primary key,
    to_seq bigint not null,
    skipped_at timestamptz not null default pg_catalog.clock_timestamp(),
    constraint signal_feed_skipped_range check (from_seq <= to_seq)
);

create table if not exists stock_market.signal_feed_cluster (
    single boolean default true constraint signal_feed_cluster_pkey primary key
        constraint signal_feed_cluster_single check (single),
    system_identifier text,
    timeline integer
);
alter table stock_market.signal_feed_cluster add column if not exists database_oid oid;

create table if not exists stock_market.signal_feed_choice (
    single boolean default true constraint signal_feed_choice_pkey primary key
        constraint signal_feed_choice_single check (single),
    signal_inserted text not null default 'auto'
        constraint signal_feed_choice_signal_inserted check (signal_inserted in ('auto', 'on', 'off'))
);

create table if not exists stock_market.signal_feed_api_key (
    id bigint generated always as identity constraint signal_feed_api_key_pkey primary key,
    name text not null,
    key_sha256 bytea not null constraint signal_feed_api_key_key_sha256_key unique
        constraint signal_feed_api_key_key_sha256_length check (pg_catalog.octet_length(key_sha256) = 32),
    created_at timestamptz not null default pg_catalog.clock_timestamp(),
    expires_at timestamptz,
    revoked_at timestamptz,
    delay interval not null default '0'
        constraint signal_feed_api_key_delay check (delay >= interval '0'),
    last_used_at timestamptz
);

create table if not exists stock_market.signal_feed_quarantine (
    feed_seq bigint constraint signal_feed_quarantine_pkey primary key,
    error text not null,
    quarantined_at timestamptz not null default pg_catalog.clock_timestamp()
);
alter table stock_market.signal_feed_quarantine add column if not exists settled_at timestamptz;

create table if not exists stock_market.signal_feed_event (
    feed_seq bigint constraint signal_feed_event_pkey primary key,
    event_time timestamptz not null,
    op text not null,
    signal jsonb
);

create table if not exists signal_feed_private.signal_feed_session_secret (
    single boolean default true constraint signal_feed_session_secret_pkey primary key
        constraint signal_feed_session_secret_single check (single),
    secret bytea not null
        constraint signal_feed_session_secret_length check (pg_catalog.octet_length(secret) = 32)
);

create unlogged table if not exists signal_feed_private.signal_feed_outbox (
    round bigint,
    seq bigint generated by default as identity (cache 1000),
    op text not null,
    signal jsonb,
    constraint signal_feed_outbox_pkey primary key (round, seq)
) with (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000000, vacuum_truncate = false
);

-- A table of its own, because its deferred triggers do a transaction's work at commit: they fire once a transaction and
-- not once an event. Most transactions write one signal and need only this row.
create unlogged table if not exists signal_feed_private.signal_feed_first (
    xact xid8 constraint signal_feed_first_pkey primary key,
    round bigint not null default pg_catalog.nextval('signal_feed_private.signal_feed_outbox_seq_seq'),
    put_off boolean not null default false,
    op text not null,
    signal jsonb
) with (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000000, vacuum_truncate = false
);

do $signal$
begin
    if pg_catalog.to_regclass('stock_market.signal') is null then
        create table stock_market.signal (
            id bigint generated by default as identity constraint signal_pkey primary key,
            symbol text not null,
            action text not null constraint signal_action_check check (action in ('entry', 'exit')),
            side text not null constraint signal_side_check check (side in ('BUY', 'SELL')),
            quantity numeric,
            price numeric,
            strategy text,
            status text not null default 'new',
            meta jsonb not null default '{}',
            created_at timestamptz not null default pg_catalog.now(),
            updated_at timestamptz not null default pg_catalog.now()
        );
        comment on table stock_market.signal is 'The screener''s trading signals, as they now are';
        comment on column stock_market.signal.id is 'Identity of the signal';
        comment on column stock_market.signal.symbol is 'What to trade';
        comment on column stock_market.signal.action is 'entry or exit';
        comment on column stock_market.signal.side is 'BUY or SELL';
        comment on column stock_market.signal.quantity is 'How much';
        comment on column stock_market.signal.price is 'At what price';
        comment on column stock_market.signal.strategy is 'Which strategy made it';
        comment on column stock_market.signal.status is 'For the screener''s own use';
        comment on column stock_market.signal.meta is 'Anything else the screener wants to say';
        comment on column stock_market.signal.created_at is 'When it was made';
        comment on column stock_market.signal.updated_at is 'When it was last changed; a change of this column alone is no event';
        -- The owner of signal_feed_touch() is signal_feed_owner; install.sql hangs the trigger on signal.
        alter table stock_market.signal owner to signal_feed_signal;
    elsif (select c.relowner from pg_catalog.pg_class as c where c.oid = 'stock_market.signal'::regclass)
        = 'signal_feed_owner'::regrole
    then
        -- PostgreSQL checks a foreign key as the owner of the table that it refers to. That must not be the log's owner.
        alter table stock_market.signal owner to signal_feed_signal;
    end if;
end
$signal$;
