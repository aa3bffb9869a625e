//! Wrong usage: exit 2 and one line that names the option, the value and what is allowed.

use crate::support::program::signal_feed;

const NOWHERE: &str = "postgres://nobody:secret@127.0.0.1:1/none";

#[test]
fn wrong_usage_is_one_line_that_names_the_option_the_value_and_what_is_allowed() {
    for (arguments, words) in [
        (&["serve", "--heartbeat", "soon"][..], &["--heartbeat", "soon", "15s"][..]),
        (&["serve", "--heartbeat", "0s"], &["--heartbeat", "0s", "above zero"]),
        (&["serve", "--queue-capacity", "0"], &["--queue-capacity", "0", "from 1 to 1000000"]),
        (&["serve", "--max-stream-age", "never"], &["--max-stream-age", "never", "off"]),
        (&["serve", "--listen", "localhost"], &["--listen", "localhost"]),
        (&["serve", "--log-level", "loud"], &["--log-level", "loud", "error, warn, info, debug"]),
        (&["serve", "--no-such-option"], &["--no-such-option"]),
        (&["key", "mint"], &["--name"]),
        (&["key", "mint", "--name", ""], &["--name", "1 to 100 characters"]),
        (&["demo", "--rate", "0"], &["--rate", "0", "0.001"]),
        (&["no-such-command"], &["no-such-command"]),
        (&[], &["command", "--help"]),
    ] {
        let said = signal_feed(NOWHERE, arguments).failed(2);
        assert_eq!(said.trim_end().lines().count(), 1, "{arguments:?}: {said}");
        for word in words {
            assert!(said.contains(word), "{arguments:?}: {said:?} lacks {word:?}");
        }
    }
}

#[test]
fn a_connection_string_is_never_shown_whole() {
    for url in [
        "postgres://nobody:secret@host/db?nonsense=1",
        "nonsense=1 password=secret",
        "postgres://nobody:secret@[",
        NOWHERE,
    ] {
        let outcome = signal_feed(url, &["key", "list"]);
        assert_ne!(outcome.code, 0);
        assert!(!outcome.stderr.contains("secret"), "{}", outcome.stderr);
        assert_eq!(outcome.stderr.trim_end().lines().count(), 1, "{}", outcome.stderr);
    }
}

#[test]
fn help_and_version_are_everywhere_and_end_with_0() {
    for command in [&[][..], &["serve"], &["migrate"], &["key", "mint"], &["quarantine", "list"], &["demo"], &["tail"]]
    {
        for flag in ["--help", "--version"] {
            let arguments: Vec<&str> = command.iter().copied().chain([flag]).collect();
            assert!(!signal_feed(NOWHERE, &arguments).ok().is_empty(), "{arguments:?}");
        }
    }
}
