//! Whether an installation is as the schema files say: what `migrate` puts right and `doctor` names.

use std::collections::BTreeSet;

use super::migrate::FILES;
use super::{Connection, Error, capture};

/// One thing that is not as it should be.
#[derive(Debug, Clone)]
pub(super) struct Fault {
    pub(super) text: String,
    /// Signals may have been written and not captured.
    pub(super) capture_was_off: bool,
}

impl Fault {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { text: text.into(), capture_was_off: false }
    }
}

const ROLES: [&str; 6] = [
    "signal_feed_owner",
    "signal_feed_capture",
    "signal_feed_render",
    "signal_feed_server",
    "signal_feed_admin",
    "signal_feed_bot",
];

/// The roles that objects belong to; whoever migrates without being a superuser must be a member of them.
const OWNERS: [&str; 3] = ["signal_feed_owner", "signal_feed_capture", "signal_feed_render"];

/// The feed's tables, all of the role `signal_feed_owner`.
pub(super) const TABLES: [&str; 14] = [
    "signal_feed_migration",
    "signal_feed_identity",
    "signal_feed_counter",
    "signal_feed_pruned",
    "signal_feed_skipped",
    "signal_feed_cluster",
    "signal_feed_choice",
    "signal_feed_lock",
    "signal_feed_outbox",
    "signal_feed_first",
    "signal_feed_api_key",
    "signal_feed_session_secret",
    "signal_feed_quarantine",
    "signal_feed_event",
];

/// The sequences of the feed's tables.
const SEQUENCES: [&str; 2] = ["signal_feed_outbox_seq_seq", "signal_feed_api_key_id_seq"];

/// Table or sequence, privileges, roles; `privilege(column)` is one on a column.
const GRANTS: [(&str, &[&str], &[&str]); 20] = [
    ("signal_feed_migration", &["SELECT"], &["signal_feed_server", "signal_feed_admin"]),
    ("signal_feed_choice", &["SELECT"], &["signal_feed_server", "signal_feed_admin"]),
    ("signal_feed_cluster", &["SELECT"], &["signal_feed_server", "signal_feed_admin"]),
    ("signal_feed_identity", &["SELECT"], &["signal_feed_server", "signal_feed_admin", "signal_feed_bot"]),
    ("signal_feed_counter", &["SELECT"], &["signal_feed_server", "signal_feed_admin", "signal_feed_bot"]),
    ("signal_feed_pruned", &["SELECT"], &["signal_feed_server", "signal_feed_admin", "signal_feed_bot"]),
    ("signal_feed_skipped", &["SELECT"], &["signal_feed_server", "signal_feed_admin", "signal_feed_bot"]),
    ("signal_feed_outbox", &["SELECT"], &["signal_feed_server", "signal_feed_admin"]),
    ("signal_feed_outbox", &["INSERT"], &["signal_feed_capture"]),
    ("signal_feed_outbox_seq_seq", &["USAGE"], &["signal_feed_capture"]),
    ("signal_feed_first", &["SELECT"], &["signal_feed_server", "signal_feed_admin"]),
    ("signal_feed_first", &["INSERT", "SELECT(xact)", "SELECT(round)"], &["signal_feed_capture"]),
    ("signal_feed_lock", &["SELECT"], &["signal_feed_admin"]),
    ("signal_feed_api_key", &["SELECT", "UPDATE(last_used_at)"], &["signal_feed_server"]),
    ("signal_feed_api_key", &["SELECT", "INSERT", "UPDATE"], &["signal_feed_admin"]),
    ("signal_feed_session_secret", &["SELECT"], &["signal_feed_server"]),
    ("signal_feed_quarantine", &["SELECT", "INSERT"], &["signal_feed_server"]),
    ("signal_feed_quarantine", &["SELECT"], &["signal_feed_admin"]),
    ("signal_feed_event", &["SELECT"], &["signal_feed_server", "signal_feed_bot"]),
    ("signal_feed_event", &["SELECT", "DELETE"], &["signal_feed_admin"]),
];

