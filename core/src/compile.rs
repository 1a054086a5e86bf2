//! From a [`Destination`] as the control plane sends it to the form that a request reads.
//!
//! Everything that can be decided once is decided here: routes are sorted by Gateway API
//! precedence, regular expressions compiled, backend names turned into indexes, weights summed.
//! What does not make sense is refused with the path of the field. [`crate::route`] holds the
//! tables that come out; nothing here runs per request except the look-ups of [`Compiled`].

use std::collections::HashMap;
use std::sync::Arc;

use http::StatusCode;
use http::uri::PathAndQuery;

use crate::config::{
    Backend, BackendTarget, Balancer, Destination, Filter, HeaderModifier, HttpRoute, HttpRule,
    Mirror, PathMatch, PathModifier, Protocol, Redirect, Rewrite, TcpBackend, WeightedBackend,
};
use crate::error::FieldError;
use crate::name::DestinationName;
use crate::route::{HostTable, HttpTable, HttpTableBuilder, Order, RequestView};

/// A destination, ready to be read by any number of requests at once.
#[derive(Debug)]
pub struct Compiled {
    pub name: DestinationName,
    pub protocol: Protocol,
    /// The destination itself, then [`Destination::backends`] in their order.
    pub backends: Vec<CompiledBackend>,
    /// None: no HTTP route is attached.
    http: Option<HttpTable>,
    rules: Vec<Rule>,
    /// None: no TLS route is attached.
    tls: Option<HostTable<Option<usize>>>,
    streams: Vec<(Arc<str>, Split)>,
    /// Index in `streams`.
    tcp: Option<usize>,
}

/// A service that requests of this destination may go to.
#[derive(Debug)]
pub struct CompiledBackend {
    /// Without consumer: what endpoints are keyed by.
    pub name: DestinationName,
    /// `namespace/service:port`.
    pub label: Arc<str>,
    pub protocol: Protocol,
    pub balancer: Balancer,
}

/// Where an HTTP request goes.
#[derive(Debug)]
pub enum HttpRouting<'a> {
    /// No route is attached: to `backends[0]`.
    Direct,
    Rule(Matched<'a>),
    /// Routes are attached and none of their rules matches.
    NoMatch,
}

#[derive(Debug)]
pub struct Matched<'a> {
    pub rule: &'a Rule,
    /// The prefix that a prefix match named, without a final `/` unless it is `/` itself; what a
    /// [`PathModifier::Prefix`] replaces.
    pub prefix: Option<&'a str>,
}

/// What happens to a request that one of the rule's matches chose.
#[derive(Debug)]
pub struct Rule {
    /// `namespace/name` of its route.
    pub route: Arc<str>,
    pub filters: Filters,
    pub split: Split,
}

/// The filters of a rule or a backend, by what they touch.
#[derive(Debug, Default)]
pub struct Filters {
    pub request_headers: Vec<HeaderModifier>,
    pub response_headers: Vec<HeaderModifier>,
    /// Answers in place of any backend; never set on a backend's own filters.
    pub redirect: Option<Redirect>,
    pub rewrite: Option<Rewrite>,
    pub mirrors: Vec<CompiledMirror>,
}

#[derive(Debug)]
pub struct CompiledMirror {
    pub target: Target,
    /// `numerator / denominator` of the requests are mirrored.
    pub numerator: u32,
    pub denominator: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    /// Index in [`Compiled::backends`].
    Backend(usize),
    /// The reference does not resolve, and why.
    Invalid(Arc<str>),
}

/// Backends with their weights.
#[derive(Debug, Default)]
pub struct Split {
    /// Without those of weight 0.
    shares: Vec<Share>,
    /// `upto[i]` is the sum of the weights of `shares[..=i]`.
    upto: Vec<u64>,
}

#[derive(Debug)]
pub struct Share {
    pub target: Target,
    pub weight: u32,
    pub filters: Filters,
}

/// Where a connection goes whose bytes are not looked into.
#[derive(Debug)]
pub enum StreamRouting<'a> {
    /// No route is attached: to `backends[0]`.
    Direct,
    Split {
        route: &'a Arc<str>,
        split: &'a Split,
    },
    /// Routes are attached and none names this server.
    NoMatch,
}

