//! The wire between control plane and proxies, and its conversion to and from `outrigger_core`.
//!
//! [`wire`] holds the discovery transport and the resource type names, [`mesh`] Outrigger's own
//! resource and registration messages, [`convert`] the checks between bytes and
//! [`outrigger_core::config`]. `generated/` is made by `cargo xtask codegen`.

pub mod codec;
pub mod convert;
pub mod wire;

/// Metrics as a Prometheus server takes them besides text.
pub use generated::io::prometheus::client as prometheus;
/// What callers tell about whom they call.
pub use generated::outrigger::graph::v1 as graph;
/// How a proxy comes to its certificate.
pub use generated::outrigger::identity::v1 as identity;
/// Outrigger's resources and the workload registration service.
pub use generated::outrigger::mesh::v1 as mesh;

#[expect(
    clippy::all,
    clippy::pedantic,
    unreachable_pub,
    reason = "generated code is not held to the rules for hand-written code"
)]
mod generated {
    pub(crate) mod envoy {
        pub(crate) mod config {
            pub(crate) mod core {
                pub mod v3 {
                    include!("generated/envoy.config.core.v3.rs");
                }
            }
        }
        pub(crate) mod service {
            pub(crate) mod discovery {
                pub mod v3 {
                    include!("generated/envoy.service.discovery.v3.rs");
                }
            }
        }
    }
    pub(crate) mod google {
        pub mod rpc {
            include!("generated/google.rpc.rs");
        }
    }
    pub(crate) mod io {
        pub(crate) mod prometheus {
            pub mod client {
                include!("generated/io.prometheus.client.rs");
            }
        }
    }
    pub(crate) mod outrigger {
        pub(crate) mod graph {
            pub mod v1 {
                include!("generated/outrigger.graph.v1.rs");
            }
        }
        pub(crate) mod identity {
            pub mod v1 {
                include!("generated/outrigger.identity.v1.rs");
            }
        }
        pub(crate) mod mesh {
            pub mod v1 {
                include!("generated/outrigger.mesh.v1.rs");
            }
        }
    }
}
