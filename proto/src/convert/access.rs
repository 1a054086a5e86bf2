//! [`Access`], part of an inbound port: who may call it.

use outrigger_core::config::ValueMatch;
use outrigger_core::error::FieldError;
use outrigger_core::policy::access::{
    Access, AccessRule, Action, CallerMatch, ClaimMatch, HeaderRule, Operation, TokenIssuer,
};

use super::http_route::{path_from_wire, path_to_wire};
use super::{each, host_from_wire, host_to_wire, optional, parsed, set};
use crate::mesh;

pub(super) fn to_wire(access: &Access) -> mesh::Access {
    mesh::Access {
        default_action: action_to_wire(access.default),
        default_from: access.default_from.clone().unwrap_or_default(),
        rules: access.rules.iter().map(rule_to_wire).collect(),
        tokens: access.tokens.iter().map(token_to_wire).collect(),
    }
}

pub(super) fn from_wire(wire: &mesh::Access) -> Result<Access, FieldError> {
    Ok(Access {
        default: action_from_wire("default_action", wire.default_action)?,
        default_from: optional(&wire.default_from),
        rules: each("rules", &wire.rules, rule_from_wire)?,
        tokens: each("tokens", &wire.tokens, token_from_wire)?,
    })
}

fn action_to_wire(action: Action) -> i32 {
    match action {
        Action::Allow => mesh::Action::Allow.into(),
        Action::Deny => mesh::Action::Deny.into(),
    }
}

fn action_from_wire(name: &str, wire: i32) -> Result<Action, FieldError> {
    match mesh::Action::try_from(wire) {
        Ok(mesh::Action::Allow) => Ok(Action::Allow),
        Ok(mesh::Action::Deny) => Ok(Action::Deny),
        Ok(mesh::Action::Unspecified) | Err(_) => {
            Err(FieldError::at(name, format!("{wire} is not a known action")))
        }
    }
}

fn rule_to_wire(rule: &AccessRule) -> mesh::AccessRule {
    mesh::AccessRule {
        policy: rule.policy.clone(),
        name: rule.name.clone(),
        action: action_to_wire(rule.action),
        audit: rule.audit,
        from: rule.from.iter().map(caller_to_wire).collect(),
        to: rule.to.iter().map(operation_to_wire).collect(),
        claims: rule
            .claims
            .iter()
            .map(|claim| mesh::ClaimMatch {
                name: claim.name.clone(),
                values: claim.values.clone(),
            })
            .collect(),
    }
}

fn rule_from_wire(wire: &mesh::AccessRule) -> Result<AccessRule, FieldError> {
    Ok(AccessRule {
        policy: wire.policy.clone(),
        name: wire.name.clone(),
        action: action_from_wire("action", wire.action)?,
        audit: wire.audit,
        from: each("from", &wire.from, caller_from_wire)?,
        to: each("to", &wire.to, operation_from_wire)?,
        claims: each("claims", &wire.claims, |wire| {
            Ok(ClaimMatch { name: wire.name.clone(), values: wire.values.clone() })
        })?,
    })
}

fn caller_to_wire(caller: &CallerMatch) -> mesh::Caller {
    mesh::Caller {
        service_accounts: caller.service_accounts.clone(),
        namespaces: caller.namespaces.clone(),
        trust_domains: caller.trust_domains.clone(),
        authenticated: caller.authenticated,
        networks: caller.networks.iter().map(ToString::to_string).collect(),
    }
}

fn caller_from_wire(wire: &mesh::Caller) -> Result<CallerMatch, FieldError> {
    Ok(CallerMatch {
        service_accounts: wire.service_accounts.clone(),
        namespaces: wire.namespaces.clone(),
        trust_domains: wire.trust_domains.clone(),
        authenticated: wire.authenticated,
        networks: each("networks", &wire.networks, |text| parsed("", text))?,
    })
}

fn operation_to_wire(operation: &Operation) -> mesh::Operation {
    mesh::Operation {
        hosts: operation.hosts.iter().map(host_to_wire).collect(),
        methods: operation.methods.iter().map(ToString::to_string).collect(),
        paths: operation.paths.iter().map(path_to_wire).collect(),
        headers: operation.headers.iter().map(header_to_wire).collect(),
    }
}

fn operation_from_wire(wire: &mesh::Operation) -> Result<Operation, FieldError> {
    Ok(Operation {
        hosts: each("hosts", &wire.hosts, host_from_wire)?,
        methods: each("methods", &wire.methods, |text| parsed("", text))?,
        paths: each("paths", &wire.paths, path_from_wire)?,
        headers: each("headers", &wire.headers, header_from_wire)?,
    })
}

fn header_to_wire(header: &HeaderRule) -> mesh::HeaderRule {
    use mesh::header_rule::Test;
    let test = match &header.value {
        None => Test::Present(mesh::Unit {}),
        Some(ValueMatch::Exact(value)) => Test::Exact(value.clone()),
        Some(ValueMatch::Regex(pattern)) => Test::Regex(pattern.clone()),
    };
    mesh::HeaderRule { name: header.name.to_string(), test: Some(test) }
}

fn header_from_wire(wire: &mesh::HeaderRule) -> Result<HeaderRule, FieldError> {
    use mesh::header_rule::Test;
    let value = match set("test", wire.test.as_ref())? {
        Test::Present(_) => None,
        Test::Exact(value) => Some(ValueMatch::Exact(value.clone())),
        Test::Regex(pattern) => Some(ValueMatch::Regex(pattern.clone())),
    };
    Ok(HeaderRule { name: parsed("name", &wire.name)?, value })
}

fn token_to_wire(token: &TokenIssuer) -> mesh::TokenIssuer {
    let claims = token.claims_to_headers.iter();
    mesh::TokenIssuer {
        issuer: token.issuer.clone(),
        audiences: token.audiences.clone(),
        keys: token.keys.clone(),
        clock_skew: token.clock_skew,
        claims_to_headers: claims
            .map(|(claim, header)| mesh::ClaimHeader {
                claim: claim.clone(),
                header: header.to_string(),
            })
            .collect(),
        forward: token.forward,
        required: token.required,
    }
}

fn token_from_wire(wire: &mesh::TokenIssuer) -> Result<TokenIssuer, FieldError> {
    Ok(TokenIssuer {
        issuer: wire.issuer.clone(),
        audiences: wire.audiences.clone(),
        keys: wire.keys.clone(),
        clock_skew: wire.clock_skew,
        claims_to_headers: each("claims_to_headers", &wire.claims_to_headers, |wire| {
            Ok((wire.claim.clone(), parsed("header", &wire.header)?))
        })?,
        forward: wire.forward,
        required: wire.required,
    })
}
