//! Reading a request's head: bounded in size and, as a whole, in time.

use std::borrow::Cow;
use std::io::{self, Read};
use std::net::{Ipv6Addr, TcpStream};
use std::time::{Duration, Instant};

use percent_encoding::percent_decode_str;

use super::connections::HttpConnection;

/// The largest head, 16 KiB.
const LARGEST_HEAD_BYTES: usize = 16 * 1024;
/// The head must be complete within 10 s.
const HEAD_DEADLINE: Duration = Duration::from_secs(10);
/// Without a complete head after 1 s, a connection is unauthenticated.
const LATE_AFTER: Duration = Duration::from_secs(1);

/// What a host's name may contain beside letters and digits (RFC 3986 §3.2.2, reg-name).
const NAME_SIGNS: &[u8] = b"-._~%!$&'()*+,;=";

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct RequestHead {
    pub method: String,
    pub path: String,
    /// The target's query, without the question mark.
    pub query: Option<String>,
    /// Whether it is HTTP/1.1 (else 1.0).
    pub is_http_11: bool,
    fields: Vec<(String, Vec<u8>)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum HeadError {
    Version,
    TooLarge,
    TimedOut,
    Unreadable,
    /// The connection ended, or the server ends.
    Gone,
}

impl RequestHead {
    /// Parses a head; `None` if it is not complete yet.
    pub(crate) fn parse(bytes: &[u8]) -> Result<Option<Self>, HeadError> {
        let bytes = &*as_http_11(bytes);
        // Room for as many fields as there are lines: only the size of a head is limited.
        let lines = bytes.iter().filter(|byte| **byte == b'\n').count();
        let mut fields = vec![httparse::EMPTY_HEADER; lines + 1];
        let mut request = httparse::Request::new(&mut fields);
        match request.parse(bytes) {
            Ok(httparse::Status::Partial) => return Ok(None),
            Ok(httparse::Status::Complete(_)) => {}
            Err(httparse::Error::Version) => return Err(HeadError::Version),
            Err(_) => return Err(HeadError::Unreadable),
        }
        let target = without_authority(request.path.ok_or(HeadError::Unreadable)?);
        let (path, query) = match target.split_once('?') {
            Some((path, query)) => (path, Some(query.to_owned())),
            None => (target, None),
        };
        Ok(Some(Self {
            method: request.method.ok_or(HeadError::Unreadable)?.to_owned(),
            path: path.to_owned(),
            query,
            is_http_11: request.version == Some(1),
            fields: request.headers.iter().map(|field| (field.name.to_owned(), field.value.to_vec())).collect(),
        }))
    }

    /// Checks what makes a readable head a bad request: the rules for `Host` (RFC 9112 §3.2) and for the body's length
    /// (§6.3). The body itself is never read.
    pub(crate) fn check(&self) -> Result<(), &'static str> {
        let mut hosts = self.fields("host");
        match (hosts.next(), hosts.next()) {
            (None, _) if !self.is_http_11 => {}
            (Some(host), None) if host_name(host).is_some() => {}
            _ => return Err("HTTP/1.1 needs exactly one valid Host header field"),
        }
        let mut lengths = self.fields("content-length");
        let Some(length) = lengths.next() else { return Ok(()) };
        if length.is_empty() || !length.iter().all(u8::is_ascii_digit) {
            return Err("Content-Length must be a decimal number");
        }
        if lengths.any(|other| other != length) {
            return Err("there are different Content-Length header fields");
        }
        if self.fields("transfer-encoding").next().is_some() {
            return Err("there are both Content-Length and Transfer-Encoding");
        }
        Ok(())
    }

    /// The values of a header field, in their order. `name` is lower case.
    pub(crate) fn fields<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> {
        self.fields
            .iter()
            .filter(move |(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| value.trim_ascii())
    }

    /// The query's parameters in their order, percent-decoded; a value that is not UTF-8 is `None`.
    pub(crate) fn parameters(&self) -> impl Iterator<Item = (Cow<'_, str>, Option<Cow<'_, str>>)> {
        self.query.as_deref().unwrap_or_default().split('&').map(|pair| {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            (percent_decode_str(name).decode_utf8_lossy(), percent_decode_str(value).decode_utf8().ok())
        })
    }
}

/// Reads a head. Blocks for 10 s at most. A connection whose head takes longer than 1 s is unauthenticated meanwhile.
pub(crate) fn read(connection: &HttpConnection) -> Result<RequestHead, HeadError> {
    let mut stream: &TcpStream = &connection.socket;
    let began = Instant::now();
    // A buffer of 1 KiB or less would stay in the thread's malloc cache, unused, for as long as the stream lasts.
    let mut bytes = Vec::with_capacity(2048);
    let mut is_late = false;
    loop {
        let elapsed = began.elapsed();
        if elapsed >= LATE_AFTER && !is_late {
            is_late = true;
            connection.set_unauthenticated();
        }
        let patience = if is_late { HEAD_DEADLINE } else { LATE_AFTER }.saturating_sub(elapsed);
        if patience.is_zero() {
            return Err(HeadError::TimedOut);
        }
        stream.set_read_timeout(Some(patience)).map_err(|_| HeadError::Gone)?;
        let mut chunk = [0; 1024];
        match stream.read(&mut chunk) {
            Ok(0) => return Err(HeadError::Gone),
            Ok(count) => bytes.extend_from_slice(&chunk[..count]),
            Err(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut | io::ErrorKind::Interrupted => continue,
                _ => return Err(HeadError::Gone),
            },
        }
        let within = bytes.len().min(LARGEST_HEAD_BYTES);
        if let Some(head) = RequestHead::parse(&bytes[..within])? {
            connection.set_busy();
            return Ok(head);
        }
        if bytes.len() > LARGEST_HEAD_BYTES {
            return Err(HeadError::TooLarge);
        }
    }
}

/// The same head with the highest minor version that httparse knows: a later one means the same (RFC 9110 §2.5).
fn as_http_11(bytes: &[u8]) -> Cow<'_, [u8]> {
    const BEFORE_MINOR: &[u8] = b" HTTP/1.";
    // Empty lines may stand before the request line (RFC 9112 §2.2).
    let from = bytes.iter().position(|byte| !matches!(byte, b'\r' | b'\n')).unwrap_or(0);
    let line = bytes[from..].split(|byte| *byte == b'\n').next().unwrap_or_default();
    // The target has no spaces.
    let version = line.windows(BEFORE_MINOR.len()).position(|window| window == BEFORE_MINOR);
    let minor = version.map(|at| from + at + BEFORE_MINOR.len());
    match minor.filter(|at| bytes.get(*at).is_some_and(|digit| (b'2'..=b'9').contains(digit))) {
        None => Cow::Borrowed(bytes),
        Some(at) => Cow::Owned([&bytes[..at], b"1", &bytes[at + 1..]].concat()),
    }
}

