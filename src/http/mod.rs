//! HTTP/1.1 as far as this program needs it, with its own limits: `accept` takes a connection, `head` reads its
//! request, `response` answers it. One request and one thread per connection. Nothing here knows the feed.

pub mod accept;
pub mod connections;
pub mod head;
pub mod proxy;
pub mod response;
pub mod socket;