/// Function, roles that may execute it beside its owner.
const EXECUTES: [(&str, &[&str]); 6] = [
    ("signal_feed_render", &["signal_feed_capture"]),
    ("signal_feed_cluster_now", &["signal_feed_server", "signal_feed_admin"]),
    ("signal_feed_wal_receiver", &["signal_feed_server", "signal_feed_admin"]),
    ("signal_feed_prune_to", &["signal_feed_admin"]),
    ("signal_feed_nothing_lost", &["signal_feed_admin"]),
    ("signal_feed_restored", &["signal_feed_admin"]),
];

/// A function as its file has it.
struct Function {
    name: &'static str,
    /// Name and argument types, as `to_regprocedure` takes them.
    signature: &'static str,
    owner: &'static str,
    body: &'static str,
    security_definer: bool,
    /// `name=value` of each SET, in lower case, without quotes.
    settings: BTreeSet<String>,
}

/// Reads the functions out of the schema files: bodies from their creation, owners from `alter function … owner to`.
fn functions() -> Vec<Function> {
    let mut found = Vec::new();
    for file in &FILES {
        for line in file.sql.lines() {
            let Some((signature, owner)) =
                line.strip_prefix("alter function stock_market.").and_then(|rest| rest.split_once(" owner to "))
            else {
                continue;
            };
            let name = signature.split('(').next().unwrap_or_default();
            let Some((_, text)) = file.sql.split_once(&format!("create or replace function stock_market.{name}("))
            else {
                continue;
            };
            let mut parts = text.splitn(3, "$function$");
            let (head, body) = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let settings = head
                .lines()
                .filter_map(|line| line.strip_prefix("set ")?.split_once(" = "))
                .map(|(name, value)| setting(name, value.trim_end_matches(" as").trim()))
                .collect();
            found.push(Function {
                name,
                signature,
                owner: owner.trim_end_matches(';'),
                body,
                security_definer: head.contains("security definer"),
                settings,
            });
        }
    }
    found
}

fn setting(name: &str, value: &str) -> String {
    format!("{}={}", name.to_lowercase(), value.trim_matches('\'').to_lowercase())
}

