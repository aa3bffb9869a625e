-- What migrate and doctor report but never repair: grants and objects that the feed did not make, and unusual properties
-- of signal and the log. danger: doctor fails. Reads only the catalog, and takes no lock.
{wanted}, feed_role as (
    select r.oid, r.rolname from pg_catalog.pg_roles as r join wanted_role as w on w.role = r.rolname where w.owns_objects
), signal as (
    select c.oid, c.relowner, c.relacl, c.relpersistence, n.oid as schema, n.nspowner, n.nspacl
    from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where n.nspname = 'stock_market' and c.relname = 'signal'
), relation as (
    select c.oid, c.relowner, c.relacl, w.schema, w.name, w.schema || '.' || w.name as full_name from wanted_relation as w
    join pg_catalog.pg_namespace as n on n.nspname = w.schema
    join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = w.name
), granted (schema, name, full_name, grantee, privilege, columns) as (
    select r.schema, r.name, r.full_name, a.grantee, a.privilege_type, ''
    from relation as r cross join lateral pg_catalog.aclexplode(r.relacl) as a where a.grantee <> r.relowner
    union all
    select r.schema, r.name, r.full_name, a.grantee, a.privilege_type, t.attname::text
    from relation as r join pg_catalog.pg_attribute as t on t.attrelid = r.oid
    cross join lateral pg_catalog.aclexplode(t.attacl) as a where a.grantee <> r.relowner
), part as (
    with recursive tree (relid) as (
        select s.oid from signal as s
        union
        select i.inhrelid from tree as t join pg_catalog.pg_inherits as i on i.inhparent = t.relid
    )
    select t.relid from tree as t
), remark (danger, text) as (
    select not (g.privilege = 'SELECT' and g.name not in ('signal_feed_session_secret', 'signal_feed_api_key')),
        pg_catalog.format('%s has %s%s on %s, which the feed did not grant', coalesce(r.rolname, 'PUBLIC'), g.privilege,
            case when g.columns = '' then '' else pg_catalog.format('(%s)', g.columns) end, g.full_name)
    from granted as g left join pg_catalog.pg_roles as r on r.oid = g.grantee
    where not exists (select from wanted_grant as w
        where w.schema = g.schema and w.name = g.name and w.privilege = g.privilege and w.columns = g.columns
            and r.rolname = any (w.roles))
    union all
    select true, pg_catalog.format('%s has EXECUTE on stock_market.%s, which the feed did not grant', r.rolname, w.signature)
    from wanted_function as w
    join pg_catalog.pg_namespace as n on n.nspname = 'stock_market'
    join pg_catalog.pg_proc as p on p.pronamespace = n.oid
        and pg_catalog.format('%s(%s)', p.proname, pg_catalog.oidvectortypes(p.proargtypes)) = w.signature
    cross join lateral pg_catalog.aclexplode(p.proacl) as a
    join pg_catalog.pg_roles as r on r.oid = a.grantee
    where a.grantee <> p.proowner and r.rolname <> all (w.may_execute)
    union all
    select true, pg_catalog.format('%s has %s on the schema %I: only the feed''s own roles should', coalesce(r.rolname, 'PUBLIC'),
        a.privilege_type, n.nspname)
    from pg_catalog.pg_namespace as n cross join lateral pg_catalog.aclexplode(n.nspacl) as a
    left join pg_catalog.pg_roles as r on r.oid = a.grantee
    where n.nspname = 'signal_feed_private' and a.grantee <> n.nspowner
        and not exists (select from wanted_usage as w
            where w.schema = n.nspname and r.rolname = any (w.roles) and a.privilege_type = 'USAGE')
    union all
    select true, pg_catalog.format('%s has CREATE on the schema stock_market: revoke it, because that role can create objects that make migrate fail', coalesce(r.rolname, 'PUBLIC'))
    from signal as s cross join lateral pg_catalog.aclexplode(s.nspacl) as a
    left join pg_catalog.pg_roles as r on r.oid = a.grantee
    where a.privilege_type = 'CREATE' and a.grantee <> s.nspowner
        and not coalesce(r.rolsuper or r.rolname = 'signal_feed_owner', false)
    union all
    select false, pg_catalog.format('the schema stock_market belongs to %s, which can drop everything in it: alter schema stock_market owner to signal_feed_owner', r.rolname)
    from signal as s join pg_catalog.pg_roles as r on r.oid = s.nspowner
    where not r.rolsuper and not exists (select from feed_role as f
            where f.rolname = 'signal_feed_owner' and pg_catalog.pg_has_role(r.oid, f.oid, 'member'))
    union all
    select true, pg_catalog.format('%s has %s on stock_market.signal: %s; revoke it', coalesce(r.rolname, 'PUBLIC'), a.privilege_type,
        case a.privilege_type when 'REFERENCES' then 'the role can create a foreign key that runs the role''s code with the rights of the owner of signal'
            else 'the role can create a trigger, which runs with the rights of every role that writes signals' end)
    from signal as s cross join lateral (
        select b.grantee, b.privilege_type from pg_catalog.aclexplode(s.relacl) as b
        union
        select b.grantee, b.privilege_type from pg_catalog.pg_attribute as t
        cross join lateral pg_catalog.aclexplode(t.attacl) as b where t.attrelid = s.oid
    ) as a left join pg_catalog.pg_roles as r on r.oid = a.grantee
    where a.privilege_type in ('REFERENCES', 'TRIGGER') and a.grantee <> s.relowner and not coalesce(r.rolsuper, false)
    union all
    select true, pg_catalog.format('the role %s can log in or has attributes that it should not have: alter role %1$I nologin nosuperuser nocreaterole nobypassrls', r.rolname)
    from pg_catalog.pg_roles as r join wanted_role as w on w.role = r.rolname
    where r.rolcanlogin or r.rolsuper or r.rolcreaterole or r.rolbypassrls
    union all
    -- Code that once ran as one of the feed's roles may have left an object that still has that role's rights.
    select true, pg_catalog.format('%s belongs to %s, but the feed did not create it: drop it unless you know what it is for',
        pg_catalog.pg_describe_object(d.classid, d.objid, d.objsubid), f.rolname)
    from pg_catalog.pg_shdepend as d join feed_role as f on f.oid = d.refobjid
    where d.refclassid = 'pg_catalog.pg_authid'::regclass and d.deptype = 'o'
        and d.dbid in (0, (select b.oid from pg_catalog.pg_database as b where b.datname = current_database()))
        and not exists (select from relation as r where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = r.oid)
        and not exists (select from part as p where d.classid = 'pg_catalog.pg_class'::regclass and d.objid = p.relid
            and f.rolname = 'signal_feed_signal')
        and not exists (select from part as p join pg_catalog.pg_depend as e on e.refobjid = p.relid
                and e.refclassid = 'pg_catalog.pg_class'::regclass and e.deptype in ('a', 'i')
            where d.classid = 'pg_catalog.pg_class'::regclass and e.classid = d.classid and d.objid = e.objid)
        and not exists (select from pg_catalog.pg_namespace as n
            where d.classid = 'pg_catalog.pg_namespace'::regclass and d.objid = n.oid
                and n.nspname in ('stock_market', 'signal_feed_private') and f.rolname = 'signal_feed_owner')
        and not exists (select from pg_catalog.pg_proc as p join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
                join wanted_function as w
                    on w.signature = pg_catalog.format('%s(%s)', p.proname, pg_catalog.oidvectortypes(p.proargtypes))
            where d.classid = 'pg_catalog.pg_proc'::regclass and d.objid = p.oid and n.nspname = 'stock_market')
    union all
    select false, pg_catalog.format('the trigger %I on stock_market.signal fires before the feed''s trigger: if it updates the inserted row, the log has the UPDATE before the INSERT', t.tgname)
    from signal as s join pg_catalog.pg_trigger as t on t.tgrelid = s.oid
    where not t.tgisinternal and t.tgtype & 3 = 1 and t.tgtype & 20 <> 0
        and t.tgname::text collate "C" < '!signal_feed_capture'
    union all
    -- The feed makes no CHECK constraint on the log. Operators often add one on op, which allows what the feed writes.
    select false, pg_catalog.format('the CHECK constraint %I on stock_market.signal_feed_event is not the feed''s: a write of signal fails if the constraint refuses its event', k.conname)
    from relation as r join pg_catalog.pg_constraint as k on k.conrelid = r.oid and k.contype = 'c'
    where r.full_name = 'stock_market.signal_feed_event' and not coalesce(k.conkey <@ array(
        select a.attnum from pg_catalog.pg_attribute as a
        where a.attrelid = r.oid and a.attname in ('feed_seq', 'event_time', 'op')), false)
    union all
    select false, 'stock_market.signal is UNLOGGED: a crash empties it, while the log keeps its events'
    from signal as s where s.relpersistence = 'u'
    union all
    select false, pg_catalog.format('the table %s also has the feed''s capture trigger: its rows are logged, and it cannot be attached to signal as a partition. If it is an earlier stock_market.signal: drop trigger "!signal_feed_capture" on %1$s',
        t.tgrelid::regclass)
    from pg_catalog.pg_trigger as t
    join pg_catalog.pg_proc as p on p.oid = t.tgfoid
    join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
    where p.proname = 'signal_feed_capture' and n.nspname = 'stock_market' and t.tgparentid = 0
        and t.tgrelid not in (select q.relid from part as q)
)
select r.text, r.danger from remark as r order by r.danger desc, r.text
