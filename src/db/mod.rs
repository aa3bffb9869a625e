//! All SQL of the programs: a connection whose every call has a deadline, and one file per subject.
//!
//! Nothing here owns a thread. A function with a connection blocks for at most the deadline of each of its calls. Where it
//! says nothing of errors, they are those of its calls: see [`Error`].

mod blockers;
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
pub use connection::{Connection, Settings, Watch};