/// Why this database cannot be migrated at all, if so.
pub(super) fn refusal(connection: &mut Connection) -> Result<Option<String>, Error> {
    let row = connection.query_one(
        "select pg_catalog.pg_is_in_recovery(), pg_catalog.current_setting('server_version_num')::integer,
            pg_catalog.current_setting('server_version')",
        &[],
    )?;
    if row.get(0) {
        return Ok(Some("this PostgreSQL is a standby: run migrate on its primary".into()));
    }
    if row.get::<_, i32>(1) < 130_000 {
        let version: String = row.get(2);
        return Ok(Some(format!("this PostgreSQL is {version}: signal-feed needs 13 or newer")));
    }
    let row = connection.query_opt(
        "select c.relkind::text, exists (
                select from pg_catalog.pg_inherits as i join pg_catalog.pg_class as k on k.oid = i.inhrelid
                where i.inhparent = c.oid and not k.relispartition)
            from pg_catalog.pg_class as c join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
            where n.nspname = 'stock_market' and c.relname = 'signal'",
        &[],
    )?;
    if let Some(row) = row {
        let kind: String = row.get(0);
        let what = match kind.as_str() {
            "r" | "p" => None,
            "v" => Some("a view"),
            "m" => Some("a materialized view"),
            "f" => Some("a foreign table"),
            _ => Some("no table"),
        };
        if let Some(what) = what {
            return Ok(Some(format!(
                "stock_market.signal is {what}, whose rows no trigger sees: the feed needs the table itself under this name"
            )));
        }
        if row.get(1) {
            return Ok(Some(
                "stock_market.signal has inheritance children, whose rows its triggers do not see: \
                 make it a partitioned table, or detach them (alter table … no inherit)"
                    .into(),
            ));
        }
    }
    let subscribed = connection.query_opt(
        "select s.subname::text from pg_catalog.pg_subscription_rel as r
            join pg_catalog.pg_subscription as s on s.oid = r.srsubid
            join pg_catalog.pg_class as c on c.oid = r.srrelid
            join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
            where n.nspname = 'stock_market' and c.relname in ('signal_feed_event', 'signal_feed_counter')
            limit 1",
        &[],
    );
    match subscribed {
        Ok(Some(row)) => {
            let name: String = row.get(0);
            return Ok(Some(format!(
                "the subscription {name} writes this database's log itself: publish only stock_market.signal, \
                 and let this database number what arrives"
            )));
        }
        Ok(None) => {}
        // Only some may look at subscriptions; then this is left to those who may.
        Err(error) if error.is_statement_error() => {}
        Err(error) => return Err(error),
    }
    let elsewhere = connection.query_opt(
        "select t.tgname::text, t.tgrelid::regclass::text from pg_catalog.pg_trigger as t
            join pg_catalog.pg_proc as p on p.oid = t.tgfoid
            join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
            where n.nspname = 'stock_market' and p.proname = 'signal_feed_append' and t.tgparentid = 0
                and t.tgrelid <> coalesce(pg_catalog.to_regclass('stock_market.signal'), 0)
            limit 1",
        &[],
    )?;
    if let Some(row) = elsewhere {
        let (trigger, table): (String, String) = (row.get(0), row.get(1));
        return Ok(Some(format!(
            "the table {table} too has a trigger of the sequence era, {trigger}, so its rows reach the log: \
             was it stock_market.signal once? drop the trigger there first"
        )));
    }
    let unfit = connection.query(
        "select w.name, w.type, pg_catalog.format_type(a.atttypid, a.atttypmod)
            from (values ('feed_seq', 'bigint'), ('event_time', 'timestamp with time zone'), ('op', 'text'),
                ('signal', 'jsonb')) as w (name, type)
            join pg_catalog.pg_namespace as n on n.nspname = 'stock_market'
            join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = 'signal_feed_event'
            left join pg_catalog.pg_attribute as a on a.attrelid = c.oid and a.attname = w.name and not a.attisdropped
            where c.relkind <> 'r' or a.attnum is null or pg_catalog.format_type(a.atttypid, a.atttypmod) <> w.type",
        &[],
    )?;
    Ok(unfit.first().map(|row| {
        let (name, wanted, found): (String, String, Option<String>) = (row.get(0), row.get(1), row.get(2));
        format!(
            "stock_market.signal_feed_event is not a log of this feed: its column {name} should be {wanted} and is {}",
            found.as_deref().unwrap_or("missing")
        )
    }))
}

