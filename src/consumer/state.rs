//! The state file: cursor and mode as the journal has them, how many orders the journal knows, and the bot's last warning.
//! It is replaced as a whole.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::address::Cursor;
use super::ledger::Ledger;
use super::line::Mode;
use super::{files, json};
use crate::error::{Doing, Error};

#[derive(Debug, Serialize, Deserialize)]
struct State {
    feed_id: Option<String>,
    cursor: Option<i64>,
    /// The time of that very event.
    event_time: Option<String>,
    #[serde(flatten)]
    mode: Mode,
    /// How many orders the journal knows. `None`: a former version wrote the file.
    orders: Option<usize>,
    key_warned_at: Option<String>,
}

#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    pub(super) key_warned_at: Option<String>,
    /// Whether the bot has already logged that the file cannot be replaced.
    is_told: bool,
}

impl StateFile {
    /// Reads the file. Its cursor and the ledger's differ after a crash between the two writes, of which the journal's comes
    /// first; then the ledger takes the lower one, if both have the same mode. Else close-only mode wins.
    ///
    /// Refuses a journal that knows fewer orders than the file counts. The journal is synced before the file is written, so
    /// no crash leaves such a pair.
    pub(super) fn load(path: PathBuf, ledger: &mut Ledger) -> Result<Self, Error> {
        let mut file = Self { path, key_warned_at: None, is_told: false };
        let state = match fs::read(&file.path) {
            Ok(bytes) => json::object::<State>(&bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err("there is none".to_owned()),
            // It may be another bot's, so it is not replaced.
            Err(error) => return Err(error).doing(file.doing("read")),
        };
        let state = match state {
            Ok(state) => state,
            Err(why) => {
                if ledger.cursor.is_some() {
                    log::warn!("{}: {why}; taking cursor and mode from the journal", file.doing("read"));
                }
                return Ok(file);
            }
        };
        if let (Some(one), Some(other)) = (&state.feed_id, &ledger.feed_id)
            && one != other
        {
            return Err(Error::Failed(format!(
                "the state file belongs to the log {one}, but the journal to the log {other}: they are from different bots"
            )));
        }
        if let Some(orders) = state.orders.filter(|orders| *orders > ledger.count()) {
            return Err(Error::Failed(format!(
                "the journal is older than the state file {}: it knows {} orders, and the bot had {orders}. Restore the newest \
                 journal, or remove the state file to continue with this one; then orders already placed may be placed again",
                file.path.display(),
                ledger.count()
            )));
        }
        file.key_warned_at = state.key_warned_at;
        // Take the lower cursor: its events come again, and the journal knows their orders. A crash may leave the state
        // file behind, or with a cursor of the log before a restore, to which numbers above the journal's belong.
        if let Some(feed_seq) = state.cursor
            && ledger.cursor.as_ref().is_none_or(|cursor| feed_seq < cursor.feed_seq)
            && state.mode.is_close_only() == ledger.mode.is_close_only()
        {
            ledger.cursor = Some(Cursor { feed_seq, event_time: state.event_time });
        }
        if state.mode.is_close_only() && !ledger.mode.is_close_only() {
            ledger.mode = state.mode;
        }
        Ok(file)
    }

    /// Blocks until cursor and mode are written; with `sync` they go to the disk before they take the old ones' place.
    ///
    /// A crash of the machine may leave the old file: its events come again, and the journal knows their orders.
    pub(super) fn save(&mut self, ledger: &Ledger, sync: bool) -> Result<(), Error> {
        let cursor = ledger.cursor.as_ref();
        let state = State {
            feed_id: ledger.feed_id.clone(),
            cursor: cursor.map(|cursor| cursor.feed_seq),
            event_time: cursor.and_then(|cursor| cursor.event_time.clone()),
            mode: ledger.mode.clone(),
            orders: Some(ledger.count()),
            key_warned_at: self.key_warned_at.clone(),
        };
        let text = serde_json::to_string(&state).unwrap_or_default() + "\n";
        let replaced = files::replace(&self.path, text.as_bytes(), sync).or_else(|error| {
            if !files::is_irreplaceable(&error) {
                return Err(error);
            }
            if !std::mem::replace(&mut self.is_told, true) {
                log::warn!("{}: {error}; writing it in place instead, so a crash may tear it", self.doing("replace"));
            }
            // A torn state file loses nothing: the journal has the same contents.
            let mut file = File::options().create(true).truncate(true).write(true).open(&self.path)?;
            file.write_all(text.as_bytes())?;
            if sync { file.sync_data() } else { Ok(()) }
        });
        replaced.doing(self.doing("write"))
    }

    fn doing(&self, verb: &str) -> String {
        format!("{verb} the state file {}", self.path.display())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails says so by panicking")]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_file_that_is_there_and_cannot_be_read_is_not_taken_for_lost() {
        let mut ledger = Ledger::default();
        assert!(StateFile::load(std::env::temp_dir(), &mut ledger).is_err());
        assert!(StateFile::load(std::env::temp_dir().join("no such file"), &mut ledger).is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_a_cut_line_is_torn(
            bytes: Vec<u8>,
            feed_seq: i64,
            reason: String,
            at: prop::sample::Index,
        ) {
            let path = std::env::temp_dir().join(format!("state-{}", std::process::id()));
            let mode = Mode::CloseOnly { reason, since: "s".into(), missed_since: "m".into() };
            let load = || {
                let mut ledger = Ledger::default();
                ledger.mode = mode.clone();
                StateFile::load(path.clone(), &mut ledger).map(|file| (file, ledger))
            };
            fs::write(&path, &bytes).unwrap();
            let _ = load();
            fs::write(&path, "torn").unwrap();
            let (mut file, mut saved) = load().unwrap();
            saved.cursor = Some(Cursor { feed_seq, event_time: None });
            file.save(&saved, false).unwrap();
            let whole = fs::read(&path).unwrap();
            prop_assert_eq!(&load().unwrap().1.cursor, &saved.cursor, "{:?}", String::from_utf8_lossy(&whole));
            // Except for the line end, which is not needed.
            fs::write(&path, &whole[..at.index(whole.len() - 1)]).unwrap();
            prop_assert_eq!(load().unwrap().1.cursor, None);
            fs::remove_file(&path).unwrap();
        }
    }
}
