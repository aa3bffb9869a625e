//! The integration tests: one binary, a module a subject, on a real private PostgreSQL.
#![allow(clippy::unwrap_used, missing_docs, reason = "a test that fails says so by panicking")]

mod support;

mod database;
