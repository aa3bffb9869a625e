//! Checks an installation: `migrate` repairs what is found and `doctor` reports it. The queries are in `sql/`.

use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;

use super::{Connection, Error};

/// What an installation consists of: it replaces `{wanted}` at the beginning of a query.
const WANTED: &str = include_str!("../../sql/wanted.sql");
pub(super) const FUNCTIONS: &str = include_str!("../../sql/functions.sql");

const STRANGERS: &str = include_str!("../../sql/strangers.sql");
const INSPECT: &str = include_str!("../../sql/inspect.sql");
const TRIGGERS: &str = include_str!("../../sql/triggers.sql");
pub(super) const REMARKS: &str = include_str!("../../sql/remarks.sql");
const MISSING_ROLES: &str = include_str!("../../sql/missing_roles.sql");
const REFUSALS: &str = include_str!("../../sql/refusals.sql");
const ROWS: &str = include_str!("../../sql/rows.sql");
const SUBSCRIBED: &str = include_str!("../../sql/subscribed.sql");
const TWO_PHASE: &str = include_str!("../../sql/two_phase.sql");
const SIGNAL_INSERTED: &str = include_str!("../../sql/signal_inserted.sql");
/// Only some roles may read the secret.
const NO_SECRET: &str = "select 'the table signal_feed_private.signal_feed_session_secret has no row'
    where not exists (select from signal_feed_private.signal_feed_session_secret)";

#[derive(Debug, Clone)]
pub(super) struct Fault {
    /// The check of `doctor` that reports it.
    pub(super) check: String,
    pub(super) text: String,
    /// Signals may have been written and not captured.
    pub(super) capture_was_off: bool,
}

impl Fault {
    pub(super) fn new(text: impl Into<String>) -> Self {
        Self { check: "installation".to_owned(), text: text.into(), capture_was_off: false }
    }
}

pub(super) fn with_wanted(sql: &str) -> String {
    sql.replace("{wanted}", WANTED.trim_end())
}

/// The first column of every row.
pub(super) fn texts(connection: &mut Connection, sql: &str) -> Result<Vec<String>, Error> {
    Ok(connection.query(sql, &[])?.iter().map(|row| row.get(0)).collect())
}

/// The same for a query that this login or this version of PostgreSQL may not allow: then the result is empty.
fn texts_if_allowed(connection: &mut Connection, sql: &str) -> Result<Vec<String>, Error> {
    let refusals = [Some(&SqlState::INSUFFICIENT_PRIVILEGE), Some(&SqlState::UNDEFINED_COLUMN)];
    match texts(connection, sql) {
        Err(error) if refusals.contains(&error.sql_state()) => Ok(Vec::new()),
        outcome => outcome,
    }
}

/// Why this database cannot be migrated at all, if it cannot.
pub(super) fn refusal(connection: &mut Connection) -> Result<Option<String>, Error> {
    let mut refusals = texts(connection, REFUSALS)?;
    refusals.extend(texts_if_allowed(connection, SUBSCRIBED)?);
    if refusals.is_empty() { strangers(connection) } else { Ok(refusals.into_iter().next()) }
}

/// Refuses objects with the feed's names that are not the feed's own. Checked again in the transaction that migrates.
pub(super) fn strangers(connection: &mut Connection) -> Result<Option<String>, Error> {
    let strangers = texts(connection, &with_wanted(STRANGERS))?;
    if strangers.is_empty() {
        return Ok(None);
    }
    Ok(Some(format!(
        "refused, because of objects with the feed's names that are not the feed's own: {}. Drop or rename them. If they are \
         the feed's (from a dump restored without owners), run migrate as their owner",
        strangers.join("; ")
    )))
}

/// The feed's roles that are missing, or that the runner would have to be a member of.
pub(super) fn missing_roles(connection: &mut Connection) -> Result<Vec<String>, Error> {
    texts(connection, &with_wanted(MISSING_ROLES))
}

/// Every trigger of the feed that is missing, changed or not ENABLE ALWAYS.
pub(super) fn trigger_faults(connection: &mut Connection) -> Result<Vec<Fault>, Error> {
    read_faults(connection, &with_wanted(TRIGGERS), &[])
}

/// The same for an installation of the migrations 1 to 4, which had no private schema.
pub(super) fn trigger_faults_before_5(connection: &mut Connection) -> Result<Vec<Fault>, Error> {
    read_faults(connection, &with_wanted(TRIGGERS).replace("signal_feed_private", "stock_market"), &[])
}

fn read_faults(
    connection: &mut Connection,
    sql: &str,
    parameters: &[&(dyn ToSql + Sync)],
) -> Result<Vec<Fault>, Error> {
    let rows = connection.query(sql, parameters)?;
    Ok(rows.iter().map(|row| Fault { check: row.get(0), text: row.get(1), capture_was_off: row.get(2) }).collect())
}

/// The query for the faults that the catalog shows. `$1` is [`FUNCTIONS`]. Works on a hot standby too.
pub(super) fn catalog_faults() -> String {
    let (triggers, others) = (with_wanted(TRIGGERS), with_wanted(INSPECT));
    format!(
        "select * from ({triggers}) as t (\"check\", text, capture_was_off) union all select * from ({others}) as i"
    )
}

/// Every fault that `migrate` would repair, if all its files were applied.
pub(super) fn faults(connection: &mut Connection) -> Result<Vec<Fault>, Error> {
    let mut faults = read_faults(connection, &catalog_faults(), &[&FUNCTIONS])?;
    if faults.iter().any(|fault| fault.check == "tables") {
        // One is missing, and the checks below read them.
        return Ok(faults);
    }
    faults.extend(read_faults(connection, ROWS, &[])?);
    faults.extend(texts_if_allowed(connection, NO_SECRET)?.into_iter().map(Fault::new));
    let inserted = signal_inserted(connection, true)?;
    if !inserted.is_as_chosen {
        faults.push(Fault::new(format!("not as chosen: {}", inserted.text)));
    }
    Ok(faults)
}

/// Which triggers notify channel `signal_inserted`.
pub(super) struct SignalInsertedState {
    pub(super) chosen: String,
    /// A trigger on `signal` that is not the feed's own and does.
    pub(super) other: Option<String>,
    /// What was chosen and who does.
    pub(super) text: String,
    is_as_chosen: bool,
}

pub(super) fn signal_inserted(connection: &mut Connection, is_installed: bool) -> Result<SignalInsertedState, Error> {
    let chosen = if is_installed {
        "coalesce((select c.signal_inserted from stock_market.signal_feed_choice as c), 'auto')"
    } else {
        "'auto'"
    };
    let row = connection.query_one(&SIGNAL_INSERTED.replace("{chosen}", chosen), &[])?;
    Ok(SignalInsertedState { chosen: row.get(0), other: row.get(1), text: row.get(2), is_as_chosen: row.get(3) })
}

/// What `migrate` reports and does not repair: grants and objects that the feed did not make, oddities of `signal`, and
/// subscriptions that will stop.
pub(super) fn warnings(connection: &mut Connection) -> Result<Vec<String>, Error> {
    let mut warnings = texts(connection, &with_wanted(REMARKS))?;
    warnings.extend(two_phase(connection)?);
    Ok(warnings)
}

/// Subscriptions that stop at their first prepared transaction.
pub(super) fn two_phase(connection: &mut Connection) -> Result<Vec<String>, Error> {
    texts_if_allowed(connection, TWO_PHASE)
}
