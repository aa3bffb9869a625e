//! All SQL of the programs: a connection whose every call has a deadline, and one file per subject.
//!
//! Nothing here owns a thread.

mod blockers;
pub mod capture;
pub mod cluster;
mod connection;
mod connection_string;
mod dial;
pub mod doctor;
pub mod event_log;
mod inspect;
pub mod keys;
pub mod migrate;
pub mod prune;
pub mod quarantine;
pub mod restored;
pub mod standby;
#[cfg(feature = "tls")]
mod tls;

pub use crate::error::{DatabaseError as Error, NEEDS_SESSIONS};
pub use connection::{Connection, Notification, Settings, Watch};
