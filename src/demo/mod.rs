//! The whole system on one machine with nothing configured.

pub mod postgres;
