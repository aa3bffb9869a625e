-- The faults of an installation, one line each: migrate repairs them, doctor reports them.
-- $1: the text of functions.sql. Reads the catalog alone, and takes no lock.
{wanted}, relation as (
    select w.*, c.oid, c.relowner, c.relacl, c.relrowsecurity or c.relforcerowsecurity as has_rls,
        pg_catalog.format('%I.%I', w.schema, w.name) as full_name
    from wanted_relation as w
    left join pg_catalog.pg_namespace as n on n.nspname = w.schema
    left join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = w.name and c.relkind = w.kind::"char"
), granted (oid, grantee, privilege, columns) as (
    select r.oid, a.grantee, a.privilege_type, '' from relation as r cross join lateral pg_catalog.aclexplode(r.relacl) as a
    where a.grantee <> r.relowner
    union all
    select r.oid, a.grantee, a.privilege_type, t.attname::text from relation as r
    join pg_catalog.pg_attribute as t on t.attrelid = r.oid
    cross join lateral pg_catalog.aclexplode(t.attacl) as a
    where a.grantee <> r.relowner
), shipped as (
    -- Each function as functions.sql has it: the lines before the body, and the body.
    select w.*, pg_catalog.split_part(f.text, '$function$', 1) as head, pg_catalog.split_part(f.text, '$function$', 2) as body
    from wanted_function as w cross join lateral (
        select pg_catalog.split_part($1::text, pg_catalog.format('create or replace function stock_market.%s(',
            pg_catalog.split_part(w.signature, '(', 1)), 2) as text) as f
), function as (
    select s.*, p.prosrc, p.prosecdef, p.proacl, p.proowner, coalesce(p.proconfig, '{}') as config,
        pg_catalog.format('the function stock_market.%s', s.signature) as name
    from shipped as s
    left join pg_catalog.pg_namespace as n on n.nspname = 'stock_market'
    left join pg_catalog.pg_proc as p on p.pronamespace = n.oid
        and pg_catalog.format('%s(%s)', p.proname, pg_catalog.oidvectortypes(p.proargtypes)) = s.signature
), fault ("check", text, capture_was_off) as (
    select 'owners', pg_catalog.format('the role %s is missing', w.role), false
    from wanted_role as w where not exists (select from pg_catalog.pg_roles as r where r.rolname = w.role)
    union all
    select case r.kind when 'r' then 'tables' else 'installation' end,
        pg_catalog.format('the %s %s is missing', case r.kind when 'r' then 'table' when 'v' then 'view' else 'sequence' end, r.full_name),
        false
    from relation as r where r.oid is null
    union all
    select 'owners', pg_catalog.format('%s belongs to %s and not to signal_feed_owner', r.full_name,
        pg_catalog.pg_get_userbyid(r.relowner)), false
    from relation as r where pg_catalog.pg_get_userbyid(r.relowner) <> 'signal_feed_owner'
    union all
    select 'owners', pg_catalog.format('the schema signal_feed_private belongs to %s and not to signal_feed_owner',
        pg_catalog.pg_get_userbyid(n.nspowner)), false
    from pg_catalog.pg_namespace as n
    where n.nspname = 'signal_feed_private' and pg_catalog.pg_get_userbyid(n.nspowner) <> 'signal_feed_owner'
    union all
    select 'owners', 'stock_market.signal belongs to signal_feed_owner and not to signal_feed_signal', false
    from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = 'stock_market' and c.relname = 'signal' and pg_catalog.pg_get_userbyid(c.relowner) = 'signal_feed_owner'
    union all
    select 'privileges', pg_catalog.format('signal_feed_owner lacks rights on its own table %s', r.full_name), false
    from relation as r
    where r.kind = 'r' and r.relacl is not null and pg_catalog.pg_get_userbyid(r.relowner) = 'signal_feed_owner'
        and (select count(*) from pg_catalog.aclexplode(r.relacl) as a where a.grantee = r.relowner
            and a.privilege_type in ('SELECT', 'INSERT', 'UPDATE', 'DELETE')) < 4
    union all
    select 'owners', pg_catalog.format('%s has row-level security, which hides its rows from the feed''s roles', r.full_name), false
    from relation as r where r.has_rls
    union all
    select 'owners', pg_catalog.format('%s has a rule %I, which may send its rows elsewhere', r.full_name, w.rulename), false
    from relation as r join pg_catalog.pg_rewrite as w on w.ev_class = r.oid where r.kind = 'r'
    union all
    select 'owners', pg_catalog.format('%s is missing', f.name), false from function as f where f.prosrc is null
    union all
    -- While one of these had another body, signals may have been lost.
    select 'owners', pg_catalog.format('%s differs from the one that this program ships', f.name),
        f.prosrc <> f.body and f.signature in ('signal_feed_capture()', 'signal_feed_gather()', 'signal_feed_number()')
    from function as f
    where f.prosrc <> f.body or f.prosecdef <> (f.head like '%security definer%')
        or (select coalesce(pg_catalog.array_agg(l.line order by l.line), '{}') from (
                select lower(m[1] || '=' || replace(m[2], '''', '')) as line
                from pg_catalog.regexp_matches(f.head, '^set (\S+) = (.*)$', 'gn') as m) as l)
            <> (select coalesce(pg_catalog.array_agg(c.line order by c.line), '{}') from (
                select lower(replace(g, '"', '')) as line from unnest(f.config) as g) as c)
    union all
    select 'owners', pg_catalog.format('%s belongs to %s and not to %s', f.name, pg_catalog.pg_get_userbyid(f.proowner), f.owner), false
    from function as f where pg_catalog.pg_get_userbyid(f.proowner) <> f.owner
    union all
    select 'privileges', pg_catalog.format('%s can be executed by everybody', f.name), false
    from function as f
    where f.prosrc is not null and (f.proacl is null
        or exists (select from pg_catalog.aclexplode(f.proacl) as a where a.grantee = 0))
    union all
    select 'privileges', pg_catalog.format('%s cannot execute %s', m.role, f.name), false
    from function as f cross join unnest(f.may_execute) as m (role)
    where f.proacl is not null and not exists (select from pg_catalog.aclexplode(f.proacl) as a
        where a.grantee <> 0 and pg_catalog.pg_get_userbyid(a.grantee) = m.role)
    union all
    select 'privileges', pg_catalog.format('%s lacks %s%s on %s', m.role, w.privilege,
        case when w.columns = '' then '' else pg_catalog.format('(%s)', w.columns) end, r.full_name), false
    from wanted_grant as w
    join relation as r on r.schema = w.schema and r.name = w.name and r.oid is not null
    cross join unnest(w.roles) as m (role)
    where not exists (select from granted as g where g.oid = r.oid and g.privilege = w.privilege and g.columns = w.columns
        and g.grantee <> 0 and pg_catalog.pg_get_userbyid(g.grantee) = m.role)
    union all
    select 'privileges', pg_catalog.format('%s lacks USAGE on the schema %s', m.role, w.schema), false
    from wanted_usage as w cross join unnest(w.roles) as m (role)
    join pg_catalog.pg_namespace as n on n.nspname = w.schema join pg_catalog.pg_roles as r on r.rolname = m.role
    where not pg_catalog.has_schema_privilege(r.oid, n.oid, 'usage')
    union all
    select 'privileges', 'signal_feed_bot lacks SELECT on stock_market.signal', false
    from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    join pg_catalog.pg_roles as r on r.rolname = 'signal_feed_bot'
    where n.nspname = 'stock_market' and c.relname = 'signal' and not pg_catalog.has_table_privilege(r.oid, c.oid, 'select')
    union all
    select 'installation', 'the index stock_market.signal_feed_event_event_time_idx is missing or not valid', false
    where not exists (
        select from pg_catalog.pg_index as i join pg_catalog.pg_class as c on c.oid = i.indexrelid
        join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
        where n.nspname = 'stock_market' and c.relname = 'signal_feed_event_event_time_idx' and i.indisvalid
            and i.indrelid = pg_catalog.to_regclass('stock_market.signal_feed_event'))
    union all
    select 'installation', pg_catalog.format('stock_market.signal still has %I, a trigger of the sequence era', t.tgname), false
    from pg_catalog.pg_trigger as t join pg_catalog.pg_proc as p on p.oid = t.tgfoid
    where t.tgrelid = pg_catalog.to_regclass('stock_market.signal') and p.proname = 'signal_feed_append'
    union all
    select 'installation', pg_catalog.format('the partition %s still has its own trigger of the feed from before it became a partition', t.tgrelid::regclass), false
    from pg_catalog.pg_trigger as t join pg_catalog.pg_inherits as i on i.inhrelid = t.tgrelid
    where t.tgname = '!signal_feed_capture' and t.tgparentid = 0
        and i.inhparent = pg_catalog.to_regclass('stock_market.signal')
)
select f."check", f.text, f.capture_was_off from fault as f where f.text is not null
order by f.capture_was_off desc, f."check", f.text