/// Checks a destination and makes it ready for use.
pub fn compile(destination: &Destination) -> Result<Compiled, FieldError> {
    let targets = Targets::new(destination);
    let mut rules = Vec::new();
    let http = compile_http(&destination.http_routes, &targets, &mut rules)?;

    let mut streams = Vec::new();
    let tls = compile_tls(destination, &targets, &mut streams)?;
    let tcp = match &destination.tcp_route {
        None => None,
        Some(route) => {
            let split =
                stream_split(&route.backends, &targets).map_err(|e| e.under("tcp_route"))?;
            streams.push((Arc::from(route.name.as_str()), split));
            Some(streams.len() - 1)
        }
    };
    Ok(Compiled {
        name: destination.name.clone(),
        protocol: destination.protocol,
        backends: compile_backends(destination),
        http,
        rules,
        tls,
        streams,
        tcp,
    })
}

impl Compiled {
    /// The rule for a request. Allocates only where a regular expression meets a repeated header
    /// or an escaped query value.
    pub fn route_http(&self, view: &RequestView<'_>) -> HttpRouting<'_> {
        let Some(table) = &self.http else { return HttpRouting::Direct };
        match table.find(view) {
            Some(found) => {
                HttpRouting::Rule(Matched { rule: &self.rules[found.rule], prefix: found.prefix })
            }
            None => HttpRouting::NoMatch,
        }
    }

    /// The backends for a TLS connection, by the server name in its ClientHello.
    pub fn route_tls(&self, server_name: Option<&str>) -> StreamRouting<'_> {
        let Some(table) = &self.tls else { return StreamRouting::Direct };
        match table.candidates(server_name).find_map(|index| *index) {
            Some(index) => self.stream(index),
            None => StreamRouting::NoMatch,
        }
    }

    /// The backends for a connection of opaque bytes.
    pub fn route_tcp(&self) -> StreamRouting<'_> {
        self.tcp.map_or(StreamRouting::Direct, |index| self.stream(index))
    }

    fn stream(&self, index: usize) -> StreamRouting<'_> {
        let (route, split) = &self.streams[index];
        StreamRouting::Split { route, split }
    }
}

impl Filters {
    pub fn is_empty(&self) -> bool {
        self.request_headers.is_empty()
            && self.response_headers.is_empty()
            && self.redirect.is_none()
            && self.rewrite.is_none()
            && self.mirrors.is_empty()
    }
}

impl Split {
    fn new(shares: Vec<Share>) -> Self {
        let shares: Vec<_> = shares.into_iter().filter(|share| share.weight > 0).collect();
        let upto = shares
            .iter()
            .scan(0u64, |sum, share| {
                *sum += u64::from(share.weight);
                Some(*sum)
            })
            .collect();
        Self { shares, upto }
    }

    /// The share that a uniformly random number falls on; none when there are no backends or all
    /// weights are 0.
    pub fn pick(&self, random: u64) -> Option<&Share> {
        match self.shares.as_slice() {
            [] => None,
            [only] => Some(only),
            shares => {
                let total = self.upto[shares.len() - 1];
                // Multiply and shift maps the random number to 0..total without a division.
                let at = ((u128::from(random) * u128::from(total)) >> 64) as u64;
                Some(&shares[self.upto.partition_point(|upto| *upto <= at)])
            }
        }
    }

    /// Every share that can be picked.
    pub fn shares(&self) -> &[Share] {
        &self.shares
    }
}

/// Indexes of the destination and its backends by name.
struct Targets {
    index: HashMap<DestinationName, usize>,
}

impl Targets {
    fn new(destination: &Destination) -> Self {
        let mut index = HashMap::with_capacity(1 + destination.backends.len());
        index.insert(destination.name.without_consumer(), 0);
        for (i, backend) in destination.backends.iter().enumerate() {
            index.entry(backend.name.without_consumer()).or_insert(i + 1);
        }
        Self { index }
    }

    fn resolve(&self, target: &BackendTarget) -> Result<Target, FieldError> {
        match target {
            BackendTarget::Invalid(why) => Ok(Target::Invalid(Arc::from(why.as_str()))),
            BackendTarget::Service(name) => {
                let index = self.index.get(&name.without_consumer()).ok_or_else(|| {
                    FieldError::at("target", format!("{name} is not among the backends"))
                })?;
                Ok(Target::Backend(*index))
            }
        }
    }
}

fn compile_backends(destination: &Destination) -> Vec<CompiledBackend> {
    let itself = Backend {
        name: destination.name.clone(),
        protocol: destination.protocol,
        balancer: destination.balancer.clone(),
    };
    std::iter::once(&itself)
        .chain(&destination.backends)
        .map(|backend| {
            let name = backend.name.without_consumer();
            CompiledBackend {
                label: Arc::from(name.to_string()),
                name,
                protocol: backend.protocol,
                balancer: backend.balancer.clone(),
            }
        })
        .collect()
}

