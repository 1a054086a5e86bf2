//! [`Destination`]: a port of a service, its routes and backends.

use std::collections::BTreeSet;

use outrigger_core::config::{
    Backend, Balancer, Destination, Filter, HashKey, HttpRule, TcpBackend, TcpRoute, TlsRoute,
};
use outrigger_core::error::FieldError;
use outrigger_core::policy::{BackendPolicy, CallPolicy, section};

use super::{
    check_requires, each, fault, host_from_wire, host_to_wire, http_route, parsed, policy,
    protocol_from_wire, protocol_to_wire, set, target_from_wire, target_to_wire,
};
use crate::mesh;

pub fn to_wire(destination: &Destination) -> mesh::Destination {
    mesh::Destination {
        name: destination.name.to_string(),
        requires: requires(destination),
        protocol: protocol_to_wire(destination.protocol),
        balancer: Some(balancer_to_wire(&destination.balancer)),
        backends: destination.backends.iter().map(backend_to_wire).collect(),
        http_routes: destination.http_routes.iter().map(http_route::to_wire).collect(),
        tls_routes: destination.tls_routes.iter().map(tls_route_to_wire).collect(),
        tcp_route: destination.tcp_route.as_ref().map(tcp_route_to_wire),
        call: policy::call_to_wire(&destination.call),
        policy: policy::backend_to_wire(&destination.policy),
    }
}

pub fn from_wire(wire: &mesh::Destination) -> Result<Destination, FieldError> {
    check_requires(&wire.requires)?;
    Ok(Destination {
        name: parsed("name", &wire.name)?,
        protocol: protocol_from_wire(wire.protocol)?,
        balancer: balancer_from_wire(wire.balancer.as_ref())?,
        call: policy::call_from_wire(wire.call.as_ref()).map_err(|e| e.under("call"))?,
        policy: policy_from_wire(wire.policy.as_ref())?,
        backends: each("backends", &wire.backends, backend_from_wire)?,
        http_routes: each("http_routes", &wire.http_routes, http_route::from_wire)?,
        tls_routes: each("tls_routes", &wire.tls_routes, tls_route_from_wire)?,
        tcp_route: match &wire.tcp_route {
            None => None,
            Some(route) => Some(tcp_route_from_wire(route).map_err(|e| e.under("tcp_route"))?),
        },
    })
}

/// Only what is used, so that older proxies take what they can.
fn requires(destination: &Destination) -> Vec<String> {
    let ring_hash = std::iter::once(&destination.balancer)
        .chain(destination.backends.iter().map(|backend| &backend.balancer))
        .any(|balancer| matches!(balancer, Balancer::RingHash(_)));
    let has_filters = |rule: &HttpRule| {
        !rule.filters.is_empty() || rule.backends.iter().any(|b| !b.filters.is_empty())
    };
    let rules = || destination.http_routes.iter().flat_map(|route| &route.rules);
    let filters = rules().any(has_filters);
    let is_cors = |filter: &Filter| matches!(filter, Filter::Cors(_));
    let cors = rules().any(|rule| {
        let of_backends = rule.backends.iter().flat_map(|backend| &backend.filters);
        rule.filters.iter().chain(of_backends).any(is_cors)
    });
    let others = [
        (ring_hash, "balancer.ring-hash"),
        (cors, "cors.v1"),
        (has_faults(destination), fault::FEATURE),
        (filters, "http.filters.v1"),
        (has_policies(destination), policy::FEATURE),
        (!destination.tls_routes.is_empty(), "tls.sni"),
    ]
    .into_iter()
    .filter(|(used, _)| *used)
    .map(|(_, feature)| feature);
    let of_sections = calls(destination)
        .flat_map(section::of_call)
        .chain(policies(destination).flat_map(section::of_backend))
        .filter_map(|section| section.feature);
    let all: BTreeSet<_> = others.chain(of_sections).collect();
    all.into_iter().map(str::to_owned).collect()
}

fn has_faults(destination: &Destination) -> bool {
    let mut rules = destination.http_routes.iter().flat_map(|route| &route.rules);
    let mut backends = destination.backends.iter().map(|backend| &backend.policy);
    let any = |policy: &BackendPolicy| !policy.faults.is_empty() || !policy.stop_rules.is_empty();
    !destination.call.faults.is_empty()
        || any(&destination.policy)
        || backends.any(any)
        || rules.any(|rule| rule.call.as_ref().is_some_and(|call| !call.faults.is_empty()))
}

/// What the destination and each of its rules say about calls.
fn calls(destination: &Destination) -> impl Iterator<Item = &CallPolicy> {
    let rules = destination.http_routes.iter().flat_map(|route| &route.rules);
    std::iter::once(&destination.call).chain(rules.filter_map(|rule| rule.call.as_ref()))
}

fn policies(destination: &Destination) -> impl Iterator<Item = &BackendPolicy> {
    let backends = destination.backends.iter().map(|backend| &backend.policy);
    backends.chain([&destination.policy])
}

