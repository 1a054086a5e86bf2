//! The control plane over loopback, as its proxies see it.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod accepted;
mod bounds;
mod check;
mod closed;
mod discovery;
mod external;
mod folder;
mod graph;
mod identity;
mod index;
mod manifests;
mod policies;
mod readers;
mod registration;
mod render;
mod replicas;
mod rotation;
mod scale;
mod status;
mod support;
mod tenants;
mod tls;
mod translate;
