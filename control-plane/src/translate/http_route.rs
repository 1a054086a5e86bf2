//! Gateway API `HTTPRoute` with a Service as its parent. What its rules say about calls is in
//! [`super::rule_call`].

use gateway_api::experimental::httproutes as api;
use http::Method;
use outrigger_core::config::{HttpMatch, HttpRule, PathMatch, QueryMatch, ValueMatch};

use super::filter::{Context, filters};
use super::matching::{MAX_CONDITIONS, MAX_MATCHES, check_expressions, check_value, header};
use super::route::{
    MAX_RULES, at_most_backends, ignored_hostnames, route, same_shape, target, warn_unsupported,
    weight,
};
use super::rule_call::rule_call;
use super::{Report, vet};
use crate::object::{Kind, Route, RouteBody};

/// What holds a match's path.
const PATH_FIELD: &str = "path.value";
/// Bytes of a path (Gateway API schema).
const MAX_PATH: usize = 1024;

pub fn translate(raw: &api::HttpRoute, report: &mut Report) -> Option<Route> {
    let spec = &raw.spec;
    let hostnames = ignored_hostnames(spec.hostnames.as_deref(), report);
    let namespace = raw.metadata.namespace.as_deref();
    let raw_rules = spec.rules.as_deref().unwrap_or_default().iter().enumerate();
    let calls =
        raw_rules.map(|(i, raw)| rule_call(&format!("spec.rules[{i}]"), raw, report)).collect();
    let rules = match &spec.rules {
        Some(rules) => {
            report.at_most("spec.rules", rules.len(), MAX_RULES);
            let rules = rules.iter().enumerate();
            rules.map(|(i, raw)| rule(i, raw, namespace, report)).collect()
        }
        // Schema default: one rule that matches everything and has no backend.
        None => vec![HttpRule {
            name: None,
            matches: Vec::new(),
            filters: Vec::new(),
            call: None,
            backends: Vec::new(),
        }],
    };
    let body = RouteBody::Http { hostnames, rules };
    let route = route(Kind::HttpRoute, &raw.metadata, &spec.parent_refs, body, report);
    Some(Route { calls, ..route })
}

fn rule(
    i: usize,
    raw: &api::HttpRouteRules,
    namespace: Option<&str>,
    report: &mut Report,
) -> HttpRule {
    let path = format!("spec.rules[{i}]");
    let before = report.errors.len();
    let sticky = raw.session_persistence.is_some();
    warn_unsupported(&format!("{path}.sessionPersistence"), sticky, report);
    let raw_matches = raw.matches.as_deref().unwrap_or_default();
    report.at_most(&format!("{path}.matches"), raw_matches.len(), MAX_MATCHES);
    let matches: Vec<HttpMatch> = raw_matches
        .iter()
        .enumerate()
        .map(|(j, raw)| http_match(&format!("{path}.matches[{j}]"), raw, report))
        .collect();
    // A match without a path is one of the prefix "/".
    let by_prefix = |m: &HttpMatch| matches!(m.path, None | Some(PathMatch::Prefix(_)));
    let context = Context { namespace, by_prefix: matches.iter().all(by_prefix) };
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

fn http_match(path: &str, raw: &api::HttpRouteRulesMatches, report: &mut Report) -> HttpMatch {
    let headers = raw.headers.as_deref().unwrap_or_default();
    report.at_most(&format!("{path}.headers"), headers.len(), MAX_CONDITIONS);
    let headers = headers.iter().enumerate().filter_map(|(i, raw)| {
        let regex = raw.r#type == Some(api::HttpRouteRulesMatchesHeadersType::RegularExpression);
        let value = value(regex, &raw.value);
        header(&format!("{path}.headers[{i}]"), &raw.name, value, report)
    });
    let headers = headers.collect();
    let params = raw.query_params.as_deref().unwrap_or_default();
    report.at_most(&format!("{path}.queryParams"), params.len(), MAX_CONDITIONS);
    let mut query = Vec::with_capacity(params.len());
    for (i, raw) in params.iter().enumerate() {
        let regex =
            raw.r#type == Some(api::HttpRouteRulesMatchesQueryParamsType::RegularExpression);
        let value = value(regex, &raw.value);
        check_value(&format!("{path}.queryParams[{i}].value"), &value, report);
        if raw.name.is_empty() {
            report.error(format!("{path}.queryParams[{i}].name"), "must not be empty");
        }
        query.push(QueryMatch { name: raw.name.clone(), value });
    }
    let path_match = raw.path.as_ref().map(|raw| path_match(&format!("{path}.path"), raw, report));
    let method = raw.method.as_ref().map(method);
    let value = HttpMatch { path: path_match, method, headers, query };
    // A header without a valid name is left out, and positions would no longer be right.
    if value.headers.len() == raw.headers.as_ref().map_or(0, Vec::len) {
        check_expressions(path, &value, PATH_FIELD, report);
    }
    value
}

fn value(regex: bool, text: &str) -> ValueMatch {
    if regex { ValueMatch::Regex(text.to_owned()) } else { ValueMatch::Exact(text.to_owned()) }
}

fn path_match(path: &str, raw: &api::HttpRouteRulesMatchesPath, report: &mut Report) -> PathMatch {
    use api::HttpRouteRulesMatchesPathType::{Exact, PathPrefix, RegularExpression};
    let value = raw.value.clone().unwrap_or_else(|| "/".to_owned());
    let path = format!("{path}.value");
    if value.is_empty() || value.len() > MAX_PATH {
        report.error(&path, format!("must have 1 to {MAX_PATH} bytes"));
    }
    match raw.r#type.as_ref().unwrap_or(&PathPrefix) {
        RegularExpression => PathMatch::Regex(value),
        exact_or_prefix => {
            check_path(&path, &value, report);
            match exact_or_prefix {
                Exact => PathMatch::Exact(value),
                _ => PathMatch::Prefix(value),
            }
        }
    }
}

/// The rules of the Gateway API for literal paths: absolute, normal, and without a fragment.
pub(super) fn check_path(field: &str, path: &str, report: &mut Report) {
    if !path.starts_with('/') {
        report.error(field, format!("{path:?} must begin with \"/\""));
    }
    let bad = ["//", "/./", "/../", "%2f", "%2F", "#"];
    if let Some(bad) = bad.into_iter().find(|bad| path.contains(bad)) {
        report.error(field, format!("{path:?} must not contain {bad:?}"));
    }
    if path.ends_with("/..") || path.ends_with("/.") {
        report.error(field, format!("{path:?} must not end with \"/.\" or \"/..\""));
    }
}

fn method(raw: &api::HttpRouteRulesMatchesMethod) -> Method {
    use api::HttpRouteRulesMatchesMethod as Raw;
    match raw {
        Raw::Get => Method::GET,
        Raw::Head => Method::HEAD,
        Raw::Post => Method::POST,
        Raw::Put => Method::PUT,
        Raw::Delete => Method::DELETE,
        Raw::Connect => Method::CONNECT,
        Raw::Options => Method::OPTIONS,
        Raw::Trace => Method::TRACE,
        Raw::Patch => Method::PATCH,
    }
}
