//! What a shell and its user get: completions, manual pages, progress, colours, columns.

use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

#[path = "../generate.rs"]
#[expect(dead_code, reason = "its `main` is a program of its own")]
mod generate;

use crate::support::database::Database;
use crate::support::directory::Directory;
use crate::support::program::{command, signal_feed};
use crate::support::wait::until;

const NOWHERE: &str = "postgres://nobody@127.0.0.1:1/none";

/// What a shell prints when it runs these lines; nothing on standard error.
fn shell(program: &str, arguments: &[&str], lines: &str) -> String {
    let output = Command::new(program).args(arguments).args(["-c", lines]).output().unwrap();
    let errors = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success() && errors.is_empty(), "{program}: {errors}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn the_completions_work_in_bash_zsh_and_fish() {
    let directory = Directory::new();
    generate::write_all(&directory.path).unwrap();
    for (program, begun, whole) in [("signal-feed", "quar", "quarantine"), ("trader-bot", "--max-e", "--max-entry-age")]
    {
        let file = directory.file(&format!("{program}.bash"));
        // What bash itself would call for this line.
        let complete = format!(
            ". {file}; registered=$(complete -p {program}); registered=${{registered##*-F }}; \
             COMP_WORDS=({program} {begun}) COMP_CWORD=1; ${{registered%% *}} {program} {begun} {program}; \
             echo \"${{COMPREPLY[@]}}\""
        );
        assert_eq!(shell("bash", &["--norc"], &complete).trim(), whole);

        let file = directory.file(&format!("{program}.fish"));
        let said = shell("fish", &["--no-config"], &format!("source {file}; complete -C '{program} {begun}'"));
        assert!(said.starts_with(whole), "{said}");

        let place = directory.path.to_str().unwrap();
        let lines = format!("fpath=({place} $fpath); autoload -U compinit; compinit -D -u; echo $_comps[{program}]");
        assert_eq!(shell("zsh", &["-f"], &lines).trim(), format!("_{program}"));
        shell("zsh", &["-f", "-n"], &format!(". {place}/_{program}"));
    }
}

#[test]
fn every_command_has_a_manual_page_with_its_options_defaults_variables_and_examples() {
    let directory = Directory::new();
    generate::write_all(&directory.path).unwrap();
    let page = |name: &str| {
        let path = directory.file(&format!("{name}.1"));
        std::fs::read_to_string(&path).unwrap().replace("\\-", "-")
    };
    let serve = page("signal-feed-serve");
    for words in ["--queue-capacity", "[default: 1024]", "SIGNAL_FEED_QUEUE_CAPACITY", ".SH EXAMPLES"] {
        assert!(serve.contains(words), "{words}: {serve}");
    }
    for name in ["signal-feed", "signal-feed-key-rotate", "signal-feed-tail", "signal-feed-doctor", "trader-bot"] {
        let page = page(name);
        assert!(page.contains(&format!(".TH {name} 1 ")) && page.contains(".SH EXAMPLES"), "{page}");
    }
}

/// A run whose output, both kinds in one, is read while it lasts.
struct Run {
    child: Child,
    output: Arc<Mutex<String>>,
}

impl Run {
    fn start(mut command: Command) -> Self {
        let (mut reader, writer) = std::io::pipe().unwrap();
        let child = command.stdin(Stdio::null()).stdout(writer.try_clone().unwrap()).stderr(writer).spawn().unwrap();
        drop(command);
        let output = Arc::new(Mutex::new(String::new()));
        let read = output.clone();
        std::thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count @ 1..) = reader.read(&mut bytes) {
                read.lock().unwrap().push_str(&String::from_utf8_lossy(&bytes[..count]));
            }
        });
        Self { child, output }
    }

    fn wait_words(&self, words: &[&str]) -> String {
        until(&format!("{words:?} is said"), || {
            let said = self.output.lock().unwrap().clone();
            words.iter().all(|word| said.contains(word)).then_some(said)
        })
    }

    fn wait_end(&mut self) -> String {
        assert!(until("the end", || self.child.try_wait().unwrap()).success());
        self.output.lock().unwrap().clone()
    }
}

