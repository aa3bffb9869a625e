//! Where a stream is, with which key it is opened, and where it continues.

use std::fmt;
use std::fs;
use std::path::Path;

use crate::error::{Doing, Error};

/// The address of a feed's stream; it ends in `/feed`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FeedUrl(pub(super) String);

impl fmt::Display for FeedUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::str::FromStr for FeedUrl {
    type Err = String;

    /// # Errors
    /// A text saying what is allowed.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let wanted = "expected http://HOST[:PORT]/feed or https://…";
        let uri: ureq::http::Uri = text.parse().map_err(|_| wanted.to_owned())?;
        match uri.scheme_str() {
            Some("http") => {}
            Some("https") if cfg!(feature = "tls") => {}
            Some("https") => return Err("https needs a build with the feature tls".to_owned()),
            _ => return Err(wanted.to_owned()),
        }
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        if authority.is_empty() || authority.contains('@') {
            return Err(format!("{wanted}, without user name and password"));
        }
        if !uri.path().ends_with("/feed") || uri.query().is_some() || text.contains('#') {
            return Err(format!("{wanted}: the address of the stream ends in /feed, without a query"));
        }
        Ok(Self(text.to_owned()))
    }
}

/// An API key. It is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(pub(super) String);

impl ApiKey {
    /// Makes a key from a text, without white space around it.
    ///
    /// # Errors
    /// If it is empty or contains characters that a header cannot hold; the error does not repeat it.
    pub fn new(text: &str) -> Result<Self, String> {
        let text = text.trim();
        if text.is_empty() {
            return Err("the key is empty".to_owned());
        }
        if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("the key holds characters that no key has".to_owned());
        }
        Ok(Self(text.to_owned()))
    }

    /// Reads a key from a file.
    ///
    /// # Errors
    /// If it cannot be read, or holds no key.
    pub fn from_file(file: &Path) -> Result<Self, Error> {
        let doing = format!("read --feed-api-key-file {}", file.display());
        let text = fs::read_to_string(file).doing(doing.as_str())?;
        Self::new(&text).map_err(|why| Error::Failed(format!("{doing}: {why}")))
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Where a stream continues: after this event, whose time may be known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The number of the last event that was handled.
    pub feed_seq: i64,
    /// That event's `event_time`, as received.
    pub event_time: Option<String>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_that_is_no_stream_is_refused_with_what_is_allowed() {
        for good in ["http://feed:8080/feed", "http://[::1]:8080/feed", "http://proxy/signals/feed"] {
            assert!(good.parse::<FeedUrl>().is_ok(), "{good}");
        }
        for bad in ["", "feed", "ftp://feed/feed", "http://feed/", "http://feed/feed?cursor=1", "http://u:p@feed/feed"]
        {
            assert!(bad.parse::<FeedUrl>().is_err_and(|why| why.contains("expected")), "{bad}");
        }
    }
}
