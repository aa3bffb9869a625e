//! Runs the operator's programs: each in its own process group, without this program's secrets, with one line on its
//! input.

use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};

/// How often to check a process group that cannot be waited for.
const LOOK_EVERY: Duration = Duration::from_millis(20);

/// How much of a program's standard error is kept.
const MOST_HEARD_BYTES: usize = 4096;
/// Longest wait for the end of standard error after the program has ended: its children may keep it open.
const HEAR_PATIENCE: Duration = Duration::from_millis(200);

/// Starts a program with its input open. Ctrl-C at this program's terminal does not reach it. If its standard error is
/// a pipe, [`finish`] reads it.
pub(crate) fn start(path: &Path, errors: Stdio) -> io::Result<Child> {
    let mut command = Command::new(path);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("TRADER_BOT_") || text.starts_with("SIGNAL_FEED_") || text == "DATABASE_URL" {
            command.env_remove(&name);
        }
    }
    command.process_group(0).stdin(Stdio::piped()).stderr(errors).spawn()
}

/// Gives the program its line and waits for its end. After `patience` it kills the process group; then there is no exit
/// status. Also returns the end of its standard error, if that is a pipe.
///
/// # Errors
/// If no thread can be started; then the program got no input.
pub(crate) fn finish(mut child: Child, line: String, patience: Duration) -> io::Result<(Option<ExitStatus>, String)> {
    let group = Pid::from_child(&child);
    let heard = child.stderr.take().map(Heard::start).transpose()?;
    let (sender, receiver) = mpsc::channel();
    // A program may never read its input, and a long line does not fit into a pipe: the write can block until the end.
    let feed_and_wait = move || {
        if let Some(mut input) = child.stdin.take() {
            // If the program has closed its input, its exit code is the answer.
            let _ = input.write_all(line.as_bytes());
        }
        let _ = sender.send(child.wait().ok());
    };
    std::thread::Builder::new().name("program".into()).spawn(feed_and_wait)?;
    let ended = receiver.recv_timeout(patience).ok().flatten();
    if ended.is_none() {
        kill(group);
        // SIGKILL cannot be refused; a program that hangs in the kernel is left alone.
        let _ = receiver.recv_timeout(patience);
    }
    Ok((ended, heard.map(Heard::end).unwrap_or_default()))
}

struct Heard {
    bytes: Arc<Mutex<Vec<u8>>>,
    is_over: mpsc::Receiver<()>,
}

impl Heard {
    /// The thread reads until the pipe closes, so that a full pipe blocks no process and a closed one kills none.
    fn start(mut from: ChildStderr) -> io::Result<Self> {
        let (sender, is_over) = mpsc::channel();
        let bytes = Arc::new(Mutex::new(Vec::new()));
        let kept = bytes.clone();
        let read = move || {
            let mut buffer = [0; MOST_HEARD_BYTES];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let mut kept = kept.lock().unwrap_or_else(PoisonError::into_inner);
                kept.extend_from_slice(&buffer[..count]);
                let surplus = kept.len().saturating_sub(MOST_HEARD_BYTES);
                kept.drain(..surplus);
            }
            let _ = sender.send(());
        };
        std::thread::Builder::new().name("program-errors".into()).spawn(read)?;
        Ok(Self { bytes, is_over })
    }

    fn end(self) -> String {
        let _ = self.is_over.recv_timeout(HEAR_PATIENCE);
        String::from_utf8_lossy(&self.bytes.lock().unwrap_or_else(PoisonError::into_inner)).into_owned()
    }
}

pub(crate) fn kill(group: Pid) {
    // An empty group is fine too.
    let _ = kill_process_group(group, Signal::KILL);
}

/// A process group in a form that a later process can recognise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Group {
    id: i32,
    /// When its leader started, in the kernel's ticks since boot: process ids are reused, this is not.
    leader_started: u64,
    boot: String,
}

impl Group {
    pub(crate) fn of(child: &Child) -> Option<Self> {
        let id = Pid::from_child(child).as_raw_nonzero().get();
        Some(Self { id, leader_started: stat(id)?.started, boot: boot_id() })
    }

    pub(crate) fn is_alive(&self) -> bool {
        if self.boot != boot_id() || stat(self.id).is_some_and(|leader| leader.started != self.leader_started) {
            return false;
        }
        let Ok(processes) = fs::read_dir("/proc") else { return false };
        let ids = processes.flatten().filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        ids.filter_map(stat).any(|process| process.group == self.id && !process.is_dead)
    }

    /// Waits for its end, at most `patience`, then kills it. Returns false if the wait was interrupted.
    pub(crate) fn outwait(&self, patience: Duration, is_interrupted: impl Fn() -> bool) -> bool {
        let until = Instant::now() + patience;
        while self.is_alive() {
            if is_interrupted() {
                return false;
            }
            if let Some(group) = Pid::from_raw(self.id)
                && Instant::now() >= until
            {
                kill(group);
            }
            std::thread::sleep(LOOK_EVERY);
        }
        true
    }
}

struct Stat {
    is_dead: bool,
    group: i32,
    started: u64,
}

/// A process's state, group and start time (proc(5), /proc/PID/stat: fields 3, 5 and 22).
fn stat(id: i32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{id}/stat")).ok()?;
    // The name in parentheses may contain anything, even parentheses.
    let (_, rest) = text.rsplit_once(')')?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    Some(Stat {
        is_dead: matches!(*fields.first()?, "Z" | "X"),
        group: fields.get(2)?.parse().ok()?,
        started: fields.get(19)?.parse().ok()?,
    })
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default().trim().to_owned()
}
