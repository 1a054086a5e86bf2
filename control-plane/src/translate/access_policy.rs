//! `AccessPolicy`: who may call. [`access`] and [`mtls`] put together what all policies of a port say.

use std::path::{Component, Path};
use std::str::FromStr;

use http::{HeaderName, Method, header};
use outrigger_core::config::{MtlsMode, PathMatch, ValueMatch};
use outrigger_core::error::FieldError;
use outrigger_core::name::{check_label, check_subdomain};
use outrigger_core::policy::access::{
    Access, AccessRule, Action, CallerMatch, ClaimMatch, CompiledAccess, HeaderRule, Network,
    Operation, TokenIssuer,
};
use outrigger_core::policy::bounds;

use super::route::hostnames;
use super::{Report, created, identity};
use crate::index::Index;
use crate::kinds::defaults;
use crate::kinds::{
    AccessAction, AccessFrom, AccessHeader, AccessJwks, AccessJwt, AccessMtls, AccessPath,
    AccessPolicy, AccessTo,
};
use crate::object::{KeySource, Policy, PolicyIssuer, Workload};

/// Headers that end at each proxy (RFC 9110 section 7.6.1), and what only a proxy says.
const OF_THE_CONNECTION: [HeaderName; 6] = [
    header::CONNECTION,
    header::UPGRADE,
    header::TRANSFER_ENCODING,
    header::TE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];
/// Keys of an issuer that are not known (yet): no token holds.
const NO_KEYS: &str = r#"{"keys":[]}"#;

pub fn translate(raw: &AccessPolicy, report: &mut Report) -> Option<Policy> {
    let (namespace, name) = identity(&raw.metadata, report);
    let spec = &raw.spec;
    let full_name = format!("{namespace}/{name}");
    let ports = spec.ports.iter().enumerate();
    let ports = ports.filter_map(|(i, port)| report.port(&format!("spec.ports[{i}]"), *port));
    let ports: Vec<u16> = ports.collect();
    let mut rules = Vec::with_capacity(spec.rules.len());
    for (i, raw) in spec.rules.iter().enumerate() {
        let path = format!("spec.rules[{i}]");
        let from = raw.from.iter().enumerate();
        let to = raw.to.iter().enumerate();
        rules.push(AccessRule {
            policy: full_name.clone(),
            name: raw.name.clone().unwrap_or_else(|| format!("rules[{i}]")),
            action: action(raw.action),
            audit: spec.audit,
            from: from
                .map(|(i, from)| caller(from, &namespace, &format!("{path}.from[{i}]"), report))
                .collect(),
            to: to.map(|(i, to)| operation(to, &format!("{path}.to[{i}]"), report)).collect(),
            claims: raw
                .claims
                .iter()
                .map(|claim| ClaimMatch { name: claim.name.clone(), values: claim.values.clone() })
                .collect(),
        });
    }
    let issuers = spec.jwt.iter().enumerate();
    let issuers: Vec<_> = issuers
        .map(|(i, jwt)| issuer(jwt, &namespace, &format!("spec.jwt[{i}]"), report))
        .collect();
    if spec.audit && spec.default == Some(AccessAction::Deny) {
        rules.push(denying_by_default(&full_name));
    }
    // Regular expressions and paths that could never match, with the path of the field.
    let access = Access { rules, ..Access::default() };
    report.check("spec", CompiledAccess::new(&access));
    // Audit changes nothing: only rules can be asked what they would do.
    let in_force = !spec.audit;
    Some(Policy {
        namespace,
        name,
        created: created(&raw.metadata),
        selector: spec.selector.as_ref().map(|selector| selector.match_labels.clone()),
        ports,
        mtls: spec.mtls.filter(|_| in_force).map(|mode| match mode {
            AccessMtls::Strict => MtlsMode::Strict,
            AccessMtls::Permissive => MtlsMode::Permissive,
        }),
        default: spec.default.filter(|_| in_force).map(action),
        rules: access.rules,
        issuers: if in_force { issuers } else { Vec::new() },
        closed: None,
    })
}

/// Stands for `default: Deny` of a policy in audit mode: an allow rule that no caller matches.
fn denying_by_default(policy: &str) -> AccessRule {
    let nobody = CallerMatch {
        namespaces: vec![String::new()],
        authenticated: Some(false),
        ..CallerMatch::default()
    };
    AccessRule {
        policy: policy.to_owned(),
        name: "default".to_owned(),
        action: Action::Allow,
        audit: true,
        from: vec![nobody],
        to: Vec::new(),
        claims: Vec::new(),
    }
}

