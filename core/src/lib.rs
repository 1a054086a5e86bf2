//! Outrigger's decisions, free of I/O.
//!
//! Everything here is a pure function or a plain `&mut self` machine: no sockets, no clock, no
//! global randomness, no `async`. Callers pass `now` and random numbers in. Start at [`config`]
//! (what the control plane tells a proxy) and [`compile`] (what a proxy makes of it).

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects, clippy::unchecked_time_subtraction))]

pub mod address;
pub mod balance;
pub mod bounds;
pub mod compile;
mod condition;
pub mod config;
pub mod detect;
pub mod error;
pub mod filter;
pub mod graph;
pub mod identity;
pub mod name;
pub mod outcome;
pub mod path;
pub mod policy;
pub mod reason;
pub mod route;
pub mod tap;
pub mod telemetry;
pub mod time;
