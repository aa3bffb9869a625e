//! Makes text from outside safe for a log line, an alert or a terminal.

use std::time::Duration;

use serde::Serialize;

/// The most bytes of a quoted text in a line.
const MOST_BYTES: usize = 300;

/// The word that stands for a variant of an enum in JSON.
pub(crate) fn word(variant: impl Serialize) -> String {
    serde_json::to_string(&variant).unwrap_or_default().trim_matches('"').to_owned()
}

/// Whether a terminal obeys a character instead of showing it: control characters, characters that change the direction
/// of writing, and characters without a width.
pub(crate) fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c, '\u{61c}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}')
}

/// The first 300 bytes of a text, on one line.
pub(crate) fn clip(text: &str) -> String {
    cut(one_line(text), MOST_BYTES)
}

/// The text on one line: runs of white space become one space, and hidden characters are shown as `\u001b`.
pub(crate) fn one_line(text: &str) -> String {
    visible(&text.split_whitespace().collect::<Vec<_>>().join(" "))
}

/// A line without the user information of a URL, and up to the first piece that may be a secret: a connection string or
/// an API key that was given in the wrong place.
pub(crate) fn without_secrets(line: &str) -> String {
    let is_secret = |at: usize| {
        let rest = &line[at..];
        let url = ["postgres://", "postgresql://"].iter().find_map(|scheme| rest.strip_prefix(scheme));
        let key = rest.strip_prefix("sf_").unwrap_or_default();
        // A URL without a host, or with … in its place, is a hint of this program.
        url.is_some_and(|after| !after.starts_with(['/', '…']))
            || rest.starts_with("password=")
            || rest.starts_with("password =")
            || key.find(|c: char| !c.is_ascii_alphanumeric() && !"-_".contains(c)).unwrap_or(key.len()) >= 20
    };
    let line = match line.char_indices().map(|(at, _)| at).find(|at| is_secret(*at)) {
        Some(at) => format!("{}… (the rest may hold a secret)", &line[..at]),
        None => line.to_owned(),
    };
    // A password may hold any character, so this reaches to the last @ of the line.
    match (line.find("://"), line.rfind('@')) {
        (Some(scheme), Some(at)) if scheme < at => format!("{}://…{}", &line[..scheme], &line[at..]),
        _ => line,
    }
}

/// The text with each hidden character, except line ends, written as `\u001b`: a terminal shows it, and JSON keeps
/// its meaning.
pub(crate) fn visible(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for c in text.chars() {
        if is_hidden(c) && c != '\n' { shown.push_str(&format!("\\u{:04x}", u32::from(c))) } else { shown.push(c) }
    }
    shown
}

/// Cuts a text that is longer than `most_bytes` and ends it with `…`.
pub(crate) fn cut(mut text: String, most_bytes: usize) -> String {
    if text.len() > most_bytes {
        let most = most_bytes.saturating_sub('…'.len_utf8());
        let end = (0..=most).rev().find(|end| text.is_char_boundary(*end)).unwrap_or(0);
        text.truncate(end);
        text.push('…');
    }
    text
}

/// A duration in the form of the command line: `30d`, `1h 30m`, `500ms`. It leaves out less than a millisecond.
pub(crate) fn duration(duration: Duration) -> String {
    let mut rest = duration.as_millis();
    let mut parts = Vec::new();
    for (millis, unit) in [(86_400_000, "d"), (3_600_000, "h"), (60_000, "m"), (1000, "s"), (1, "ms")] {
        if rest >= millis {
            parts.push(format!("{}{unit}", rest / millis));
            rest %= millis;
        }
    }
    if parts.is_empty() { "0s".to_owned() } else { parts.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_one_line_and_holds_no_control_character() {
        assert_eq!(one_line("ERROR:  x\n  DETAIL:\ty\u{1b}[2J"), "ERROR: x DETAIL: y\\u001b[2J");
        assert_eq!(clip("a\u{1b}[2Jb"), "a\\u001b[2Jb");
        assert_eq!(clip(&"x".repeat(301)).len(), 300);
    }

    #[test]
    fn a_duration_is_shown_as_the_command_line_takes_it() {
        for text in ["0s", "500ms", "15s", "1m 30s", "72h", "30d", "90d", "365d 1h"] {
            let shown = duration(humantime::parse_duration(text).unwrap());
            assert_eq!(shown, if text == "72h" { "3d" } else { text });
        }
        assert_eq!(duration(Duration::from_micros(1_000_999)), "1s");
    }

    #[test]
    fn control_characters_are_made_visible() {
        assert_eq!(visible("a\u{1b}[2J\u{9b}b\nc\u{202e}"), "a\\u001b[2J\\u009bb\nc\\u202e");
    }

    #[test]
    fn a_long_text_is_cut_between_characters() {
        for length in 0..40 {
            let text = cut("ü".repeat(length), 20);
            assert!(text.len() <= 20, "{text}");
            assert_eq!(text.ends_with('…'), length > 10, "{text}");
        }
    }
}
