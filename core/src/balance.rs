//! Choosing one endpoint of several: power of two choices, round robin, ring hash.
//!
//! The machines here know indexes and loads, not sockets. Random numbers and hashes come in as
//! arguments, so a simulation can replay a run.
