//! HTTP/1.1 as far as this program needs it, with its own limits: `accept` takes a connection, `head` reads its
//! request, `response` answers it. One request and one thread per connection. Nothing here knows the feed.

pub(crate) mod accept;
pub(crate) mod connections;
pub(crate) mod head;
pub(crate) mod proxy;
pub(crate) mod response;
pub(crate) mod socket;