fn has_policies(destination: &Destination) -> bool {
    let mut rules = destination.http_routes.iter().flat_map(|route| &route.rules);
    let mut backends = destination.backends.iter().map(|backend| &backend.policy);
    let plain = BackendPolicy::default();
    destination.call != CallPolicy::default()
        || destination.policy != plain
        || backends.any(|policy| *policy != plain)
        || rules.any(|rule| rule.call.is_some())
}

fn balancer_to_wire(balancer: &Balancer) -> mesh::Balancer {
    use mesh::balancer::Kind;
    use mesh::hash_key::Key;
    let kind = match balancer {
        Balancer::PowerOfTwo => Kind::PowerOfTwo(mesh::Unit {}),
        Balancer::RoundRobin => Kind::RoundRobin(mesh::Unit {}),
        Balancer::RingHash(key) => {
            let key = match key {
                HashKey::Header(name) => Key::Header(name.as_str().to_owned()),
                HashKey::Cookie(name) => Key::Cookie(name.clone()),
                HashKey::Source => Key::Source(mesh::Unit {}),
            };
            Kind::RingHash(mesh::HashKey { key: Some(key) })
        }
    };
    mesh::Balancer { kind: Some(kind) }
}

fn balancer_from_wire(wire: Option<&mesh::Balancer>) -> Result<Balancer, FieldError> {
    use mesh::balancer::Kind;
    use mesh::hash_key::Key;
    let key = match set("balancer", wire.and_then(|wire| wire.kind.as_ref()))? {
        Kind::PowerOfTwo(_) => return Ok(Balancer::PowerOfTwo),
        Kind::RoundRobin(_) => return Ok(Balancer::RoundRobin),
        Kind::RingHash(wire) => match set("balancer.ring_hash", wire.key.as_ref())? {
            Key::Header(name) => HashKey::Header(parsed("balancer.ring_hash.header", name)?),
            Key::Cookie(name) if name.is_empty() => {
                return Err(FieldError::at("balancer.ring_hash.cookie", "is empty"));
            }
            Key::Cookie(name) => HashKey::Cookie(name.clone()),
            Key::Source(_) => HashKey::Source,
        },
    };
    Ok(Balancer::RingHash(key))
}

fn backend_to_wire(backend: &Backend) -> mesh::Backend {
    mesh::Backend {
        name: backend.name.to_string(),
        protocol: protocol_to_wire(backend.protocol),
        balancer: Some(balancer_to_wire(&backend.balancer)),
        policy: policy::backend_to_wire(&backend.policy),
    }
}

fn backend_from_wire(wire: &mesh::Backend) -> Result<Backend, FieldError> {
    Ok(Backend {
        name: parsed("name", &wire.name)?,
        protocol: protocol_from_wire(wire.protocol)?,
        balancer: balancer_from_wire(wire.balancer.as_ref())?,
        policy: policy_from_wire(wire.policy.as_ref())?,
    })
}

fn policy_from_wire(wire: Option<&mesh::BackendPolicy>) -> Result<BackendPolicy, FieldError> {
    policy::backend_from_wire(wire).map_err(|e| e.under("policy"))
}

fn tls_route_to_wire(route: &TlsRoute) -> mesh::TlsRoute {
    mesh::TlsRoute {
        name: route.name.clone(),
        created: route.created,
        hostnames: route.hostnames.iter().map(host_to_wire).collect(),
        backends: route.backends.iter().map(tcp_backend_to_wire).collect(),
    }
}

fn tls_route_from_wire(wire: &mesh::TlsRoute) -> Result<TlsRoute, FieldError> {
    Ok(TlsRoute {
        name: wire.name.clone(),
        created: wire.created,
        hostnames: each("hostnames", &wire.hostnames, host_from_wire)?,
        backends: each("backends", &wire.backends, tcp_backend_from_wire)?,
    })
}

fn tcp_route_to_wire(route: &TcpRoute) -> mesh::TcpRoute {
    mesh::TcpRoute {
        name: route.name.clone(),
        backends: route.backends.iter().map(tcp_backend_to_wire).collect(),
    }
}

fn tcp_route_from_wire(wire: &mesh::TcpRoute) -> Result<TcpRoute, FieldError> {
    Ok(TcpRoute {
        name: wire.name.clone(),
        backends: each("backends", &wire.backends, tcp_backend_from_wire)?,
    })
}

fn tcp_backend_to_wire(backend: &TcpBackend) -> mesh::TcpBackend {
    mesh::TcpBackend { target: Some(target_to_wire(&backend.target)), weight: backend.weight }
}

fn tcp_backend_from_wire(wire: &mesh::TcpBackend) -> Result<TcpBackend, FieldError> {
    Ok(TcpBackend { target: target_from_wire(wire.target.as_ref())?, weight: wire.weight })
}
