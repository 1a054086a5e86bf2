//! From an object as it was written, in a file or in the Kubernetes API, to an object of the index and what is
//! wrong with it: one way for all sources, so that all of them take the same and say the same.

use k8s_openapi::api::core::v1::{Namespace, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use outrigger_core::address::LocalEndpoints;
use outrigger_core::error::FieldError;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::bounds;
use super::plain::plain;
use crate::kinds::{
    AccessPolicy, ExternalService, ExternalWorkload, FaultInjection, ServerPolicy, TrafficPolicy,
};
use crate::object::{Kind, Object, ObjectId};
use crate::problems::Severity;
use crate::publish::MAX_RESOURCE;
use crate::translate::pod::PodObject;
use crate::translate::{self, DEFAULT_NAMESPACE, Report};

/// What one object says.
#[derive(Debug)]
pub struct Reading {
    /// Which one it is; none where not even that can be read.
    pub id: Option<ObjectId>,
    /// None: it is wrong, and its last good version stays.
    pub object: Option<Object>,
    pub problems: Vec<(Severity, FieldError)>,
    /// Fields that the kind does not have, which are skipped.
    pub unknown: Vec<String>,
}

/// Reads an object of a kind. `is_small`: it is known to be smaller than anything that proxies would not take.
pub fn read(kind: Kind, value: &Value, is_small: bool, local: LocalEndpoints) -> Reading {
    use gateway_api::experimental::{
        grpcroutes::GrpcRoute, httproutes::HttpRoute, referencegrants::ReferenceGrant,
        tcproutes::TcpRoute, tlsroutes::TlsRoute,
    };
    let reader = Reader { kind, value, is_small, local };
    match kind {
        Kind::Service => reader.read(|raw: &Service, report| {
            translate::service::translate(raw, report).map(Object::Service)
        }),
        Kind::EndpointSlice => reader.read(|raw: &EndpointSlice, report| {
            translate::endpoint_slice::translate(raw, report).map(Object::EndpointSlice)
        }),
        Kind::HttpRoute => reader.read(|raw: &HttpRoute, report| {
            translate::http_route::translate(raw, report).map(Object::Route)
        }),
        Kind::GrpcRoute => reader.read(|raw: &GrpcRoute, report| {
            translate::grpc_route::translate(raw, report).map(Object::Route)
        }),
        Kind::TlsRoute => reader.read(|raw: &TlsRoute, report| {
            translate::tls_route::translate(raw, report).map(Object::Route)
        }),
        Kind::TcpRoute => reader.read(|raw: &TcpRoute, report| {
            translate::tcp_route::translate(raw, report).map(Object::Route)
        }),
        Kind::ReferenceGrant => reader.read(|raw: &ReferenceGrant, report| {
            translate::reference_grant::translate(raw, report).map(Object::ReferenceGrant)
        }),
        Kind::AccessPolicy => reader.read(|raw: &AccessPolicy, report| {
            translate::access_policy::translate(raw, report).map(Object::AccessPolicy)
        }),
        Kind::TrafficPolicy => reader.read(|raw: &TrafficPolicy, report| {
            let policy = translate::traffic_policy::translate(raw, report);
            policy.map(|policy| Object::TrafficPolicy(Box::new(policy)))
        }),
        Kind::ServerPolicy => reader.read(|raw: &ServerPolicy, report| {
            translate::server_policy::translate(raw, report).map(Object::ServerPolicy)
        }),
        Kind::FaultInjection => reader.read(|raw: &FaultInjection, report| {
            let policy = translate::fault_injection::translate(raw, report);
            policy.map(|policy| Object::FaultInjection(Box::new(policy)))
        }),
        Kind::ExternalService => reader.read(|raw: &ExternalService, report| {
            translate::external_service::translate(raw, report).map(Object::ExternalService)
        }),
        Kind::ExternalWorkload => reader.read(|raw: &ExternalWorkload, report| {
            translate::external_workload::translate(raw, report).map(Object::ExternalWorkload)
        }),
        Kind::Pod => reader.read(|raw: &PodObject, report| {
            translate::pod::translate(raw, report).map(Object::Pod)
        }),
        Kind::Namespace => reader.read(|raw: &Namespace, _| {
            Some(Object::Namespace(raw.metadata.name.clone().unwrap_or_default()))
        }),
    }
}

/// Which object it is about, even if the rest of it is wrong.
pub(super) fn identity(kind: Kind, value: &Value) -> Option<ObjectId> {
    let meta = &value["metadata"];
    let namespace = match &meta["namespace"] {
        Value::Null => DEFAULT_NAMESPACE,
        namespace => namespace.as_str()?,
    };
    let name = meta["name"].as_str()?.to_owned();
    let namespace = if kind == Kind::Namespace { name.clone() } else { namespace.to_owned() };
    Some(ObjectId { kind, namespace, name })
}

struct Reader<'a> {
    kind: Kind,
    value: &'a Value,
    is_small: bool,
    local: LocalEndpoints,
}

