//! Helpers of the tests: a private PostgreSQL, one database per test, waiting for conditions, the programs as
//! processes, and a client that is strict about bytes.

#[cfg(feature = "tls")]
pub mod authority;
pub mod browser;
pub mod cluster;
pub mod crowd;
pub mod database;
pub mod directory;
pub mod outside;
pub mod program;
pub mod readme;
pub mod server;
pub mod sse;
pub mod standby;
pub mod wait;
