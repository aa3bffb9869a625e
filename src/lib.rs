//! signal-feed: a PostgreSQL table of trading signals as a gapless, commit-ordered log over Server-Sent Events.

pub mod cli;
pub mod config;
pub mod consumer;
pub mod db;
pub mod demo;
mod error;
pub mod feed;
pub mod http;
pub mod serve;

pub use error::{Doing, Error};