/// The path and query of a target in absolute form, which a server must accept (RFC 9112 §3.2.2).
fn without_authority(target: &str) -> &str {
    let Some((scheme, rest)) = target.split_once("://") else { return target };
    if scheme.is_empty() || scheme.contains(['/', '?']) {
        return target;
    }
    match rest.find(['/', '?']) {
        Some(at) => &rest[at..],
        None => "/",
    }
}

/// The name or address in a `Host` (RFC 9110 §7.2), without brackets and without the port that may follow; `None` if it
/// is not valid. An empty name is not (§4.2.1).
pub(crate) fn host_name(value: &[u8]) -> Option<&str> {
    let text = std::str::from_utf8(value).ok()?;
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, port),
        _ => (text, ""),
    };
    let (name, is_valid) = match host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        Some(address) => (address, address.parse::<Ipv6Addr>().is_ok()),
        None => (host, host.bytes().all(|byte| byte.is_ascii_alphanumeric() || NAME_SIGNS.contains(&byte))),
    };
    (is_valid && !name.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())).then_some(name)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(text: &str) -> Result<Option<RequestHead>, HeadError> {
        RequestHead::parse(text.as_bytes())
    }

    #[test]
    fn a_head_is_path_query_and_fields() {
        let head = parse("GET /feed?cursor=7&x=%41 HTTP/1.1\r\nX-API-Key:  abc \r\n\r\n").unwrap().unwrap();
        assert_eq!((head.method.as_str(), head.path.as_str(), head.is_http_11), ("GET", "/feed", true));
        assert_eq!(head.fields("x-api-key").next(), Some(&b"abc"[..]));
        let parameters: Vec<_> = head.parameters().collect();
        assert_eq!(parameters, [("cursor".into(), Some("7".into())), ("x".into(), Some("A".into()))]);
    }

    #[test]
    fn a_target_in_absolute_form_is_its_path() {
        for (target, path) in [
            ("http://feed.example/feed?a", "/feed"),
            ("http://feed.example", "/"),
            ("/a://b", "/a://b"),
            ("://b", "://b"),
        ] {
            assert_eq!(parse(&format!("GET {target} HTTP/1.1\r\n\r\n")).unwrap().unwrap().path, path);
        }
    }

    #[test]
    fn another_version_is_named_as_such_and_nonsense_is_unreadable() {
        assert_eq!(parse("PRI * HTTP/2.0\r\n\r\n"), Err(HeadError::Version));
        assert_eq!(parse("GET / HTTP/1.1\r\nno colon\r\n\r\n"), Err(HeadError::Unreadable));
        assert_eq!(parse("\x16\x03\x01\x02"), Err(HeadError::Unreadable));
    }

    #[test]
    fn a_head_without_one_host_or_with_an_unclear_length_is_a_bad_request() {
        for (fields, is_good) in [
            ("Host: feed.example", true),
            ("Host: feed_1.example:8080", true),
            ("Host: 192.0.2.7:", true),
            ("Host: [2001:db8::7]:8080", true),
            ("Host: [::1]", true),
            ("Host: a\r\nContent-Length: 5\r\nContent-Length: 5", true),
            ("Host: a\r\nContent-Length: 99999999999999999999999", true),
            ("Host: a\r\nTransfer-Encoding: chunked", true),
            ("Accept: */*", false),
            ("Host:", false),
            ("Host: :8080", false),
            ("Host: a\r\nHost: a", false),
            ("Host: a b", false),
            ("Host: a/b", false),
            ("Host: user@a", false),
            ("Host: a:80x", false),
            ("Host: 2001:db8::7", false),
            ("Host: [2001:db8::7", false),
            ("Host: [feed.example]", false),
            ("Host: \u{e9}", false),
            ("Host: a\r\nContent-Length: 5\r\nContent-Length: 6", false),
            ("Host: a\r\nContent-Length: 5, 5", false),
            ("Host: a\r\nContent-Length: -1", false),
            ("Host: a\r\nContent-Length:", false),
            ("Host: a\r\nContent-Length: +5", false),
            ("Host: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked", false),
        ] {
            let head = parse(&format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n")).unwrap().unwrap();
            assert_eq!(head.check().is_ok(), is_good, "{fields:?}");
        }
        let old = |fields: &str| parse(&format!("GET / HTTP/1.0\r\n{fields}\r\n")).unwrap().unwrap().check();
        assert!(old("").is_ok() && old("Host: a\r\n").is_ok() && old("Host: a\r\nHost: b\r\n").is_err());
    }

    #[test]
    fn a_later_minor_version_means_the_same() {
        let head = parse("\r\nGET /?a=HTTP/1.2 HTTP/1.9\r\nA: b HTTP/1.3\r\n\r\n").unwrap().unwrap();
        assert_eq!((head.query.as_deref(), head.is_http_11), (Some("a=HTTP/1.2"), true));
        assert_eq!(head.fields("a").next(), Some(&b"b HTTP/1.3"[..]));
        assert!(!parse("GET / HTTP/1.0\r\nA: b HTTP/1.3\r\n\r\n").unwrap().unwrap().is_http_11);
        assert_eq!(parse("GET / HTTP/1.2"), Ok(None));
        assert_eq!(parse("GET / HTTP/1.22\r\n\r\n"), Err(HeadError::Unreadable));
    }

    /// A request as clients write it, or as an attacker might.
    fn request() -> impl Strategy<Value = Vec<u8>> {
        let target =
            prop::sample::select(vec!["/feed", "/feed?cursor=5&cursor_time=%zz", "http://a/b?c", "*", "/%", "//"]);
        let field = prop::sample::select(vec![
            "Host: a",
            "X-API-Key:",
            "Cookie: a=b;;=",
            "Content-Length: 0",
            "Last-Event-ID: 7",
            "Authorization: Bearer x y",
            "X: \u{e9}",
            "A:b",
            "Long: aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
        ]);
        let end = prop::sample::select(vec!["\r\n", "\n"]);
        (target, prop::collection::vec(field, 0..9), end).prop_map(|(target, fields, end)| {
            let lines = fields.iter().map(|field| format!("{field}{end}"));
            format!("GET {target} HTTP/1.1{end}{}{end}", lines.collect::<String>()).into_bytes()
        })
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes: Vec<u8>, request in request(), at: prop::sample::Index) {
            let _ = RequestHead::parse(&bytes);
            // Noise within a nearly valid request gets further.
            let mut noisy = request.clone();
            noisy.splice(at.index(request.len())..at.index(request.len()), bytes);
            if let Ok(Some(head)) = RequestHead::parse(&noisy) {
                let _ = (head.fields("cookie").count(), head.parameters().count(), head.check());
            }
        }

        #[test]
        fn a_head_is_complete_with_its_last_byte_and_what_follows_changes_nothing(request in request(), more: Vec<u8>) {
            let head = RequestHead::parse(&request).unwrap();
            prop_assert!(head.is_some());
            for cut in 0..request.len() {
                prop_assert_eq!(RequestHead::parse(&request[..cut]), Ok(None));
            }
            prop_assert_eq!(RequestHead::parse(&[request, more].concat()), Ok(head));
        }
    }
}
