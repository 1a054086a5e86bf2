//! Connections that come in, until somebody serves them.

pub mod accept;
pub mod connection;
pub mod origin;
pub mod original;
pub mod role;
pub mod slot;
pub mod sniff;
