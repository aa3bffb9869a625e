//! The reference consumer.
fn main() {}
