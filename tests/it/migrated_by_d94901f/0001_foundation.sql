-- The schema, and the feed's own small tables: all but the log and what hangs on `signal`, which change hands together
-- in 0004. Like every file here it may run again: that is how migrate puts things right.

do $schema$
begin
    if not exists (select from pg_catalog.pg_namespace as n where n.nspname = 'stock_market') then
        create schema stock_market authorization signal_feed_owner;
        comment on schema stock_market is 'Trading signals, and the feed that streams them';
    end if;
end
$schema$;

-- To be given an object a role must be able to create in its schema; 0004 takes it back from those that need it no more.
grant usage, create on schema stock_market to signal_feed_owner, signal_feed_capture, signal_feed_render;
grant usage on schema stock_market to signal_feed_server, signal_feed_admin, signal_feed_bot;

create table if not exists stock_market.signal_feed_migration (
    version integer constraint signal_feed_migration_pkey primary key,
    name text not null,
    checksum text not null,
    applied_at timestamptz not null default pg_catalog.clock_timestamp()
);
comment on table stock_market.signal_feed_migration is 'Which of the numbered schema files were applied';
comment on column stock_market.signal_feed_migration.version is 'The number that the file''s name begins with';
comment on column stock_market.signal_feed_migration.name is 'The file''s name without its ending';
comment on column stock_market.signal_feed_migration.checksum is 'SHA-256 of the file, in hexadecimal digits';
comment on column stock_market.signal_feed_migration.applied_at is 'When it was applied';

create table if not exists stock_market.signal_feed_identity (
    single boolean default true constraint signal_feed_identity_pkey primary key
        constraint signal_feed_identity_single check (single),
    feed_id uuid not null default pg_catalog.gen_random_uuid(),
    counter_start bigint
);
comment on table stock_market.signal_feed_identity is 'One row: which log this is';
comment on column stock_market.signal_feed_identity.single is 'Always true: there is one row';
comment on column stock_market.signal_feed_identity.feed_id is 'The log''s identity, made by the first migrate';
comment on column stock_market.signal_feed_identity.counter_start is
    'Where the counter began: up to this number the log may have holes, which are history';
insert into stock_market.signal_feed_identity default values on conflict do nothing;

-- Its newest version is found from the end of the index on value: an UPDATE of a row found in any other way would walk
-- all the versions that an old snapshot keeps.
create table if not exists stock_market.signal_feed_counter (
    value bigint constraint signal_feed_counter_pkey primary key
) with (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000000, vacuum_truncate = false
);
comment on table stock_market.signal_feed_counter is 'One row: the last feed_seq given to an event';
comment on column stock_market.signal_feed_counter.value is 'The last feed_seq allocated';

create table if not exists stock_market.signal_feed_pruned (
    single boolean default true constraint signal_feed_pruned_pkey primary key
        constraint signal_feed_pruned_single check (single),
    pruned_through bigint not null default 0
);
comment on table stock_market.signal_feed_pruned is 'One row: up to where the log was pruned';
comment on column stock_market.signal_feed_pruned.single is 'Always true: there is one row';
comment on column stock_market.signal_feed_pruned.pruned_through is
    'The highest feed_seq that prune has removed (0: none); rows up to it count as gone';
insert into stock_market.signal_feed_pruned default values on conflict do nothing;

create table if not exists stock_market.signal_feed_skipped (
    from_seq bigint constraint signal_feed_skipped_pkey primary key,
    to_seq bigint not null,
    skipped_at timestamptz not null default pg_catalog.clock_timestamp(),
    constraint signal_feed_skipped_range check (from_seq <= to_seq)
);
comment on table stock_market.signal_feed_skipped is
    'Numbers that will never be given, because a future that was lost may have used them (signal-feed restored)';
comment on column stock_market.signal_feed_skipped.from_seq is 'The first number skipped';
comment on column stock_market.signal_feed_skipped.to_seq is 'The last number skipped';
comment on column stock_market.signal_feed_skipped.skipped_at is 'When';

create table if not exists stock_market.signal_feed_cluster (
    single boolean default true constraint signal_feed_cluster_pkey primary key
        constraint signal_feed_cluster_single check (single),
    system_identifier text,
    timeline integer
);
comment on table stock_market.signal_feed_cluster is
    'One row: the PostgreSQL cluster and the timeline that the log is known to live on; others mean a restore or a failover';
comment on column stock_market.signal_feed_cluster.single is 'Always true: there is one row';
comment on column stock_market.signal_feed_cluster.system_identifier is 'The cluster''s system identifier, as digits';
comment on column stock_market.signal_feed_cluster.timeline is 'Its timeline';

