-- The feed's roles and their memberships. None of the roles can log in.
-- Safe to run again, and at the same time in several databases of one cluster.

do $roles$
declare
    wanted text;
begin
    foreach wanted in array array[
        'signal_feed_owner', 'signal_feed_capture', 'signal_feed_render', 'signal_feed_signal',
        'signal_feed_server', 'signal_feed_admin', 'signal_feed_bot']
    loop
        if not exists (select from pg_catalog.pg_roles as r where r.rolname = wanted) then
            begin
                execute pg_catalog.format('create role %I nologin', wanted);
            exception
                -- The migrate of another database has just created it.
                when duplicate_object or unique_violation then null;
            end;
        end if;
    end loop;
end
$roles$;

-- A role that is not a superuser may lack the right to grant these. The feed works without them but sees less.
do $watch$
declare
    wanted record;
begin
    for wanted in
        select w.granted, w.member, w.without
        from (values
            ('pg_monitor', 'signal_feed_admin', 'doctor will see less of other sessions'),
            ('pg_read_all_stats', 'signal_feed_owner', 'a feed on a standby cannot tell when its primary was last heard')
        ) as w (granted, member, without)
    loop
        continue when pg_catalog.pg_has_role(wanted.member, wanted.granted, 'member');
        begin
            execute pg_catalog.format('grant %I to %I', wanted.granted, wanted.member);
        exception
            when insufficient_privilege then
                raise notice '% is not a member of %: %', wanted.member, wanted.granted, wanted.without;
            when others then
                -- The migrate of another database may have just granted it.
                if not pg_catalog.pg_has_role(wanted.member, wanted.granted, 'member') then
                    raise;
                end if;
        end;
    end loop;
end
$watch$;

-- A role that runs migrate and is not a superuser must be able to make the feed's own roles the owners of objects.
-- These statements allow that to the owner of the present database. For another role add:
--   grant signal_feed_owner, signal_feed_capture, signal_feed_render, signal_feed_signal to "the role that runs migrate";
do $owner$
declare
    runner name;
    wanted text;
begin
    foreach runner in array array[
        (select pg_catalog.pg_get_userbyid(d.datdba) from pg_catalog.pg_database as d
            where d.datname = pg_catalog.current_database()),
        current_user]
    loop
        continue when (select r.rolsuper from pg_catalog.pg_roles as r where r.rolname = runner);
        foreach wanted in array array[
            'signal_feed_owner', 'signal_feed_capture', 'signal_feed_render', 'signal_feed_signal']
        loop
            if not pg_catalog.pg_has_role(runner, wanted, 'usage') then
                execute pg_catalog.format('grant %I to %I', wanted, runner);
            end if;
        end loop;
    end loop;
end
$owner$;
