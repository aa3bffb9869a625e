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
mod capture;
mod clients;
mod database;
mod degraded;
mod demo;
mod failover;
mod history;
mod hostile;
mod keys;
mod migrate;
mod overload;
mod poison;
mod pooler;
mod refusals;
mod soak;
mod storm;
mod stream;
mod tier;
mod truncation;
mod upkeep;
mod usage;
mod watch;
