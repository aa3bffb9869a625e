//! The feed port: its routes, the page that watches signals arrive, its sessions, and the hold. A connection comes from
//! [`crate::http::accept`]; `routes` decides what becomes of its request (`credential`, `cursor`, `session`, `hold`), and `stream` hands
//! it on to the feed.

mod credential;
mod cursor;
mod hold;
mod request;
pub mod routes;
mod session;
mod stream;
