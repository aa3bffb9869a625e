//! All SQL of the programs: a connection whose every call has a deadline, and one file per subject.
//!
//! Nothing here owns a thread. A function with a connection blocks for at most the deadline of each of its calls. Where it
//! says nothing of errors, they are those of its calls: see [`Error`].

mod blockers;
mod connection;
mod connection_string;
mod dial;
pub mod doctor;
pub(crate) mod event_log;
mod inspect;
pub(crate) mod keys;
pub mod migrate;
pub(crate) mod prune;
pub(crate) mod quarantine;
pub(crate) mod restored;
pub(crate) mod standby;
#[cfg_attr(not(feature = "tls"), path = "no_tls.rs")]
mod tls;

pub use crate::error::DatabaseError as Error;
pub(crate) use crate::error::NEEDS_SESSIONS;
pub use connection::{Connection, Settings, Watch};
