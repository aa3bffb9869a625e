-- The feed's roles that are missing, and those that the runner of migrate would have to be a member of, one line each.
{wanted}
select pg_catalog.format('the role %I', w.role) from wanted_role as w
where not exists (select from pg_catalog.pg_roles as r where r.rolname = w.role)
union all
select pg_catalog.format('the membership of %I in %I', current_user, r.rolname)
from pg_catalog.pg_roles as r join wanted_role as w on w.role = r.rolname
where w.owns_objects and not pg_catalog.pg_has_role(r.oid, 'usage')