/// The feed's roles that are missing, or that the runner would have to be a member of.
pub(super) fn missing_roles(connection: &mut Connection) -> Result<Vec<String>, Error> {
    let rows = connection.query(
        "select pg_catalog.format('the role %I', w.name) from unnest($1::text[]) as w (name)
            where not exists (select from pg_catalog.pg_roles as r where r.rolname = w.name)
        union all
        select pg_catalog.format('the membership of %I in %I', current_user, r.rolname) from pg_catalog.pg_roles as r
            where r.rolname = any ($2::text[]) and not pg_catalog.pg_has_role(r.oid, 'usage')",
        &[&ROLES.as_slice(), &OWNERS.as_slice()],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

/// Everything that `migrate` would put right in an installation whose files were all applied.
pub(super) fn faults(connection: &mut Connection) -> Result<Vec<Fault>, Error> {
    let mut faults = Vec::new();
    let rows = connection.query(
        "select w.name from unnest($1::text[]) as w (name)
            where not exists (select from pg_catalog.pg_roles as r where r.rolname = w.name)",
        &[&ROLES.as_slice()],
    )?;
    for row in rows {
        faults.push(Fault::new(format!("the role {} is missing", row.get::<_, String>(0))));
    }
    if !faults.is_empty() {
        // Nothing below can be asked without them.
        return Ok(faults);
    }
    for fault in capture::trigger_faults(connection)? {
        faults.push(Fault { text: fault.text, capture_was_off: fault.captures });
    }
    let tables = table_faults(connection)?;
    let complete = !tables.iter().any(|text| text.ends_with("is missing"));
    faults.extend(tables.into_iter().map(Fault::new));
    faults.extend(function_faults(connection)?);
    let given = grants(connection)?;
    faults.extend(given.missing.into_iter().map(Fault::new));
    faults.extend(schema_faults(connection)?.into_iter().map(Fault::new));
    if complete {
        faults.extend(row_faults(connection)?);
    }
    // A table that is missing is missed by each of its triggers too.
    faults.dedup_by(|later, earlier| later.text == earlier.text);
    Ok(faults)
}

fn table_faults(connection: &mut Connection) -> Result<Vec<String>, Error> {
    let rows = connection.query(
        "select w.name, pg_catalog.pg_get_userbyid(c.relowner)::text, c.relrowsecurity or c.relforcerowsecurity,
            (select min(r.rulename)::text from pg_catalog.pg_rewrite as r where r.ev_class = c.oid),
            pg_catalog.has_table_privilege('signal_feed_owner', c.oid, 'select')
                and pg_catalog.has_table_privilege('signal_feed_owner', c.oid, 'insert')
                and pg_catalog.has_table_privilege('signal_feed_owner', c.oid, 'update')
                and pg_catalog.has_table_privilege('signal_feed_owner', c.oid, 'delete')
            from unnest($1::text[]) with ordinality as w (name, nth)
            left join pg_catalog.pg_namespace as n on n.nspname = 'stock_market'
            left join pg_catalog.pg_class as c on c.relnamespace = n.oid and c.relname = w.name
            order by w.nth",
        &[&TABLES.as_slice()],
    )?;
    let mut faults = Vec::new();
    for row in rows {
        let name: String = row.get(0);
        match row.get::<_, Option<String>>(1) {
            None => faults.push(format!("the table stock_market.{name} is missing")),
            Some(owner) if owner != "signal_feed_owner" => {
                faults.push(format!("the table stock_market.{name} belongs to {owner} and not to signal_feed_owner"));
            }
            Some(_) if row.get::<_, Option<bool>>(4) == Some(false) => {
                faults.push(format!("signal_feed_owner lacks rights on its own table stock_market.{name}"));
            }
            Some(_) => {}
        }
        if row.get::<_, Option<bool>>(2) == Some(true) {
            faults.push(format!(
                "the table stock_market.{name} has row-level security, which hides its rows from the feed's roles"
            ));
        }
        if let Some(rule) = row.get::<_, Option<String>>(3) {
            faults.push(format!("the table stock_market.{name} has a rule {rule}, which may send its rows elsewhere"));
        }
    }
    Ok(faults)
}

/// The trigger functions without whose work signals do not reach the log.
const CAPTURING: [&str; 3] = ["signal_feed_capture", "signal_feed_gather", "signal_feed_number"];

fn function_faults(connection: &mut Connection) -> Result<Vec<Fault>, Error> {
    let mut faults = Vec::new();
    let expected = functions();
    let signatures: Vec<String> =
        expected.iter().map(|function| format!("stock_market.{}", function.signature)).collect();
    let rows = connection.query(
        "select p.prosrc, p.prosecdef, pg_catalog.pg_get_userbyid(p.proowner)::text, coalesce(p.proconfig, '{}'),
            p.proacl is null or exists (
                select from pg_catalog.aclexplode(p.proacl) as a where a.grantee = 0),
            (select coalesce(pg_catalog.array_agg(pg_catalog.pg_get_userbyid(a.grantee)::text), '{}')
                from pg_catalog.aclexplode(p.proacl) as a where a.privilege_type = 'EXECUTE' and a.grantee <> 0)
            from unnest($1::text[]) with ordinality as w (signature, nth)
            left join pg_catalog.pg_proc as p on p.oid = (
                select f.oid from pg_catalog.pg_proc as f
                join pg_catalog.pg_namespace as n on n.oid = f.pronamespace
                where n.nspname = 'stock_market'
                    and 'stock_market.' || f.proname || '(' || pg_catalog.oidvectortypes(f.proargtypes) || ')' = w.signature)
            order by w.nth",
        &[&signatures],
    )?;
    for (function, row) in expected.iter().zip(&rows) {
        let name = format!("the function stock_market.{}", function.signature);
        let Some(body) = row.get::<_, Option<String>>(0) else {
            faults.push(Fault::new(format!("{name} is missing")));
            continue;
        };
        let settings: BTreeSet<String> = row
            .get::<_, Vec<String>>(3)
            .iter()
            .filter_map(|text| text.split_once('='))
            .map(|(name, value)| setting(name, value))
            .collect();
        if body != function.body || row.get::<_, bool>(1) != function.security_definer || settings != function.settings
        {
            // With another body nobody knows what was captured meanwhile.
            let capture_was_off = body != function.body && CAPTURING.contains(&function.name);
            faults.push(Fault { text: format!("{name} is not as this program knows it"), capture_was_off });
        }
        let owner: String = row.get(2);
        if owner != function.owner {
            faults.push(Fault::new(format!("{name} belongs to {owner} and not to {}", function.owner)));
        }
        if row.get(4) {
            faults.push(Fault::new(format!("{name} may be executed by everybody")));
        }
        let may: Vec<String> = row.get(5);
        for role in EXECUTES.iter().filter(|(name, _)| *name == function.name).flat_map(|(_, roles)| roles.iter()) {
            if !may.iter().any(|given| given == role) {
                faults.push(Fault::new(format!("{role} may not execute {name}")));
            }
        }
    }
    Ok(faults)
}

fn schema_faults(connection: &mut Connection) -> Result<Vec<String>, Error> {
    let rows = connection.query(
        "select w.name from unnest($1::text[]) as w (name)
            where w.name <> 'signal_feed_render'
                and not pg_catalog.has_schema_privilege(w.name, 'stock_market', 'usage')
        order by w.name",
        &[&ROLES.as_slice()],
    )?;
    let mut faults: Vec<String> =
        rows.iter().map(|row| format!("{} lacks USAGE on the schema stock_market", row.get::<_, String>(0))).collect();
    let bot = connection.query_one(
        "select coalesce(pg_catalog.has_table_privilege('signal_feed_bot', c.oid, 'select'), true)
            from (values (1)) as one (one)
            left join pg_catalog.pg_class as c on c.relname = 'signal'
                and c.relnamespace = (select n.oid from pg_catalog.pg_namespace as n where n.nspname = 'stock_market')",
        &[],
    )?;
    let index = connection.query_opt(
        "select from pg_catalog.pg_index as i
            join pg_catalog.pg_class as c on c.oid = i.indexrelid
            join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
            where n.nspname = 'stock_market' and c.relname = 'signal_feed_event_event_time_idx' and i.indisvalid",
        &[],
    )?;
    if index.is_none() {
        faults.push("the index stock_market.signal_feed_event_event_time_idx is missing or not valid".into());
    }
    if !bot.get::<_, bool>(0) {
        faults.push("signal_feed_bot lacks SELECT on stock_market.signal".into());
    }
    Ok(faults)
}

/// Rows that must be there, and what is chosen against what is.
fn row_faults(connection: &mut Connection) -> Result<Vec<Fault>, Error> {
    let mut faults = Vec::new();
    if capture::has_leftovers(connection)? {
        faults.push(Fault {
            text: "the outbox holds events that were committed and never numbered".into(),
            capture_was_off: true,
        });
    }
    let row = connection.query_one(
        "select exists (select from stock_market.signal_feed_counter),
            exists (select from stock_market.signal_feed_identity as i where i.counter_start is not null),
            exists (select from stock_market.signal_feed_pruned),
            exists (select from stock_market.signal_feed_choice),
            exists (select from stock_market.signal_feed_cluster)",
        &[],
    )?;
    for (column, table) in [
        "signal_feed_counter",
        "signal_feed_identity",
        "signal_feed_pruned",
        "signal_feed_choice",
        "signal_feed_cluster",
    ]
    .into_iter()
    .enumerate()
    {
        if !row.get::<_, bool>(column) {
            faults.push(Fault::new(format!("the table stock_market.{table} has no row")));
        }
    }
    let keys = connection.query_opt(
        "select from pg_catalog.pg_trigger as t
            join pg_catalog.pg_class as c on c.oid = t.tgrelid
            join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
            join pg_catalog.pg_proc as p on p.oid = t.tgfoid
            where n.nspname = 'stock_market' and c.relname = 'signal_feed_api_key' and t.tgname = 'signal_feed_key_changed'
                and p.proname = 'signal_feed_key_changed' and t.tgenabled = 'A' and t.tgtype = 60",
        &[],
    )?;
    if keys.is_none() {
        faults.push(Fault::new(
            "the trigger signal_feed_key_changed on stock_market.signal_feed_api_key is missing or off",
        ));
    }
    let secret = "stock_market.signal_feed_session_secret";
    let readable: bool =
        connection.query_one("select pg_catalog.has_table_privilege($1::text, 'select')", &[&secret])?.get(0);
    if readable && connection.query_opt(&format!("select from {secret}"), &[])?.is_none() {
        faults.push(Fault::new(format!("the table {secret} has no row")));
    }
    let inserted = signal_inserted(connection)?;
    if inserted.sends != inserted.should_send() {
        let (is, should) = if inserted.sends { ("notifies", "should not") } else { ("does not notify", "should") };
        faults.push(Fault::new(format!(
            "the feed {is} channel signal_inserted and {should} (chosen: {}{})",
            inserted.chosen,
            inserted.others.as_ref().map(|name| format!("; the trigger {name} does")).unwrap_or_default()
        )));
    }
    let era = connection.query_opt(
        "select from pg_catalog.pg_trigger as t join pg_catalog.pg_proc as p on p.oid = t.tgfoid
            where t.tgrelid = pg_catalog.to_regclass('stock_market.signal') and p.proname = 'signal_feed_append'",
        &[],
    )?;
    if era.is_some() {
        faults.push(Fault::new("a trigger of the sequence era, signal_feed_append, is on stock_market.signal"));
    }
    Ok(faults)
}

/// Who notifies channel `signal_inserted`.
pub(super) struct SignalInsertedState {
    pub(super) chosen: String,
    /// Whether the feed's own trigger does.
    pub(super) sends: bool,
    /// The name of another trigger on `signal` that does.
    pub(super) others: Option<String>,
}

impl SignalInsertedState {
    pub(super) fn should_send(&self) -> bool {
        match self.chosen.as_str() {
            "on" => true,
            "off" => false,
            _ => self.others.is_none(),
        }
    }
}

pub(super) fn signal_inserted(connection: &mut Connection) -> Result<SignalInsertedState, Error> {
    let row = connection.query_one(
        "select coalesce((select c.signal_inserted from stock_market.signal_feed_choice as c), 'auto'),
            coalesce((select t.tgnargs > 0 from pg_catalog.pg_trigger as t
                where t.tgrelid = pg_catalog.to_regclass('stock_market.signal') and t.tgname = '!signal_feed_capture'), false)",
        &[],
    )?;
    Ok(SignalInsertedState { chosen: row.get(0), sends: row.get(1), others: other_notifier(connection)? })
}

/// Another trigger on `signal` that notifies channel `signal_inserted`: its function, or an argument, names the channel.
pub(super) fn other_notifier(connection: &mut Connection) -> Result<Option<String>, Error> {
    let row = connection.query_opt(
        "select t.tgname::text from pg_catalog.pg_trigger as t
            join pg_catalog.pg_proc as p on p.oid = t.tgfoid
            join pg_catalog.pg_class as c on c.oid = t.tgrelid
            join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
            where n.nspname = 'stock_market' and c.relname = 'signal' and not t.tgisinternal and t.tgenabled <> 'D'
                -- Ours, and that of the sequence era, which goes.
                and (p.proname not in ('signal_feed_capture', 'signal_feed_append') or p.pronamespace <> n.oid)
                and (p.prosrc like '%signal_inserted%'
                    or pg_catalog.encode(t.tgargs, 'escape') like '%signal_inserted%')
            order by 1 limit 1",
        &[],
    )?;
    Ok(row.map(|row| row.get(0)))
}

/// Grants as they are against [`GRANTS`] and [`EXECUTES`].
pub(super) struct Grants {
    pub(super) missing: Vec<String>,
    /// What nobody of the feed gave: (text, whether it lets somebody write).
    pub(super) strange: Vec<(String, bool)>,
}

pub(super) fn grants(connection: &mut Connection) -> Result<Grants, Error> {
    let rows = connection.query(
        "select c.relname::text, coalesce(r.rolname::text, 'PUBLIC'), a.privilege_type, ''::text
            from pg_catalog.pg_class as c
            join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
            cross join lateral pg_catalog.aclexplode(c.relacl) as a
            left join pg_catalog.pg_roles as r on r.oid = a.grantee
            where n.nspname = 'stock_market' and c.relname = any ($1::text[]) and a.grantee <> c.relowner
        union all
        select c.relname::text, coalesce(r.rolname::text, 'PUBLIC'), a.privilege_type, t.attname::text
            from pg_catalog.pg_class as c
            join pg_catalog.pg_namespace as n on n.oid = c.relnamespace
            join pg_catalog.pg_attribute as t on t.attrelid = c.oid
            cross join lateral pg_catalog.aclexplode(t.attacl) as a
            left join pg_catalog.pg_roles as r on r.oid = a.grantee
            where n.nspname = 'stock_market' and c.relname = any ($1::text[]) and a.grantee <> c.relowner",
        &[&[&TABLES[..], &SEQUENCES[..]].concat()],
    )?;
    let mut given: BTreeSet<(String, String, String)> = rows
        .iter()
        .map(|row| {
            let (privilege, column): (String, String) = (row.get(2), row.get(3));
            let privilege = if column.is_empty() { privilege } else { format!("{privilege}({column})") };
            (row.get(0), row.get(1), privilege)
        })
        .collect();
    let mut missing = Vec::new();
    for (table, privileges, roles) in GRANTS {
        for role in roles {
            for privilege in privileges {
                if !given.remove(&(table.to_owned(), (*role).to_owned(), (*privilege).to_owned())) {
                    missing.push(format!("{role} lacks {privilege} on stock_market.{table}"));
                }
            }
        }
    }
    let mut strange: Vec<(String, bool)> = given
        .into_iter()
        .map(|(table, role, privilege)| {
            let writes = !privilege.starts_with("SELECT");
            let secret = table == "signal_feed_session_secret" || table == "signal_feed_api_key";
            (format!("{role} has {privilege} on stock_market.{table}, which the feed did not give"), writes || secret)
        })
        .collect();
    strange.extend(strange_executes(connection)?.into_iter().map(|text| (text, true)));
    Ok(Grants { missing, strange })
}

/// Who may execute a function of the feed beside those of [`EXECUTES`]. What PUBLIC may, migrate takes back.
fn strange_executes(connection: &mut Connection) -> Result<Vec<String>, Error> {
    let mut strange = Vec::new();
    let rows = connection.query(
        "select p.proname::text, pg_catalog.oidvectortypes(p.proargtypes), r.rolname::text
            from pg_catalog.pg_proc as p
            join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
            cross join lateral pg_catalog.aclexplode(p.proacl) as a
            join pg_catalog.pg_roles as r on r.oid = a.grantee
            where n.nspname = 'stock_market' and a.grantee <> p.proowner
            order by 1, 2, 3",
        &[],
    )?;
    let ours = functions();
    for row in rows {
        let (name, arguments, role): (String, String, String) = (row.get(0), row.get(1), row.get(2));
        let signature = format!("{name}({arguments})");
        let given = EXECUTES.iter().any(|(function, roles)| *function == name && roles.contains(&role.as_str()));
        if !given && ours.iter().any(|function| function.signature == signature) {
            strange.push(format!("{role} has EXECUTE on stock_market.{signature}, which the feed did not give"));
        }
    }
    Ok(strange)
}

/// What is worth knowing and no fault.
pub(super) fn remarks(connection: &mut Connection) -> Result<Vec<String>, Error> {
    let mut remarks = Vec::new();
    let inserted = signal_inserted(connection)?;
    remarks.push(match (&inserted.others, inserted.sends) {
        (Some(name), false) => format!("signal_inserted: {}; the trigger {name} notifies it", inserted.chosen),
        (Some(name), true) => {
            format!("signal_inserted: {}; BOTH the feed and the trigger {name} notify it", inserted.chosen)
        }
        (None, true) => format!("signal_inserted: {}; the feed notifies it", inserted.chosen),
        (None, false) => format!("signal_inserted: {}; nobody notifies it", inserted.chosen),
    });
    remarks.extend(grants(connection)?.strange.into_iter().map(|(text, _)| format!("warning: {text}")));
    let rows = connection.query(
        "select pg_catalog.format('warning: the trigger %I on stock_market.signal fires before the feed''s: an UPDATE that it makes comes before the row''s INSERT in the log', t.tgname)
            from pg_catalog.pg_trigger as t
            where t.tgrelid = pg_catalog.to_regclass('stock_market.signal') and not t.tgisinternal
                and t.tgtype & 3 = 1 and t.tgtype & 20 <> 0 and t.tgname::text collate \"C\" < '!signal_feed_capture'
        union all
        select 'warning: stock_market.signal is UNLOGGED: a crash empties it, while the log keeps its events'
            from pg_catalog.pg_class as c where c.oid = pg_catalog.to_regclass('stock_market.signal') and c.relpersistence = 'u'
        union all
        select pg_catalog.format('warning: the table %s has the feed''s capture trigger too, and its rows reach the log: was it stock_market.signal once? then drop the trigger there', t.tgrelid::regclass)
            from pg_catalog.pg_trigger as t
            join pg_catalog.pg_proc as p on p.oid = t.tgfoid
            join pg_catalog.pg_namespace as n on n.oid = p.pronamespace
            where p.proname = 'signal_feed_capture' and n.nspname = 'stock_market' and t.tgparentid = 0
                and t.tgrelid <> pg_catalog.to_regclass('stock_market.signal')",
        &[],
    )?;
    remarks.extend(rows.iter().map(|row| row.get::<_, String>(0)));
    Ok(remarks)
}

/// What belongs to the wrong role, and functions that are not as they should be.
pub(super) fn ownership(connection: &mut Connection) -> Result<Vec<String>, Error> {
    let mut faults = table_faults(connection)?;
    faults.extend(function_faults(connection)?.into_iter().map(|fault| fault.text));
    Ok(faults)
}

/// Who can act as the feed's owner and is no superuser: those who migrate.
pub(super) fn logins_with_power(connection: &mut Connection) -> Result<Vec<String>, Error> {
    let rows = connection.query(
        "select r.rolname::text from pg_catalog.pg_roles as r
            where r.rolcanlogin and not r.rolsuper and pg_catalog.pg_has_role(r.oid, 'signal_feed_owner', 'member')
            order by 1",
        &[],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}
