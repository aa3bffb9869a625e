//! A request whose head has been read, and its short answer.

use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::time::Instant;

use super::credential::credential;
use crate::feed::Feed;
use crate::http::connections::HttpConnection;
use crate::http::head::Head;
use crate::http::response::{Code, Response};
use crate::logging::LIMITED;

/// A request whose head is complete.
pub(super) struct Request<'a> {
    pub(super) feed: &'a Arc<Feed>,
    pub(super) connection: &'a HttpConnection,
    pub(super) stream: &'a Arc<TcpStream>,
    /// The client's address, taken from a trusted proxy's header if there is one.
    pub(super) address: SocketAddr,
    pub(super) head: Head,
    pub(super) arrived: Instant,
}

impl Request<'_> {
    pub(super) fn answer(&self, response: Response) {
        let name = credential(&self.head).and_then(|credential| self.feed.keys.name_of(&credential));
        let is_head = self.head.method == "HEAD";
        send(self.feed, self.connection, self.address, name.as_deref(), response, is_head);
    }
}

/// Logs, counts and sends a short answer. After SIGTERM it sends none: every client retries a closed connection, but
/// many give up after a status.
pub(super) fn send(
    feed: &Feed,
    connection: &HttpConnection,
    address: SocketAddr,
    key: Option<&str>,
    response: Response,
    is_head: bool,
) {
    if feed.health.is_stopping() {
        return;
    }
    log_refusal(&response, address, key);
    feed.stats.answered(response.status());
    response.send(&connection.socket, is_head);
}

/// Three places in the program, so that a flood of one kind does not hide another kind.
fn log_refusal(response: &Response, address: SocketAddr, key: Option<&str>) {
    let Some(code) = response.code() else { return };
    let name = code.status_and_name().1;
    let key = key.map(|key| format!("key {key:?} from ")).unwrap_or_default();
    match code {
        Code::UnknownKey | Code::ExpiredKey | Code::RevokedKey => {
            log::warn!(target: LIMITED, "refused: {name}: {key}{address}")
        }
        Code::TooManyStreams | Code::Degraded | Code::AtCapacity => {
            log::warn!(target: LIMITED, "refused: {name}: {key}{address}")
        }
        _ => log::info!(target: LIMITED, "refused: {name}: {key}{address}"),
    }
}