fn action(raw: AccessAction) -> Action {
    match raw {
        AccessAction::Allow => Action::Allow,
        AccessAction::Deny => Action::Deny,
    }
}

fn caller(raw: &AccessFrom, namespace: &str, path: &str, report: &mut Report) -> CallerMatch {
    let mut service_accounts = Vec::with_capacity(raw.service_accounts.len());
    for (i, account) in raw.service_accounts.iter().enumerate() {
        let (of, name) = account.split_once('/').unwrap_or((namespace, account));
        let checked = check_label(of).and_then(|()| name.split('.').try_for_each(check_label));
        report.check(&format!("{path}.serviceAccounts[{i}]"), checked);
        service_accounts.push(format!("{of}/{name}"));
    }
    if *raw == AccessFrom::default() {
        report.error(path, "is empty and would match every caller; to match all, leave `from` out");
    }
    if raw.authenticated == Some(false)
        && !(service_accounts.is_empty()
            && raw.namespaces.is_empty()
            && raw.trust_domains.is_empty())
    {
        let problem =
            "is false, but the other fields require an identity: this entry would match no caller";
        report.error(format!("{path}.authenticated"), problem);
    }
    let networks = raw.networks.iter().enumerate();
    let networks = networks.filter_map(|(i, text)| {
        report.check(&format!("{path}.networks[{i}]"), Network::from_str(text))
    });
    CallerMatch {
        networks: networks.collect(),
        service_accounts,
        namespaces: raw.namespaces.clone(),
        trust_domains: raw.trust_domains.clone(),
        authenticated: raw.authenticated,
    }
}

fn operation(raw: &AccessTo, path: &str, report: &mut Report) -> Operation {
    if *raw == AccessTo::default() {
        report.error(path, "is empty and would match every request; to match all, leave `to` out");
    }
    let methods = raw.methods.iter().enumerate().filter_map(|(i, method)| {
        let parsed = Method::from_str(method)
            .ok()
            .filter(|_| !method.bytes().any(|b| b.is_ascii_lowercase()))
            .ok_or_else(|| FieldError::here(format!("{method:?} is not a method such as GET")));
        report.check(&format!("{path}.methods[{i}]"), parsed)
    });
    let methods = methods.collect();
    let paths = raw.paths.iter().map(|path| match path {
        AccessPath::Exact(path) => PathMatch::Exact(path.clone()),
        AccessPath::Prefix(prefix) => PathMatch::Prefix(prefix.clone()),
        AccessPath::Regex(pattern) => PathMatch::Regex(pattern.clone()),
    });
    let headers = raw.headers.iter().enumerate();
    let headers =
        headers.filter_map(|(i, h)| header(h, &format!("{path}.headers[{i}]"), report)).collect();
    let mut found = Report::default();
    let hosts = hostnames(&raw.hosts, &mut found);
    report.errors.extend(found.errors.into_iter().map(|error| {
        let inner = error.path.replacen("spec.hostnames", "hosts", 1);
        FieldError::at(format!("{path}.{inner}"), error.problem)
    }));
    Operation { hosts, methods, paths: paths.collect(), headers }
}

fn header(raw: &AccessHeader, path: &str, report: &mut Report) -> Option<HeaderRule> {
    let name = report.check(&format!("{path}.name"), header_name(&raw.name))?;
    if OF_THE_CONNECTION.contains(&name) || name.as_str().starts_with("x-outrigger-") {
        let problem = format!(
            "{name} is a hop-by-hop header or one of the mesh's own, which rules cannot match"
        );
        report.error(format!("{path}.name"), problem);
    }
    let value = match (&raw.exact, &raw.regex) {
        (Some(_), Some(_)) => {
            report.error(path, "sets both exact and regex: set only one");
            return None;
        }
        (Some(exact), None) => Some(ValueMatch::Exact(exact.clone())),
        (None, Some(regex)) => Some(ValueMatch::Regex(regex.clone())),
        (None, None) => None,
    };
    Some(HeaderRule { name, value })
}

fn header_name(text: &str) -> Result<HeaderName, FieldError> {
    text.parse().map_err(|_| FieldError::here(format!("{text:?} is not a header name")))
}