impl Reader<'_> {
    fn read<R: DeserializeOwned>(
        &self,
        translate: impl FnOnce(&R, &mut Report) -> Option<Object>,
    ) -> Reading {
        let mut unknown = Vec::new();
        let raw = match self.schema::<R>(&mut unknown) {
            Ok(raw) => raw,
            Err(error) => {
                let id = identity(self.kind, self.value);
                let problems = vec![(Severity::Error, error)];
                return Reading { id, object: None, problems, unknown: Vec::new() };
            }
        };
        let mut report = Report::trusting(self.local);
        let object = translate(&raw, &mut report);
        let id = object.as_ref().map(Object::id).or_else(|| identity(self.kind, self.value));
        let is_accepted = report.errors.is_empty();
        let warnings = report.warnings.into_iter().map(|warning| (Severity::Warning, warning));
        let errors = report.errors.into_iter().chain(report.refused);
        let problems = warnings.chain(errors.map(|error| (Severity::Error, error))).collect();
        Reading { id, object: object.filter(|_| is_accepted), problems, unknown }
    }

    fn schema<R: DeserializeOwned>(&self, unknown: &mut Vec<String>) -> Result<R, FieldError> {
        bounds::check(self.value)?;
        // An EndpointSlice becomes many resources, anything else one or a part of one.
        if self.kind != Kind::EndpointSlice && !self.is_small {
            let len = self.value["spec"].to_string().len();
            if len > MAX_RESOURCE {
                let problem =
                    format!("has {len} bytes, at most {MAX_RESOURCE} can be sent to proxies");
                return Err(FieldError::at("spec", problem));
            }
        }
        let mut track = serde_path_to_error::Track::new();
        let tracked = serde_path_to_error::Deserializer::new(self.value, &mut track);
        let read = serde_ignored::deserialize(tracked, |path| unknown.push(field_path(&path)));
        // What the object is has been read before, and others write there what has become of it.
        let skipped = |path: &str| matches!(path, "apiVersion" | "kind" | "status");
        unknown.retain(|path| !skipped(path) && !path.starts_with("status."));
        read.map_err(|error: serde_json::Error| {
            let path = track.path().to_string();
            let path = if path == "." { String::new() } else { path };
            plain(&path, &error.to_string())
        })
    }
}

/// As in `spec.rules[2].name`.
fn field_path(path: &serde_ignored::Path<'_>) -> String {
    use serde_ignored::Path;
    match path {
        Path::Root => String::new(),
        Path::Seq { parent, index } => format!("{}[{index}]", field_path(parent)),
        Path::Map { parent, key } => match field_path(parent) {
            parent if parent.is_empty() => key.clone(),
            parent => format!("{parent}.{key}"),
        },
        Path::Some { parent }
        | Path::NewtypeStruct { parent }
        | Path::NewtypeVariant { parent } => field_path(parent),
    }
}
