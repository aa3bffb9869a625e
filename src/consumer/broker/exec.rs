//! A broker that is a program in any language, run once an order: the order on its input, the answer in its exit code.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{Attempt, Broker, Lookup, Placing};
use crate::consumer::clock;
use crate::consumer::files::with_suffix;
use crate::consumer::order::{Order, Request};
use crate::error::{Doing, Error};
use crate::program::{self, Ended, Group};

/// Placed, or the broker has it.
const EXIT_DONE: i32 = 0;
/// Rejected for good (sysexits: EX_DATAERR).
const EXIT_REJECTED: i32 = 65;
/// The broker surely has not got it, and nothing is on its way (sysexits: EX_NOINPUT).
const EXIT_HAS_NOT: i32 = 66;
/// The broker is away, and surely nothing was sent (sysexits: EX_TEMPFAIL).
const EXIT_AWAY: i32 = 75;

/// Runs a program once an order.
#[derive(Debug)]
pub struct ExecBroker {
    program: PathBuf,
    timeout: Duration,
    /// Tells the next bot which program was running when this one was killed.
    running: PathBuf,
    leftover: Option<Running>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Running {
    order_ref: String,
    started_at: String,
    group: Group,
}

impl ExecBroker {
    /// Orders go to `program`, which has `timeout` for each. Beside the journal the broker keeps a file of its own.
    ///
    /// # Errors
    /// Where the program's path cannot be made absolute.
    pub fn open(program: &Path, timeout: Duration, journal: &Path) -> Result<Self, Error> {
        let running = with_suffix(journal, ".running");
        let program = std::path::absolute(program).doing(format!("find {}", program.display()))?;
        // A file that a crash tore was torn before the program had got its order.
        let leftover = fs::read(&running).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Ok(Self { program, timeout, running, leftover })
    }

    /// Waits for the program of a bot that was killed, for the rest of its time, and then kills it.
    fn outwait_leftover(&mut self) {
        let Some(leftover) = self.leftover.take() else { return };
        if leftover.group.is_alive() {
            log::warn!("waiting for the program that the last bot left running with {}", leftover.order_ref);
            let started = clock::instant(&leftover.started_at).unwrap_or_else(jiff::Timestamp::now);
            let age = Duration::try_from(jiff::Timestamp::now().duration_since(started)).unwrap_or_default();
            leftover.group.outwait(self.timeout.saturating_sub(age));
        }
    }

    /// `Err` where the program surely got nothing.
    fn run(&mut self, order: &Order, request: Request) -> Result<Ended, String> {
        self.outwait_leftover();
        let child =
            program::start(&self.program).map_err(|error| format!("start {}: {error}", self.program.display()))?;
        let group = program::group_of(&child);
        // The program gets its order after this is written: a bot killed in between leaves a program with empty input.
        let noted = Group::of(&child).map_or(Ok(()), |group| self.note(order, group));
        if let Err(error) = noted {
            program::kill(group);
            return Err(format!("write {}: {error}", self.running.display()));
        }
        let ended = program::finish(child, order.line(request) + "\n", self.timeout);
        let ended = ended.map_err(|error| format!("run {}: {error}", self.program.display()));
        if !matches!(ended, Ok(Ended::Code(EXIT_DONE | EXIT_REJECTED | EXIT_HAS_NOT | EXIT_AWAY))) {
            // Whoever it left behind might still send.
            program::kill(group);
        }
        ended
    }

    fn note(&self, order: &Order, group: Group) -> std::io::Result<()> {
        let running = Running { order_ref: order.order_ref.clone(), started_at: clock::now_text(), group };
        // Not synced: a crash of the machine ends the program too.
        fs::write(&self.running, serde_json::to_vec(&running)?)
    }

    fn unknown(&self, ended: Ended) -> String {
        let program = self.program.display();
        match ended {
            Ended::Code(code) => format!("{program} ended with exit code {code}, which says nothing about the order"),
            Ended::Untold => format!("nobody can tell how {program} ended"),
            Ended::Signal(signal) => format!("{program} was ended by signal {signal}"),
            Ended::TimedOut => {
                format!("{program} did not end within {} and was killed", crate::text::duration(self.timeout))
            }
        }
    }
}

impl Broker for ExecBroker {
    fn connected(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn place(&mut self, order: &Order, _: Option<i64>) -> Placing {
        match self.run(order, Request::Order) {
            Ok(Ended::Code(EXIT_DONE)) => Placing::Placed,
            Ok(Ended::Code(EXIT_REJECTED)) => Placing::Rejected(format!("{} rejected it", self.program.display())),
            Ok(Ended::Code(EXIT_AWAY)) => Placing::Away(format!("{} says so", self.program.display())),
            Ok(ended) => Placing::Unknown(self.unknown(ended)),
            Err(why) => Placing::Away(why),
        }
    }

    fn lookup(&mut self, order: &Order, _: &Attempt) -> Lookup {
        match self.run(order, Request::Lookup) {
            Ok(Ended::Code(EXIT_DONE)) => Lookup::Has(None),
            Ok(Ended::Code(EXIT_HAS_NOT)) => Lookup::HasNot,
            Ok(Ended::Code(EXIT_AWAY)) => Lookup::Away(format!("{} says so", self.program.display())),
            Ok(ended) => Lookup::Unknown(self.unknown(ended)),
            Err(why) => Lookup::Away(why),
        }
    }
}
