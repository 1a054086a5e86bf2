//! Outrigger's data plane: the proxy beside every workload.
//!
//! The modules are layers, from [`base`] up to [`admin`]; ARCHITECTURE.md lists them. A request takes the straight line of
//! [`serve`]: [`serve::connection`] -> [`serve::request`] -> [`call::attempts`] -> [`answer::respond`]. A connection that is no
//! HTTP: [`tunnel::stream`]. A change of configuration: [`mesh::discovery`] -> [`upstream::store`]. Policies live in
//! `outrigger_core`, never here.

#![cfg_attr(not(test), warn(clippy::arithmetic_side_effects, clippy::unchecked_time_subtraction))]

pub mod admin;
pub mod answer;
pub mod base;
pub mod call;
pub mod health;
pub mod init;
pub mod listener;
pub mod mesh;
pub mod observe;
pub mod policy;
pub mod proxy;
pub mod ready;
pub mod request;
pub mod run;
pub mod serve;
pub mod tls;
pub mod tunnel;
pub mod upstream;
pub mod wire;
