//! One call of a service: its attempts, and what stands in for them.

pub mod attempt;
pub mod attempts;
pub mod cache;
pub mod failed;
pub mod fallback;
pub mod fault;
pub(crate) mod hedge;
pub mod mirror;
pub mod pace;
pub mod target;
pub mod upstream;
pub(crate) mod verdict;
