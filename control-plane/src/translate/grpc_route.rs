//! Gateway API `GRPCRoute` with a Service as its parent: an HTTP route by another name, since a
//! gRPC method is the path `/<service>/<method>`.

use gateway_api::experimental::grpcroutes as api;
use outrigger_core::config::{HttpMatch, HttpRule, PathMatch, ValueMatch};

use super::filter::{Context, filters};
use super::matching::{MAX_CONDITIONS, MAX_MATCHES, check_expressions, header};
use super::route::{
    MAX_RULES, at_most_backends, ignored_hostnames, route, same_shape, target, warn_unsupported,
    weight,
};
use super::{Report, vet};
use crate::object::{Kind, Route, RouteBody};

/// What holds a match's path.
const PATH_FIELD: &str = "method";
/// Bytes of a service or method name (Gateway API schema).
const MAX_NAME: usize = 1024;

pub fn translate(raw: &api::GrpcRoute, report: &mut Report) -> Option<Route> {
    let spec = &raw.spec;
    let hostnames = ignored_hostnames(spec.hostnames.as_deref(), report);
    let namespace = raw.metadata.namespace.as_deref();
    let rules = spec.rules.as_deref().unwrap_or_default();
    report.at_most("spec.rules", rules.len(), MAX_RULES);
    let rules = rules.iter().enumerate();
    let rules = rules.map(|(i, raw)| rule(i, raw, namespace, report)).collect();
    let body = RouteBody::Http { hostnames, rules };
    Some(route(Kind::GrpcRoute, &raw.metadata, &spec.parent_refs, body, report))
}

fn rule(
    i: usize,
    raw: &api::GrpcRouteRules,
    namespace: Option<&str>,
    report: &mut Report,
) -> HttpRule {
    let path = format!("spec.rules[{i}]");
    let before = report.errors.len();
    let sticky = raw.session_persistence.is_some();
    warn_unsupported(&format!("{path}.sessionPersistence"), sticky, report);
    let raw_matches = raw.matches.as_deref().unwrap_or_default();
    report.at_most(&format!("{path}.matches"), raw_matches.len(), MAX_MATCHES);
    let matches = raw_matches.iter().enumerate();
    let matches =
        matches.map(|(j, raw)| grpc_match(&format!("{path}.matches[{j}]"), raw, report)).collect();
    // No filter of a GRPCRoute touches the path.
    let context = Context { namespace, by_prefix: false };
    let refs = raw.backend_refs.as_deref().unwrap_or_default();
    at_most_backends(&path, refs.len(), report);
    let mut backends = Vec::with_capacity(refs.len());
    for (j, raw) in refs.iter().enumerate() {
        let path = format!("{path}.backendRefs[{j}]");
        let filters = filters(&path, raw.filters.as_ref(), &context, report);
        let Some(reference) = same_shape(&path, raw, report) else { continue };
        let weight = weight(&path, &reference, report);
        if let Some(target) = target(&path, &reference, namespace, report) {
            backends.push(filters.on_backend(target, weight));
        }
    }
    let filters = filters(&path, raw.filters.as_ref(), &context, report);
    let name = raw.name.clone();
    let rule = HttpRule { name, matches, filters: Vec::new(), call: None, backends };
    let rule = filters.on_rule(rule);
    if report.errors.len() == before {
        vet::rule(&path, &rule, PATH_FIELD, report);
    }
    rule
}

fn grpc_match(path: &str, raw: &api::GrpcRouteRulesMatches, report: &mut Report) -> HttpMatch {
    let headers = raw.headers.as_deref().unwrap_or_default();
    report.at_most(&format!("{path}.headers"), headers.len(), MAX_CONDITIONS);
    let headers = headers.iter().enumerate().filter_map(|(i, raw)| {
        let regex = api::GrpcRouteRulesMatchesHeadersType::RegularExpression;
        let value = if raw.r#type == Some(regex) {
            ValueMatch::Regex(raw.value.clone())
        } else {
            ValueMatch::Exact(raw.value.clone())
        };
        header(&format!("{path}.headers[{i}]"), &raw.name, value, report)
    });
    let headers = headers.collect();
    let method = raw.method.as_ref();
    let path_match = method.and_then(|raw| method_path(&format!("{path}.method"), raw, report));
    let value = HttpMatch { path: path_match, method: None, headers, query: Vec::new() };
    check_expressions(path, &value, PATH_FIELD, report);
    value
}

/// The path of a service and method; no path when both are left open.
fn method_path(
    path: &str,
    raw: &api::GrpcRouteRulesMatchesMethod,
    report: &mut Report,
) -> Option<PathMatch> {
    let set = |name: &Option<String>| name.clone().filter(|name| !name.is_empty());
    let (service, method) = (set(&raw.service), set(&raw.method));
    for (field, name) in [("service", &service), ("method", &method)] {
        if name.as_ref().is_some_and(|name| name.len() > MAX_NAME) {
            report.error(format!("{path}.{field}"), format!("at most {MAX_NAME} bytes"));
        }
    }
    let any = "[^/]+".to_owned();
    if raw.r#type == Some(api::GrpcRouteRulesMatchesMethodType::RegularExpression) {
        let (service, method) = (service.unwrap_or(any.clone()), method.unwrap_or(any));
        return Some(PathMatch::Regex(format!("/(?:{service})/(?:{method})")));
    }
    for (field, name, allowed) in [("service", &service, "._-"), ("method", &method, "._-")] {
        let odd = |c: char| !c.is_ascii_alphanumeric() && !allowed.contains(c);
        if name.as_ref().is_some_and(|name| name.contains(odd)) {
            report.error(format!("{path}.{field}"), "is not a name of gRPC");
        }
    }
    match (service, method) {
        (None, None) => None,
        (Some(service), None) => Some(PathMatch::Prefix(format!("/{service}"))),
        (Some(service), Some(method)) => Some(PathMatch::Exact(format!("/{service}/{method}"))),
        (None, Some(method)) => {
            Some(PathMatch::Regex(format!("/{any}/{}", method.replace('.', "\\."))))
        }
    }
}
