-- Every trigger of the feed, on the table and on each of its partitions, that is missing, changed or not ENABLE ALWAYS:
-- the check of doctor, what is wrong, and whether capture was off. serve asks this every ten seconds. Reads the catalog alone, and takes no lock.
{wanted}, part as (
    with recursive tree (tab, relid) as (
        select w.schema || '.' || w.tab, c.oid from wanted_trigger as w
        join pg_catalog.pg_namespace as n on n.nspname = w.schema
        join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = w.tab
        union
        select t.tab, i.inhrelid from tree as t join pg_catalog.pg_inherits as i on i.inhparent = t.relid
    )
    select t.tab, t.relid from tree as t
)
select case v.guards when 'capture' then 'triggers' when 'log' then 'immutability' else 'installation' end, v.verdict,
    v.guards = 'capture'
from (
    select w.guards, case
        when part.relid is null then pg_catalog.format('the table %s.%s is missing', w.schema, w.tab)
        when t.oid is null then pg_catalog.format('the trigger %I on %s is missing', w.name, part.relid::regclass)
        when p.proname <> w.function or n.nspname <> 'stock_market' or p.prosecdef <> (w.guards <> 'keys')
            or t.tgtype <> w.kind or t.tgdeferrable <> w.deferred or t.tginitdeferred <> w.deferred
            or t.tgqual is not null or (t.tgattr::text <> '') <> w.of_columns
            then pg_catalog.format('the trigger %I on %s is not the feed''s own', w.name, part.relid::regclass)
        when t.tgenabled = 'D'
            then pg_catalog.format('the trigger %I on %s is disabled', w.name, part.relid::regclass)
        when t.tgenabled <> 'A'
            then pg_catalog.format('the trigger %I on %s is not ENABLE ALWAYS', w.name, part.relid::regclass)
        end as verdict
    from wanted_trigger as w
    left join part on part.tab = w.schema || '.' || w.tab
    left join pg_catalog.pg_trigger as t on t.tgrelid = part.relid and t.tgname = w.name
    left join pg_catalog.pg_proc as p on p.oid = t.tgfoid
    left join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
) as v
where v.verdict is not null group by v.guards, v.verdict order by v.guards, v.verdict
