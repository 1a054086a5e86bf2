//! From objects as people write them to what the mesh is told; one file per kind.
//!
//! Translation reads one object at a time and reports what is wrong in it with field paths. It
//! does not look at other objects: [`crate::index`] resolves references and puts the results
//! together with [`destination`] and [`inbound`].

pub mod access_policy;
mod cors;
pub mod destination;
mod duration;
pub mod effective;
pub mod endpoint_slice;
pub mod external_service;
pub mod external_workload;
pub mod fallback;
pub mod fault_injection;
mod filter;
pub mod grpc_route;
pub mod http_route;
pub mod inbound;
mod matching;
pub mod pod;
pub mod reference_grant;
mod route;
mod rule_call;
pub mod server_policy;
pub mod service;
mod target_ref;
pub mod tcp_route;
pub mod tls_route;
pub mod traffic_policy;
mod vet;
pub mod workload;

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use outrigger_core::address::LocalEndpoints;
use outrigger_core::error::FieldError;
use outrigger_core::name::{check_label, check_subdomain};
use outrigger_core::policy::bounds;

/// What translation finds in one object. An object with an error is not accepted as a whole: the
/// last good version stays in force. What is refused is a part of an object that fails closed where
/// the rest of the object is in force. A warning changes nothing.
#[derive(Debug, Default)]
pub struct Report {
    pub errors: Vec<FieldError>,
    pub refused: Vec<FieldError>,
    pub warnings: Vec<FieldError>,
    /// Which endpoints on the callers' own machines are taken.
    local: LocalEndpoints,
}

impl Report {
    pub fn trusting(local: LocalEndpoints) -> Self {
        Self { local, ..Self::default() }
    }

    /// The address of an endpoint: others are sent there.
    pub fn endpoint(&mut self, path: &str, address: IpAddr) {
        self.check(path, workload::check_endpoint(address, self.local));
    }

    pub fn error(&mut self, path: impl Into<String>, problem: impl Into<String>) {
        self.errors.push(FieldError::at(path, problem));
    }

    pub fn warn(&mut self, path: impl Into<String>, problem: impl Into<String>) {
        self.warnings.push(FieldError::at(path, problem));
    }

    /// Takes the error of a check at `path`, if it failed.
    pub fn check<T>(&mut self, path: &str, result: Result<T, FieldError>) -> Option<T> {
        result.map_err(|e| self.errors.push(e.under(path))).ok()
    }

    /// A port number as the Kubernetes types carry it.
    pub fn port(&mut self, path: &str, port: i32) -> Option<u16> {
        self.check(path, bounds::number(port, &bounds::PORT))
    }

    /// At most `max` items in a list; the bounds are those of the Gateway API's schema.
    pub fn at_most(&mut self, path: &str, len: usize, max: usize) {
        if len > max {
            self.error(path, format!("has {len} items, at most {max} are allowed"));
        }
    }
}

/// The API group of our own kinds.
pub const GROUP: &str = "outrigger.dev";

/// The namespace of an object without one.
pub const DEFAULT_NAMESPACE: &str = "default";

/// Namespace and name of an object, checked: most may be named with dots.
fn identity(meta: &ObjectMeta, report: &mut Report) -> (String, String) {
    named(meta, check_subdomain, report)
}

/// The same for kinds whose name becomes part of a host name or a uid.
fn label_identity(meta: &ObjectMeta, report: &mut Report) -> (String, String) {
    named(meta, check_label, report)
}

fn named(
    meta: &ObjectMeta,
    check: impl FnOnce(&str) -> Result<(), FieldError>,
    report: &mut Report,
) -> (String, String) {
    let namespace = meta.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    report.check("metadata.namespace", check_label(&namespace));
    let name = meta.name.clone().unwrap_or_default();
    report.check("metadata.name", check(&name));
    (namespace, name)
}

/// Seconds since the Unix epoch of the object's creation; a manifest in a folder has none unless
/// it writes `creationTimestamp` itself.
fn created(meta: &ObjectMeta) -> i64 {
    meta.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second())
}
