//! The bot's two files at its start: which they are, and what they say together.

use std::path::PathBuf;

use super::super::files;
use super::super::journal::Journal;
use super::super::ledger::Ledger;
use super::super::state::{Found, State, StateFile};
use super::BotOptions;
use crate::error::Error;

/// The bot's two files, resolved.
pub(super) struct Files {
    pub(super) state: PathBuf,
    pub(super) journal: PathBuf,
}

impl Files {
    pub(super) fn find(options: &BotOptions) -> Result<Self, Error> {
        let files = Self { state: files::resolved(&options.state_file)?, journal: files::resolved(&options.journal)? };
        if files.state == files.journal {
            let file = options.journal.display();
            return Err(Error::Usage(format!("--journal {file}: expected another file than --state-file")));
        }
        files::require_plain(&files.state)?;
        files::require_plain(&files.journal)?;
        Ok(files)
    }

    /// Reads the state file. If there is one, there must be a journal too.
    pub(super) fn load_state(&self, state_file: &StateFile) -> Result<Found, Error> {
        if files::is_empty(&self.state) && files::is_empty(&self.journal) {
            return Ok(Found::Nothing);
        }
        let found = state_file.load()?;
        if found != Found::Nothing && !Journal::exists(&self.journal)? {
            return Err(Error::Failed(format!(
                "the journal {} is lost, but the state file {} is there: restore the journal, or remove the state file \
                 to start anew; then orders already placed may be placed again",
                self.journal.display(),
                self.state.display()
            )));
        }
        Ok(found)
    }
}

/// Merges state file and journal. They differ after a crash between the two writes; the journal is written first.
pub(super) fn reconcile(found: Found, ledger: &Ledger) -> Result<State, Error> {
    let mut merged = State::default();
    merged.feed_id.clone_from(&ledger.feed_id);
    merged.mode.clone_from(&ledger.mode);
    merged.set_cursor(ledger.cursor.clone());
    let state = match found {
        Found::State(state) => state,
        Found::Torn(why) => {
            log::warn!("cannot read the state file ({why}): taking cursor and mode from the journal");
            return Ok(merged);
        }
        Found::Nothing => {
            if merged.cursor.is_some() {
                log::warn!("there is no state file: taking cursor and mode from the journal");
            }
            return Ok(merged);
        }
    };
    if let (Some(one), Some(other)) = (&state.feed_id, &merged.feed_id)
        && one != other
    {
        return Err(Error::Failed(format!(
            "the state file belongs to the log {one}, but the journal to the log {other}: they are from different bots"
        )));
    }
    merged.key_warned_at = state.key_warned_at.clone();
    // Take the lower cursor: its events come again, and the journal knows their orders. A crash may leave the state file
    // behind, or with a cursor of the log before a restore, to which numbers above the journal's belong.
    let is_lower = merged.cursor.is_none_or(|cursor| state.cursor.is_some_and(|other| other < cursor));
    if is_lower && state.cursor.is_some() && state.mode.is_close_only() == merged.mode.is_close_only() {
        merged.set_cursor(state.cursor());
    }
    Ok(merged)
}