fn issuer(raw: &AccessJwt, namespace: &str, path: &str, report: &mut Report) -> PolicyIssuer {
    if raw.issuer.is_empty() {
        report.error(format!("{path}.issuer"), "is empty");
    }
    let clock_skew = raw.clock_skew_seconds.unwrap_or(defaults::CLOCK_SKEW_SECONDS);
    let most = *bounds::CLOCK_SKEW.end();
    if clock_skew > most {
        report
            .error(format!("{path}.clockSkewSeconds"), format!("{clock_skew} is more than {most}"));
    }
    let source = match &raw.jwks {
        AccessJwks::Inline(text) => {
            report.check(&format!("{path}.jwks.inline"), check_keys(text));
            KeySource::Inline(text.clone())
        }
        AccessJwks::File(file) => {
            let inside = |part: Component<'_>| matches!(part, Component::Normal(_));
            if file.is_empty() || !Path::new(file).components().all(inside) {
                let problem = format!("{file:?} is not a file in the folder of the manifests");
                report.error(format!("{path}.jwks.file"), problem);
            }
            KeySource::File(file.into())
        }
        AccessJwks::ExternalService(service) => {
            let name = format!("{path}.jwks.externalService.name");
            report.check(&name, check_subdomain(&service.name));
            if service.path.parse::<http::uri::PathAndQuery>().is_err()
                || !service.path.starts_with('/')
            {
                let problem = format!("{:?} must begin with \"/\"", service.path);
                report.error(format!("{path}.jwks.externalService.path"), problem);
            }
            KeySource::External {
                namespace: namespace.to_owned(),
                name: service.name.clone(),
                path: service.path.clone(),
            }
        }
    };
    let claims_to_headers = raw.claims_to_headers.iter().enumerate();
    let claims_to_headers = claims_to_headers.filter_map(|(i, raw)| {
        let at = format!("{path}.claimsToHeaders[{i}].header");
        let header = report.check(&at, header_name(&raw.header))?;
        Some((raw.claim.clone(), header))
    });
    let issuer = TokenIssuer {
        issuer: raw.issuer.clone(),
        audiences: raw.audiences.clone(),
        keys: String::new(),
        clock_skew,
        claims_to_headers: claims_to_headers.collect(),
        forward: raw.forward,
        required: raw.required,
    };
    PolicyIssuer { issuer, source }
}

/// Whether a text is a JSON Web Key Set, at least in its outline.
pub fn check_keys(text: &str) -> Result<(), FieldError> {
    let set: serde_json::Value = serde_json::from_str(text)
        .map_err(|error| FieldError::here(format!("is not a JSON Web Key Set: {error}")))?;
    match set["keys"].as_array() {
        Some(_) => Ok(()),
        None => Err(FieldError::here("is not a JSON Web Key Set: it has no list \"keys\"")),
    }
}

/// Whether a port takes plaintext from outside the mesh: the one place where that is decided.
pub fn mtls(index: &Index, workload: &Workload, port: u16) -> MtlsMode {
    let said = by_specificity(index, workload, port).into_iter().find_map(|policy| policy.mtls);
    said.unwrap_or(index.security().mtls)
}

/// Everything that decides who may call a port. None: everybody may do everything.
pub fn access(index: &Index, workload: &Workload, port: u16) -> Option<Access> {
    let policies = by_specificity(index, workload, port);
    let default = policies.iter().find_map(|policy| Some((policy.default?, policy.full_name())));
    let (default, default_from) = match default {
        Some((action, from)) => (action, Some(from)),
        None => (index.security().default_access, None),
    };
    let tokens = policies.iter().flat_map(|policy| &policy.issuers).map(|issuer| TokenIssuer {
        keys: index.keys(&issuer.source).unwrap_or(NO_KEYS).to_owned(),
        ..issuer.issuer.clone()
    });
    let access = Access {
        default,
        default_from,
        rules: policies.iter().flat_map(|policy| &policy.rules).cloned().collect(),
        tokens: tokens.collect(),
    };
    let decides = access.default == Action::Deny || !access.rules.is_empty();
    (decides || !access.tokens.is_empty()).then_some(access)
}

/// Policies of a port, the most specific first: with selector and port, with selector, with port, for
/// the namespace; of equals the oldest, then by name.
fn by_specificity<'a>(index: &'a Index, workload: &Workload, port: u16) -> Vec<&'a Policy> {
    let mut policies: Vec<&Policy> =
        index.policies_of(workload).filter(|policy| policy.is_for_port(port)).collect();
    policies.sort_by_key(|policy| {
        (policy.selector.is_none(), policy.ports.is_empty(), policy.created, &policy.name)
    });
    policies
}
