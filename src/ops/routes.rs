//! The operator's routes. They need no key: on a loopback address every user of the host may read them, but no web
//! page.

use std::net::IpAddr;

use super::{metrics, status};
use crate::feed::Feed;
use crate::http::connections::HttpConnection;
use crate::http::head::{self, HeadError, RequestHead};
use crate::http::response::Response;

const METRICS_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Serves one connection. Blocks for as long as it lasts, some seconds at most.
pub(crate) fn serve(feed: &Feed, instance: &str, connection: &HttpConnection) {
    let stream = &*connection.socket;
    let head = match head::read(connection) {
        Ok(head) => head,
        Err(HeadError::Gone) => return,
        Err(error) => return Response::head_error(error).send(stream, false),
    };
    let is_loopback = stream.local_addr().is_ok_and(|address| address.ip().to_canonical().is_loopback());
    answer(feed, instance, &head, is_loopback).send(stream, head.method == "HEAD");
}

fn answer(feed: &Feed, instance: &str, head: &RequestHead, is_loopback: bool) -> Response {
    // A web page that points its own name at this host (DNS rebinding) still sends that name.
    if is_loopback && !head.fields("host").all(is_loopback_host) {
        let message = "this address answers only to a loopback name such as localhost";
        return Response::error("403 Forbidden", "foreign_host", message);
    }
    if !matches!(head.path.as_str(), "/" | "/metrics" | "/status") {
        return Response::error("404 Not Found", "not_found", "no such path; see /, /status and /metrics");
    }
    if !matches!(head.method.as_str(), "GET" | "HEAD") {
        return Response::method_not_allowed("GET, HEAD");
    }
    if let Err(message) = head.check() {
        return Response::error("400 Bad Request", "bad_request", message);
    }
    match head.path.as_str() {
        "/metrics" => plain(METRICS_TYPE, metrics::text(feed, instance)),
        "/status" => plain("application/json", status::json(feed, instance)),
        _ => Response::page(include_str!("status.html")),
    }
}

fn plain(content_type: &'static str, body: String) -> Response {
    Response::with_body("200 OK", content_type, body).with("Cache-Control", "no-store")
}

/// Whether a `Host` is a loopback name or address: `localhost` and names under it (RFC 6761 §6.3), or an address.
fn is_loopback_host(host: &[u8]) -> bool {
    let Some(name) = head::host_name(host) else { return false };
    if let Ok(address) = name.parse::<IpAddr>() {
        return address.to_canonical().is_loopback();
    }
    let name = name.strip_suffix('.').unwrap_or(name).to_ascii_lowercase();
    name == "localhost" || name.ends_with(".localhost")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_loopback_host_is_one() {
        for host in [
            "localhost",
            "LOCALHOST:9464",
            "localhost.",
            "ops.localhost:1",
            "127.0.0.1:9464",
            "127.9.9.9",
            "[::1]:9464",
            "[::1]",
        ] {
            assert!(is_loopback_host(host.as_bytes()), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "notlocalhost",
            "10.0.0.1",
            "[::2]",
            "[::1",
            "[::1]x",
            "127.0.0.1.evil.example",
        ] {
            assert!(!is_loopback_host(host.as_bytes()), "{host}");
        }
    }
}