create table if not exists stock_market.signal_feed_choice (
    single boolean default true constraint signal_feed_choice_pkey primary key
        constraint signal_feed_choice_single check (single),
    signal_inserted text not null default 'auto'
        constraint signal_feed_choice_signal_inserted check (signal_inserted in ('auto', 'on', 'off'))
);
comment on table stock_market.signal_feed_choice is 'One row: what the operator chose';
comment on column stock_market.signal_feed_choice.single is 'Always true: there is one row';
comment on column stock_market.signal_feed_choice.signal_inserted is
    'Whether an INSERT also notifies the channel signal_inserted; auto: unless another trigger does';
insert into stock_market.signal_feed_choice default values on conflict do nothing;

-- An advisory lock could be held by any stranger who can connect, and every commit would hang.
create table if not exists stock_market.signal_feed_lock (
    single boolean constraint signal_feed_lock_pkey primary key
);
comment on table stock_market.signal_feed_lock is
    'Always empty. The transaction that numbers its events holds a lock on it until it has committed';
comment on column stock_market.signal_feed_lock.single is 'Nothing: there are no rows';

create unlogged table if not exists stock_market.signal_feed_outbox (
    round bigint,
    seq bigint generated by default as identity (cache 1000),
    op text not null,
    signal jsonb,
    constraint signal_feed_outbox_pkey primary key (round, seq)
) with (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000000, vacuum_truncate = false
);
comment on table stock_market.signal_feed_outbox is
    'Events of transactions that are still open, but for the first of each. A commit moves them to the log; nothing committed is ever left here';
comment on column stock_market.signal_feed_outbox.round is 'What the transaction''s first event has as its round';
comment on column stock_market.signal_feed_outbox.seq is 'The order of the writes within it';
comment on column stock_market.signal_feed_outbox.op is 'INSERT or UPDATE';
comment on column stock_market.signal_feed_outbox.signal is 'The whole row as it was; NULL where it cannot become jsonb';

-- A table of its own, because its deferred triggers do a transaction's work at commit: they fire once and not once an
-- event. Most transactions write one signal, and need nothing else than this row.
create unlogged table if not exists stock_market.signal_feed_first (
    xact xid8 constraint signal_feed_first_pkey primary key,
    round bigint not null default pg_catalog.nextval('stock_market.signal_feed_outbox_seq_seq'),
    put_off boolean not null default false,
    op text not null,
    signal jsonb
) with (
    autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000,
    autovacuum_analyze_scale_factor = 0, autovacuum_analyze_threshold = 1000000000, vacuum_truncate = false
);
comment on table stock_market.signal_feed_first is
    'The first event of each transaction that is still open. Its deferred triggers take it away at commit, and number it with the others of its round';
comment on column stock_market.signal_feed_first.xact is 'The transaction';
comment on column stock_market.signal_feed_first.round is
    'Its number in the order of the writes, from the outbox''s sequence; the outbox''s rows that go with it have it too';
comment on column stock_market.signal_feed_first.put_off is
    'SET CONSTRAINTS has already tried to number this round before the commit';
comment on column stock_market.signal_feed_first.op is 'INSERT or UPDATE';
comment on column stock_market.signal_feed_first.signal is 'The whole row as it was; NULL where it cannot become jsonb';

do $owners$
declare
    orphan name;
begin
    for orphan in
        select c.relname from pg_catalog.pg_class as c
        where c.relnamespace = 'stock_market'::regnamespace and c.relowner <> 'signal_feed_owner'::regrole
            and c.relname in ('signal_feed_migration', 'signal_feed_identity', 'signal_feed_counter',
                'signal_feed_pruned', 'signal_feed_skipped', 'signal_feed_cluster', 'signal_feed_choice',
                'signal_feed_lock', 'signal_feed_outbox', 'signal_feed_first')
    loop
        execute pg_catalog.format('alter table stock_market.%I owner to signal_feed_owner', orphan);
    end loop;
end
$owners$;

grant select on stock_market.signal_feed_migration, stock_market.signal_feed_choice
    to signal_feed_server, signal_feed_admin;
grant select on stock_market.signal_feed_cluster to signal_feed_server, signal_feed_admin;
grant select on stock_market.signal_feed_identity, stock_market.signal_feed_counter, stock_market.signal_feed_pruned,
    stock_market.signal_feed_skipped to signal_feed_server, signal_feed_admin, signal_feed_bot;
-- To see that nothing committed is left there.
grant select on stock_market.signal_feed_outbox, stock_market.signal_feed_first to signal_feed_server, signal_feed_admin;
-- To see whether it can be had, and who holds it.
grant select on stock_market.signal_feed_lock to signal_feed_admin;
grant insert on stock_market.signal_feed_outbox to signal_feed_capture;
grant insert, select (xact, round) on stock_market.signal_feed_first to signal_feed_capture;
grant usage on sequence stock_market.signal_feed_outbox_seq_seq to signal_feed_capture;
