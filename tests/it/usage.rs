//! Wrong usage: exit 2 and one line that names the option, the value and what is allowed.

use crate::support::database::Database;
use crate::support::directory::Directory;
use crate::support::program::{command, signal_feed};

const NOWHERE: &str = "postgres://nobody:secret@127.0.0.1:1/none";

#[test]
fn wrong_usage_is_one_line_that_names_the_option_the_value_and_what_is_allowed() {
    for (arguments, words) in [
        (&["serve", "--heartbeat", "soon"][..], &["--heartbeat", "soon", "15s", "30d"][..]),
        (&["serve", "--heartbeat", "0s"], &["--heartbeat", "0s", "above zero"]),
        (&["serve", "--queue-capacity", "0"], &["--queue-capacity", "0", "from 1 to 1000000"]),
        (&["serve", "--max-stream-age", "never"], &["--max-stream-age", "never", "off"]),
        (&["serve", "--heartbeat", "-1s"], &["--heartbeat", "-1s", "15s"]),
        (&["serve", "--queue-capacity", "-1"], &["--queue-capacity", "-1", "from 1 to 1000000"]),
        (&["key", "rotate", "x", "--overlap", "-24h"], &["--overlap", "-24h", "15s"]),
        (&["prune", "--older-than", "-1h"], &["--older-than", "-1h", "15s"]),
        (&["restored", "--skip", "-5"], &["--skip", "-5", "from 1 to"]),
        (&["tail", "--cursor", "x"], &["--cursor", "x", "from 0 to 9223372036854775807"]),
        (&["serve", "--listen", "localhost"], &["--listen", "localhost", "127.0.0.1:8080"]),
        (&["serve", "--listen", "127.0.0.1:70000"], &["--listen", "127.0.0.1:70000", "127.0.0.1:8080"]),
        (&["serve", "--ops-listen", "no"], &["--ops-listen", "no", "127.0.0.1:8080", "off"]),
        (&["serve", "--log-level", "loud"], &["--log-level", "loud", "off, error, warn, info, debug or trace"]),
        (&["serve", "--trusted-proxy", "10.0.0.0/40"], &["--trusted-proxy", "10.0.0.0/40", "10.0.0.0/8"]),
        (&["serve", "--trusted-proxy", "127.0.0.1,proxy"], &["--trusted-proxy", "proxy", "10.0.0.0/8"]),
        (&["serve", "--no-such-option"], &["--no-such-option", "--help"]),
        (&["key", "mint"], &["--name"]),
        (&["key", "mint", "--name", ""], &["--name", "1 to 100 characters"]),
        (&["demo", "--rate", "0"], &["--rate", "0", "0.001"]),
        (&["migrate", "--lock-wait", "a\n\nb"], &["--lock-wait", "'a b'", "15s"]),
        (&["a\n\nb"], &["a b", "--help"]),
        (&["migrate", "--check", "--roles-sql"], &["--check", "--roles-sql"]),
        (&["restored", "--skip", "7", "--nothing-lost"], &["--skip", "--nothing-lost"]),
        (&["tail", "--feed-url", "http://u:p@h/feed"], &["--feed-url", "@h/feed", "without user name and password"]),
        (&["status", "--url", "http://u:p@h"], &["--url", "@h", "http://127.0.0.1:9464"]),
        (&["no-such-command"], &["no-such-command", "--help"]),
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
fn an_error_never_shows_a_piece_of_a_password_of_any_shape() {
    // "geheim" and "wort" are pieces of a password that is not properly encoded or quoted.
    for string in [
        "postgres://nobody:geheim@127.0.0.1:1/db?wort=1",
        "postgres://nobody:geheim@wort@127.0.0.1:1/db",
        "postgres://nobody:geheim@127.0.0.1:wort@127.0.0.1/db",
        "postgres://nobody:geheim/wort@127.0.0.1:1/db",
        "postgres://nobody:1/geheim/wort@127.0.0.1/db",
        "postgres://nobody:geheim?wort@127.0.0.1:1/db",
        "postgres://nobody:geheim?sslmode=wort&geheim=wort@127.0.0.1:1/db",
        "postgres://nobody:x@geheim?wort@127.0.0.1:1/db",
        "postgres://nobody:x@geheim?wort=geheim@127.0.0.1:1/db",
        "postgres://nobody:x@geheim/wort@127.0.0.1:1/db",
        "postgres://nobody:geheim%wort@127.0.0.1:1/db",
        "postgres://nobody:geheim%00wort@127.0.0.1:1/db",
        "postgres://nobody:geheim%ffwort@127.0.0.1:1/db",
        "postgres://nobody@127.0.0.1:1/db?password=geheim&wort",
        "postgres://nobody@127.0.0.1:1/db?password=geheim&wort=x",
        "postgres://nobody@127.0.0.1:1/db?password=geheim?wort&sslmode=x",
        "postgres://nobody:geheim@[",
        "postgresql:/nobody:geheim@127.0.0.1/wort?sslmode=require",
        "jdbc:postgresql://nobody:geheim@127.0.0.1/wort?user=geheim",
        "host=127.0.0.1 port=1 password=geheim wort",
        "host=127.0.0.1 port=1 password=geheim wort=x",
        "host=127.0.0.1 port=1 password=geheim wort sslmode=require",
        "host=127.0.0.1 port=1 password='geheim",
        "host=127.0.0.1 port=1 password='geheim'wort' user=x",
        "host=127.0.0.1 port=1 password=geheim target_session_attrs=wort",
        "host=127.0.0.1 port=1 password=geheim connect_timeout=wort",
        "host=127.0.0.1 port=1 password=geheim hostaddr=wort",
        "host=127.0.0.1 port=1 password=geheim sslmode=verify-full sslrootcert=/nowhere/wort",
        "geheim",
        "geheim=wort",
    ] {
        let outcome = signal_feed(string, &["key", "list"]);
        assert_ne!(outcome.code, 0, "{string}");
        assert!(!outcome.stderr.contains("geheim") && !outcome.stderr.contains("wort"), "{string}: {}", outcome.stderr);
        assert_eq!(outcome.stderr.trim_end().lines().count(), 1, "{string}: {}", outcome.stderr);
    }
    for url in ["http://u:geheim@h", "https://u:geheim@h/feed", "http://u:ge@heim/wort@h/feed", "ftp://geheim wort@h"] {
        for arguments in [["tail", "--feed-url", url], ["status", "--url", url], ["serve", "--listen", url]] {
            let said = signal_feed("", &arguments).failed(2);
            assert!(!said.contains("heim") && !said.contains("wort") && said.contains(arguments[1]), "{said}");
        }
    }
    // In the wrong place.
    let key = "sf_geheimgeheimgeheimgeheimgeheimgeheimgeheimge";
    for string in ["postgres://nobody:geheim@127.0.0.1:1/db", "host=127.0.0.1 port=1 password=geheim wort", key] {
        for arguments in [
            vec!["migrate", string],
            vec!["key", string],
            vec!["key", "list", string],
            vec!["key", "list", "--database-url-file", string],
            vec![string],
        ] {
            let outcome = signal_feed("postgres://nobody@127.0.0.1:1/db", &arguments);
            assert_ne!(outcome.code, 0, "{arguments:?}");
            assert!(!outcome.stderr.contains("geheim") && !outcome.stderr.contains("wort"), "{}", outcome.stderr);
        }
    }
}

#[test]
fn a_connection_string_that_cannot_work_is_refused_with_the_name_or_position_of_the_fault() {
    for (string, words) in [
        ("postgres://nobody:geheim@h/db?sslcert=/x", &["sslcert is not supported", "sslrootcert"][..]),
        ("host=h service=production", &["service is not supported"]),
        ("host=h gssencmode=disable", &["gssencmode is not supported"]),
        ("host=h nonsense=1", &["option at position 8", "target_session_attrs"]),
        ("postgres://h/db?nonsense=1", &["option at position 17"]),
        (
            "host=h sslmode=allow",
            &["sslmode=allow is not supported", "disable, prefer, require, verify-ca or verify-full"],
        ),
        ("host=h sslmode=on", &["sslmode (position 8)", "disable, prefer, require, verify-ca or verify-full"]),
        (
            "postgres://h/db?target_session_attrs=primary",
            &["target_session_attrs=primary is not supported", "read-only"],
        ),
        ("host=h tcp_user_timeout=10s", &["tcp_user_timeout (position 8)", "whole number of milliseconds"]),
        ("host=h connect_timeout=soon", &["connect_timeout", "whole number of seconds"]),
        ("host=h port=0", &["port", "1 to 65535"]),
        ("host=a,b port=1,2,3", &["port", "3 given", "2"]),
        ("host=a,b hostaddr=127.0.0.1", &["hostaddr", "1 given", "expected 2"]),
        ("host=h hostaddr=localhost", &["hostaddr", "IP address"]),
        ("host=h password=two words", &["a word without = (position 21)", "'…'"]),
        ("host=h password='geheim", &["password", "closing '"]),
        ("postgres://[::1/db", &["host (position 12)"]),
        ("postgres://h/%zz", &["dbname", "%25"]),
        ("postgres://nobody:a@b@h/db", &["host (position 21)"]),
        ("postgres://nobody:a/b@h/db", &["@ after the first /", "%2F"]),
        ("geheim", &["without =", "postgres://"]),
    ] {
        for command in [&["serve"][..], &["doctor"]] {
            let said = signal_feed(string, command).failed(2);
            assert!(said.starts_with("error: --database-url: ") && said.trim_end().lines().count() == 1, "{said}");
            assert!(!said.contains("geheim") && !said.contains("words"), "{said}");
            for word in words {
                assert!(said.contains(word), "{string}: {said:?} lacks {word:?}");
            }
        }
    }
}

#[cfg(not(feature = "tls"))]
#[test]
fn a_build_without_tls_refuses_settings_that_need_it() {
    for option in ["sslmode=require", "sslmode=verify-ca", "sslmode=verify-full", "sslrootcert=/x"] {
        let option_alone = option.split("=/").next().unwrap();
        let said = signal_feed(&format!("host=h {option}"), &["serve"]).failed(2);
        assert!(said.contains(&format!("{option_alone}: this build has no TLS")), "{said}");
        assert!(said.contains("sslmode=disable or prefer"), "{said}");
    }
    for mode in ["disable", "prefer"] {
        let database = Database::migrated();
        signal_feed(&format!("{}&sslmode={mode}", database.url), &["doctor"]);
        signal_feed(&format!("{}&sslmode={mode}", database.url), &["key", "list"]).ok();
    }
}

#[test]
fn a_command_says_what_to_do_if_the_database_is_not_ready() {
    let database = Database::empty();
    let said = signal_feed(&database.url, &["key", "list"]).failed(1);
    assert!(said.contains("does not exist") && said.contains("run \"signal-feed migrate\" first"), "{said}");
    let database = Database::migrated();
    let role = format!("stranger_{}", database.name);
    database.sql(&format!("create role {role} login"));
    let said = signal_feed(&database.url_as(&role), &["key", "list"]).failed(1);
    database.sql(&format!("drop role {role}"));
    assert!(said.contains("permission denied") && said.contains("signal_feed_admin"), "{said}");
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

#[test]
fn the_flag_with_a_file_wins_over_the_variable_with_the_connection_string() {
    let database = Database::migrated();
    let directory = Directory::new();
    let file = directory.file("url");
    std::fs::write(&file, &database.url).unwrap();
    let listing = signal_feed(NOWHERE, &["key", "list", "--json", "--database-url-file", &file]).ok();
    assert_eq!(listing, "[]\n");
    let both = ["key", "list", "--database-url", NOWHERE, "--database-url-file", &file];
    assert!(signal_feed(&database.url, &both).failed(1).contains("connect to the database"));
}

#[test]
fn the_variable_of_a_flag_takes_several_words_for_yes_and_no() {
    let database = Database::migrated();
    for (word, is_json) in [("1", true), ("yes", true), ("true", true), (" Yes ", true), ("0", false), ("no", false)] {
        let output = command(&database.url).args(["key", "list"]).env("SIGNAL_FEED_JSON", word).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{word:?}: {}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.stdout == b"[]\n", is_json, "{word:?}");
    }
    let output = command(&database.url).args(["key", "list"]).env("SIGNAL_FEED_JSON", "maybe").output().unwrap();
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.code() == Some(2) && said.contains("--json") && said.contains("yes or no"), "{said}");
}

#[test]
fn the_variable_of_a_flag_that_says_no_or_is_beaten_by_a_flag_excludes_nothing() {
    let database = Database::migrated();
    for (variables, arguments, says) in [
        (&[("NOTHING_LOST", "no")][..], &["restored", "--skip", "7"][..], "skipped 1 to 7:"),
        (&[("NOTHING_LOST", "yes")], &["restored", "--skip", "5"], "skipped 8 to 12:"),
        (&[("NOTHING_LOST", "Off"), ("SKIP", "3")], &["restored"], "skipped 13 to 15:"),
        (&[("SKIP", "5")], &["restored", "--nothing-lost"], "skipped no numbers"),
        (&[("ROLES_SQL", "0")], &["migrate", "--check"], "nothing to do"),
        (&[("ROLES_SQL", "false"), ("CHECK", "1")], &["migrate"], "nothing to do"),
        (&[("CHECK", "0")], &["migrate", "--roles-sql"], "create role"),
    ] {
        let variables = variables.iter().map(|(name, value)| (format!("SIGNAL_FEED_{name}"), value));
        let output = command(&database.url).args(arguments).envs(variables).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(String::from_utf8_lossy(&said).contains(says), "{arguments:?}: {}", String::from_utf8_lossy(&said));
    }
    let both = [("SIGNAL_FEED_SKIP", "5"), ("SIGNAL_FEED_NOTHING_LOST", "yes")];
    assert_eq!(command(&database.url).arg("restored").envs(both).output().unwrap().status.code(), Some(2));
}

#[test]
fn white_space_around_a_value_does_not_count() {
    let database = Database::migrated();
    for (command_name, variables, says) in [
        ("restored", &[("SKIP", " 5 ")][..], "skipped 1 to 5:"),
        // Each ends at the next thing that is wrong.
        (
            "tail",
            &[
                ("FEED_URL", " http://a/feed , http://b/feed "),
                ("CURSOR", " earliest "),
                ("COUNT", "1\n"),
                ("FEED_API_KEY_FILE", "/nowhere"),
            ],
            "read --feed-api-key-file",
        ),
        ("demo", &[("RATE", " 5 "), ("LISTEN", " 192.0.2.1:1 ")], "192.0.2.1:1"),
        (
            "serve",
            &[("LOG_LEVEL", " info "), ("OPS_LISTEN", " off "), ("DATABASE_URL", "geheim")],
            "error: --database-url",
        ),
    ] {
        let variables = variables.iter().map(|(name, value)| (format!("SIGNAL_FEED_{name}"), value));
        let output = command(&database.url).arg(command_name).envs(variables).output().unwrap();
        let said = [output.stdout, output.stderr].concat();
        assert!(String::from_utf8_lossy(&said).contains(says), "{command_name}: {}", String::from_utf8_lossy(&said));
    }
}
