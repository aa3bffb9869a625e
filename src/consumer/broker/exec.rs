//! A broker that is a program in any language, run once per order: the order on its input, the answer in its exit code.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::{Answer, Attempt, Broker};
use crate::consumer::clock;
use crate::consumer::files::with_suffix;
use crate::consumer::json;
use crate::consumer::order::Order;
use crate::consumer::stop::Stop;
use crate::error::{Doing, Error};
use crate::logging::LIMITED;
use crate::program::{self, Group};
use crate::text::clip;

/// Placed, or the broker has it.
const EXIT_DONE: i32 = 0;
/// Rejected for good (sysexits: EX_DATAERR).
const EXIT_REJECTED: i32 = 65;
/// The broker certainly does not have it, and nothing is on its way (sysexits: EX_NOINPUT).
const EXIT_HAS_NOT: i32 = 66;
/// The broker is away, and certainly nothing was sent (sysexits: EX_TEMPFAIL).
const EXIT_AWAY: i32 = 75;

/// The most lines of a run's standard error that are logged.
const MOST_SHOWN_LINES: usize = 20;

#[derive(Debug)]
pub(crate) struct ExecBroker {
    program: PathBuf,
    timeout: Duration,
    /// A file that tells the next bot which program was running if this bot is killed.
    running: PathBuf,
    leftover: Option<Running>,
    stop: Stop,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Running {
    order_ref: String,
    started_at: String,
    group: Group,
}

impl ExecBroker {
    /// Sends orders to `program`, which has `timeout` for each. The broker keeps a file of its own beside the journal.
    /// Asking `stop` ends the wait for a program that a killed bot left running, but not the order in hand.
    pub(crate) fn open(program: &Path, timeout: Duration, journal: &Path, stop: Stop) -> Result<Self, Error> {
        let running = with_suffix(journal, ".running");
        let program = std::path::absolute(program).doing(format!("find {}", program.display()))?;
        // If a crash tore the file, the program had not got its order yet.
        let leftover = fs::read(&running).ok().and_then(|bytes| json::object(&bytes).ok());
        Ok(Self { program, timeout, running, leftover, stop })
    }

    /// Waits for the program of a killed bot, for the rest of its time, and then kills it. `Err` if the bot should stop
    /// before that.
    fn outwait_leftover(&mut self) -> Result<(), String> {
        let Some(leftover) = &self.leftover else { return Ok(()) };
        if leftover.group.is_alive() {
            log::warn!("waiting for the program that the previous bot left running for {}", leftover.order_ref);
            let started = clock::instant(&leftover.started_at).unwrap_or_else(jiff::Timestamp::now);
            let age = Duration::try_from(jiff::Timestamp::now().duration_since(started)).unwrap_or_default();
            if !leftover.group.outwait(self.timeout.saturating_sub(age), || self.stop.is_asked()) {
                return Err(format!("the program of the previous bot still runs for {}", leftover.order_ref));
            }
        }
        self.leftover = None;
        Ok(())
    }

    /// How a run ended, if it did in time, and the last line that it wrote to standard error, with a colon before it.
    /// `Err` if the program certainly got no order.
    fn run(&mut self, order: &Order, kind: &str) -> Result<(Option<ExitStatus>, String), String> {
        self.outwait_leftover()?;
        let child = program::start(&self.program, Stdio::piped())
            .map_err(|error| format!("start {}: {error}", self.program.display()))?;
        let group = Pid::from_child(&child);
        // The program gets its order after this is written: a bot killed in between leaves a program with empty input.
        // It needs no sync: a crash of the machine ends the program too.
        let noted = Group::of(&child).map_or(Ok(()), |group| {
            let running = Running { order_ref: order.order_ref.clone(), started_at: clock::now_text(), group };
            fs::write(&self.running, serde_json::to_vec(&running)?)
        });
        if let Err(error) = noted {
            program::kill(group);
            return Err(format!("write {}: {error}", self.running.display()));
        }
        let ended = program::finish(child, order.line(kind) + "\n", self.timeout);
        let code = ended.as_ref().ok().and_then(|(status, _)| status.as_ref()?.code());
        if !matches!(code, Some(EXIT_DONE | EXIT_REJECTED | EXIT_HAS_NOT | EXIT_AWAY)) {
            // A process that it left running might still send.
            program::kill(group);
        } else {
            // If this fails, the next bot waits for what the program left running.
            let _ = fs::write(&self.running, "");
        }
        let (ended, errors) = ended.map_err(|error| format!("run {}: {error}", self.program.display()))?;
        let said: Vec<&str> = errors.lines().map(str::trim).filter(|line| !line.is_empty()).collect();
        for line in &said[said.len().saturating_sub(MOST_SHOWN_LINES)..] {
            log::info!(target: LIMITED, "{}: {}", self.program.display(), clip(line));
        }
        Ok((ended, said.last().map(|line| format!(": {}", clip(line))).unwrap_or_default()))
    }

    fn ask(&mut self, order: &Order, kind: &str) -> Answer {
        let (program, is_order) = (self.program.display().to_string(), kind == "order");
        let not_done = |why| if is_order { Answer::NotSent(why) } else { Answer::Away(why) };
        let (ended, reason) = match self.run(order, kind) {
            Ok(run) => run,
            Err(why) => return not_done(why),
        };
        let said = |otherwise: &str| match reason.as_str() {
            "" => format!("{program}: {otherwise}"),
            reason => format!("{program}{reason}"),
        };
        let Some(status) = ended else {
            let timeout = crate::text::duration(self.timeout);
            return Answer::Unknown(format!("{program} did not end within {timeout} and was killed{reason}"));
        };
        match status.code() {
            Some(EXIT_DONE) => Answer::Has(None),
            Some(EXIT_REJECTED) if is_order => Answer::Rejected(said("it gives no reason")),
            Some(EXIT_HAS_NOT) if !is_order => Answer::NotSent(said("the broker does not have it")),
            Some(EXIT_AWAY) => not_done(said("the broker is away")),
            _ => Answer::Unknown(format!("{program} ended with {status}, which says nothing about the order{reason}")),
        }
    }
}

impl Broker for ExecBroker {
    fn connected(&mut self) -> Result<(), String> {
        Ok(())
    }

    fn place(&mut self, order: &Order, _: Option<i64>) -> Answer {
        self.ask(order, "order")
    }

    fn lookup(&mut self, order: &Order, _: &Attempt) -> Answer {
        self.ask(order, "lookup")
    }
}
