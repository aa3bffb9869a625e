//! The journal: one JSON line per fact, appended and never changed, except that old lines are shortened at the start.
//!
//! The bot can continue from it alone. A last line that a crash tore is dropped: its order was not sent, or will be
//! looked up.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use super::files::{self, whole_lines};
use super::json;
use super::ledger::Ledger;
use super::line::{Line, Record, VERSION};
use crate::error::{Doing, Error};

/// So many of the newest lines stay as they are when older ones are shortened.
const KEPT_LINES: usize = 200;

#[derive(Debug)]
pub(super) struct Journal {
    pub(super) path: PathBuf,
    file: File,
    /// The file that was replaced at the start. Its lock stops a bot that opened it before that.
    replaced: Option<File>,
    pub(super) ledger: Ledger,
}

impl Journal {
    /// Opens or creates the journal. Reads it whole, drops a torn last line, shortens old lines.
    ///
    /// Locks the file itself: under a bind mount or a hard link it has another name, so a lock file would be another one.
    pub(super) fn open(path: &Path, state: &Path) -> Result<Self, Error> {
        load(path, state)?;
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).doing(doing("open", path))?;
        files::lock(&file, path, path)?;
        let mut text = Vec::new();
        file.read_to_end(&mut text).doing(doing("read", path))?;
        let whole = whole_lines(&text).len();
        if whole < text.len() {
            log::warn!("a crash tore the journal's last line: dropped {} bytes", text.len() - whole);
            file.set_len(whole as u64).doing(doing("repair", path))?;
            file.seek(SeekFrom::End(0)).doing(doing("repair", path))?;
            text.truncate(whole);
        }
        // Not every line that a killed bot left is on the disk yet, and the state file will count the orders.
        file.sync_data().doing(doing("write", path))?;
        let (ledger, details) = read(&text, path)?;
        let mut journal = Self { path: path.to_owned(), file, replaced: None, ledger };
        if text.is_empty() {
            journal.append(&Line { version: Some(VERSION), ..Line::new(Record::Journal) }, true)?;
            files::sync_directory(path).doing(doing("write", path))?;
        } else if details > 2 * KEPT_LINES {
            journal.shrink(&text)?;
        }
        Ok(journal)
    }

    /// Reads a journal without changing anything.
    pub(super) fn look(path: &Path, state: &Path) -> Result<Ledger, Error> {
        read(whole_lines(&load(path, state)?), path).map(|(ledger, _)| ledger)
    }

    /// Appends a line. With `sync` it is on the disk when this returns.
    pub(super) fn append(&mut self, line: &Line, sync: bool) -> Result<(), Error> {
        let written =
            self.file.write_all(&bytes(line)).and_then(|()| if sync { self.file.sync_data() } else { Ok(()) });
        written.doing(doing("write", &self.path))?;
        self.ledger.apply(line).map_err(|why| Error::Failed(format!("{}: {why}", doing("write", &self.path))))
    }

    /// Replaces all lines but the newest by a summary of all. Each line sets facts, so to read the newest ones again
    /// changes nothing. A journal that cannot be replaced (a bind mount) stays long.
    fn shrink(&mut self, text: &[u8]) -> Result<(), Error> {
        let mut shorter: Vec<u8> = self.ledger.summary().iter().flat_map(bytes).collect();
        let lines: Vec<&[u8]> = text.split_inclusive(|byte| *byte == b'\n').collect();
        shorter.extend_from_slice(&lines[lines.len().saturating_sub(KEPT_LINES)..].concat());
        if let Err(error) = files::replace(&self.path, &shorter, true) {
            log::warn!("{}: {error}; keeping it as it is", doing("shrink", &self.path));
            return Ok(());
        }
        files::sync_directory(&self.path).doing(doing("shrink", &self.path))?;
        let shorter_file = OpenOptions::new().append(true).open(&self.path).doing(doing("open", &self.path))?;
        self.replaced = Some(std::mem::replace(&mut self.file, shorter_file));
        files::lock(&self.file, &self.path, &self.path)?;
        log::info!("shrunk the journal's old lines from {} to {} bytes", text.len(), shorter.len());
        Ok(())
    }
}

/// The journal's text; empty if there is none. Beside a state file there must be a journal with a whole first line, unless
/// both files are empty: an operator makes them for bind mounts.
fn load(path: &Path, state: &Path) -> Result<Vec<u8>, Error> {
    let text = match fs::read(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Vec::new(),
        text => text.doing(doing("read", path))?,
    };
    let is_empty = |path| fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0);
    if text.contains(&b'\n') || !state.exists() || (is_empty(state) && is_empty(path)) {
        return Ok(text);
    }
    Err(Error::Failed(format!(
        "the journal {} is lost, but the state file {} is there: restore the journal, or remove the state file to start \
         anew; then orders already placed may be placed again",
        path.display(),
        state.display()
    )))
}

