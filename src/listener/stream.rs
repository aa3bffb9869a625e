//! From an authenticated request to its stream.

use std::sync::Arc;
use std::time::Duration;

use super::request::Request;
use crate::db::keys::Key;
use crate::feed::client::{Client, Full};
use crate::feed::reason::End;
use crate::feed::stream::{self, Asked};
use crate::http::response::{self, Code, LINGER, Response};

/// How long a client's bytes are read after its last block when the server stops.
const LINGER_AT_SHUTDOWN: Duration = Duration::from_millis(2);

/// Admits a stream and runs it. Blocks for as long as it lasts.
pub(super) fn run(request: &Request<'_>, key: Arc<Key>, asked: Asked) {
    let is_chunked = request.head.is_http_11;
    let client = Client::new(request.feed, key, request.address, request.stream.clone(), is_chunked);
    match stream::serve(request.feed, client, stream_head(is_chunked).into_bytes(), asked) {
        // Nobody waits for clients that do not close: what they have sent so far is read, and that has to do.
        Ok(End::Shutdown) => response::close_in_order(request.stream, LINGER_AT_SHUTDOWN),
        Ok(end) if end.is_told() || end == End::Dropped => response::close_in_order(request.stream, LINGER),
        Ok(_) => {}
        Err(Full::Key) => {
            request.answer(Response::error(Code::TooManyStreams, "stream limit for this key reached"));
        }
        Err(Full::Server) => {
            request.answer(Response::error(Code::AtCapacity, "stream limit of this server reached"));
        }
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
