//! The README's code blocks. Each is run by a test as it is printed; [`BLOCKS`] says which. Also the examples beside it.

use std::fs;
use std::path::Path;

/// How each block begins, and the test that runs it.
pub const BLOCKS: &[(&str, &str)] = &[
    (" screener -- INSERT", "a drawing"),
    (".ci/install && cargo run", "the_quick_start_shows_the_demo_and_the_bot_trades_on_it"),
    ("$ curl -N", "the_quick_start_shows_the_demo_and_the_bot_trades_on_it"),
    ("echo 'sf_…' > bot.key", "the_quick_start_shows_the_demo_and_the_bot_trades_on_it"),
    ("select * from stock_market.signal", "the_query_for_a_bot_that_missed_signals_finds_them"),
    ("signal-feed migrate --roles-sql", "the_restore_brings_a_backup_into_another_database"),
    ("signal-feed prune --older-than", "the_commands_for_a_full_disk_prune_and_rewrite_the_log"),
    ("cargo install cargo-deb", "the_package_is_built_and_installed_as_its_check_does_it"),
    (
        "sudo -u postgres signal-feed migrate --database-url 'host=/run/postgresql dbname=market'\nsudo -u postgres psql",
        "the_first_installation_ends_with_a_feed_that_is_live",
    ),
    ("[Socket]", "drop_ins_and_units_are_clean_for_systemd_analyze"),
    ("sudo dpkg -i signal-feed_NEW.deb", "the_upgrade_migrates_and_then_restarts"),
    ("drop trigger", "the_uninstallation_ends_the_capture"),
    ("insert into stock_market.signal", "a_signal_from_psql_and_one_from_psycopg_become_events"),
    ("import os, time, psycopg", "a_signal_from_psql_and_one_from_psycopg_become_events"),
    ("import http.client", "the_python_bot_misses_nothing_unnoticed"),
    ("cursor=$(cat bot.cursor", "the_bash_bot_misses_nothing"),
    ("[Service]\nLoadCredential", "drop_ins_and_units_are_clean_for_systemd_analyze"),
    ("jq -c 'select(.record", "the_journal_shows_what_was_not_placed_and_takes_a_line_by_hand"),
    ("{\"record\":\"placed\"", "the_journal_shows_what_was_not_placed_and_takes_a_line_by_hand"),
    ("{\"type\":\"order\"", "an_order_line_has_the_fields_of_the_readme_in_their_order"),
    ("echo 'sf_…' | sudo install", "the_bots_service_is_installed_with_its_key"),
    ("#!/bin/sh\njq", "the_alert_program_posts_to_a_chat"),
];

/// The whole README.
pub fn text() -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md")).unwrap()
}

/// Every code block, fenced or indented, in order.
pub fn blocks() -> Vec<String> {
    let mut blocks: Vec<String> = Vec::new();
    let (mut is_fenced, mut is_indented) = (false, false);
    for line in text().lines() {
        if line.starts_with("```") {
            is_fenced = !is_fenced;
            if is_fenced {
                blocks.push(String::new());
            }
        } else if is_fenced {
            let block = blocks.last_mut().unwrap();
            block.push_str(line);
            block.push('\n');
        }
        let indented = line.strip_prefix("    ").filter(|_| !is_fenced);
        if let Some(code) = indented {
            if !is_indented {
                blocks.push(String::new());
            }
            let block = blocks.last_mut().unwrap();
            block.push_str(code);
            block.push('\n');
        }
        is_indented = indented.is_some();
    }
    blocks
}

/// The one block with this beginning.
pub fn block(beginning: &str) -> String {
    let mut found = blocks().into_iter().filter(|block| block.starts_with(beginning));
    let block = found.next().unwrap_or_else(|| panic!("no block of the README begins with {beginning:?}"));
    assert!(found.next().is_none(), "two blocks of the README begin with {beginning:?}");
    block
}

/// A block with a test's addresses and paths in place of an operator's. Each of them must be in it.
pub fn block_with(beginning: &str, replacements: &[(&str, &str)]) -> String {
    replaced(block(beginning), replacements)
}

/// An example that the README names, a file below `tests`, with replacements like those of [`block_with`].
pub fn example_with(file: &str, replacements: &[(&str, &str)]) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests").join(file);
    replaced(fs::read_to_string(path).unwrap(), replacements)
}

fn replaced(text: String, replacements: &[(&str, &str)]) -> String {
    replacements.iter().fold(text, |text, (from, to)| {
        assert!(text.contains(from), "{from} is not in:\n{text}");
        text.replace(from, to)
    })
}
