//! Whether one rule speaks of one call.

use http::{HeaderName, Method, header};
use regex::bytes::Regex;

use super::{Action, Caller, ClaimMatch, Claims, Facts, Operation, RequestFacts, Rule};
use crate::condition::whole;
use crate::config::{HostMatch, PathMatch, ValueMatch};
use crate::error::FieldError;
use crate::identity::SpiffeId;
use crate::route::without_final_slash;

/// One rule, checked and compiled.
#[derive(Debug)]
pub(super) struct CompiledRule {
    pub(super) policy: String,
    pub(super) name: String,
    action: Action,
    from: Vec<Caller>,
    to: Vec<CompiledOperation>,
    claims: Vec<ClaimMatch>,
}

#[derive(Debug)]
struct CompiledOperation {
    hosts: Vec<HostMatch>,
    methods: Vec<Method>,
    paths: Vec<PathTest>,
    headers: Vec<(HeaderName, Option<ValueTest>)>,
}

#[derive(Debug)]
enum PathTest {
    Exact(String),
    /// Without a final slash.
    Prefix(String),
    Regex(Regex),
}

#[derive(Debug)]
enum ValueTest {
    Exact(String),
    Regex(Regex),
}

impl CompiledRule {
    pub(super) fn new(rule: &Rule) -> Result<Self, FieldError> {
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

    /// Whether it speaks of this caller at all.
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

impl Caller {
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
            .map(|(i, path)| PathTest::new(path).map_err(|e| e.under(format!("paths[{i}]"))))
            .collect::<Result<_, _>>()?;
        let headers = config.headers.iter().enumerate();
        let headers = headers.map(|(i, header)| {
            let test = header.value.as_ref().map(ValueTest::new).transpose();
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
            && (self.paths.is_empty() || self.paths.iter().any(|path| path.is(request.path)))
            && self.headers.iter().all(|(name, test)| {
                // HTTP/2 names the host elsewhere.
                let host = (*name == header::HOST).then_some(request.authority.as_bytes());
                let headers = request.headers.get_all(name).iter().map(|v| v.as_bytes());
                let headers = headers.filter(|_| host.is_none());
                let mut values = host.into_iter().filter(|host| !host.is_empty()).chain(headers);
                let Some(test) = test else { return values.next().is_some() };
                match action {
                    // A second value must not hide the first from a rule that denies,
                    Action::Deny => values.any(|value| test.is(value)),
                    // nor a good one a bad one from a rule that allows.
                    Action::Allow => {
                        values.next().is_some_and(|value| test.is(value)) && values.next().is_none()
                    }
                }
            })
    }
}

impl PathTest {
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

impl ValueTest {
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
