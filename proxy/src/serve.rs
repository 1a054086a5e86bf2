//! The straight line that a connection and each of its requests take.

pub mod connection;
pub(crate) mod http2;
pub mod inbound;
pub mod outbound;
pub mod request;
pub mod worker;
