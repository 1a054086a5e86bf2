//! [`HttpRoute`], part of a destination: rules and what they match.

use outrigger_core::config::{
    HeaderMatch, HttpMatch, HttpRoute, HttpRule, PathMatch, QueryMatch, ValueMatch, WeightedBackend,
};
use outrigger_core::error::FieldError;

use super::{
    each, filter, host_from_wire, host_to_wire, optional, parsed, policy, set, target_from_wire,
    target_to_wire,
};
use crate::mesh;

pub(super) fn to_wire(route: &HttpRoute) -> mesh::HttpRoute {
    mesh::HttpRoute {
        name: route.name.clone(),
        created: route.created,
        hostnames: route.hostnames.iter().map(host_to_wire).collect(),
        rules: route.rules.iter().map(rule_to_wire).collect(),
    }
}

pub(super) fn from_wire(wire: &mesh::HttpRoute) -> Result<HttpRoute, FieldError> {
    Ok(HttpRoute {
        name: wire.name.clone(),
        created: wire.created,
        hostnames: each("hostnames", &wire.hostnames, host_from_wire)?,
        rules: each("rules", &wire.rules, rule_from_wire)?,
    })
}

fn rule_to_wire(rule: &HttpRule) -> mesh::HttpRule {
    mesh::HttpRule {
        name: rule.name.clone().unwrap_or_default(),
        matches: rule.matches.iter().map(match_to_wire).collect(),
        filters: rule.filters.iter().map(filter::to_wire).collect(),
        backends: rule.backends.iter().map(backend_to_wire).collect(),
        call: rule.call.as_ref().map(policy::rule_call_to_wire),
    }
}

fn rule_from_wire(wire: &mesh::HttpRule) -> Result<HttpRule, FieldError> {
    let call = wire.call.as_ref().map(policy::rule_call_from_wire).transpose();
    Ok(HttpRule {
        name: optional(&wire.name),
        matches: each("matches", &wire.matches, match_from_wire)?,
        filters: each("filters", &wire.filters, filter::from_wire)?,
        call: call.map_err(|e| e.under("call"))?,
        backends: each("backends", &wire.backends, backend_from_wire)?,
    })
}

fn match_to_wire(one: &HttpMatch) -> mesh::HttpMatch {
    mesh::HttpMatch {
        path: one.path.as_ref().map(path_to_wire),
        method: one.method.as_ref().map(ToString::to_string).unwrap_or_default(),
        headers: one.headers.iter().map(|h| named_to_wire(h.name.as_str(), &h.value)).collect(),
        query: one.query.iter().map(|q| named_to_wire(&q.name, &q.value)).collect(),
    }
}

fn match_from_wire(wire: &mesh::HttpMatch) -> Result<HttpMatch, FieldError> {
    Ok(HttpMatch {
        path: wire.path.as_ref().map(path_from_wire).transpose()?,
        method: match wire.method.as_str() {
            "" => None,
            method => Some(parsed("method", method)?),
        },
        headers: each("headers", &wire.headers, |wire| {
            Ok(HeaderMatch { name: parsed("name", &wire.name)?, value: value_from_wire(wire)? })
        })?,
        query: each("query", &wire.query, |wire| {
            Ok(QueryMatch { name: wire.name.clone(), value: value_from_wire(wire)? })
        })?,
    })
}

pub(super) fn path_to_wire(path: &PathMatch) -> mesh::PathMatch {
    use mesh::path_match::Kind;
    let kind = match path {
        PathMatch::Exact(path) => Kind::Exact(path.clone()),
        PathMatch::Prefix(prefix) => Kind::Prefix(prefix.clone()),
        PathMatch::Regex(pattern) => Kind::Regex(pattern.clone()),
    };
    mesh::PathMatch { kind: Some(kind) }
}

pub(super) fn path_from_wire(wire: &mesh::PathMatch) -> Result<PathMatch, FieldError> {
    use mesh::path_match::Kind;
    Ok(match set("path", wire.kind.as_ref())? {
        Kind::Exact(path) => PathMatch::Exact(path.clone()),
        Kind::Prefix(prefix) => PathMatch::Prefix(prefix.clone()),
        Kind::Regex(pattern) => PathMatch::Regex(pattern.clone()),
    })
}

fn named_to_wire(name: &str, value: &ValueMatch) -> mesh::NamedMatch {
    use mesh::named_match::Value;
    let value = match value {
        ValueMatch::Exact(value) => Value::Exact(value.clone()),
        ValueMatch::Regex(pattern) => Value::Regex(pattern.clone()),
    };
    mesh::NamedMatch { name: name.to_owned(), value: Some(value) }
}

fn value_from_wire(wire: &mesh::NamedMatch) -> Result<ValueMatch, FieldError> {
    use mesh::named_match::Value;
    Ok(match set("value", wire.value.as_ref())? {
        Value::Exact(value) => ValueMatch::Exact(value.clone()),
        Value::Regex(pattern) => ValueMatch::Regex(pattern.clone()),
    })
}

fn backend_to_wire(backend: &WeightedBackend) -> mesh::WeightedBackend {
    mesh::WeightedBackend {
        target: Some(target_to_wire(&backend.target)),
        weight: backend.weight,
        filters: backend.filters.iter().map(filter::to_wire).collect(),
    }
}

fn backend_from_wire(wire: &mesh::WeightedBackend) -> Result<WeightedBackend, FieldError> {
    Ok(WeightedBackend {
        target: target_from_wire(wire.target.as_ref())?,
        weight: wire.weight,
        filters: each("filters", &wire.filters, filter::from_wire)?,
    })
}
