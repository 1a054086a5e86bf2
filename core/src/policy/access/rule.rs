//! Whether one rule applies to one call.

use http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use regex::bytes::Regex;

use super::{AccessRule, Action, CallerMatch, ClaimMatch, Claims, Facts, Operation, RequestFacts};
use crate::condition::whole;
use crate::config::{HostMatch, PathMatch, ValueMatch};
use crate::error::FieldError;
use crate::identity::SpiffeId;
use crate::route::without_final_slash;

/// One rule, checked and compiled.
#[derive(Debug)]
pub(super) struct CompiledAccessRule {
    pub(super) policy: String,
    pub(super) name: String,
    action: Action,
    from: Vec<CallerMatch>,
    to: Vec<CompiledOperation>,
    claims: Vec<ClaimMatch>,
}

#[derive(Debug)]
struct CompiledOperation {
    hosts: Vec<HostMatch>,
    methods: Vec<Method>,
    paths: Vec<AccessPath>,
    headers: Vec<(HeaderName, Option<AccessValue>)>,
}

#[derive(Debug)]
enum AccessPath {
    Exact(String),
    /// Without a final slash.
    Prefix(String),
    Regex(Regex),
}

#[derive(Debug)]
enum AccessValue {
    Exact(String),
    Regex(Regex),
}

impl CompiledAccessRule {
    pub(super) fn new(rule: &AccessRule) -> Result<Self, FieldError> {
        let to = rule.to.iter().enumerate();
        let to =
            to.map(|(i, to)| CompiledOperation::new(to).map_err(|e| e.under(format!("to[{i}]"))));
        Ok(Self {
            policy: rule.policy.clone(),
            name: rule.name.clone(),
            action: rule.action,
            from: rule.from.clone(),
            to: to.collect::<Result<_, _>>()?,
            claims: rule.claims.clone(),
        })
    }

    /// Whether it applies to this caller at all.
    pub(super) fn is_from(&self, facts: &Facts<'_>) -> bool {
        self.from.is_empty() || self.from.iter().any(|from| from.is(facts))
    }

    pub(super) fn is_for_all_requests_of(&self, facts: &Facts<'_>) -> bool {
        self.is_from(facts) && self.to.is_empty() && self.claims.is_empty()
    }

    pub(super) fn matches(&self, facts: &Facts<'_>) -> bool {
        self.is_from(facts)
            && match facts.request {
                Some(request) => {
                    (self.to.is_empty() || self.to.iter().any(|to| to.is(&request, self.action)))
                        && self.claims.iter().all(|claim| claim.is_in(request.claims))
                }
                // What a rule says of requests cannot be known of a stream: it is denied on suspicion, and
                // allowed only by rules that do not ask.
                None => {
                    self.action == Action::Deny || (self.to.is_empty() && self.claims.is_empty())
                }
            }
    }
}

impl CallerMatch {
    fn is(&self, facts: &Facts<'_>) -> bool {
        let any = |list: &[String], want: &str| list.is_empty() || list.iter().any(|x| x == want);
        let identity = match facts.identity {
            Some(id) => {
                any(&self.namespaces, id.namespace())
                    && any(&self.trust_domains, id.trust_domain())
                    && (self.service_accounts.is_empty()
                        || self.service_accounts.iter().any(|account| is_account(account, id)))
            }
            None => {
                self.namespaces.is_empty()
                    && self.trust_domains.is_empty()
                    && self.service_accounts.is_empty()
            }
        };
        identity
            && self.authenticated.is_none_or(|want| want == facts.identity.is_some())
            && (self.networks.is_empty()
                || self.networks.iter().any(|network| network.contains(facts.address)))
    }
}

fn is_account(account: &str, id: &SpiffeId) -> bool {
    account.split_once('/') == Some((id.namespace(), id.service_account()))
}

impl CompiledOperation {
    fn new(config: &Operation) -> Result<Self, FieldError> {
        let paths = config.paths.iter().enumerate();
        let paths = paths
            .map(|(i, path)| AccessPath::new(path).map_err(|e| e.under(format!("paths[{i}]"))))
            .collect::<Result<_, _>>()?;
        let headers = config.headers.iter().enumerate();
        let headers = headers.map(|(i, header)| {
            let test = header.value.as_ref().map(AccessValue::new).transpose();
            let test = test.map_err(|e| e.under(format!("headers[{i}]")))?;
            Ok((header.name.clone(), test))
        });
        Ok(Self {
            hosts: config.hosts.clone(),
            methods: config.methods.clone(),
            paths,
            headers: headers.collect::<Result<_, _>>()?,
        })
    }

