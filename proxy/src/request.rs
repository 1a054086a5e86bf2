//! From the head of a request to what shall become of it.

pub mod admit;
pub mod context;
pub mod destination;
pub mod exchange;
pub mod head;
pub(crate) mod route;
pub(crate) mod route_answer;
