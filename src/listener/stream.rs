//! From a request that is let in to its stream.

use std::io::IoSlice;
use std::sync::Arc;

use super::request::Request;
use crate::db::keys::Key;
use crate::feed::Feed;
use crate::feed::client::{Client, Full, Limits};
use crate::feed::reason::End;
use crate::feed::stream::{Asked, Stream};
use crate::http::outlet::Outlet;
use crate::http::response::{self, Code, Response};

/// Admits a stream and runs it. Blocks for as long as it lasts.
pub(super) fn run(request: &Request<'_>, key: Arc<Key>, asked: Asked) {
    let feed = request.feed;
    let limits = Limits {
        clients: feed.options.max_clients,
        clients_per_key: feed.options.max_clients_per_key,
        queue_events: feed.options.queue_capacity,
    };
    let client = match feed.clients.admit(key, request.address, request.stream, feed.clock.now(), limits) {
        Ok(client) => client,
        Err(full) => {
            let response = match full {
                Full::Key => Response::error(Code::TooManyStreams, "stream limit for this key reached"),
                Full::Server => Response::error(Code::AtCapacity, "stream limit of this server reached"),
            };
            return request.answer(response);
        }
    };
    let guard = Admitted { feed, client: &client };
    // Between the list and this look the server may have begun to stop: nobody else would end this stream.
    if feed.health.is_stopping() {
        return;
    }
    // And the key may have ended between its judgement and the list, where the next refresh would find it only later.
    feed.keys.tell(&client, feed.clock.now());
    feed.key_used(&client);
    let after = asked.cursor.map_or("from now".to_owned(), |cursor| format!("after event {cursor}"));
    log::info!("stream begins: key {:?} from {}, {after}", client.key.name, client.address);
    feed.stats.answered("200");
    let mut outlet =
        Outlet::new(request.stream, request.head.is_http_11, feed.options.write_timeout, &feed.stats.bytes);
    let end = match outlet.write(&mut [IoSlice::new(stream_head(request.head.is_http_11).as_bytes())], || false) {
        Ok(()) => Stream::new(feed, &client, &mut outlet).run(asked),
        Err(_) => End::ClientGone,
    };
    guard.finish(end);
    if end.is_told() || end == End::Dropped {
        response::close_in_order(request.stream);
    }
}

/// Takes a stream off every list when it ends, also when its thread panics.
struct Admitted<'a> {
    feed: &'a Feed,
    client: &'a Arc<Client>,
}

impl Admitted<'_> {
    fn finish(self, end: End) {
        self.leave(end);
        std::mem::forget(self);
    }

    fn leave(&self, end: End) {
        self.feed.clients.leave(self.client);
        // Last used is when its last stream ended, not when that began.
        self.feed.key_used(self.client);
        self.feed.stats.ended(end);
        log::info!(
            "stream ended: {}: key {:?} from {}, at event {}, {} delivered, {} dropped",
            end.name(),
            self.client.key.name,
            self.client.address,
            self.client.cursor(),
            self.client.delivered_events(),
            self.client.dropped_events(),
        );
    }
}

impl Drop for Admitted<'_> {
    fn drop(&mut self) {
        self.leave(if std::thread::panicking() { End::Panicked } else { End::Shutdown });
    }
}

fn stream_head(is_http_11: bool) -> String {
    format!(
        "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nCache-Control: no-cache, no-transform\r\n\
         X-Accel-Buffering: no\r\n{}{}\r\n",
        response::common_fields(),
        if is_http_11 { "Transfer-Encoding: chunked\r\n" } else { "" }
    )
}
