//! Asks whether a proxy could use a rule: it goes over the wire and through [`compile`] as it will there.
//!
//! What is accepted here compiles everywhere. [`crate::publish`] does the same for everything that is put
//! together of several objects.

use std::collections::BTreeSet;

use outrigger_core::compile::compile;
use outrigger_core::config::{
    Backend, BackendTarget, Balancer, Destination, Filter, HttpRoute, HttpRule, Protocol,
};
use outrigger_core::error::FieldError;
use outrigger_core::name::DestinationName;
use outrigger_core::policy::{BackendPolicy, CallPolicy};
use outrigger_proto::convert;

use super::Report;

/// Of what the rule is put in to be asked about.
const PREFIX: &str = "http_routes[0].rules[0].";

/// Reports the first thing in a rule at `path` that a proxy would refuse. `path_field` is where a match's
/// path comes from.
pub(super) fn rule(path: &str, rule: &HttpRule, path_field: &str, report: &mut Report) {
    if let Err(error) = check(rule) {
        let field = error.path.strip_prefix(PREFIX).unwrap_or_default();
        let field = field_of(field, path_field);
        let at = if field.is_empty() { path.to_owned() } else { format!("{path}.{field}") };
        report.error(at, error.problem);
    }
}

/// Whether a proxy could use a rule; the path is that of a destination with this rule alone.
pub(super) fn check(rule: &HttpRule) -> Result<(), FieldError> {
    let probe = probe(rule);
    let wire = convert::destination::to_wire(&probe);
    compile(&convert::destination::from_wire(&wire)?).map(drop)
}

fn probe(rule: &HttpRule) -> Destination {
    let mut names = BTreeSet::new();
    let mut note = |target: &BackendTarget| {
        if let BackendTarget::Service(name) = target {
            names.insert(name.clone());
        }
    };
    let mirrors = |filters: &[Filter], note: &mut dyn FnMut(&BackendTarget)| {
        for filter in filters {
            if let Filter::Mirror(mirror) = filter {
                note(&mirror.target);
            }
        }
    };
    mirrors(&rule.filters, &mut note);
    for backend in &rule.backends {
        note(&backend.target);
        mirrors(&backend.filters, &mut note);
    }
    let backend = |name| Backend {
        name,
        protocol: Protocol::Detect,
        balancer: Balancer::default(),
        policy: BackendPolicy::default(),
    };
    let route = HttpRoute {
        name: "probe/probe".to_owned(),
        created: 0,
        hostnames: Vec::new(),
        rules: vec![rule.clone()],
    };
    let itself = ("probe".to_owned(), "probe".to_owned());
    Destination {
        name: DestinationName { namespace: itself.0, service: itself.1, port: 1, consumer: None },
        protocol: Protocol::Detect,
        balancer: Balancer::default(),
        call: CallPolicy::default(),
        policy: BackendPolicy::default(),
        backends: names.into_iter().map(backend).collect(),
        http_routes: vec![route],
        tls_routes: Vec::new(),
        tcp_route: None,
    }
}

/// A field of a compiled rule as the Gateway API names it.
fn field_of(field: &str, path_field: &str) -> String {
    let parts = field.split('.').map(|part| {
        let (name, index) = part.split_at(part.find('[').unwrap_or(part.len()));
        let name = match name {
            "backends" => "backendRefs",
            "query" => "queryParams",
            "request_headers" => "requestHeaderModifier",
            "response_headers" => "responseHeaderModifier",
            "redirect" => "requestRedirect",
            "rewrite" => "urlRewrite",
            "mirror" => "requestMirror",
            "host" => "hostname",
            "status" => "statusCode",
            name => name,
        };
        format!("{name}{index}")
    });
    let parts: Vec<String> = parts.collect();
    match parts.as_slice() {
        [one, path] if one.starts_with("matches[") && path == "path" => {
            format!("{one}.{path_field}")
        }
        parts => parts.join("."),
    }
}
