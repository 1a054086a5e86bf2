//! Outrigger's data plane: the proxy beside every workload.
//!
//! A request: [`outbound`] or [`inbound`] -> [`http::server`] -> [`http::request`] ->
//! [`http::attempt`] -> [`http::respond`]. A connection that is no HTTP: [`stream`]. A change of
//! configuration: [`discovery`] -> [`store`]. Policies live in `outrigger_core`, never here.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects, clippy::unchecked_time_subtraction))]

pub mod accept;
pub mod access_log;
pub mod admin;
pub mod cache;
pub mod control_plane;
pub mod correlation;
pub mod discovery;
pub mod disk;
pub mod endpoint;
pub mod experiments;
pub mod guard;
pub mod health;
pub mod http;
pub mod identity;
pub mod inbound;
pub mod inbound_ports;
pub mod init;
pub mod io;
mod local;
pub mod memory;
pub mod metrics;
pub mod original;
pub mod outbound;
pub mod peer;
pub mod pool;
mod progress;
pub mod proxy;
pub mod ready;
mod record;
pub mod registration;
pub mod run;
pub mod settings;
pub mod state;
pub mod store;
pub mod stream;
pub mod streams;
pub mod tls;
pub mod watch;
pub mod worker;
