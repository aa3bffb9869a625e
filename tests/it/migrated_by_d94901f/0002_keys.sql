-- API keys, the secret of session cookies, and the events that cannot be delivered.

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
comment on table stock_market.signal_feed_api_key is 'Who may read the feed. The keys themselves are nowhere';
comment on column stock_market.signal_feed_api_key.id is 'Names the key in session cookies';
comment on column stock_market.signal_feed_api_key.name is 'Whose key it is; both lives of a rotated key have it';
comment on column stock_market.signal_feed_api_key.key_sha256 is 'SHA-256 of the key''s text';
comment on column stock_market.signal_feed_api_key.created_at is 'When it was minted';
comment on column stock_market.signal_feed_api_key.expires_at is 'From when it is refused (NULL: never)';
comment on column stock_market.signal_feed_api_key.revoked_at is 'When it was revoked (NULL: it was not)';
comment on column stock_market.signal_feed_api_key.delay is 'How far in the past this key lives (0: now)';
comment on column stock_market.signal_feed_api_key.last_used_at is 'When the server last saw it, roughly';

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

drop trigger if exists signal_feed_key_changed on stock_market.signal_feed_api_key;
-- Not an update of last_used_at alone: that is the server's own.
create trigger signal_feed_key_changed
    after insert or delete or truncate
        or update of id, name, key_sha256, created_at, expires_at, revoked_at, delay
    on stock_market.signal_feed_api_key
    for each statement execute function stock_market.signal_feed_key_changed();
alter table stock_market.signal_feed_api_key enable always trigger signal_feed_key_changed;
comment on trigger signal_feed_key_changed on stock_market.signal_feed_api_key is
    'Notifies channel signal_feed_key, so that a key counts at once';

create table if not exists stock_market.signal_feed_session_secret (
    single boolean default true constraint signal_feed_session_secret_pkey primary key
        constraint signal_feed_session_secret_single check (single),
    secret bytea not null
        constraint signal_feed_session_secret_length check (pg_catalog.octet_length(secret) = 32)
);
comment on table stock_market.signal_feed_session_secret is 'One row: what session cookies are signed with';
comment on column stock_market.signal_feed_session_secret.single is 'Always true: there is one row';
comment on column stock_market.signal_feed_session_secret.secret is '32 random bytes that only the server can read';
-- 244 strong random bits, hashed: gen_random_bytes would need an extension.
insert into stock_market.signal_feed_session_secret (secret)
    values (pg_catalog.sha256(pg_catalog.uuid_send(pg_catalog.gen_random_uuid())
        || pg_catalog.uuid_send(pg_catalog.gen_random_uuid())))
    on conflict do nothing;

create table if not exists stock_market.signal_feed_quarantine (
    feed_seq bigint constraint signal_feed_quarantine_pkey primary key,
    error text not null,
    quarantined_at timestamptz not null default pg_catalog.clock_timestamp()
);
comment on table stock_market.signal_feed_quarantine is 'Events that cannot be delivered to anybody, and why';
comment on column stock_market.signal_feed_quarantine.feed_seq is 'The event''s number';
comment on column stock_market.signal_feed_quarantine.error is 'What is wrong with it';
comment on column stock_market.signal_feed_quarantine.quarantined_at is 'When that was found';

do $owners$
declare
    orphan name;
begin
    for orphan in
        select c.relname from pg_catalog.pg_class as c
        where c.relnamespace = 'stock_market'::regnamespace and c.relowner <> 'signal_feed_owner'::regrole
            and c.relname in ('signal_feed_api_key', 'signal_feed_session_secret', 'signal_feed_quarantine')
    loop
        execute pg_catalog.format('alter table stock_market.%I owner to signal_feed_owner', orphan);
    end loop;
end
$owners$;
alter function stock_market.signal_feed_key_changed() owner to signal_feed_owner;
revoke all on function stock_market.signal_feed_key_changed() from public;

grant select, update (last_used_at) on stock_market.signal_feed_api_key to signal_feed_server;
-- UPDATE also lets it lock the table while it looks whether a name is taken.
grant select, insert, update on stock_market.signal_feed_api_key to signal_feed_admin;
grant select on stock_market.signal_feed_session_secret to signal_feed_server;
grant select, insert on stock_market.signal_feed_quarantine to signal_feed_server;
grant select on stock_market.signal_feed_quarantine to signal_feed_admin;
