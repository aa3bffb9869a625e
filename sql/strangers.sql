-- Objects that have a name of the feed and belong to somebody else, one line each. migrate refuses to run while there are
-- any: it often runs as a superuser, and must not execute, read or write somebody else's objects. Reads only the catalog.
--
-- Trusted owners are superusers, the role that runs migrate, and the feed's own roles. The log of the sequence era may
-- also belong to the owner of signal, of the schema or of the database, if it is sound: a plain
-- table without rules, triggers, policies, inheritance, and without a default or constraint that runs foreign code.
{wanted}, trusted as (
    select r.oid from pg_catalog.pg_roles as r
    where r.rolsuper or r.rolname = current_user
        or r.rolname in (select w.role from wanted_role as w where w.owns_objects)
), era as (
    -- One row where there is a log of the sequence era: only there feed_seq has a default.
    select e.oid, e.relowner as owner from pg_catalog.pg_class as e
    join pg_catalog.pg_namespace as n on n.oid = e.relnamespace
    where n.nspname = 'stock_market' and e.relname = 'signal_feed_event' and e.relkind = 'r'
        and exists (select from pg_catalog.pg_attrdef as d join pg_catalog.pg_attribute as a
                on a.attrelid = d.adrelid and a.attnum = d.adnum
            where d.adrelid = e.oid and a.attname = 'feed_seq')
        and (e.relowner = n.nspowner
            or exists (select from pg_catalog.pg_class as s
                where s.relnamespace = n.oid and s.relname = 'signal' and s.relowner = e.relowner)
            or exists (select from pg_catalog.pg_database as d
                where d.datname = current_database() and d.datdba = e.relowner))
        and not e.relrowsecurity and not e.relforcerowsecurity and e.relpersistence = 'p'
        and not exists (select from pg_catalog.pg_policy as p where p.polrelid = e.oid)
        and not exists (select from pg_catalog.pg_rewrite as r where r.ev_class = e.oid)
        and not exists (select from pg_catalog.pg_trigger as t where t.tgrelid = e.oid and not t.tgisinternal)
        and not exists (select from pg_catalog.pg_inherits as i where e.oid in (i.inhrelid, i.inhparent))
), relation as (
    select c.oid, c.relname::text as name, n.nspname::text as schema, c.relkind::text as kind, c.relowner as owner
    from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
    where n.nspname in ('stock_market', 'signal_feed_private') and pg_catalog.starts_with(c.relname::text, 'signal_feed_')
        -- Leaves out the indexes of the feed's tables. Any other index with such a name takes a name that migrate needs.
        and not exists (select from pg_catalog.pg_index as i join pg_catalog.pg_class as t on t.oid = i.indrelid
            where i.indexrelid = c.oid and pg_catalog.starts_with(t.relname::text, 'signal_feed_'))
), object (text, owner, is_eras) as (
    select pg_catalog.format('the schema %I', n.nspname), n.nspowner, false
    from pg_catalog.pg_namespace as n where n.nspname = 'signal_feed_private'
    union all
    select pg_catalog.format('the %s %I.%I', case r.kind when 'r' then 'table' when 'v' then 'view'
            when 'm' then 'materialized view' when 'S' then 'sequence' when 'f' then 'foreign table'
            when 'p' then 'partitioned table' when 'i' then 'index' when 'I' then 'index' else 'type' end,
            r.schema, r.name), r.owner,
        r.schema = 'stock_market' and exists (select from era as e
            where e.oid = r.oid or e.owner = r.owner and r.name = 'signal_feed_event_feed_seq_seq' and r.kind = 'S')
    from relation as r
    union all
    select pg_catalog.format('the function %I.%s(%s)', n.nspname, p.proname, pg_catalog.oidvectortypes(p.proargtypes)),
        p.proowner, n.nspname = 'stock_market' and p.proname = 'signal_feed_append'
            and exists (select from era as e where e.owner = p.proowner)
    from pg_catalog.pg_proc as p join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
    where n.nspname in ('stock_market', 'signal_feed_private') and pg_catalog.starts_with(p.proname::text, 'signal_feed_')
    union all
    select pg_catalog.format('the type %I.%I', n.nspname, t.typname), t.typowner, false
    from pg_catalog.pg_type as t join pg_catalog.pg_namespace as n on n.oid = t.typnamespace
    where n.nspname in ('stock_market', 'signal_feed_private') and pg_catalog.starts_with(t.typname::text, 'signal_feed_')
        and t.typrelid = 0
), part (of, class, oid, what) as (
    -- The parts of a table that PostgreSQL may execute or evaluate when it reads or writes the table.
    select r.oid, 'pg_catalog.pg_class'::regclass, r.oid, 'a column' from relation as r
    union all
    select t.tgrelid, 'pg_catalog.pg_trigger'::regclass, t.oid, pg_catalog.format('the trigger %I', t.tgname)
    from pg_catalog.pg_trigger as t where not t.tgisinternal
    union all
    select w.ev_class, 'pg_catalog.pg_rewrite'::regclass, w.oid, pg_catalog.format('the rule %I', w.rulename)
    from pg_catalog.pg_rewrite as w
    union all
    select d.adrelid, 'pg_catalog.pg_attrdef'::regclass, d.oid, 'a default' from pg_catalog.pg_attrdef as d
    union all
    select k.conrelid, 'pg_catalog.pg_constraint'::regclass, k.oid, pg_catalog.format('the constraint %I', k.conname)
    from pg_catalog.pg_constraint as k
    union all
    select p.polrelid, 'pg_catalog.pg_policy'::regclass, p.oid, pg_catalog.format('the policy %I', p.polname)
    from pg_catalog.pg_policy as p
    union all
    select i.indrelid, 'pg_catalog.pg_class'::regclass, i.indexrelid, 'an index' from pg_catalog.pg_index as i
    union all
    select x.stxrelid, 'pg_catalog.pg_statistic_ext'::regclass, x.oid, pg_catalog.format('the statistics %I', x.stxname)
    from pg_catalog.pg_statistic_ext as x
), expression (of, what, nodes) as (
    select d.adrelid, 'a default', d.adbin::text from pg_catalog.pg_attrdef as d
    union all
    select k.conrelid, pg_catalog.format('the constraint %I', k.conname), k.conbin::text from pg_catalog.pg_constraint as k
)
select pg_catalog.format('%s belongs to %I', o.text, pg_catalog.pg_get_userbyid(o.owner)) as text
from object as o where not o.is_eras and o.owner not in (select t.oid from trusted as t)
union
select pg_catalog.format('%I.%I is not a %s', r.schema, r.name,
    case w.kind when 'r' then 'table' when 'v' then 'view' else 'sequence' end)
