//! What tests do to a private PostgreSQL: stop it, and signal its processes.

use std::fs;
use std::process::{Command, Stdio};

use signal_feed::demo::postgres::PrivatePostgres;

/// Control of a cluster.
pub trait Cluster {
    /// Stops PostgreSQL: `fast` ends the sessions and shuts down, else it stops as in a crash. Blocks until it has
    /// ended.
    fn stop(&self, fast: bool);

    /// Starts PostgreSQL after it was stopped or killed. Blocks until it accepts connections.
    fn start_again(&self);

    /// Sends a signal (`STOP`, `CONT`, `KILL`, …) to the postmaster.
    fn signal(&self, name: &str);

    /// The postmaster's process id.
    fn pid(&self) -> u32;
}

impl Cluster for PrivatePostgres {
    fn stop(&self, fast: bool) {
        let mut command = self.command(self.programs().join("pg_ctl"));
        command.arg("stop").arg("--pgdata").arg(self.dir().join("data"));
        let output = command.args(["--wait", "--mode", if fast { "fast" } else { "immediate" }]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    fn start_again(&self) {
        let (data, log) = (self.dir().join("data"), self.dir().join("log"));
        let mut command = self.command(self.programs().join("pg_ctl"));
        command.args(["start", "--wait", "--timeout=60", "--pgdata"]).arg(data).arg("--log").arg(&log);
        assert!(command.stdout(Stdio::null()).status().unwrap().success(), "{}", fs::read_to_string(&log).unwrap());
    }

    fn signal(&self, name: &str) {
        let status = Command::new("kill").arg(format!("-{name}")).arg(self.pid().to_string()).status().unwrap();
        assert!(status.success(), "no process {}", self.pid());
    }

    fn pid(&self) -> u32 {
        let lines = fs::read_to_string(self.dir().join("data/postmaster.pid")).unwrap();
        lines.lines().next().unwrap().parse().unwrap()
    }
}
