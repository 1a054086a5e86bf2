//! Gateway API `TCPRoute` with a Service as its parent: connections split by weight.

use gateway_api::experimental::tcproutes as api;

use super::Report;
use super::route::{route, stream_backends};
use crate::object::{Kind, Route, RouteBody};

pub fn translate(raw: &api::TcpRoute, report: &mut Report) -> Option<Route> {
    let spec = &raw.spec;
    let backends = stream_backends(&spec.rules, raw.metadata.namespace.as_deref(), report);
    let body = RouteBody::Tcp { backends };
    Some(route(Kind::TcpRoute, &raw.metadata, &spec.parent_refs, body, report))
}
