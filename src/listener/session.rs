//! The session cookie that a browser sends instead of an API key.

use super::credential::{COOKIE, key};
use super::hold::degraded;
use super::request::Request;
use crate::feed::keys::SESSION_LASTS;
use crate::http::proxy;
use crate::http::response::Response;

impl Request<'_> {
    /// `POST /session` sets the cookie for a valid key, `DELETE /session` clears it.
    pub(super) fn session(&self) -> Option<Response> {
        let is_https = proxy::is_https(&self.feed.options.trusted_proxies, self.connection.peer, &self.head);
        let cookie = |token: &str, seconds: u64| {
            let secure = if is_https { "; Secure" } else { "" };
            let cookie = format!("{COOKIE}={token}; HttpOnly; SameSite=Strict; Path=/; Max-Age={seconds}{secure}");
            Response::empty("204 No Content").with("Set-Cookie", cookie)
        };
        if self.head.method == "DELETE" {
            return Some(cookie("", 0));
        }
        match self.authenticate(key(&self.head)) {
            Err(response) => response,
            Ok(key) => match self.feed.keys.session_token(&key, &self.feed.clock) {
                Some(token) => Some(cookie(&token, SESSION_LASTS.as_secs())),
                None => Some(degraded()),
            },
        }
    }
}
