//! Who may call a port, and with what: the `AccessPolicy` kind.
//!
//! All policies that select a port add up to one [`Access`]. A deny rule that matches refuses. Then, if
//! an allow rule is in force or the default is deny, an allow rule must match. Rules in audit mode are
//! decided in the same way, apart, and refuse nothing: the answer says what they would have done.

mod network;
mod rule;

use std::collections::BTreeMap;
use std::net::IpAddr;

use http::{HeaderMap, HeaderName, Method};

pub use network::Network;
use rule::CompiledAccessRule;
pub use rule::is_respelled;

use crate::config::{HostMatch, PathMatch, ValueMatch};
use crate::error::FieldError;
use crate::identity::SpiffeId;

/// Rules of one port: each is looked at for each request in the worst case.
const MAX_RULES: usize = 1_000;

/// Everything that decides about one port.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Access {
    /// Of a caller that matches no rule, while no allow rule is in force.
    pub default: Action,
    /// Where the default comes from, for the explanation: `namespace/name` of a policy.
    pub default_from: Option<String>,
    pub rules: Vec<AccessRule>,
    pub tokens: Vec<TokenIssuer>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Action {
    #[default]
    Allow,
    Deny,
}

/// Matches when one of `from`, one of `to` and all of `claims` do; an empty list matches everything.
#[derive(Clone, Debug, PartialEq)]
pub struct AccessRule {
    /// `namespace/name` of the policy.
    pub policy: String,
    /// The rule's name, or its place as in `rules[2]`.
    pub name: String,
    pub action: Action,
    pub audit: bool,
    pub from: Vec<CallerMatch>,
    pub to: Vec<Operation>,
    pub claims: Vec<ClaimMatch>,
}

/// All fields that are set must hold; of a list one entry.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct CallerMatch {
    /// `namespace/service-account`.
    pub service_accounts: Vec<String>,
    pub namespaces: Vec<String>,
    pub trust_domains: Vec<String>,
    /// Whether the caller proved an identity at all.
    pub authenticated: Option<bool>,
    pub networks: Vec<Network>,
}

/// All fields that are set must hold; of a list one entry.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct Operation {
    pub hosts: Vec<HostMatch>,
    pub methods: Vec<Method>,
    /// Against the canonical path ([`crate::path`]), and against the same without path parameters: a rule that
    /// denies matches if either does, one that allows if both do.
    pub paths: Vec<PathMatch>,
    pub headers: Vec<HeaderRule>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HeaderRule {
    pub name: HeaderName,
    /// None: present, whatever it says.
    pub value: Option<ValueMatch>,
}

/// A claim of the verified token has one of the values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimMatch {
    /// Nested claims with dots between, as in `realm_access.roles`.
    pub name: String,
    pub values: Vec<String>,
}

/// Whose tokens are trusted (RFC 7519).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TokenIssuer {
    /// Compared with `iss`, byte by byte.
    pub issuer: String,
    /// One of them must be in `aud`; empty: any.
    pub audiences: Vec<String>,
    /// A JSON Web Key Set (RFC 7517).
    pub keys: String,
    /// Tolerated clock skew, in seconds.
    pub clock_skew: u32,
    /// Claims that the app gets as headers.
    pub claims_to_headers: Vec<(String, HeaderName)>,
    /// The app gets the token too.
    pub forward: bool,
    /// A request without a token is refused.
    pub required: bool,
}

/// What is known of a connection and, for HTTP, of a request on it.
#[derive(Clone, Copy, Debug)]
pub struct Facts<'a> {
    pub identity: Option<&'a SpiffeId>,
    pub address: IpAddr,
    /// None for opaque streams.
    pub request: Option<RequestFacts<'a>>,
}

#[derive(Clone, Copy, Debug)]
pub struct RequestFacts<'a> {
    /// As the request names it: what rules about the header `Host` ask.
    pub authority: &'a str,
    /// Lower case, without the port.
    pub host: &'a str,
    pub method: &'a Method,
    /// Canonical.
    pub path: &'a str,
    /// The same without path parameters, where it has any ([`crate::path::without_parameters`]).
    pub bare_path: Option<&'a str>,
    pub headers: &'a HeaderMap,
    /// Of a token that holds.
    pub claims: Option<&'a Claims>,
}

/// The claims of a token as text, nested ones with dots between.
pub type Claims = BTreeMap<String, Vec<String>>;

