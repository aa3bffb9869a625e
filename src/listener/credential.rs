//! How a request authenticates: an API key, or the session cookie.

use crate::feed::keys::Credential;
use crate::http::head::RequestHead;

/// The session cookie's name.
pub(super) const COOKIE: &str = "signal_feed_session";

/// The first one present decides: `Authorization: Bearer`, `X-API-Key`, the session cookie.
pub(super) fn credential(head: &RequestHead) -> Option<Credential> {
    if let Some(key) = key(head) {
        return Some(key);
    }
    let cookies = head.fields("cookie").filter_map(|value| std::str::from_utf8(value).ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, token)| Credential::Session(token.to_owned()))
}

/// The API key in `Authorization: Bearer`, else in `X-API-Key`. One that is not UTF-8 is unknown.
pub(super) fn key(head: &RequestHead) -> Option<Credential> {
    let bearer = head.fields("authorization").find_map(|value| {
        let (scheme, key) = value.split_at_checked(6)?;
        let is_bearer = scheme.eq_ignore_ascii_case(b"bearer") && (key.is_empty() || key.starts_with(b" "));
        is_bearer.then(|| key.trim_ascii())
    });
    let key = bearer.or_else(|| head.fields("x-api-key").next())?;
    Some(Credential::from_key(&String::from_utf8_lossy(key)))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> RequestHead {
        RequestHead::parse(text.as_bytes()).unwrap().unwrap()
    }

    #[test]
    fn the_first_present_credential_decides() {
        let of = |fields: &str| credential(&head(&format!("GET / HTTP/1.1\r\n{fields}\r\n\r\n")));
        let all = "Cookie: a=b; signal_feed_session=tok\r\nX-API-Key: second\r\nAuthorization: bearer first";
        assert_eq!(of(all), Some(Credential::from_key("first")));
        assert_eq!(of("Cookie: signal_feed_session=tok\r\nX-API-Key: second"), Some(Credential::from_key("second")));
        assert_eq!(of("Cookie: a=b; signal_feed_session=tok"), Some(Credential::Session("tok".into())));
        assert_eq!(of("Authorization: Basic abc"), None);
        assert_eq!(of("Authorization: Bearer"), Some(Credential::from_key("")));
    }

    proptest! {
        fn a_key_is_found_wherever_it_stands(key in "[!-~]{1,60}", noise in "[ -~]{0,40}") {
            let of = |field: &str| credential(&head(&format!("GET / HTTP/1.1\r\nA: {noise}\r\n{field}\r\n\r\n")));
            let expected = Some(Credential::from_key(&key));
            prop_assert_eq!(of(&format!("Authorization: Bearer {key}")), expected.clone());
            prop_assert_eq!(of(&format!("X-API-Key: {key}")), expected);
            let _ = of(&format!("Cookie: {noise}"));
            let token = key.replace([';', '='], "");
            prop_assert_eq!(
                of(&format!("Cookie: a=b; {COOKIE}={token}")),
                Some(Credential::Session(token))
            );
        }
    }
}
