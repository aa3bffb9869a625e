//! The README's blocks about the bot: its journal and the line for an `exec:` program.

use serde_json::Value;

use super::feed::{Feed, row, row_of};
use super::process::Place;
use crate::support::readme::block;

fn keys(text: &str) -> Vec<String> {
    serde_json::from_str::<Value>(text).unwrap().as_object().unwrap().keys().cloned().collect()
}

#[test]
fn an_order_line_has_the_fields_of_the_readme_in_their_order() {
    let (feed, place) = (Feed::new(), Place::new());
    place.script("broker", "cat > line");
    let bot = place.start(&feed.url, &["--broker", "exec:./broker"]);
    let mut stream = feed.open(5);
    stream.insert(6, &row(17, "entry"));
    place.wait_cursor(6);
    assert_eq!(keys(&place.read("line")), keys(&block("{\"type\":\"order\"")));
    bot.stop();
}

#[test]
fn the_journal_shows_what_was_not_placed_and_takes_a_line_by_hand() {
    let (feed, place) = (Feed::new(), Place::new());
    // A broker that never reports the outcome of the exit.
    place.script("broker", "read line; case $line in *sf-17-exit*) exit 1 ;; esac");
    let options = ["--broker", "exec:./broker"];
    let bot = place.start(&feed.url, &options);
    let mut stream = feed.open(5);
    stream.system("{\"reason\":\"replay_truncated\",\"requested\":1,\"earliest\":6}");
    stream.insert(6, &row(16, "entry"));
    stream.insert(7, &row_of(17, "exit", "ACME", "SELL"));
    place.wait_alert("outcome_unknown");
    bot.kill();
    let jq = std::process::Command::new("sh").args(["-c", &block("jq -c")]).current_dir(&place.dir).output().unwrap();
    let said = String::from_utf8(jq.stdout).unwrap();
    assert!(said.lines().count() == 1 && said.contains("\"blocked\"") && said.contains("16"), "{said}");

    let journal = place.read("trader-bot.journal") + &block("{\"record\":\"placed\"");
    std::fs::write(place.path("trader-bot.journal"), journal).unwrap();
    let bot = place.start(&feed.url, &options);
    let mut stream = feed.open(6);
    for seq in [7, 8] {
        stream.insert(seq, &row_of(17, "exit", "ACME", "SELL"));
    }
    place.wait_cursor(8);
    bot.stop();
}
