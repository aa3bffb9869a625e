//! The paper broker: it fills every order at once, into a file that a person can read.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde_json::value::RawValue;

use super::{Answer, Attempt, Broker};
use crate::consumer::clock;
use crate::consumer::files::whole_lines;
use crate::consumer::json;
use crate::consumer::order::Order;
use crate::error::{Doing, Error};

/// Fills into `trader-bot.paper`; away while a file `trader-bot.away` lies beside it.
#[derive(Debug)]
pub(crate) struct PaperBroker {
    paper: PathBuf,
    away: PathBuf,
    file: File,
}

#[derive(Serialize)]
struct Fill<'a> {
    filled_at: String,
    #[serde(flatten)]
    order: &'a Order,
}

impl PaperBroker {
    /// Opens or creates the file in `directory`. A last line that a crash tore is no fill, and is removed.
    pub(crate) fn open(directory: &Path) -> Result<Self, Error> {
        let (paper, away) = (directory.join("trader-bot.paper"), directory.join("trader-bot.away"));
        let opened = OpenOptions::new().append(true).create(true).open(&paper).and_then(|file| {
            file.set_len(whole_lines(&fs::read(&paper)?).len() as u64)?;
            Ok(file)
        });
        Ok(Self { file: opened.doing(format!("open {}", paper.display()))?, paper, away })
    }

    fn fill(&mut self, order: &Order) -> io::Result<()> {
        let line = serde_json::to_string(&Fill { filled_at: clock::now_text(), order })? + "\n";
        let before = self.file.metadata()?.len();
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        if written.is_err() {
            self.file.set_len(before)?;
        }
        written
    }
}

impl Broker for PaperBroker {
    fn connected(&mut self) -> Result<(), String> {
        if self.away.exists() { Err(format!("{} is there", self.away.display())) } else { Ok(()) }
    }

    fn place(&mut self, order: &Order, _: Option<i64>) -> Answer {
        if let Err(why) = self.connected() {
            return Answer::NotSent(why);
        }
        match self.fill(order) {
            Ok(()) => Answer::Has(None),
            Err(error) => Answer::Unknown(format!("write {}: {error}", self.paper.display())),
        }
    }

    fn lookup(&mut self, order: &Order, _: &Attempt) -> Answer {
        if let Err(why) = self.connected() {
            return Answer::Away(why);
        }
        let text = match fs::read_to_string(&self.paper) {
            Ok(text) => text,
            Err(error) => return Answer::Unknown(format!("read {}: {error}", self.paper.display())),
        };
        let whole = text.split_inclusive('\n').filter(|line| line.ends_with('\n'));
        let reference = serde_json::to_string(&order.order_ref).unwrap_or_default();
        let mut fills = whole.filter_map(|line| json::object::<BTreeMap<String, &RawValue>>(line).ok());
        if fills.any(|fill| fill.get("order_ref").is_some_and(|known| known.get() == reference)) {
            Answer::Has(None)
        } else {
            Answer::NotSent(format!("{} does not have it", self.paper.display()))
        }
    }
}
