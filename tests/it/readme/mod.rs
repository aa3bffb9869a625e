//! The README: every code block runs as it is printed, and the text keeps its form.

mod desk;
mod operator;
mod samples;

use std::fs;
use std::path::Path;

use crate::support::readme::{BLOCKS, blocks, text};

/// The source of every integration test.
fn sources(directory: &Path) -> String {
    let mut all = String::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            all.push_str(&sources(&path));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            all.push_str(&fs::read_to_string(path).unwrap());
        }
    }
    all
}

#[test]
fn every_block_of_the_readme_is_run_by_a_test() {
    let sources = sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it"));
    let blocks = blocks();
    for block in &blocks {
        let claims = BLOCKS.iter().filter(|(beginning, _)| block.starts_with(beginning)).count();
        assert_eq!(claims, 1, "in support/readme.rs {claims} lines stand for this block:\n{block}");
    }
    for (beginning, test) in BLOCKS {
        assert!(blocks.iter().any(|block| block.starts_with(beginning)), "no block begins with {beginning:?}");
        assert!(!test.contains('_') || sources.contains(&format!("fn {test}(")), "there is no test {test}");
    }
    assert_eq!(blocks.len(), BLOCKS.len());
}

#[test]
fn the_readme_is_short_narrow_and_its_links_lead_somewhere() {
    let text = text();
    assert!(text.len() < 45_000, "{} bytes", text.len());
    for line in text.lines() {
        assert!(line.chars().count() <= 100, "{line}");
    }
    let anchor = |heading: &str| {
        let kept =
            heading.to_lowercase().chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c)).collect::<String>();
        kept.replace(' ', "-")
    };
    let headings = text.lines().filter_map(|line| line.strip_prefix("## ").or(line.strip_prefix("### ")));
    let anchors: Vec<String> = headings.clone().map(anchor).collect();
    for link in text.split("](#").skip(1) {
        let link = link.split(')').next().unwrap();
        assert!(anchors.iter().any(|anchor| anchor == link), "no heading for #{link}");
    }
    assert_eq!(text.lines().rfind(|line| line.starts_with("## ")), Some("## Design notes & history"));
}