/// The program on a terminal of 80 columns.
fn on_a_terminal(url: &str, arguments: &str) -> Command {
    let mut terminal = Command::new("script");
    let program = env!("CARGO_BIN_EXE_signal-feed");
    terminal.env("SIGNAL_FEED_DATABASE_URL", url).env("TERM", "xterm").env_remove("NO_COLOR");
    terminal.args(["-qefc", &format!("stty cols 80; exec {program} {arguments}"), "/dev/null"]);
    terminal
}

#[test]
fn colours_are_for_terminals_and_on_request() {
    let run = |mut command: Command| String::from_utf8(command.stdin(Stdio::null()).output().unwrap().stdout).unwrap();
    assert!(run(on_a_terminal(NOWHERE, "--help")).contains("\x1b["));
    let mut without = on_a_terminal(NOWHERE, "--help");
    without.env("NO_COLOR", "1");
    assert!(!run(without).contains('\x1b'));
    assert!(!signal_feed(NOWHERE, &["--help"]).ok().contains('\x1b'));
    for arguments in ["serve --heartbeat soon", "key list"] {
        assert!(!run(on_a_terminal(NOWHERE, arguments)).contains('\x1b'), "{arguments}");
    }
}

#[test]
fn a_terminal_shows_the_progress_of_long_work_and_the_line_disappears_at_the_end() {
    let database = Database::migrated();
    database.log_rows("select n, now() - interval '30 days', 'INSERT', 'null' from generate_series(1, 10) as n");
    let mut other = database.connect();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute("lock table stock_market.signal_feed_event").unwrap();
    let mut prune = Run::start(on_a_terminal(&database.url, "prune --older-than 7d"));
    prune.wait_words(&["prune: working, ", "2s so far"]);
    lock.rollback().unwrap();
    let said = prune.wait_end();
    // The progress line is erased before the next line, and at the end.
    assert!(said.contains("\x1b[2Kremoved 10 events older than 7d, up to 10\r\n"), "{said:?}");
    assert!(said.ends_with("\x1b[2K"), "{said:?}");
}

#[test]
fn without_a_terminal_only_the_result_is_printed() {
    let database = Database::migrated();
    let mut prune = command(&database.url);
    let prune = prune.args(["prune", "--older-than", "7d"]).output().unwrap();
    assert!(prune.status.success() && prune.stderr.is_empty(), "{prune:?}");
    database.sql("drop trigger signal_feed_key_changed on stock_market.signal_feed_api_key");
    let mut other = database.connect();
    let mut lock = other.transaction().unwrap();
    lock.batch_execute("lock table stock_market.signal").unwrap();
    let mut migrate = command(&database.url);
    migrate.arg("migrate");
    let mut migrate = Run::start(migrate);
    migrate.wait_words(&["waiting for a lock; "]);
    lock.rollback().unwrap();
    let said = migrate.wait_end();
    assert!(said.contains("signal_feed_key_changed") && !said.contains("so far"), "{said}");
}

#[test]
fn lists_are_columns_and_one_line_a_row() {
    let database = Database::migrated();
    database.mint("bot-1");
    database.mint_with("guest", &["--expires-in", "90d", "--delay", "15m"]);
    let error = "a reason of many words ".repeat(10);
    database.log_rows("select 1, now(), 'INSERT', 'null'");
    database.sql(&format!("insert into stock_market.signal_feed_quarantine (feed_seq, error) values (1, '{error}')"));
    for list in ["key list", "quarantine list", "doctor"] {
        let plain = command(&database.url).args(list.split(' ')).output().unwrap();
        let plain = String::from_utf8(plain.stdout).unwrap();
        // The second column begins at the same position in all rows.
        let starts =
            plain.lines().map(|line| line.find("  ").map(|at| line[at..].len() - line[at..].trim_start().len() + at));
        let starts: std::collections::BTreeSet<_> = starts.collect();
        assert_eq!(starts.len(), 1, "{plain}");
    }
    let plain = signal_feed(&database.url, &["quarantine", "list"]).ok();
    assert_eq!(plain.lines().count(), 2, "{plain}");
    let keys = signal_feed(&database.url, &["key", "list"]).ok();
    assert!(keys.contains("15m") && keys.contains("never"), "{keys}");
}
