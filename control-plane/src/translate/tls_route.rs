//! Gateway API `TLSRoute` with a Service as its parent: connections chosen by server name.

use gateway_api::experimental::tlsroutes as api;

use super::Report;
use super::route::{hostnames, route, stream_backends};
use crate::object::{Kind, Route, RouteBody};

pub fn translate(raw: &api::TlsRoute, report: &mut Report) -> Option<Route> {
    let spec = &raw.spec;
    let hostnames = hostnames(&spec.hostnames, report);
    let backends = stream_backends(&spec.rules, raw.metadata.namespace.as_deref(), report);
    let body = RouteBody::Tls { hostnames, backends };
    Some(route(Kind::TlsRoute, &raw.metadata, &spec.parent_refs, body, report))
}
