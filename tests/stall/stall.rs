//! Peers and outputs that stop: everybody else is served, nobody holds what is limited past its time, and
//! every permit and connection comes back.

mod callers;
mod disk;
mod lookups;
mod outputs;
mod shadows;
mod upstreams;