/// What the lines add up to, and how many of them are details that a summary leaves out.
fn read(text: &[u8], path: &Path) -> Result<(Ledger, usize), Error> {
    let (mut ledger, mut details) = (Ledger::default(), 0);
    for (number, bytes) in text.split_inclusive(|byte| *byte == b'\n').enumerate() {
        let damaged = |why| Error::Failed(format!("{}: line {} is damaged: {why}", doing("read", path), number + 1));
        let line: Line = json::object(bytes).map_err(damaged)?;
        if number == 0 && (line.record != Record::Journal || line.version != Some(VERSION)) {
            return Err(Error::Failed(format!("{}: it is not a journal of version {VERSION}", doing("read", path))));
        }
        details += usize::from(line.record != Record::Known);
        ledger.apply(&line).map_err(damaged)?;
    }
    Ok((ledger, details))
}

fn bytes(line: &Line) -> Vec<u8> {
    let mut bytes = serde_json::to_vec(line).unwrap_or_default();
    bytes.push(b'\n');
    bytes
}

fn doing(verb: &str, path: &Path) -> String {
    format!("{verb} the journal {}", path.display())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails says so by panicking")]
mod tests {
    use serde_json::value::RawValue;

    use super::super::address::Cursor;
    use super::super::line::{Mode, intent_line};
    use super::super::order::Order;
    use super::*;
    use proptest::prelude::*;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("journal-{name}-{}", std::process::id()));
            fs::create_dir_all(&dir).unwrap();
            Self(dir)
        }

        fn journal(&self) -> PathBuf {
            self.0.join("journal")
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn order(id: i64) -> Order {
        let row = format!(
            r#"{{"id":{id},"action":"entry","symbol":"A","side":"BUY","created_at":"2026-11-20T12:00:00Z","note":"{}"}}"#,
            "x".repeat(300)
        );
        Order::from_row(&RawValue::from_string(row).unwrap(), Some(id), Some("2026-11-20T12:00:00Z".into())).unwrap()
    }

    fn write_orders(journal: &mut Journal, ids: std::ops::RangeInclusive<i64>) {
        for id in ids {
            let order = order(id);
            journal.append(&intent_line(&order), false).unwrap();
            let cursor = Cursor { feed_seq: id, event_time: Some("2026-11-20T12:00:00Z".into()) };
            journal.append(&Line::new(Record::Placed).order_key(&order).at(Some(&cursor)), false).unwrap();
        }
    }

    #[test]
    fn old_lines_shrink_and_tell_the_same() {
        let scratch = Scratch::new("shrink");
        let path = scratch.journal();
        let mut journal = Journal::open(&path, Path::new("")).unwrap();
        let mut mode = Line::new(Record::Mode);
        mode.mode = Some(Mode::CloseOnly {
            reason: "replay_truncated".into(),
            since: "2026-11-20T12:00:00Z".into(),
            missed_since: "2026-11-20T11:00:00Z".into(),
        });
        journal.append(&mode, false).unwrap();
        journal.append(&intent_line(&order(7000)), false).unwrap();
        write_orders(&mut journal, 1..=1000);
        let before = journal.ledger.clone();
        drop(journal);
        let size = fs::metadata(&path).unwrap().len();
        for _ in 0..2 {
            let journal = Journal::open(&path, Path::new("")).unwrap();
            let after = &journal.ledger;
            assert!(fs::metadata(&path).unwrap().len() < size / 3);
            assert_eq!(after.cursor, before.cursor);
            assert_eq!(after.mode, before.mode);
            assert_eq!(after.started_at.as_microsecond(), before.started_at.as_microsecond());
            assert_eq!(after.last_event_time, before.last_event_time);
            assert_eq!(after.first_open().unwrap().order.signal_id.get(), "7000");
            for id in 1..=1000 {
                assert_eq!(after.known(&order(id)), before.known(&order(id)), "{id}");
            }
        }
    }

    #[test]
    fn an_open_order_needs_its_text_once_and_short_lines_open_no_ended_order() {
        let scratch = Scratch::new("short");
        let path = scratch.journal();
        let mut journal = Journal::open(&path, Path::new("")).unwrap();
        let (open, ended) = (order(7000), order(8000));
        for order in [&open, &ended] {
            journal.append(&intent_line(order), false).unwrap();
        }
        for order_id in 1..=300 {
            for order in [&open, &ended] {
                journal.append(&Line::new(Record::Unsent).order_key(order), false).unwrap();
                let again = Line::new(Record::Intent).order_key(order);
                journal.append(&Line { order_id: Some(order_id), ..again }, false).unwrap();
            }
        }
        journal.append(&Line::new(Record::Placed).order_key(&ended), false).unwrap();
        drop(journal);
        for _ in 0..2 {
            let ledger = Journal::open(&path, Path::new("")).unwrap().ledger;
            let intents: Vec<_> = ledger.open().collect();
            assert_eq!(intents.len(), 1);
            assert_eq!(intents[0].order.line("order"), open.line("order"));
            assert_eq!((intents[0].stage, intents[0].attempt.order_id), (Record::Unknown, Some(300)));
            assert_eq!(ledger.known(&ended).unwrap().outcome, Record::Placed);
            assert_eq!((ledger.highest_order_id, ledger.count()), (300, 2));
        }
        let mut journal = Journal::open(&path, Path::new("")).unwrap();
        assert!(journal.append(&Line::new(Record::Intent).order_key(&order(1)), false).is_err());
    }

    #[test]
    fn a_torn_last_line_is_dropped_wherever_it_was_torn() {
        let scratch = Scratch::new("torn");
        let path = scratch.journal();
        let mut journal = Journal::open(&path, Path::new("")).unwrap();
        write_orders(&mut journal, 1..=2);
        drop(journal);
        let whole = fs::read(&path).unwrap();
        let last = whole[..whole.len() - 1].iter().rposition(|byte| *byte == b'\n').unwrap() + 1;
        for cut in last..whole.len() {
            fs::write(&path, &whole[..cut]).unwrap();
            let mut journal = Journal::open(&path, Path::new("")).unwrap();
            assert_eq!(journal.ledger.cursor.as_ref().unwrap().feed_seq, 1);
            assert_eq!(journal.ledger.first_open().unwrap().order.signal_id.get(), "2");
            write_orders(&mut journal, 3..=3);
            drop(journal);
            assert!(Journal::open(&path, Path::new("")).unwrap().ledger.known(&order(3)).is_some());
        }
    }

    #[test]
    fn a_damaged_line_in_the_middle_is_named() {
        let scratch = Scratch::new("damaged");
        let path = scratch.journal();
        let mut journal = Journal::open(&path, Path::new("")).unwrap();
        write_orders(&mut journal, 1..=2);
        drop(journal);
        let text = fs::read_to_string(&path).unwrap().replacen("\"placed\"", "\"pla", 1);
        fs::write(&path, text).unwrap();
        let error = Journal::open(&path, Path::new("")).unwrap_err().to_string();
        assert!(error.contains("line 3 is damaged"), "{error}");
    }

    #[test]
    fn an_order_of_a_former_version_is_closed_by_its_outcome_however_its_id_was_written() {
        let scratch = Scratch::new("former");
        let path = scratch.journal();
        let order = r#"{"type":"order","order_ref":"sf-17.0-entry","signal_id":17.0,"action":"entry","symbol":"A","side":"BUY","quantity":1,"price":null,"feed_seq":1,"event_time":"2026-11-20T12:00:00Z","signal":{"id":17.0,"action":"entry","symbol":"A","side":"BUY"}}"#;
        let text = [
            r#"{"record":"journal","time":"2026-11-20T11:00:00Z","version":1}"#.to_owned(),
            format!(r#"{{"record":"intent","time":"2026-11-20T12:00:00Z","order":{order}}}"#),
            r#"{"record":"placed","time":"2026-11-20T12:00:01Z","feed_seq":1,"event_time":"2026-11-20T12:00:00Z","signal_id":17.0,"action":"entry"}"#.to_owned(),
            String::new(),
        ];
        fs::write(&path, text[..2].join("\n") + "\n").unwrap();
        let ledger = Journal::look(&path, Path::new("")).unwrap();
        let former = ledger.first_open().unwrap().order.clone();
        assert_eq!(former.order_ref, "sf-17.0-entry");
        fs::write(&path, text.join("\n")).unwrap();
        let ledger = Journal::look(&path, Path::new("")).unwrap();
        assert!(ledger.first_open().is_none());
        assert_eq!(ledger.known(&former).unwrap().outcome, Record::Placed);
    }

    #[test]
    fn a_persons_line_about_a_followed_order_does_not_end_the_following() {
        let scratch = Scratch::new("person");
        let path = scratch.journal();
        let mut journal = Journal::open(&path, Path::new("")).unwrap();
        let order = order(1);
        journal.append(&Line { order_id: Some(5), ..intent_line(&order) }, false).unwrap();
        journal.append(&Line { order_id: Some(5), ..Line::new(Record::Placed).order_key(&order) }, false).unwrap();
        journal.append(&Line::new(Record::Placed).order_key(&order), false).unwrap();
        assert_eq!(journal.ledger.working().count(), 1);
        journal.append(&Line::new(Record::Filled).order_key(&order), false).unwrap();
        assert_eq!(journal.ledger.working().count(), 0);
    }

    proptest! {
        #[test]
        fn damage_is_named_or_the_line_counts_as_never_written_and_nothing_panics(
            noise: Vec<u8>,
            at: prop::sample::Index,
            length in 0_usize..40,
        ) {
            let scratch = Scratch::new("noise");
            let path = scratch.journal();
            let mut journal = Journal::open(&path, Path::new("")).unwrap();
            write_orders(&mut journal, 1..=3);
            drop(journal);
            let mut bytes = fs::read(&path).unwrap();
            let from = at.index(bytes.len());
            bytes.splice(from..(from + length).min(bytes.len()), noise);
            fs::write(&path, &bytes).unwrap();
            match Journal::open(&path, Path::new("")) {
                // A journal that was read can be appended to and read again.
                Ok(mut journal) => {
                    write_orders(&mut journal, 9..=9);
                    drop(journal);
                    prop_assert!(Journal::open(&path, Path::new("")).unwrap().ledger.known(&order(9)).is_some());
                }
                Err(error) => prop_assert!(error.to_string().contains("the journal"), "{}", error),
            }
        }
    }
}
