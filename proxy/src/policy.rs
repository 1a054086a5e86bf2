//! What policies remember, shared by all workers.

pub mod access;
pub mod cache;
pub mod inbound_ports;
pub mod limits;
pub mod mirrors;
pub mod server_first;
pub mod tokens;
