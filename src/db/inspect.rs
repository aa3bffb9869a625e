//! Whether an installation is as the schema files say: what `migrate` puts right and `doctor` names.

use super::{Connection, Error};

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

/// Why this database cannot be migrated at all, if so.
pub(super) fn refusal(_connection: &mut Connection) -> Result<Option<String>, Error> {
    Ok(None)
}

/// The feed's roles that are missing, or that the runner would have to be a member of.
pub(super) fn missing_roles(connection: &mut Connection) -> Result<Vec<String>, Error> {
    let rows = connection.query(
        "select w.name from unnest($1::text[]) as w (name)
         where not exists (select from pg_catalog.pg_roles as r where r.rolname = w.name)",
        &[&ROLES.as_slice()],
    )?;
    Ok(rows.iter().map(|row| row.get(0)).collect())
}

const ROLES: [&str; 6] = [
    "signal_feed_owner",
    "signal_feed_capture",
    "signal_feed_render",
    "signal_feed_server",
    "signal_feed_admin",
    "signal_feed_bot",
];

pub(super) fn faults(_connection: &mut Connection) -> Result<Vec<Fault>, Error> {
    Ok(Vec::new())
}

/// What is worth knowing and no fault.
pub(super) fn remarks(_connection: &mut Connection) -> Result<Vec<String>, Error> {
    Ok(Vec::new())
}
