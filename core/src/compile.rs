//! From a [`Destination`] as the control plane sends it to the form that a request reads.
//!
//! Everything that can be decided once is decided here: routes are sorted by Gateway API
//! precedence, regular expressions compiled, backend names turned into indexes, weights summed.
//! What does not make sense is refused with the path of the field. [`crate::route`] holds the
//! tables that come out; nothing here runs per request except the look-ups of [`Compiled`].

mod filters;

use std::collections::HashMap;
use std::sync::Arc;

use self::filters::compile_filters;
pub use self::filters::{CompiledMirror, Filters};
use crate::balance::hash;
use crate::config::{
    Backend, BackendTarget, Balancer, Destination, HttpRoute, HttpRule, PathMatch, Protocol,
    TcpBackend, WeightedBackend,
};
use crate::error::FieldError;
use crate::name::DestinationName;
use crate::policy::fallback::Give;
use crate::policy::{BackendPolicy, CallPolicy};
use crate::route::{HostTable, HttpTable, HttpTableBuilder, Order, RequestView};

/// A destination, ready to be read by any number of requests at once.
#[derive(Debug)]
pub struct Compiled {
    pub name: DestinationName,
    pub protocol: Protocol,
    /// How requests are called that match no rule.
    pub call: Arc<CallPolicy>,
    /// The destination itself, then [`Destination::backends`] in their order.
    pub backends: Vec<CompiledBackend>,
    /// None: no HTTP route is attached.
    http: Option<HttpTable>,
    rules: Vec<CompiledRule>,
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
    pub policy: BackendPolicy,
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
    pub rule: &'a CompiledRule,
    /// The prefix that a prefix match named, without a final `/` unless it is `/` itself; what a
    /// `PathModifier::Prefix` replaces.
    pub prefix: Option<&'a str>,
}

/// What happens to a request that one of the rule's matches chose.
#[derive(Debug)]
pub struct CompiledRule {
    /// `namespace/name` of its route.
    pub route: Arc<str>,
    /// Names the rule in its destination: a hash of its route and its name, else of its matches.
    pub id: u32,
    pub call: Arc<CallPolicy>,
    pub filters: Filters,
    pub split: Split,
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
    targets.check_call(&destination.call).map_err(|e| e.under("call"))?;
    let call = Arc::new(destination.call.clone());
    let mut rules = Vec::new();
    let http = compile_http(&destination.http_routes, &targets, &call, &mut rules)?;

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
        call,
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

    /// The index of a service in [`Compiled::backends`].
    pub fn backend(&self, name: &DestinationName) -> Option<usize> {
        let name = name.without_consumer();
        self.backends.iter().position(|backend| backend.name == name)
    }

    /// Whether requests are routed, so that treating a connection as opaque would bypass a route.
    pub fn has_http_routes(&self) -> bool {
        self.http.is_some()
    }

    /// The names of all routes, as rules and splits refer to them; some more than once.
    pub fn route_names(&self) -> impl Iterator<Item = &Arc<str>> {
        self.rules.iter().map(|rule| &rule.route).chain(self.streams.iter().map(|(name, _)| name))
    }

    fn stream(&self, index: usize) -> StreamRouting<'_> {
        let (route, split) = &self.streams[index];
        StreamRouting::Split { route, split }
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

impl Targets {
    /// Whether every service that a fallback names is among the backends. A proxy looks its index up
    /// only once something has failed ([`Compiled::backend`]).
    fn check_call(&self, call: &CallPolicy) -> Result<(), FieldError> {
        for (i, fallback) in call.fallbacks.iter().enumerate() {
            if let Give::Backend(target) = &fallback.give {
                self.resolve(target).map_err(|e| e.under(format!("fallbacks[{i}].backend")))?;
            }
        }
        Ok(())
    }
}

fn compile_backends(destination: &Destination) -> Vec<CompiledBackend> {
    let itself = Backend {
        name: destination.name.clone(),
        protocol: destination.protocol,
        balancer: destination.balancer.clone(),
        policy: destination.policy.clone(),
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
                policy: backend.policy.clone(),
            }
        })
        .collect()
}

fn compile_http(
    routes: &[HttpRoute],
    targets: &Targets,
    call: &Arc<CallPolicy>,
    rules: &mut Vec<CompiledRule>,
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
            rules.push(compile_rule(rule, &label, targets, call).map_err(under)?);
        }
    }
    Ok(Some(builder.build()))
}

fn compile_rule(
    rule: &HttpRule,
    route: &Arc<str>,
    targets: &Targets,
    default: &Arc<CallPolicy>,
) -> Result<CompiledRule, FieldError> {
    let filters = compile_filters(&rule.filters, targets)?;
    let shares = rule
        .backends
        .iter()
        .enumerate()
        .map(|(i, backend)| {
            compile_share(backend, rule, targets).map_err(|e| e.under(format!("backends[{i}]")))
        })
        .collect::<Result<_, _>>()?;
    if filters.replaces_prefix() {
        require_prefix_matches(rule)?;
    }
    if let Some(call) = &rule.call {
        targets.check_call(call).map_err(|e| e.under("call"))?;
    }
    let call = rule.call.clone().map_or_else(|| Arc::clone(default), Arc::new);
    let name = rule.name.clone().unwrap_or_else(|| format!("{:?}", rule.matches));
    let id = hash(format!("{route}/{name}").as_bytes()) as u32;
    Ok(CompiledRule { route: Arc::clone(route), id, call, filters, split: Split::new(shares) })
}

fn compile_share(
    backend: &WeightedBackend,
    rule: &HttpRule,
    targets: &Targets,
) -> Result<Share, FieldError> {
    let filters = compile_filters(&backend.filters, targets)?;
    if filters.replaces_prefix() {
        require_prefix_matches(rule)?;
    }
    Ok(Share { target: targets.resolve(&backend.target)?, weight: backend.weight, filters })
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
