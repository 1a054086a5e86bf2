//! Between wire messages and [`outrigger_core::config`], one file per resource.
//!
//! `to_wire` and `from_wire` stand side by side, so that a new field is seen to be missing in one
//! of them. What is read here has a valid form afterwards; whether it makes sense as a whole is
//! decided by [`outrigger_core::compile`]. Nothing is guessed: an unset oneof, an unknown enum
//! value and a feature in `requires` that this build lacks are errors.

mod access;
pub mod destination;
pub mod endpoint;
mod fallback;
mod fault;
mod filter;
mod http_route;
pub mod inbound;
mod policy;
mod server;
pub mod settings;
pub mod tap;
pub mod trust;

use outrigger_core::config::{self, BackendTarget, HostMatch, Protocol};
use outrigger_core::error::FieldError;
use sha2::{Digest, Sha256};

use crate::mesh;

/// Field of every resource that lists the features needed to understand it.
const REQUIRES: &str = "requires";

/// Version of an encoded resource: a hash of its bytes, equal across restarts and replicas.
pub fn version(bytes: &[u8]) -> String {
    // Half of SHA-256 is plenty to tell versions of one resource apart.
    Sha256::digest(bytes)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Whether a resource was refused because it requires a feature that this build lacks, and not
/// because it is wrong.
pub fn is_unsupported(error: &FieldError) -> bool {
    error.path.starts_with(REQUIRES)
}

fn check_requires(requires: &[String]) -> Result<(), FieldError> {
    each(REQUIRES, requires, |feature| {
        if config::features().any(|known| known == feature) {
            return Ok(());
        }
        Err(FieldError::here(format!(
            "{feature:?} is a feature that this build does not know; upgrade it"
        )))
    })
    .map(drop)
}

/// Converts every item of a repeated field, adding `name[i]` to an error's path.
fn each<'a, W, T>(
    name: &str,
    items: &'a [W],
    convert: impl Fn(&'a W) -> Result<T, FieldError>,
) -> Result<Vec<T>, FieldError> {
    items
        .iter()
        .enumerate()
        .map(|(i, item)| convert(item).map_err(|e| e.under(format!("{name}[{i}]"))))
        .collect()
}

/// A field or oneof that has to be set.
fn set<'a, T>(name: &str, value: Option<&'a T>) -> Result<&'a T, FieldError> {
    value.ok_or_else(|| {
        FieldError::at(name, "is not set, or set to something that this build does not know")
    })
}

/// A text that must parse.
fn parsed<T: std::str::FromStr>(name: &str, text: &str) -> Result<T, FieldError>
where
    T::Err: std::fmt::Display,
{
    text.parse().map_err(|error| FieldError::at(name, format!("{text:?}: {error}")))
}

fn port(name: &str, port: u32) -> Result<u16, FieldError> {
    match u16::try_from(port) {
        Ok(port) if port != 0 => Ok(port),
        _ => Err(FieldError::at(name, format!("{port} must be between 1 and 65535"))),
    }
}

/// The empty text stands for a value that is not there.
fn optional(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

/// Also what a workload declares for its ports when it registers.
pub fn protocol_to_wire(protocol: Protocol) -> i32 {
    let wire = match protocol {
        Protocol::Detect => mesh::Protocol::Detect,
        Protocol::Http1 => mesh::Protocol::Http1,
        Protocol::Http2 => mesh::Protocol::Http2,
        Protocol::Grpc => mesh::Protocol::Grpc,
        Protocol::Tls => mesh::Protocol::Tls,
        Protocol::Tcp => mesh::Protocol::Tcp,
    };
    wire.into()
}

fn protocol_from_wire(protocol: i32) -> Result<Protocol, FieldError> {
    match mesh::Protocol::try_from(protocol) {
        Ok(mesh::Protocol::Detect) => Ok(Protocol::Detect),
        Ok(mesh::Protocol::Http1) => Ok(Protocol::Http1),
        Ok(mesh::Protocol::Http2) => Ok(Protocol::Http2),
        Ok(mesh::Protocol::Grpc) => Ok(Protocol::Grpc),
        Ok(mesh::Protocol::Tls) => Ok(Protocol::Tls),
        Ok(mesh::Protocol::Tcp) => Ok(Protocol::Tcp),
        Ok(mesh::Protocol::Unspecified) | Err(_) => {
            Err(FieldError::at("protocol", format!("{protocol} is not a known protocol")))
        }
    }
}

fn target_to_wire(target: &BackendTarget) -> mesh::Target {
    let kind = match target {
        BackendTarget::Service(name) => mesh::target::Kind::Service(name.to_string()),
        BackendTarget::Invalid(why) => mesh::target::Kind::Invalid(why.clone()),
    };
    mesh::Target { kind: Some(kind) }
}

fn target_from_wire(target: Option<&mesh::Target>) -> Result<BackendTarget, FieldError> {
    match set("target", target.and_then(|target| target.kind.as_ref()))? {
        mesh::target::Kind::Service(name) => Ok(BackendTarget::Service(parsed("target", name)?)),
        mesh::target::Kind::Invalid(why) => Ok(BackendTarget::Invalid(why.clone())),
    }
}

fn host_to_wire(host: &HostMatch) -> String {
    match host {
        HostMatch::Exact(host) => host.clone(),
        HostMatch::Suffix(suffix) => format!("*{suffix}"),
    }
}

fn host_from_wire(text: &String) -> Result<HostMatch, FieldError> {
    let (host, wildcard) = match text.strip_prefix("*.") {
        Some(host) => (host, true),
        None => (text.as_str(), false),
    };
    let valid = !host.is_empty()
        && !host.starts_with('.')
        && host.bytes().all(|b| {
            b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'-' | b'.' | b'_')
        });
    if !valid {
        return Err(FieldError::here(format!("{text:?} is not a lower-case host name")));
    }
    Ok(if wildcard {
        HostMatch::Suffix(format!(".{host}"))
    } else {
        HostMatch::Exact(host.to_owned())
    })
}