fn compile_http(
    routes: &[HttpRoute],
    targets: &Targets,
    rules: &mut Vec<Rule>,
) -> Result<Option<HttpTable>, FieldError> {
    if routes.is_empty() {
        return Ok(None);
    }
    let mut builder = HttpTableBuilder::default();
    for (r, route) in routes.iter().enumerate() {
        let label: Arc<str> = Arc::from(route.name.as_str());
        for (i, rule) in route.rules.iter().enumerate() {
            let under =
                |e: FieldError| e.under(format!("rules[{i}]")).under(format!("http_routes[{r}]"));
            let order = Order { created: route.created, route: &route.name, rule: i };
            builder.add(&route.hostnames, &rule.matches, rules.len(), order).map_err(under)?;
            rules.push(compile_rule(rule, &label, targets).map_err(under)?);
        }
    }
    Ok(Some(builder.build()))
}

fn compile_rule(rule: &HttpRule, route: &Arc<str>, targets: &Targets) -> Result<Rule, FieldError> {
    let filters = compile_filters(&rule.filters, targets)?;
    let shares = rule
        .backends
        .iter()
        .enumerate()
        .map(|(i, backend)| {
            compile_share(backend, rule, targets).map_err(|e| e.under(format!("backends[{i}]")))
        })
        .collect::<Result<_, _>>()?;
    if filters.redirect.as_ref().is_some_and(|r| replaces_prefix(r.path.as_ref())) {
        require_prefix_matches(rule)?;
    }
    if filters.rewrite.as_ref().is_some_and(|r| replaces_prefix(r.path.as_ref())) {
        require_prefix_matches(rule)?;
    }
    Ok(Rule { route: Arc::clone(route), filters, split: Split::new(shares) })
}

fn compile_share(
    backend: &WeightedBackend,
    rule: &HttpRule,
    targets: &Targets,
) -> Result<Share, FieldError> {
    let filters = compile_filters(&backend.filters, targets)?;
    if filters.redirect.is_some() {
        return Err(FieldError::at(
            "filters",
            "a redirect answers before a backend is chosen: put it on the rule",
        ));
    }
    if filters.rewrite.as_ref().is_some_and(|r| replaces_prefix(r.path.as_ref())) {
        require_prefix_matches(rule)?;
    }
    Ok(Share { target: targets.resolve(&backend.target)?, weight: backend.weight, filters })
}

fn replaces_prefix(path: Option<&PathModifier>) -> bool {
    matches!(path, Some(PathModifier::Prefix(_)))
}

fn require_prefix_matches(rule: &HttpRule) -> Result<(), FieldError> {
    for (i, one) in rule.matches.iter().enumerate() {
        if !matches!(one.path, None | Some(PathMatch::Prefix(_))) {
            return Err(FieldError::at(
                format!("matches[{i}].path"),
                "must be a prefix match, because a filter of the rule replaces the prefix",
            ));
        }
    }
    Ok(())
}

fn compile_filters(filters: &[Filter], targets: &Targets) -> Result<Filters, FieldError> {
    let mut compiled = Filters::default();
    for (i, filter) in filters.iter().enumerate() {
        add_filter(&mut compiled, filter, targets).map_err(|e| e.under(format!("filters[{i}]")))?;
    }
    if compiled.redirect.is_some() && compiled.rewrite.is_some() {
        return Err(FieldError::at("filters", "a redirect and a rewrite exclude each other"));
    }
    Ok(compiled)
}

fn add_filter(
    compiled: &mut Filters,
    filter: &Filter,
    targets: &Targets,
) -> Result<(), FieldError> {
    match filter {
        Filter::RequestHeaders(modifier) => compiled.request_headers.push(modifier.clone()),
        Filter::ResponseHeaders(modifier) => compiled.response_headers.push(modifier.clone()),
        Filter::Redirect(redirect) => {
            check_redirect(redirect).map_err(|e| e.under("redirect"))?;
            if compiled.redirect.replace(redirect.clone()).is_some() {
                return Err(FieldError::at("redirect", "there is already a redirect"));
            }
        }
        Filter::Rewrite(rewrite) => {
            check_host(rewrite.host.as_deref()).map_err(|e| e.under("rewrite"))?;
            check_path_modifier(rewrite.path.as_ref()).map_err(|e| e.under("rewrite"))?;
            if compiled.rewrite.replace(rewrite.clone()).is_some() {
                return Err(FieldError::at("rewrite", "there is already a rewrite"));
            }
        }
        Filter::Mirror(mirror) => {
            let mirror = compile_mirror(mirror, targets).map_err(|e| e.under("mirror"))?;
            compiled.mirrors.push(mirror);
        }
    }
    Ok(())
}

