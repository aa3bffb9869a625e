//! An operator's desk: a directory with a shell, in which the blocks of the README run.

use std::fs::{self, File};
use std::os::unix::fs::{PermissionsExt, symlink};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};

use rustix::process::{Pid, Signal, kill_process_group};

use crate::support::directory::Directory;
use crate::support::wait::until;

/// Runs the command without changing the user.
const SUDO: &str = "while [ \"${1#-}\" != \"$1\" ]; do [ \"$1\" = -u ] && shift; shift; done; exec \"$@\"";

/// The directory; both programs are on its path.
pub(super) struct Desk {
    directory: Directory,
}

impl Desk {
    pub(super) fn new() -> Self {
        let desk = Self { directory: Directory::new() };
        fs::create_dir(desk.path("bin")).unwrap();
        symlink(env!("CARGO_BIN_EXE_signal-feed"), desk.path("bin/signal-feed")).unwrap();
        symlink(env!("CARGO_BIN_EXE_trader-bot"), desk.path("bin/trader-bot")).unwrap();
        desk.stand_in("sudo", SUDO);
        desk
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.directory.path.join(name)
    }

    pub(super) fn read(&self, name: &str) -> String {
        fs::read_to_string(self.path(name)).unwrap_or_default()
    }

    pub(super) fn write(&self, name: &str, text: &str) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
    }

    pub(super) fn program(&self, name: &str, text: &str) {
        self.write(name, text);
        fs::set_permissions(self.path(name), fs::Permissions::from_mode(0o755)).unwrap();
    }

    /// A program of the block that must not run here: a shell script in its place, which notes the call in `calls`.
    pub(super) fn stand_in(&self, name: &str, script: &str) {
        let note = format!("echo \"{name} $*\" >> {}", self.path("calls").display());
        self.program(&format!("bin/{name}"), &format!("#!/bin/bash\n{note}\n{script}\n"));
    }

    /// The calls of stand-ins, in order, without sudo.
    pub(super) fn calls(&self) -> Vec<String> {
        self.read("calls").lines().filter(|call| !call.starts_with("sudo ")).map(str::to_owned).collect()
    }

    /// A program here, with this desk's path; what it writes is appended to `out` and `err`.
    pub(super) fn start(&self, program: &str, arguments: &[&str], environment: &[(&str, &str)]) -> Job {
        let mut command = Command::new(program);
        let path = format!("{}:{}", self.path("bin").display(), std::env::var("PATH").unwrap());
        command
            .args(arguments)
            .current_dir(&self.directory.path)
            .env("PATH", path)
            .env("SIGNAL_FEED_OPS_LISTEN", "off");
        command.envs(environment.iter().copied()).process_group(0).stdin(Stdio::null());
        let append = |name| File::options().create(true).append(true).open(self.path(name)).unwrap();
        Job(command.stdout(append("out")).stderr(append("err")).spawn().unwrap())
    }

    /// Runs a block in a shell, which must succeed; returns its output.
    pub(super) fn run(&self, block: &str, environment: &[(&str, &str)]) -> String {
        let before = self.read("out").len();
        let status = self.start("bash", &["-euo", "pipefail", "-c", block], environment).wait();
        assert!(status.success(), "{block}\n{}{}", self.read("out"), self.read("err"));
        self.read("out").split_off(before)
    }

    /// Waits until a file contains this.
    pub(super) fn wait_for(&self, name: &str, words: &str) {
        until(&format!("{words:?} in {name}"), || {
            let text = self.read(name);
            text.contains(words).then_some(())
        });
    }
}

impl Drop for Desk {
    #[allow(clippy::print_stderr, reason = "a failed test shows what was said")]
    fn drop(&mut self) {
        if std::thread::panicking() {
            for name in ["out", "err", "calls"] {
                for line in self.read(name).lines() {
                    eprintln!("{name}: {}", line.chars().take(300).collect::<String>());
                }
            }
        }
    }
}

/// A running program with all that it started; killed with the test.
pub(super) struct Job(Child);

impl Job {
    pub(super) fn signal(&self, signal: Signal) {
        let _ = kill_process_group(Pid::from_child(&self.0), signal);
    }

    pub(super) fn wait(&mut self) -> ExitStatus {
        until("the program ends", || self.0.try_wait().unwrap())
    }
}

impl Drop for Job {
    fn drop(&mut self) {
        self.signal(Signal::KILL);
        let _ = self.0.wait();
    }
}
