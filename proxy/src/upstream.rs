//! Who can be called, and the connections to them.

pub mod endpoint;
pub mod faults;
pub mod fixed;
pub mod pool;
pub mod store;
pub mod target;
pub mod watches;
