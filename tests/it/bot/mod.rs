//! `trader-bot`, the real program, against a scripted feed, a real one, and a real database.

mod data;
mod end_to_end;
mod exec;
mod feed;
mod files;
#[cfg(feature = "ibkr")]
mod ibkr;
mod kill;
mod process;
mod python;
mod readme;
mod real;
mod recovery;
mod table;
mod tail;
mod usage;
