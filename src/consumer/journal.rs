//! The journal: one JSON line per fact, appended and never changed.
//!
//! The bot can continue from it alone. A last line that a crash tore is dropped: its order was not sent, or will be
//! looked up.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};

use super::files;
use super::json;
use super::ledger::Ledger;
use super::line::{Line, Record, VERSION};
use crate::error::{Doing, Error};

#[derive(Debug)]
pub(super) struct Journal {
    pub(super) path: PathBuf,
    file: File,
    pub(super) ledger: Ledger,
}

impl Journal {
    /// Opens or creates the journal, reads it, and drops a torn last line.
    ///
    /// Locks the file itself: under a bind mount or a hard link it has another name, so a lock file would be another one.
    pub(super) fn open(path: &Path, state: &Path) -> Result<Self, Error> {
        refuse_lost(path, state)?;
        let file = OpenOptions::new().read(true).append(true).create(true).open(path).doing(doing("open", path))?;
        files::lock(&file, path, path)?;
        let (ledger, whole) = read(&file, path)?;
        let torn = file.metadata().doing(doing("read", path))?.len() - whole;
        if torn > 0 {
            log::warn!("a crash tore the journal's last line: dropped {torn} bytes");
            file.set_len(whole).doing(doing("repair", path))?;
        }
        // Not every line that a killed bot left is on the disk yet, and the state file will count the orders.
        file.sync_data().doing(doing("write", path))?;
        let mut journal = Self { path: path.to_owned(), file, ledger };
        if whole == 0 {
            journal.append(&Line { version: Some(VERSION), ..Line::new(Record::Journal) }, true)?;
            files::sync_directory(path).doing(doing("write", path))?;
        }
        Ok(journal)
    }

    /// Reads a journal without changing anything.
    pub(super) fn look(path: &Path, state: &Path) -> Result<Ledger, Error> {
        refuse_lost(path, state)?;
        match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Ledger::default()),
            file => Ok(read(&file.doing(doing("read", path))?, path)?.0),
        }
    }

    /// Appends a line. With `sync` it is on the disk when this returns.
    pub(super) fn append(&mut self, line: &Line, sync: bool) -> Result<(), Error> {
        let bytes = serde_json::to_string(line).unwrap_or_default() + "\n";
        let written =
            self.file.write_all(bytes.as_bytes()).and_then(|()| if sync { self.file.sync_data() } else { Ok(()) });
        written.doing(doing("write", &self.path))?;
        self.ledger.apply(line).map_err(|why| Error::Failed(format!("{}: {why}", doing("write", &self.path))))
    }
}

/// Beside a state file there must be a journal with a whole first line, unless both files are empty: an operator makes
/// them for bind mounts.
fn refuse_lost(path: &Path, state: &Path) -> Result<(), Error> {
    let mut first = Vec::new();
    match File::open(path).and_then(|file| BufReader::new(file).read_until(b'\n', &mut first)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error).doing(doing("read", path)),
        _ => {}
    }
    let is_empty = |path| fs::metadata(path).is_ok_and(|metadata| metadata.len() == 0);
    if first.ends_with(b"\n") || !state.exists() || (is_empty(state) && is_empty(path)) {
        return Ok(());
    }
    Err(Error::Failed(format!(
        "the journal {} is lost, but the state file {} is there: restore the journal, or remove the state file to start \
         anew; then orders already placed may be placed again",
        path.display(),
        state.display()
    )))
}

/// What the whole lines add up to, and how many bytes they have.
fn read(file: &File, path: &Path) -> Result<(Ledger, u64), Error> {
    let (mut reader, mut bytes) = (BufReader::new(file), Vec::new());
    let (mut ledger, mut whole) = (Ledger::default(), 0);
    for number in 1.. {
        bytes.clear();
        reader.read_until(b'\n', &mut bytes).doing(doing("read", path))?;
        if !bytes.ends_with(b"\n") {
            break;
        }
        let damaged = |why| Error::Failed(format!("{}: line {number} is damaged: {why}", doing("read", path)));
        let line: Line = json::object(&bytes).map_err(damaged)?;
        if number == 1 && (line.record != Record::Journal || line.version != Some(VERSION)) {
            return Err(Error::Failed(format!("{}: it is not a journal of version {VERSION}", doing("read", path))));
        }
        ledger.apply(&line).map_err(damaged)?;
        whole += bytes.len() as u64;
    }
    Ok((ledger, whole))
}

fn doing(verb: &str, path: &Path) -> String {
    format!("{verb} the journal {}", path.display())
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test that fails says so by panicking")]
mod tests {
    use serde_json::value::RawValue;

    use super::super::address::Cursor;
    use super::super::line::intent_line;
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
    fn a_journal_whose_old_lines_a_former_version_shortened_is_read() {
        let scratch = Scratch::new("former-short");
        let path = scratch.journal();
        let text = [
            r#"{"record":"journal","time":"2026-11-20T11:00:00Z","version":1,"event_time":"2026-11-20T12:00:00Z","order_id":41}"#,
            r#"{"record":"known","time":"2026-11-21T12:00:00Z","signal_id":1,"action":"entry","symbol":"A","side":"BUY","created_at":"2026-11-20T12:00:00Z","outcome":"filled"}"#,
            r#"{"record":"cursor","time":"2026-11-21T12:00:00Z","feed_seq":9}"#,
            "",
        ];
        fs::write(&path, text.join("\n")).unwrap();
        let ledger = Journal::open(&path, Path::new("")).unwrap().ledger;
        assert_eq!((ledger.known(&order(1)).unwrap().outcome, ledger.count()), (Record::Filled, 1));
        assert_eq!((ledger.highest_order_id, ledger.cursor.unwrap().feed_seq), (41, 9));
        assert_eq!(ledger.last_event_time.as_deref(), Some("2026-11-20T12:00:00Z"));
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
