//! What a shell and its user get: completions, manual pages, progress, colours, columns.

use std::process::Command;

use crate::support::directory::Directory;
use crate::support::program::signal_feed;

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
    signal_feed(NOWHERE, &["generate", &directory.file("")]).ok();
    for (program, begun, whole) in [("signal-feed", "quar", "quarantine"), ("trader-bot", "--max-e", "--max-entry-age")]
    {
        let file = directory.file(&format!("share/bash-completion/completions/{program}"));
        // What bash itself would call for this line.
        let complete = format!(
            ". {file}; registered=$(complete -p {program}); registered=${{registered##*-F }}; \
             COMP_WORDS=({program} {begun}) COMP_CWORD=1; ${{registered%% *}} {program} {begun} {program}; \
             echo \"${{COMPREPLY[@]}}\""
        );
        assert_eq!(shell("bash", &["--norc"], &complete).trim(), whole);

        let file = directory.file(&format!("share/fish/vendor_completions.d/{program}.fish"));
        let said = shell("fish", &["--no-config"], &format!("source {file}; complete -C '{program} {begun}'"));
        assert!(said.starts_with(whole), "{said}");

        let place = directory.file("share/zsh/site-functions");
        let lines = format!("fpath=({place} $fpath); autoload -U compinit; compinit -D -u; echo $_comps[{program}]");
        assert_eq!(shell("zsh", &["-f"], &lines).trim(), format!("_{program}"));
        shell("zsh", &["-f", "-n"], &format!(". {place}/_{program}"));
    }
}

#[test]
fn every_command_has_a_manual_page_with_its_options_defaults_variables_and_examples() {
    let directory = Directory::new();
    let said = signal_feed(NOWHERE, &["generate", &directory.file("")]).ok();
    let page = |name: &str| {
        let path = directory.file(&format!("share/man/man1/{name}.1"));
        assert!(said.contains(&path), "{said}");
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
