//! The integration tests: one binary, a module a subject, on a real private PostgreSQL.
#![allow(
    clippy::unwrap_used,
    clippy::cast_possible_truncation,
    missing_docs,
    unreachable_pub,
    dead_code,
    reason = "a test that fails says so by panicking"
)]

mod support;

mod bot;
mod database;
mod degraded;
mod keys;
mod migrate;
mod refusals;
mod stream;
