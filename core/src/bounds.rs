//! The bounds of every string and list that a proxy or anyone who writes manifests may send, once.
//!
//! Those here are held to on the wire, those of [`manifest`] at admission; numbers of policies have
//! their own table, [`crate::policy::bounds`]. Lengths are in bytes.

use crate::error::FieldError;

pub mod manifest;

/// Labels of one workload.
pub const LABELS: usize = 256;
/// A label's key with its prefix (Kubernetes: 253 for the prefix, 63 for the name, and the slash).
pub const LABEL_KEY: usize = 317;
pub const LABEL_VALUE: usize = 63;
/// Ports of one workload: far more than any process listens on.
pub const WORKLOAD_PORTS: usize = 256;
/// A port's name, as of a Service's port.
pub const PORT_NAME: usize = 63;
/// A zone is the value of a node's label or the name of a cloud's zone.
pub const ZONE: usize = 253;
/// An address in text form, with brackets, scope and port.
pub const ADDRESS: usize = 96;
/// What a proxy process proves with that it is the one that registered.
pub const SESSION: usize = 64;
/// The least of that: 128 bits cannot be guessed.
pub const MIN_SESSION: usize = 16;

/// A node's id, and the name of a resource: the longest host name and port, or a canonical name, fits twice.
pub const NAME: usize = 512;
/// The version of a resource or of a program.
pub const VERSION: usize = 256;
/// The URL of a resource type.
pub const TYPE_URL: usize = 256;
/// A nonce: a number in decimal.
pub const NONCE: usize = 32;
/// Names that one discovery request may bring or let go of: what a proxy may hold, twice.
pub const NAMES: usize = 20_480;
/// Resources whose versions one discovery request may name: names, and the endpoints behind them.
pub const VERSIONS: usize = 200_000;
/// Characters of why a proxy refused something, or had a fault injection stopped; the rest is cut off.
pub const REASON: usize = 1024;
/// What a proxy may tell of itself beside its name, and details of a refusal: nobody reads them.
pub const DETAILS: usize = 64;
/// A certificate request for a P-256 key has about 300 bytes.
pub const CSR: usize = 4096;

/// Workloads that may be registered, of all and of one account.
pub const WORKLOADS: usize = 50_000;
pub const WORKLOADS_OF_ACCOUNT: usize = 5_000;

/// Namespaces that the mesh remembers. A name in any namespace beyond these is taken for one of the mesh.
pub const NAMESPACES: usize = 10_000;

/// Bytes of what a join token binds beyond namespace and account: it becomes part of a certificate, which is
/// shown in each handshake.
pub const GRANT: usize = 1024;

/// A text of at most so many bytes.
pub fn text(value: &str, most: usize) -> Result<(), FieldError> {
    length(value.len(), most)
}

/// The same for what is no text.
pub fn length(len: usize, most: usize) -> Result<(), FieldError> {
    if len <= most {
        return Ok(());
    }
    Err(FieldError::here(format!("has {len} bytes, at most {most} are allowed")))
}

/// A list of at most so many items.
pub fn items(len: usize, most: usize) -> Result<(), FieldError> {
    crate::policy::bounds::at_most(len, most)
}
