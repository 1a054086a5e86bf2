//! A port of a Service and the routes attached to it, put together as its callers see it.

use std::collections::BTreeSet;

use outrigger_core::config::{Backend, BackendTarget, Destination, HttpRoute, TcpRoute, TlsRoute};
use outrigger_core::name::DestinationName;
use outrigger_core::policy::CallPolicy;
use outrigger_core::policy::fallback::Give;

use crate::index::{Index, PortId};
use crate::object::targets::for_each_target_mut;
use crate::object::{Kind, Route, RouteBody, ServiceId, ServicePort};
use crate::translate::effective;

/// The destination of that name; `None` when there is no such Service or port.
pub fn build(index: &Index, name: &DestinationName) -> Option<Destination> {
    let id = PortId::from(name);
    let service = index.service(&id.service)?;
    let port = service.port(name.port)?;
    let attached = attached(index, &id.service, port);
    let namespace = name.consumer.as_ref().unwrap_or(&name.namespace);
    let mut resolver = Resolver { index, itself: id.destination(), backends: BTreeSet::new() };
    let mut http_routes = Vec::new();
    for route in of_class(&attached, namespace, &name.namespace, Class::Http) {
        if let RouteBody::Http { mut rules, .. } = resolver.resolve(route) {
            for (i, rule) in rules.iter_mut().enumerate() {
                rule.call = effective::rule_call(index, &id.service, port, route, (i, rule));
            }
            let (name, created) = (label(route), route.created);
            http_routes.push(HttpRoute { name, created, hostnames: Vec::new(), rules });
        }
    }
    let mut tls_routes = Vec::new();
    for route in of_class(&attached, namespace, &name.namespace, Class::Tls) {
        if let RouteBody::Tls { hostnames, backends } = resolver.resolve(route) {
            let (name, created) = (label(route), route.created);
            tls_routes.push(TlsRoute { name, created, hostnames, backends });
        }
    }
    // TCP has nothing to choose by: the oldest route is the one in force.
    let tcp = of_class(&attached, namespace, &name.namespace, Class::Tcp);
    let tcp = tcp.into_iter().min_by_key(|route| (route.created, &route.id.name));
    let tcp_route = tcp.and_then(|route| match resolver.resolve(route) {
        RouteBody::Tcp { backends } => Some(TcpRoute { name: label(route), backends }),
        _ => None,
    });
    let call = effective::call(index, &id.service, port);
    resolver.collect_fallbacks(&call);
    let calls = http_routes.iter().flat_map(|route| &route.rules);
    for call in calls.filter_map(|rule| rule.call.as_ref()) {
        resolver.collect_fallbacks(call);
    }
    let backends = resolver.backends.iter().filter_map(|name| backend(index, name)).collect();
    Some(Destination {
        name: name.clone(),
        protocol: port.protocol,
        balancer: service.balancer.clone(),
        call,
        policy: effective::backend(index, &id.service, port),
        backends,
        http_routes,
        tls_routes,
        tcp_route,
    })
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    Http,
    Tls,
    Tcp,
}

impl Class {
    fn of(route: &Route) -> Self {
        match route.body {
            RouteBody::Http { .. } => Self::Http,
            RouteBody::Tls { .. } => Self::Tls,
            RouteBody::Tcp { .. } => Self::Tcp,
        }
    }
}

/// The routes of a namespace that are in force at a port: of several kinds the most specific one (GEP-1294).
fn in_force<'a>(attached: &[&'a Route], namespace: &str) -> Vec<&'a Route> {
    let of_namespace = || attached.iter().filter(|route| route.id.namespace == namespace);
    let first = of_namespace().map(|route| specificity(route.id.kind)).min();
    of_namespace().filter(|route| Some(specificity(route.id.kind)) == first).copied().collect()
}

/// Less is more specific.
fn specificity(kind: Kind) -> u8 {
    match kind {
        Kind::GrpcRoute => 0,
        Kind::HttpRoute => 1,
        Kind::TlsRoute => 2,
        _ => 3,
    }
}

/// The routes that keep a route from being in force where it is attached, each with the position of the
/// parent and the port.
pub fn conflicts<'a>(index: &'a Index, route: &Route) -> Vec<(usize, u16, &'a Route)> {
    let mut found = Vec::new();
    for parent in &route.parents {
        let Some(service) = index.service(&parent.service) else { continue };
        for port in service.ports.iter().filter(|port| parent.attaches_to(port)) {
            let attached: Vec<&Route> = attached(index, &parent.service, port);
            let winner = in_force(&attached, &route.id.namespace).first().copied();
            found.extend(
                winner
                    .filter(|by| specificity(by.id.kind) < specificity(route.id.kind))
                    .map(|by| (parent.position, port.port, by)),
            );
        }
    }
    found
}

fn attached<'a>(index: &'a Index, service: &ServiceId, port: &ServicePort) -> Vec<&'a Route> {
    let is =
        |route: &&Route| route.parents.iter().any(|p| p.service == *service && p.attaches_to(port));
    index.routes_of(service).filter(is).collect()
}

/// Routes of one class in force for callers of `namespace`: their own ones if there are any, else
/// the producer's. Each class by itself, so that a consumer's TCPRoute leaves HTTP as it was.
fn of_class<'a>(
    attached: &[&'a Route],
    namespace: &str,
    producer: &str,
    class: Class,
) -> Vec<&'a Route> {
    let of = |namespace: &str| {
        let mut routes = in_force(attached, namespace);
        routes.retain(|route| Class::of(route) == class);
        routes
    };
    let own = of(namespace);
    if own.is_empty() { of(producer) } else { own }
}

fn label(route: &Route) -> String {
    format!("{}/{}", route.id.namespace, route.id.name)
}

fn backend(index: &Index, name: &DestinationName) -> Option<Backend> {
    let service = index.service(&PortId::from(name).service)?;
    let port = service.port(name.port)?;
    let balancer = service.balancer.clone();
    let policy = effective::backend(index, &service.id, port);
    Some(Backend { name: name.clone(), protocol: port.protocol, balancer, policy })
}

/// Replaces references that do not resolve by their explanation and collects those that do.
struct Resolver<'a> {
    index: &'a Index,
    itself: DestinationName,
    backends: BTreeSet<DestinationName>,
}

impl Resolver<'_> {
    fn resolve(&mut self, route: &Route) -> RouteBody {
        let mut body = route.body.clone();
        for_each_target_mut(&mut body, &mut |path, target| {
            let BackendTarget::Service(name) = target else { return };
            match self.index.resolve_backend(route, name) {
                Ok(()) if *name == self.itself => {}
                Ok(()) => {
                    self.backends.insert(name.clone());
                }
                Err(problem) => {
                    *target = BackendTarget::Invalid(problem.under(path).to_string());
                }
            }
        });
        body
    }

    /// What a call falls back to has been resolved with its policy.
    fn collect_fallbacks(&mut self, call: &CallPolicy) {
        for fallback in &call.fallbacks {
            if let Give::Backend(BackendTarget::Service(name)) = &fallback.give
                && *name != self.itself
            {
                self.backends.insert(name.clone());
            }
        }
    }
}
