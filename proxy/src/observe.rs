//! What the proxy knows of what it did: records, metrics, logs.

pub mod access_log;
pub mod bus;
pub mod correlation;
pub mod edges;
pub mod metrics;
pub mod otlp;
pub mod push;
pub mod record;
pub mod tap;
pub mod traces;
