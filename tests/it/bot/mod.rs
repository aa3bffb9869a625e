//! `trader-bot`, the real program, against a scripted feed, a real one, and a real database.

mod exec;
mod feed;
mod files;
mod kill;
mod process;
mod table;
mod tail;
mod usage;
