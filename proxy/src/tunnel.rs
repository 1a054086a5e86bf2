//! Bytes that are carried and not looked into.

pub mod stream;
pub mod upgrade;
