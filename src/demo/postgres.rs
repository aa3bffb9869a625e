//! A private, throw-away PostgreSQL from the installed server programs, for the demo and for the tests.
//!
//! It listens on a unix socket in a directory of its own, readable by its owner alone. A small shell owns it: when the
//! process that started it ends for any reason, the shell's input ends, and it stops PostgreSQL and removes the
//! directory.

use std::ffi::OsStr;
use std::fs;
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{DirBuilderExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use crate::error::{Doing, Error};

/// Longest time for PostgreSQL to accept connections after a start (a crash recovery included).
const START_PATIENCE: Duration = Duration::from_secs(60);
/// Longest time for PostgreSQL to stop.
const STOP_PATIENCE: Duration = Duration::from_secs(30);
/// How often to check a start or stop.
const LOOK_EVERY: Duration = Duration::from_millis(20);
/// The port that names the socket, unless a setting has another; nothing listens on TCP unless a setting says so.
const SOCKET_PORT: &str = "5432";

/// Prints `up`, starts PostgreSQL at each line of input, and at the end of its input stops it and removes everything.
const KEEPER: &str = r#"
trap '' INT TERM HUP
dir=$1; shift
pid=
echo up
while read -r _; do
    [ -n "$pid" ] && wait "$pid"
    "$@" >>"$dir/log" 2>&1 </dev/null &
    pid=$!
    echo started "$pid"
done
if [ -n "$pid" ]; then kill -INT "$pid" 2>/dev/null; kill -CONT "$pid" 2>/dev/null; wait "$pid"; fi
rm -rf "$dir"
"#;

/// A running private PostgreSQL. Dropping it stops it and removes its files.
#[derive(Debug)]
pub struct PrivatePostgres {
    dir: PathBuf,
    programs: PathBuf,
    account: Option<Account>,
    port: String,
    keeper: Child,
    said: BufReader<std::process::ChildStdout>,
    pid: u32,
}

/// The unprivileged user that PostgreSQL runs as if this process is root.
#[derive(Debug, Clone, Copy)]
struct Account {
    uid: u32,
    gid: u32,
}

impl PrivatePostgres {
    /// Makes a new cluster and starts it, with `settings` (name, value) on top of the defaults. Blocks for about two
    /// seconds.
    ///
    /// # Errors
    /// If the server programs are not installed (the text names the package), or do not start.
    pub fn start(settings: &[(&str, &str)]) -> Result<Self, Error> {
        let programs = find_programs()?;
        let account = unprivileged_account()?;
        let dir = make_directory(account)?;
        let outcome = Self::init_and_start(&dir, &programs, account, settings);
        if outcome.is_err() {
            let _ = fs::remove_dir_all(&dir);
        }
        outcome
    }

    fn init_and_start(
        dir: &Path,
        programs: &Path,
        account: Option<Account>,
        settings: &[(&str, &str)],
    ) -> Result<Self, Error> {
        let data = dir.join("data");
        let init = as_account(programs.join("initdb"), account)
            .arg("--pgdata")
            .arg(&data)
            .args(["--username=postgres", "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"])
            .stdin(Stdio::null())
            .output()
            .doing("run initdb")?;
        if !init.status.success() {
            return Err(Error::Failed(format!("run initdb: {}", String::from_utf8_lossy(&init.stderr).trim())));
        }
        let mut keeper = as_account("/bin/sh", account);
        keeper.args([OsStr::new("-c"), OsStr::new(KEEPER), OsStr::new("keeper"), dir.as_os_str()]);
        keeper.arg(programs.join("postgres")).arg("-D").arg(&data);
        keeper.arg("-c").arg(format!("unix_socket_directories={}", dir.display()));
        keeper.args(["-c", &format!("port={SOCKET_PORT}")]);
        let defaults =
            [("listen_addresses", ""), ("fsync", "off"), ("max_connections", "200"), ("log_min_messages", "log")];
        for (name, value) in defaults.iter().chain(settings) {
            keeper.arg("-c").arg(format!("{name}={value}"));
        }
        // A process group of its own: Ctrl-C at the terminal goes only to this process, which then stops the shell.
        keeper.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut keeper = keeper.spawn().doing("start /bin/sh")?;
        let said = keeper.stdout.take().ok_or_else(|| Error::Failed("start /bin/sh: no output".into()))?;
        let mut postgres = Self {
            dir: dir.to_owned(),
            programs: programs.to_owned(),
            account,
            port: settings.iter().find(|(name, _)| *name == "port").map_or(SOCKET_PORT, |(_, port)| port).to_owned(),
            keeper,
            said: BufReader::new(said),
            pid: 0,
        };
        postgres.hear("up")?;
        postgres.start_again()?;
        Ok(postgres)
    }

    /// Starts PostgreSQL again after [`stop`](Self::stop) or a kill; blocks until it accepts connections.
    ///
    /// # Errors
    /// If it does not within a minute.
    pub fn start_again(&mut self) -> Result<(), Error> {
        let input = self.keeper.stdin.as_mut().ok_or_else(|| Error::Failed("start PostgreSQL: it was ended".into()))?;
        input.write_all(b"start\n").doing("start PostgreSQL")?;
        let pid = self.hear("started ")?;
        self.pid = pid.parse().map_err(|_| Error::Failed(format!("start PostgreSQL: no process id in {pid:?}")))?;
        let until = Instant::now() + START_PATIENCE;
        while !self.accepts() {
            if !self.is_running() || Instant::now() > until {
                return Err(Error::Failed(format!("start PostgreSQL: {}", self.last_log_lines())));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Stops PostgreSQL: `fast` ends the sessions and shuts down, else it stops as in a crash. Blocks until it has
    /// ended.
    ///
    /// # Errors
    /// If it still runs after half a minute.
    pub fn stop(&self, fast: bool) -> Result<(), Error> {
        // An immediate shutdown (SIGQUIT): SIGKILL would leave shared memory and orphaned backends behind.
        self.signal(if fast { "INT" } else { "QUIT" })?;
        let until = Instant::now() + STOP_PATIENCE;
        while self.is_running() {
            if Instant::now() > until {
                return Err(Error::Failed("stop PostgreSQL: it still runs".into()));
            }
            std::thread::sleep(LOOK_EVERY);
        }
        Ok(())
    }

    /// Sends a signal (`STOP`, `CONT`, `KILL`, …) to the postmaster.
    ///
    /// # Errors
    /// If there is no such process.
    pub fn signal(&self, name: &str) -> Result<(), Error> {
        let status =
            Command::new("kill").arg(format!("-{name}")).arg(self.pid.to_string()).status().doing("run kill")?;
        if status.success() {
            Ok(())
        } else {
            Err(Error::Failed(format!("signal PostgreSQL {}: no such process", self.pid)))
        }
    }

    /// The postmaster's process id.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// The connection string of a database of this cluster, as its superuser.
    pub fn url(&self, database: &str) -> String {
        self.url_as("postgres", database)
    }

    /// The connection string of a database of this cluster, as the user `user`.
    pub fn url_as(&self, user: &str, database: &str) -> String {
        format!("postgresql:///{database}?host={}&port={}&user={user}", self.dir.display(), self.port)
    }

    /// The directory with the socket, the log (`log`) and the data (`data`).
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The directory of the server programs (also of `pg_dump`, `pg_basebackup` and so on).
    pub fn programs(&self) -> &Path {
        &self.programs
    }

    /// A command that runs as PostgreSQL's user.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        as_account(program, self.account)
    }

    fn hear(&mut self, word: &str) -> Result<String, Error> {
        let mut line = String::new();
        self.said.read_line(&mut line).doing("start PostgreSQL")?;
        match line.trim_end().strip_prefix(word) {
            Some(rest) => Ok(rest.to_owned()),
            None => Err(Error::Failed(format!("start PostgreSQL: its keeper said {line:?}"))),
        }
    }

    fn accepts(&self) -> bool {
        // The file's last line says `ready` once connections are accepted (PostgreSQL source, miscadmin.h:
        // PM_STATUS_READY).
        let lines = fs::read_to_string(self.dir.join("data/postmaster.pid")).unwrap_or_default();
        lines.lines().next() == Some(self.pid.to_string().as_str())
            && lines.lines().last().is_some_and(|line| line.trim() == "ready")
    }

    fn is_running(&self) -> bool {
        // A zombie counts as ended: the shell reaps it before the next start.
        fs::read_to_string(format!("/proc/{}/stat", self.pid))
            .is_ok_and(|stat| stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with('Z')))
    }

    fn last_log_lines(&self) -> String {
        let log = fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(5)..].join(" | ")
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

fn as_account(program: impl AsRef<OsStr>, account: Option<Account>) -> Command {
    let mut command = Command::new(program);
    if let Some(account) = account {
        command.uid(account.uid).gid(account.gid).current_dir("/");
    }
    command
}

/// Finds PostgreSQL's server programs. Debian keeps them outside PATH, in one directory per version.
fn find_programs() -> Result<PathBuf, Error> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    versions.sort();
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let path: Vec<PathBuf> = std::env::split_paths(&on_path).collect();
    let chosen = std::env::var_os("PGBIN").map(PathBuf::from);
    chosen
        .into_iter()
        .chain(versions.into_iter().rev().map(|(_, bin)| bin))
        .chain(path)
        .find(|bin| bin.join("postgres").is_file() && bin.join("initdb").is_file())
        .ok_or_else(|| {
            Error::Failed(
                "find PostgreSQL's server programs (initdb, postgres): they are not installed; \
                 on Debian and Ubuntu: apt-get install postgresql"
                    .into(),
            )
        })
}

/// The user for PostgreSQL, which refuses to run as root: `postgres` if it exists, else `nobody`.
fn unprivileged_account() -> Result<Option<Account>, Error> {
    if !rustix::process::geteuid().is_root() {
        return Ok(None);
    }
    let users = fs::read_to_string("/etc/passwd").doing("read /etc/passwd")?;
    ["postgres", "nobody"]
        .iter()
        .find_map(|wanted| {
            let fields: Vec<&str> =
                users.lines().find(|line| line.split(':').next() == Some(wanted))?.split(':').collect();
            Some(Account { uid: fields.get(2)?.parse().ok()?, gid: fields.get(3)?.parse().ok()? })
        })
        .map(Some)
        .ok_or_else(|| {
            Error::Failed("find a user for PostgreSQL, which refuses root: neither postgres nor nobody exists".into())
        })
}

fn make_directory(account: Option<Account>) -> Result<PathBuf, Error> {
    loop {
        let mut random = [0; 8];
        getrandom::fill(&mut random).map_err(|error| Error::Failed(format!("get random bytes: {error}")))?;
        let dir = std::env::temp_dir().join(format!("signal-feed-{:016x}", u64::from_ne_bytes(random)));
        match fs::DirBuilder::new().mode(0o700).create(&dir) {
            Ok(()) => {
                if let Some(account) = account {
                    chown(&dir, Some(account.uid), Some(account.gid)).doing("give PostgreSQL its directory")?;
                }
                return Ok(dir);
            }
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(cause) => return Err(Error::Io { doing: format!("make {}", dir.display()), cause }),
        }
    }
}
