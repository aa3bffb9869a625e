//! The feed port: its routes, the page that watches signals arrive, its sessions, and the hold. A connection comes from
//! [`crate::http::accept`]; `routes` answers its request (with `credential`, `cursor`, `hold`), or passes it on to the
//! feed.

mod credential;
mod cursor;
mod hold;
pub(crate) mod routes;
