//! Who asks: the API key of a request, and the session cookie that stands for one in a browser.

use super::hold::degraded;
use super::routes::{Request, Route};
use crate::feed::keys::{Credential, SESSION_LASTS};
use crate::http::head::Head;
use crate::http::proxy;
use crate::http::response::Response;

/// The session cookie's name.
const COOKIE: &str = "signal_feed_session";

impl Request<'_> {
    pub(super) fn session(&self) -> Route {
        let is_https = proxy::is_https(&self.feed.options.trusted_proxies, self.peer, &self.head);
        let attributes =
            if is_https { "HttpOnly; SameSite=Strict; Path=/; Secure" } else { "HttpOnly; SameSite=Strict; Path=/" };
        if self.head.method == "DELETE" {
            let cookie = format!("{COOKIE}=; {attributes}; Max-Age=0");
            return Route::Answer(Response::empty("204 No Content").with("Set-Cookie", cookie));
        }
        let bearer = bearer(&self.head).map(|key| Credential::from_key(&key));
        match self.judge(bearer) {
            Err(route) => route,
            Ok(key) => match self.feed.keys.session_token(&key, &self.feed.clock) {
                None => Route::Answer(degraded()),
                Some(token) => {
                    let cookie = format!("{COOKIE}={token}; {attributes}; Max-Age={}", SESSION_LASTS.as_secs());
                    Route::Answer(Response::empty("204 No Content").with("Set-Cookie", cookie))
                }
            },
        }
    }
}

/// The first present decides: `Authorization: Bearer`, `X-API-Key`, the session cookie.
pub(super) fn credential(head: &Head) -> Option<Credential> {
    if let Some(key) = bearer(head) {
        return Some(Credential::from_key(&key));
    }
    if let Some(key) = head.fields("x-api-key").next() {
        return Some(Credential::from_key(&String::from_utf8_lossy(key)));
    }
    let cookies = head.fields("cookie").filter_map(|value| std::str::from_utf8(value).ok());
    let mut pairs = cookies.flat_map(|value| value.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, token)| Credential::Session(token.to_owned()))
}

/// The key in `Authorization: Bearer`. One that is not text is nobody's.
fn bearer(head: &Head) -> Option<String> {
    let is_bearer = |value: &&[u8]| value.get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer"));
    if let Some(value) = head.fields("authorization").find(is_bearer) {
        let rest = &value[6..];
        if rest.is_empty() || rest.starts_with(b" ") {
            return Some(String::from_utf8_lossy(rest.trim_ascii()).into_owned());
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn head(text: &str) -> Head {
        Head::parse(text.as_bytes()).unwrap().unwrap()
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