    fn is(&self, request: &RequestFacts<'_>, action: Action) -> bool {
        let host = |host: &HostMatch| match host {
            HostMatch::Exact(name) => name == request.host,
            HostMatch::Suffix(suffix) => request.host.ends_with(suffix.as_str()),
        };
        (self.hosts.is_empty() || self.hosts.iter().any(host))
            && (self.methods.is_empty() || self.methods.contains(request.method))
            && (self.paths.is_empty() || self.is_path(request, action))
            && self
                .headers
                .iter()
                .all(|(name, test)| is_header(request, action, name, test.as_ref()))
    }

    fn is_path(&self, request: &RequestFacts<'_>, action: Action) -> bool {
        let is = |path: &str| self.paths.iter().any(|test| test.is(path));
        match (request.bare_path, action) {
            (None, _) => is(request.path),
            // What the app makes of parameters is not known.
            (Some(bare), Action::Deny) => is(request.path) || is(bare),
            (Some(bare), Action::Allow) => is(request.path) && is(bare),
        }
    }
}

fn is_header(
    request: &RequestFacts<'_>,
    action: Action,
    name: &HeaderName,
    test: Option<&AccessValue>,
) -> bool {
    if *name == header::HOST {
        // HTTP/2 names the host elsewhere.
        let is = |value: &str| test.is_none_or(|test| test.is(value.as_bytes()));
        let given = !request.authority.is_empty();
        return match action {
            Action::Deny => given && (is(request.authority) || is(request.host)),
            Action::Allow => given && is(request.authority),
        };
    }
    let mut values = request.headers.get_all(name).iter().map(HeaderValue::as_bytes);
    match (action, test) {
        // A second value must not hide the first from a rule that denies, nor another spelling,
        (Action::Deny, Some(test)) => {
            values.any(|value| test.is(value))
                || respelled(request.headers, name).any(|value| test.is(value))
        }
        (Action::Deny, None) => {
            values.next().is_some() || respelled(request.headers, name).next().is_some()
        }
        // nor a good one a bad one from a rule that allows.
        (Action::Allow, Some(test)) => {
            values.next().is_some_and(|value| test.is(value))
                && values.next().is_none()
                && respelled(request.headers, name).next().is_none()
        }
        (Action::Allow, None) => values.next().is_some(),
    }
}

/// The values of headers that are `name` to apps which take `_` for `-`, as all do that get their headers as
/// CGI variables (RFC 3875 section 4.1.18).
fn respelled<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
    headers.iter().filter(|(other, _)| is_respelled(name, other)).map(|(_, value)| value.as_bytes())
}

/// Whether `other` is `name` with `_` for some `-` or the other way round.
pub fn is_respelled(name: &HeaderName, other: &HeaderName) -> bool {
    let (name, other) = (name.as_str().as_bytes(), other.as_str().as_bytes());
    let dashed = |byte: u8| if byte == b'_' { b'-' } else { byte };
    name.len() == other.len()
        && name != other
        && name.iter().zip(other).all(|(a, b)| dashed(*a) == dashed(*b))
}

impl AccessPath {
    fn new(config: &PathMatch) -> Result<Self, FieldError> {
        let text = |path: &str| match crate::path::canonical(path) {
            Ok(canonical) if canonical == path => Ok(path.to_owned()),
            Ok(canonical) => Err(FieldError::here(format!(
                "{path:?} would never match: its canonical form is {canonical:?}"
            ))),
            Err(why) => Err(FieldError::here(format!("{path:?} would never match: {why}"))),
        };
        Ok(match config {
            PathMatch::Exact(path) => Self::Exact(text(path)?),
            PathMatch::Prefix(path) => Self::Prefix(without_final_slash(&text(path)?).to_owned()),
            PathMatch::Regex(pattern) => Self::Regex(whole(pattern)?),
        })
    }

    fn is(&self, path: &str) -> bool {
        match self {
            Self::Exact(exact) => path == exact,
            Self::Prefix(prefix) => path
                .strip_prefix(prefix.as_str())
                .is_some_and(|rest| rest.is_empty() || rest.starts_with('/')),
            Self::Regex(regex) => regex.is_match(path.as_bytes()),
        }
    }
}

impl AccessValue {
    fn new(config: &ValueMatch) -> Result<Self, FieldError> {
        Ok(match config {
            ValueMatch::Exact(value) => Self::Exact(value.clone()),
            ValueMatch::Regex(pattern) => Self::Regex(whole(pattern)?),
        })
    }

    fn is(&self, value: &[u8]) -> bool {
        match self {
            Self::Exact(exact) => value == exact.as_bytes(),
            Self::Regex(regex) => regex.is_match(value),
        }
    }
}

impl ClaimMatch {
    fn is_in(&self, claims: Option<&Claims>) -> bool {
        let values = claims.and_then(|claims| claims.get(&self.name));
        values.is_some_and(|values| values.iter().any(|value| self.values.contains(value)))
    }
}