/// What was decided.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct AccessDecision {
    /// Why it is refused.
    pub denied: Option<Denial>,
    /// Why rules in audit mode would refuse it.
    pub audited: Option<Denial>,
}

/// Which rule refused, or that none allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Denial(pub String);

/// [`Access`], checked and compiled.
#[derive(Debug, Default)]
pub struct CompiledAccess {
    default: Action,
    default_from: Option<String>,
    enforced: RuleSet,
    audited: RuleSet,
    /// Some rule in force asks for the path, so that the path must have a canonical form.
    pub asks_for_path: bool,
    /// Some rule in audit mode does, which changes nothing.
    pub audits_path: bool,
}

#[derive(Debug, Default)]
struct RuleSet {
    deny: Vec<CompiledAccessRule>,
    allow: Vec<CompiledAccessRule>,
}

impl CompiledAccess {
    pub fn new(config: &Access) -> Result<Self, FieldError> {
        if config.rules.len() > MAX_RULES {
            let problem = format!("{} rules are more than {MAX_RULES}", config.rules.len());
            return Err(FieldError::at("rules", problem));
        }
        let mut compiled = Self {
            default: config.default,
            default_from: config.default_from.clone(),
            ..Self::default()
        };
        for (i, rule) in config.rules.iter().enumerate() {
            let asks = rule.to.iter().any(|to| !to.paths.is_empty());
            compiled.asks_for_path |= asks && !rule.audit;
            compiled.audits_path |= asks && rule.audit;
            let set = if rule.audit { &mut compiled.audited } else { &mut compiled.enforced };
            let list = match rule.action {
                Action::Allow => &mut set.allow,
                Action::Deny => &mut set.deny,
            };
            list.push(CompiledAccessRule::new(rule).map_err(|e| e.under(format!("rules[{i}]")))?);
        }
        Ok(compiled)
    }

    /// Whether everybody may do everything, so that nothing needs to be asked.
    pub fn is_open(&self) -> bool {
        self.default == Action::Allow && self.enforced.is_empty() && self.audited.is_empty()
    }

    pub fn decide(&self, facts: &Facts<'_>) -> AccessDecision {
        let denied = self.enforced.deny(facts).or_else(|| {
            let needs_allow = self.default == Action::Deny || !self.enforced.allow.is_empty();
            let refused = needs_allow && !self.enforced.allows(facts);
            refused.then(|| self.nothing_allows())
        });
        // As if its rules were in force beside the others.
        let audited = self.audited.deny(facts).or_else(|| {
            let refused = !self.audited.allow.is_empty()
                && !self.audited.allows(facts)
                && !self.enforced.allows(facts);
            refused.then(|| Denial(format!("no rule of {} allows it", self.audited.allowing())))
        });
        AccessDecision { denied, audited }
    }

    /// Whether some request of this caller could be allowed, whatever it asks for.
    pub fn could_allow(&self, facts: &Facts<'_>) -> bool {
        let denied = self.enforced.deny.iter().any(|rule| rule.is_for_all_requests_of(facts));
        let needs_allow = self.default == Action::Deny || !self.enforced.allow.is_empty();
        !denied && (!needs_allow || self.enforced.allow.iter().any(|rule| rule.is_from(facts)))
    }

    fn nothing_allows(&self) -> Denial {
        Denial(match (&self.default_from, self.enforced.allow.is_empty()) {
            (_, false) => format!("no rule of {} allows it", self.enforced.allowing()),
            (Some(policy), true) => format!("the default of {policy} denies it"),
            (None, true) => "the default of the mesh denies it".to_owned(),
        })
    }
}

impl RuleSet {
    fn is_empty(&self) -> bool {
        self.deny.is_empty() && self.allow.is_empty()
    }

    fn deny(&self, facts: &Facts<'_>) -> Option<Denial> {
        let rule = self.deny.iter().find(|rule| rule.matches(facts))?;
        Some(Denial(format!("denied by {} of {}", rule.name, rule.policy)))
    }

    fn allows(&self, facts: &Facts<'_>) -> bool {
        self.allow.iter().any(|rule| rule.matches(facts))
    }

    /// The policies that allow something.
    fn allowing(&self) -> String {
        let mut names: Vec<&str> = self.allow.iter().map(|rule| rule.policy.as_str()).collect();
        names.sort_unstable();
        names.dedup();
        names.join(", ")
    }
}

#[cfg(test)]
mod tests;