fn compile_mirror(mirror: &Mirror, targets: &Targets) -> Result<CompiledMirror, FieldError> {
    if mirror.denominator == 0 {
        return Err(FieldError::at("denominator", "must be at least 1"));
    }
    if mirror.numerator > mirror.denominator {
        return Err(FieldError::at("numerator", "must not exceed the denominator"));
    }
    Ok(CompiledMirror {
        target: targets.resolve(&mirror.target)?,
        numerator: mirror.numerator,
        denominator: mirror.denominator,
    })
}

fn check_redirect(redirect: &Redirect) -> Result<(), FieldError> {
    if let Some(scheme) = &redirect.scheme
        && scheme != "http"
        && scheme != "https"
    {
        return Err(FieldError::at("scheme", format!("{scheme:?} must be http or https")));
    }
    if redirect.port == Some(0) {
        return Err(FieldError::at("port", "must be between 1 and 65535"));
    }
    const ALLOWED: [StatusCode; 5] = [
        StatusCode::MOVED_PERMANENTLY,
        StatusCode::FOUND,
        StatusCode::SEE_OTHER,
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ];
    if !ALLOWED.contains(&redirect.status) {
        let status = redirect.status.as_u16();
        return Err(FieldError::at(
            "status",
            format!("{status} must be 301, 302, 303, 307 or 308"),
        ));
    }
    check_host(redirect.host.as_deref())?;
    check_path_modifier(redirect.path.as_ref())
}

fn check_host(host: Option<&str>) -> Result<(), FieldError> {
    let Some(host) = host else { return Ok(()) };
    match host.parse::<http::uri::Authority>() {
        Ok(authority) if authority.host() == host => Ok(()),
        _ => Err(FieldError::at("host", format!("{host:?} is not a host name"))),
    }
}

fn check_path_modifier(modifier: Option<&PathModifier>) -> Result<(), FieldError> {
    let path = match modifier {
        None => return Ok(()),
        // Nothing in place of the prefix: the rest of the path remains.
        Some(PathModifier::Prefix(path)) if path.is_empty() => return Ok(()),
        Some(PathModifier::Prefix(path) | PathModifier::Full(path)) => path,
    };
    if !path.starts_with('/') {
        return Err(FieldError::at("path", format!("{path:?} must begin with \"/\"")));
    }
    match path.parse::<PathAndQuery>() {
        Ok(parsed) if parsed.as_str() == path && parsed.query().is_none() => Ok(()),
        _ => Err(FieldError::at("path", format!("{path:?} is not a valid path"))),
    }
}

fn compile_tls(
    destination: &Destination,
    targets: &Targets,
    streams: &mut Vec<(Arc<str>, Split)>,
) -> Result<Option<HostTable<Option<usize>>>, FieldError> {
    if destination.tls_routes.is_empty() {
        return Ok(None);
    }
    let mut order: Vec<_> = destination.tls_routes.iter().enumerate().collect();
    order.sort_by_key(|(_, route)| (route.created, &route.name));
    let mut table = HostTable::default();
    for (i, route) in order {
        let split = stream_split(&route.backends, targets)
            .map_err(|e| e.under(format!("tls_routes[{i}]")))?;
        let index = streams.len();
        streams.push((Arc::from(route.name.as_str()), split));
        // The older route was there first and keeps the name.
        table.for_each(&route.hostnames, |slot: &mut Option<usize>| {
            slot.get_or_insert(index);
        });
    }
    Ok(Some(table))
}

fn stream_split(backends: &[TcpBackend], targets: &Targets) -> Result<Split, FieldError> {
    let shares = backends
        .iter()
        .enumerate()
        .map(|(i, backend)| {
            let target =
                targets.resolve(&backend.target).map_err(|e| e.under(format!("backends[{i}]")))?;
            Ok(Share { target, weight: backend.weight, filters: Filters::default() })
        })
        .collect::<Result<_, _>>()?;
    Ok(Split::new(shares))
}
