//! The command line: what it refuses, and the messages.

use super::process::{KEY, Place};

fn refusal(arguments: &[&str], environment: &[(&str, &str)]) -> (Option<i32>, String) {
    let place = Place::new();
    let mut command = place.command(arguments);
    command.env_remove("TRADER_BOT_FEED_API_KEY").envs(environment.iter().copied());
    let mut child = command.spawn().unwrap();
    let code = child.wait().unwrap().code();
    (code, place.read("log"))
}

const URL: [&str; 2] = ["--feed-url", "http://127.0.0.1:9/feed"];

#[test]
fn wrong_usage_is_one_line_that_names_option_value_and_what_is_allowed() {
    let with = |more: &[&'static str]| [&URL[..], &["--feed-api-key", KEY], more].concat();
    for (arguments, words) in [
        (vec!["--feed-api-key", KEY], vec!["--feed-url"]),
        (URL.to_vec(), vec!["--feed-api-key-file"]),
        (vec!["--feed-url", "http://h/", "--feed-api-key", KEY], vec!["--feed-url", "http://h/", "expected http://"]),
        (with(&["--read-timeout", "soon"]), vec!["--read-timeout", "soon", "expected a duration"]),
        (with(&["--broker", "carrier-pigeon"]), vec!["--broker", "carrier-pigeon", "paper"]),
        (with(&["--on-quarantined", "cry"]), vec!["--on-quarantined", "cry", "alert, close-only"]),
        (with(&["--max-entry-age", "old"]), vec!["--max-entry-age", "old", "off"]),
        (with(&["--log-level", "loud"]), vec!["--log-level", "loud", "debug"]),
        (with(&["--recovery"]), vec!["--recovery", "--database-url"]),
        (with(&["--state-file", "trader-bot.journal"]), vec!["--journal", "--state-file"]),
        (with(&["--journal", "x", "--state-file", "./x"]), vec!["--journal x", "--state-file"]),
        (with(&["--no-such-option"]), vec!["--no-such-option", "--help"]),
        (with(&["--read-timeout", "-1s"]), vec!["--read-timeout", "-1s", "expected a duration"]),
        (with(&["--backoff-min", "1h"]), vec!["--backoff-min"]),
    ] {
        let (code, said) = refusal_alone(&arguments);
        assert_eq!(code, Some(2), "{arguments:?}: {said}");
        assert_eq!(said.trim_end().lines().count(), 1, "{said}");
        for word in words {
            assert!(said.contains(word), "{arguments:?}: {word:?} is missing in {said}");
        }
        assert!(!said.contains(KEY), "{said}");
    }
}

fn refusal_alone(arguments: &[&str]) -> (Option<i32>, String) {
    let output = std::process::Command::new(env!("CARGO_BIN_EXE_trader-bot"))
        .args(arguments)
        .env_remove("DATABASE_URL")
        .current_dir(std::env::temp_dir())
        .output()
        .unwrap();
    assert!(output.stdout.is_empty());
    (output.status.code(), String::from_utf8(output.stderr).unwrap())
}

#[test]
fn a_key_with_impossible_characters_is_refused_without_being_repeated() {
    let (code, said) = refusal_alone(&[&URL[..], &["--feed-api-key", "geheim\nX: y"]].concat());
    assert_eq!(code, Some(2));
    assert!(said.contains("--feed-api-key") && !said.contains("geheim"), "{said}");
}

#[test]
fn every_option_is_an_environment_variable_too() {
    let (code, said) = refusal(&URL, &[("TRADER_BOT_MAX_ENTRY_AGE", "old"), ("TRADER_BOT_FEED_API_KEY", KEY)]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--max-entry-age") && said.contains("old"), "{said}");
    let (code, said) = refusal(&URL, &[("TRADER_BOT_RECOVERY", "true"), ("TRADER_BOT_FEED_API_KEY", KEY)]);
    assert_eq!(code, Some(2), "{said}");
    assert!(said.contains("--database-url"), "{said}");
}

#[test]
fn an_empty_flag_is_wrong_usage_and_an_empty_variable_is_not_given() {
    let key_file = ("TRADER_BOT_FEED_API_KEY_FILE", "the-file-of-the-environment");
    let database = ("DATABASE_URL", "postgres://bot@127.0.0.1:9/x");
    for (flags, option) in [
        (["--feed-api-key", ""], "--feed-api-key"),
        (["--feed-api-key-file", ""], "--feed-api-key-file"),
        (["--database-url", ""], "--database-url"),
        (["--database-url-file", ""], "--database-url-file"),
    ] {
        let key = if option.contains("database") { &["--feed-api-key", KEY][..] } else { &[] };
        let (code, said) = refusal(&[&URL[..], key, &flags, &["--recovery-dry-run"]].concat(), &[key_file, database]);
        assert_eq!(code, Some(2), "{flags:?}: {said}");
        assert!(said.contains(option) && !said.contains("the-file-of"), "{flags:?}: {said}");
    }
    let empty = ["FEED_API_KEY", "DATABASE_URL", "DATABASE_URL_FILE", "READ_TIMEOUT", "ALERT_COMMAND", "RECOVERY"];
    let mut variables: Vec<(String, &str)> = empty.iter().map(|name| (format!("TRADER_BOT_{name}"), "")).collect();
    variables.push((key_file.0.to_owned(), key_file.1));
    let variables: Vec<(&str, &str)> = variables.iter().map(|(name, value)| (name.as_str(), *value)).collect();
    let (code, said) = refusal(&URL, &variables);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("read --feed-api-key-file the-file-of-the-environment"), "{said}");
}

#[test]
fn help_and_version_exit_0() {
    for flag in ["--help", "--version"] {
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_trader-bot")).arg(flag).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("trader-bot"));
    }
}
