//! A private, throw-away PostgreSQL from the installed server programs, for the demo and for the tests.
//!
//! It listens on a unix socket in a directory of its own, readable by its owner alone. A small shell makes the directory:
//! when the process that started it ends for any reason, the shell's input ends, and it stops PostgreSQL and removes the
//! directory.

use std::ffi::OsStr;
use std::fs;
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_encode};
use rustix::process::geteuid;

use crate::error::{Doing, Error};
use crate::random::random_u64;

/// The keeper, given the server programs, the directory and more settings. It does everything itself and in order, so that
/// nothing still writes into the directory when it is removed, however early its input ends. It says `up` when PostgreSQL
/// accepts connections, or what failed, and then closes its output.
const KEEPER: &str = r#"
trap '' INT TERM HUP PIPE
exec 2>&1
mkdir -m 700 "$2" || exit
{
    "$1/initdb" --pgdata="$2/data" --username=postgres --auth=trust --encoding=UTF8 --locale=C --no-sync &&
    printf '%s' "$3" >>"$2/data/postgresql.conf" &&
    "$1/pg_ctl" start --pgdata="$2/data" --wait --timeout=60 --log="$2/log"
} </dev/null >"$2/start" 2>&1 && echo up || tail -q -n 5 "$2/start" "$2/log"
exec >/dev/null 2>&1
read -r _
"$1/pg_ctl" stop --pgdata="$2/data" --mode=immediate
rm -rf "$2"
"#;

/// The user and the group `nobody`, as whom PostgreSQL runs if this process is root: it refuses to run as root.
const NOBODY: u32 = 65534;

/// Characters of a path that need no escape in a query (RFC 3986, section 2.3).
const KEPT_IN_PATHS: &AsciiSet = &NON_ALPHANUMERIC.remove(b'/').remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Settings of every cluster, besides its socket's directory.
const SETTINGS: [(&str, &str); 5] = [
    ("port", "5432"),
    ("listen_addresses", ""),
    ("fsync", "off"),
    ("max_connections", "200"),
    ("log_min_messages", "log"),
];

/// A running private PostgreSQL. Dropping it stops it and removes its files.
#[derive(Debug)]
pub struct PrivatePostgres {
    dir: PathBuf,
    programs: PathBuf,
    port: String,
    keeper: Child,
}

impl PrivatePostgres {
    /// Makes a new cluster and starts it, with `settings` (name, value) on top of the defaults. Blocks for about two
    /// seconds. Nothing listens on TCP unless a setting says so.
    ///
    /// # Errors
    /// If the server programs are not installed (the text names the package), or do not start within a minute.
    pub fn start(settings: &[(&str, &str)]) -> Result<Self, Error> {
        let programs = find_programs()?;
        let dir = temporary_directory()?.join(format!("signal-feed-{:016x}", random_u64()));
        let socket = dir.to_string_lossy();
        let socket = [("unix_socket_directories", &*socket)];
        let lines = socket.iter().chain(&SETTINGS).chain(settings);
        let lines: String = lines.map(|(name, value)| format!("{name} = '{}'\n", value.replace('\'', "''"))).collect();
        let port = settings.iter().find(|(name, _)| *name == "port").map_or("5432", |(_, port)| port).to_owned();
        let keeper = unprivileged("/bin/sh")
            .args(["-c", KEEPER, "keeper"].map(OsStr::new))
            .args([programs.as_os_str(), dir.as_os_str(), OsStr::new(&lines)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .doing("start /bin/sh")?;
        let mut postgres = Self { dir, programs, port, keeper };
        let mut said = Vec::new();
        if let Some(mut output) = postgres.keeper.stdout.take() {
            output.read_to_end(&mut said).doing("wait for PostgreSQL")?;
        }
        let user = if geteuid().is_root() { " as the user nobody" } else { "" };
        match String::from_utf8_lossy(&said).trim() {
            "up" => Ok(postgres),
            failure => Err(Error::Failed(format!("start PostgreSQL{user}: {failure}"))),
        }
    }

    /// The connection string of a database of this cluster, as its superuser.
    pub fn url(&self, database: &str) -> String {
        let directory = percent_encode(self.dir.as_os_str().as_bytes(), KEPT_IN_PATHS);
        format!("postgresql:///{database}?host={directory}&port={}&user=postgres", self.port)
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
        unprivileged(program)
    }
}

impl Drop for PrivatePostgres {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        let _ = self.keeper.wait();
    }
}

/// A command in a process group of its own: Ctrl-C at the terminal goes only to this process. Without `PG…` variables,
/// which are meant for another cluster.
fn unprivileged(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.process_group(0);
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("PG")) {
        command.env_remove(name);
    }
    if geteuid().is_root() {
        command.uid(NOBODY).gid(NOBODY).current_dir("/");
    }
    command
}

/// The directory for temporary files, or `/tmp` if that is only for root: then PostgreSQL runs as another user.
fn temporary_directory() -> Result<PathBuf, Error> {
    let directory = std::path::absolute(std::env::temp_dir()).doing("find the directory for temporary files")?;
    let allows = |path: &Path, mode| fs::metadata(path).is_ok_and(|found| found.mode() & mode == mode);
    let is_for_all = allows(&directory, 0o003) && directory.ancestors().all(|parent| allows(parent, 0o001));
    Ok(if is_for_all || !geteuid().is_root() { directory } else { PathBuf::from("/tmp") })
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
