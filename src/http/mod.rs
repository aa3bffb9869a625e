//! HTTP/1.1 as far as a feed needs it, with every limit of its own: `accept` → `head` → `routes` → `response`, or
//! `outlet` for a stream. One request a connection, one thread a connection.

pub mod accept;
pub mod connections;
pub mod head;
pub mod outlet;
pub mod page;
pub mod proxy;
pub mod response;
pub mod rfc3339;
pub mod routes;
mod unsent;
