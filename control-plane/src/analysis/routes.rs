//! Rules of routes that no request reaches, and rules that answer nothing but errors.

use std::collections::BTreeMap;

use outrigger_core::config::{Filter, HttpMatch, HttpRule, PathMatch, WeightedBackend};

use super::Analysis;
use crate::object::{Kind, Route, RouteBody, Service, ServicePort};

pub(super) fn analyze(analysis: &mut Analysis<'_>) {
    let index = analysis.index;
    for route in index.routes() {
        match &route.body {
            RouteBody::Http { rules, .. } => {
                for (i, rule) in rules.iter().enumerate() {
                    fruitless(analysis, route, i, rule);
                }
            }
            RouteBody::Tls { backends, .. } | RouteBody::Tcp { backends } => {
                if !backends.is_empty() && backends.iter().all(|backend| backend.weight == 0) {
                    let text = "spec.rules[0].backendRefs: every weight is 0, so every connection \
                                is refused";
                    analysis.warn(&route.id, text.to_owned());
                }
            }
        }
    }
    for service in index.services() {
        for port in &service.ports {
            shadowed(analysis, service, port);
        }
    }
}

/// Reports a rule whose requests all fail, or with a mirror that gets none.
fn fruitless(analysis: &mut Analysis<'_>, route: &Route, i: usize, rule: &HttpRule) {
    let answers = rule.filters.iter().any(|filter| matches!(filter, Filter::Redirect(_)));
    if rule.backends.is_empty() && !answers {
        let text = format!("spec.rules[{i}]: has no backendRefs, so every request gets 500");
        analysis.warn(&route.id, text);
    } else if !rule.backends.is_empty() && rule.backends.iter().all(weightless) {
        let text =
            format!("spec.rules[{i}].backendRefs: every weight is 0, so every request gets 500");
        analysis.warn(&route.id, text);
    }
    for (k, filter) in rule.filters.iter().enumerate() {
        if matches!(filter, Filter::Mirror(mirror) if mirror.numerator == 0) {
            let text = format!("spec.rules[{i}].filters[{k}].requestMirror: mirrors 0 percent");
            analysis.warn(&route.id, text);
        }
    }
}

fn weightless(backend: &WeightedBackend) -> bool {
    backend.weight == 0
}

/// Reports matches that an older route, or an earlier rule, has already at a port of a Service.
fn shadowed(analysis: &mut Analysis<'_>, service: &Service, port: &ServicePort) {
    let attached = analysis.index.routes_of(&service.id).filter(|route| {
        route.parents.iter().any(|p| p.service == service.id && p.attaches_to(port))
    });
    let mut attached: Vec<&Route> = attached.collect();
    // Of equals the oldest is first, then by name (Gateway API, "conflicts").
    attached.sort_by_key(|route| (route.created, &route.id.namespace, &route.id.name));
    let mut first: BTreeMap<String, (&Route, String)> = BTreeMap::new();
    let mut warnings = Vec::new();
    for route in attached {
        for (key, field) in matches(route) {
            match first.get(&key) {
                None => drop(first.insert(key, (route, field))),
                Some((by, place)) => {
                    let of =
                        if by.id == route.id { String::new() } else { format!(" of {}", by.id) };
                    let at = &service.id;
                    warnings.push((
                        &route.id,
                        format!(
                            "{field}: never matches at Service {at} port {}: {place}{of} is the \
                             same and takes precedence",
                            port.port
                        ),
                    ));
                }
            }
        }
    }
    for (id, text) in warnings {
        analysis.warn(id, text);
    }
}

/// What each of a route's matches asks for, in one spelling, and the field. Routes of different kinds, or of
/// different namespaces (which are for their own callers), never have the same.
fn matches(route: &Route) -> Vec<(String, String)> {
    // A GRPCRoute in force excludes every HTTPRoute: that is reported as a conflict.
    let class = (route.id.kind, &route.id.namespace);
    match &route.body {
        RouteBody::Http { rules, .. } => {
            let rules = rules.iter().enumerate();
            let each = rules.flat_map(|(i, rule)| {
                let whole = HttpMatch::default();
                let all = rule.matches.iter().enumerate();
                let all: Vec<_> = all
                    .map(|(k, one)| (spelled(one), format!("spec.rules[{i}].matches[{k}]")))
                    .collect();
                if all.is_empty() {
                    vec![(spelled(&whole), format!("spec.rules[{i}]"))]
                } else {
                    all
                }
            });
            each.map(|(key, field)| (format!("{class:?} {key}"), field)).collect()
        }
        RouteBody::Tls { hostnames, .. } if hostnames.is_empty() => {
            vec![(format!("{class:?}"), "spec.hostnames".to_owned())]
        }
        RouteBody::Tls { hostnames, .. } => {
            let all = hostnames.iter().enumerate();
            all.map(|(i, host)| (format!("{class:?} {host:?}"), format!("spec.hostnames[{i}]")))
                .collect()
        }
        RouteBody::Tcp { .. } if route.id.kind == Kind::TcpRoute => {
            vec![(format!("{class:?}"), "spec.rules".to_owned())]
        }
        RouteBody::Tcp { .. } => Vec::new(),
    }
}

/// One text for all matches that mean the same.
fn spelled(one: &HttpMatch) -> String {
    let path = match &one.path {
        None => PathMatch::Prefix("/".to_owned()),
        Some(PathMatch::Prefix(prefix)) => {
            let bare = prefix.trim_end_matches('/');
            PathMatch::Prefix(if bare.is_empty() { "/" } else { bare }.to_owned())
        }
        Some(other) => other.clone(),
    };
    let mut headers: Vec<String> = one.headers.iter().map(|header| format!("{header:?}")).collect();
    let mut query: Vec<String> = one.query.iter().map(|query| format!("{query:?}")).collect();
    headers.sort();
    query.sort();
    format!("{path:?} {:?} {headers:?} {query:?}", one.method)
}
