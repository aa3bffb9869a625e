//! What the tests stand on: a private PostgreSQL, one database a test, waiting for conditions.

pub mod database;
pub mod program;
pub mod wait;
