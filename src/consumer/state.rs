//! The state file: the bot's cursor and mode. The journal has both too; this file is its short form, replaced as a
//! whole.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::address::Cursor;
use super::{files, json};
use crate::error::{Doing, Error};

const VERSION: u32 = 1;

/// Whether entries are placed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "mode", rename_all = "snake_case")]
pub enum Mode {
    /// Entries and exits are placed.
    #[default]
    Normal,
    /// Something was missed: exits are placed, entries are not, until a run with `--recovery` has succeeded.
    CloseOnly {
        /// The feed's reason.
        reason: String,
        /// When the bot entered the mode.
        since: String,
        /// The time of the last event before that: what the bot missed is not older.
        missed_since: String,
    },
}

impl Mode {
    /// Whether entries are blocked.
    pub fn is_close_only(&self) -> bool {
        matches!(self, Self::CloseOnly { .. })
    }
}

/// The contents of the state file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    version: u32,
    /// The log that cursor and journal belong to.
    pub feed_id: Option<String>,
    /// The last event that was handled.
    pub cursor: Option<i64>,
    /// That very event's time.
    pub event_time: Option<String>,
    /// Whether entries are placed.
    #[serde(flatten)]
    pub mode: Mode,
    /// When the bot last warned that its key ends soon.
    #[serde(default)]
    pub key_warned_at: Option<String>,
}

impl State {
    /// The cursor for a request to the feed.
    pub fn cursor(&self) -> Option<Cursor> {
        self.cursor.map(|feed_seq| Cursor { feed_seq, event_time: self.event_time.clone() })
    }

    /// Moves the cursor.
    pub fn set_cursor(&mut self, cursor: Option<Cursor>) {
        self.cursor = cursor.as_ref().map(|cursor| cursor.feed_seq);
        self.event_time = cursor.and_then(|cursor| cursor.event_time);
    }
}

/// What was found at the state file's path.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Found {
    Nothing,
    Torn(String),
    State(State),
}

/// The state file on disk.
#[derive(Debug)]
pub(super) struct StateFile {
    path: PathBuf,
    /// Whether the bot has already logged that the file cannot be replaced.
    is_told: Cell<bool>,
}

impl StateFile {
    pub(super) fn new(path: PathBuf) -> Self {
        Self { path, is_told: Cell::new(false) }
    }

    pub(super) fn load(&self) -> Result<Found, Error> {
        let bytes = match fs::read(&self.path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(cause) => return Err(Error::Io { doing: self.doing("read"), cause }),
        };
        match json::object_from_bytes::<State>(&bytes) {
            Ok(state) if state.version == VERSION => Ok(Found::State(state)),
            Ok(state) => Err(Error::Failed(format!(
                "{}: version {} is not known here, only {VERSION}",
                self.doing("read"),
                state.version
            ))),
            Err(error) => Ok(Found::Torn(error)),
        }
    }

    /// Blocks until the state is written; with `sync` it goes to the disk before it takes the old one's place.
    ///
    /// A crash of the machine may leave the old one: its events come again, and the journal knows their orders.
    pub(super) fn save(&self, state: &State, sync: bool) -> Result<(), Error> {
        let mut state = state.clone();
        state.version = VERSION;
        let mut text = serde_json::to_string(&state).unwrap_or_default();
        text.push('\n');
        let replaced = files::replace(&self.path, text.as_bytes(), sync).or_else(|error| {
            if !files::is_irreplaceable(&error) {
                return Err(error);
            }
            if !self.is_told.replace(true) {
                log::warn!("{}: {error}; writing it in place instead, so a crash may tear it", self.doing("replace"));
            }
            self.write_in_place(text.as_bytes(), sync)
        });
        replaced.doing(self.doing("write"))
    }

    /// A torn state file loses nothing: the journal has the same contents.
    fn write_in_place(&self, bytes: &[u8], sync: bool) -> io::Result<()> {
        let mut file = File::options().create(true).truncate(true).write(true).open(&self.path)?;
        file.write_all(bytes)?;
        if sync { file.sync_data() } else { Ok(()) }
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

    proptest! {
        #[test]
        fn no_bytes_make_it_panic_and_a_cut_line_is_torn(
            bytes: Vec<u8>,
            feed_seq: i64,
            reason: String,
            at: prop::sample::Index,
        ) {
            let path = std::env::temp_dir().join(format!("state-{}", std::process::id()));
            let file = StateFile::new(path.clone());
            fs::write(&path, &bytes).unwrap();
            let _ = file.load();
            let mode = Mode::CloseOnly { reason, since: "s".into(), missed_since: "m".into() };
            let mut state = State { mode, ..State::default() };
            state.set_cursor(Some(Cursor { feed_seq, event_time: None }));
            file.save(&state, false).unwrap();
            let whole = fs::read(&path).unwrap();
            let Found::State(loaded) = file.load().unwrap() else { panic!("{:?}", String::from_utf8_lossy(&whole)) };
            prop_assert_eq!((loaded.cursor(), &loaded.mode), (state.cursor(), &state.mode));
            // Except for the line end, which is not needed.
            fs::write(&path, &whole[..at.index(whole.len() - 1)]).unwrap();
            prop_assert!(matches!(file.load(), Ok(Found::Torn(_))));
            fs::remove_file(&path).unwrap();
        }
    }
}
