//! Requests: from a served connection to an answer.
//!
//! Read in this order: [`server`] (a connection becomes requests), [`request`] (THE request path),
//! [`attempt`] (one attempt), [`respond`] (what goes back). [`upgrade`] holds what stops being HTTP.

mod admit;
pub mod attempt;
pub mod attempts;
pub mod authorize;
pub mod body;
mod cache;
pub mod check;
pub mod context;
pub mod deadline;
pub mod destination;
pub mod exchange;
pub mod failed;
pub mod fallback;
pub mod fault;
pub mod grammar;
pub mod head;
pub mod headers;
mod hedge;
pub mod hop;
mod http1;
mod http2;
pub mod limits;
pub mod mirror;
pub mod request;
pub mod respond;
pub mod response_body;
mod route;
mod route_answer;
pub mod server;
pub mod token;
pub mod trace;
pub mod upgrade;
mod verdict;
