//! The paper broker: it fills every order at once, into a file that a person can read.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::{Answer, Attempt, Broker};
use crate::consumer::clock;
use crate::consumer::json;
use crate::consumer::order::Order;
use crate::error::{Doing, Error};

/// Fills into `trader-bot.paper`; away while a file `trader-bot.away` lies beside it.
#[derive(Debug)]
pub struct PaperBroker {
    paper: PathBuf,
    away: PathBuf,
    file: File,
}

#[derive(Serialize)]
struct Fill<'a> {
    filled_at: String,
    order_ref: &'a str,
    action: String,
    side: &'a str,
    quantity: &'a RawValue,
    symbol: &'a str,
    price: &'a RawValue,
    feed_seq: Option<i64>,
}

#[derive(Deserialize)]
struct Reference {
    order_ref: String,
}

impl PaperBroker {
    /// Opens or creates the file in `directory`.
    ///
    /// # Errors
    /// If it cannot be written.
    pub fn open(directory: &Path) -> Result<Self, Error> {
        let paper = directory.join("trader-bot.paper");
        let opened = OpenOptions::new().read(true).append(true).create(true).open(&paper);
        let file = opened.doing(format!("open {}", paper.display()))?;
        Ok(Self { away: directory.join("trader-bot.away"), paper, file })
    }

    fn fill(&mut self, order: &Order) -> io::Result<()> {
        let fill = Fill {
            filled_at: clock::now_text(),
            order_ref: &order.order_ref,
            action: order.action.to_string(),
            side: &order.side,
            quantity: &order.quantity,
            symbol: &order.symbol,
            price: &order.price,
            feed_seq: order.feed_seq,
        };
        let mut line = serde_json::to_string(&fill)?;
        line.push('\n');
        // A line that a crash tore is no fill: it is removed before the next one is written.
        let whole = self.whole_bytes()?;
        self.file.set_len(whole)?;
        let written = self.file.write_all(line.as_bytes()).and_then(|()| self.file.sync_data());
        if written.is_err() {
            self.file.set_len(whole)?;
        }
        written
    }

    /// The file's length without a torn last line.
    fn whole_bytes(&mut self) -> io::Result<u64> {
        let length = self.file.seek(SeekFrom::End(0))?;
        if length == 0 {
            return Ok(0);
        }
        let mut last = [0];
        self.file.seek(SeekFrom::Start(length - 1))?;
        self.file.read_exact(&mut last)?;
        if last == *b"\n" {
            return Ok(length);
        }
        let bytes = fs::read(&self.paper)?;
        Ok(bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |at| at as u64 + 1))
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
        let mut references = whole.filter_map(|line| json::object::<Reference>(line).ok());
        if references.any(|fill| fill.order_ref == order.order_ref) {
            Answer::Has(None)
        } else {
            Answer::NotSent(format!("{} does not have it", self.paper.display()))
        }
    }
}
