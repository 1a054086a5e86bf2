//! Real processes over loopback: a control plane, proxies, apps, and clients that we did not write.

mod access;
mod cache;
mod causes;
mod config;
mod deadlines;
mod endpoints;
mod external;
mod fallbacks;
mod faults;
mod gateway_api;
mod graph;
mod grpc;
mod health;
mod hostile;
mod identity;
mod injected;
mod life;
mod lookups;
mod mirrors;
mod monitoring;
mod names;
mod once;
mod protocols;
mod push;
mod resilience;
mod server_policy;
mod silence;
mod soak;
mod tap;
mod traces;
mod tunnels;
mod upstreams;
mod walk;
mod wire;

use outrigger_tests::manifests::{service, unmeshed};
use outrigger_tests::mesh::Mesh;
