//! Which sessions hold a lock that others wait for.

use super::{Connection, Error};

const BLOCKERS: &str = include_str!("../../sql/blockers.sql");
/// How many sessions an error of `migrate` names.
const MOST_NAMED: usize = 3;

/// One hold on one table.
pub(super) struct Blocker {
    /// The same as long as the session holds it.
    pub(super) id: String,
    pub(super) what: String,
    pub(super) fix: String,
}

/// Who blocks writers, the server or an administrator; with `is_for_migrate` also who can make `migrate` wait.
pub(super) fn read(connection: &mut Connection, is_for_migrate: bool) -> Result<Vec<Blocker>, Error> {
    let rows = connection.query(BLOCKERS, &[&is_for_migrate])?;
    Ok(rows.iter().map(|row| Blocker { id: row.get(0), what: row.get(1), fix: row.get(2) }).collect())
}

/// Who can make `migrate` wait, and what to do: the text names those who have held their lock longest.
pub(super) fn of_migrate(connection: &mut Connection) -> String {
    let found = read(connection, true).unwrap_or_default();
    let texts: Vec<String> = found.iter().take(MOST_NAMED).map(|one| format!("{} ({})", one.what, one.fix)).collect();
    if texts.is_empty() { "no session holds it any more".to_owned() } else { texts.join("; ") }
}