from relation as r join wanted_relation as w on w.name = r.name where r.kind <> w.kind
    -- Before migration 5 the lock was a table.
    and not (r.schema = 'stock_market' and r.name = 'signal_feed_lock' and r.kind = 'r')
union
select pg_catalog.format('%s of %I.%I uses %s, which belongs to %I', p.what, r.schema, r.name,
    pg_catalog.pg_describe_object(d.refclassid, d.refobjid, 0), pg_catalog.pg_get_userbyid(f.refobjid))
from relation as r
join part as p on p.of = r.oid
join pg_catalog.pg_depend as d on d.classid = p.class and d.objid = p.oid
    and d.refclassid not in ('pg_catalog.pg_class'::regclass, 'pg_catalog.pg_namespace'::regclass)
join pg_catalog.pg_shdepend as f on f.classid = d.refclassid and f.objid = d.refobjid and f.deptype = 'o'
    and f.dbid = (select b.oid from pg_catalog.pg_database as b where b.datname = current_database())
where f.refobjid not in (select t.oid from trusted as t)
union
-- Some of PostgreSQL's own functions run a text or a view that somebody else wrote, such as query_to_xml, and others change
-- settings. pg_depend does not list them.
select pg_catalog.format('%s of %I.%I, which belongs to %I, calls %s', e.what, r.schema, r.name,
    pg_catalog.pg_get_userbyid(r.owner), p.oid::regprocedure)
from relation as r join expression as e on e.of = r.oid
cross join lateral pg_catalog.regexp_matches(e.nodes, ':(?:funcid|opfuncid) ([0-9]+)', 'g') as f (found)
join pg_catalog.pg_proc as p on p.oid = f.found[1]::oid
where p.proname ~ '_to_xml|^ts_stat|^ts_rewrite' or p.provolatile = 'v'
    and p.proname not in ('nextval', 'clock_timestamp', 'gen_random_uuid', 'random')
    and r.owner not in (select t.oid from trusted as t)
union
-- The check of a foreign key runs as the owner of the table that it references, with the casts of the other table's types.
select pg_catalog.format('the foreign key %I of %s references %I.%I, and that table belongs to %I', k.conname,
    k.conrelid::regclass, r.schema, r.name, pg_catalog.pg_get_userbyid(c.relowner))
from relation as r join pg_catalog.pg_constraint as k on k.confrelid = r.oid
join pg_catalog.pg_class as c on c.oid = k.conrelid
where c.relowner not in (select t.oid from trusted as t)
order by 1
