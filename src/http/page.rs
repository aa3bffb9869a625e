//! A page in one file, which may run only its own script and style.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::response::Response;

/// A self-contained page, and the Content-Security-Policy that lets its own script and style run and nothing else.
#[derive(Debug)]
pub struct Page {
    html: &'static str,
    policy: String,
}

impl Page {
    /// A page with one `<script>` and one `<style>` element without attributes.
    pub fn new(html: &'static str) -> Self {
        let policy = format!(
            "default-src 'none'; script-src '{}'; style-src '{}'; connect-src 'self'; img-src data:; base-uri 'none'; \
             form-action 'none'; frame-ancestors 'none'",
            hash(html, "script"),
            hash(html, "style")
        );
        Self { html, policy }
    }

    /// The page as an answer.
    pub fn response(&self) -> Response {
        Response::with_body("200 OK", "text/html; charset=utf-8", self.html)
            .with("Content-Security-Policy", self.policy.clone())
            .with("Referrer-Policy", "no-referrer")
            .with("Cache-Control", "no-cache")
    }
}

/// The source expression of an element's content (Content Security Policy Level 3, section 2.3.1, hash-source).
fn hash(html: &str, element: &str) -> String {
    let content = html
        .split_once(&format!("<{element}>"))
        .and_then(|(_, rest)| rest.split_once(&format!("</{element}>")))
        .map_or("", |(content, _)| content);
    format!("sha256-{}", STANDARD.encode(Sha256::digest(content)))
}
