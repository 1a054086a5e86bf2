//! What proxies take of a resource: each is read and compiled here as it will be there.
//!
//! What would be refused, or is too large to be sent, is left out by itself, so that the rest of the
//! resource is in force. Where something left out decides who may do what, nobody may: a rule answers
//! 500, a port lets nobody in. Objects are checked when they are accepted
//! (`translate/vet.rs`); here it is what several of them make together.

use outrigger_core::compile::compile;
use outrigger_core::config::{
    Backend, BackendTarget, Destination, HttpRoute, HttpRule, Inbound, TcpRoute, TlsRoute,
    WeightedBackend,
};
use outrigger_core::error::FieldError;
use outrigger_core::policy::access::{Access, Action, CompiledAccess};
use outrigger_core::policy::{BackendPolicy, CallPolicy};
use outrigger_proto::convert;
use outrigger_proto::wire::MAX_RESPONSE;
use prost::Message;

use crate::translate::access_policy::check_keys;

/// Bytes of one resource: a response that holds it, its names and aliases stays below [`MAX_RESPONSE`].
pub const MAX_RESOURCE: usize = MAX_RESPONSE / 4 * 3;

/// Something that was left out, and why.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LeftOut {
    pub part: ResourcePart,
    pub problem: FieldError,
}

/// A part of a resource that is left out as a whole.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ResourcePart {
    /// A route, `namespace/name`.
    Route(String),
    /// What policies say about calls of a Service or its protection.
    Policy,
    /// What is asked at a port before anybody is let in.
    Access(u16),
    /// How much a port takes.
    Server(u16),
    /// Everything: the resource is not sent.
    Whole,
}

/// Bytes of a resource, and what is not in them; no bytes: nothing of it can be sent.
#[derive(Debug)]
pub(super) struct Fitted {
    pub(super) body: Option<Vec<u8>>,
    pub(super) left_out: Vec<LeftOut>,
}

impl Fitted {
    fn whole(body: Result<Vec<u8>, FieldError>, mut left_out: Vec<LeftOut>) -> Self {
        match body {
            Ok(body) => Self { body: Some(body), left_out },
            Err(problem) => {
                left_out.push(LeftOut { part: ResourcePart::Whole, problem });
                Self { body: None, left_out }
            }
        }
    }
}

pub(super) fn destination(value: &Destination) -> Fitted {
    if let Ok(body) = encode(value) {
        return Fitted { body: Some(body), left_out: Vec::new() };
    }
    let mut fitting = Fitting::new(value);
    fitting.policies(value);
    let mut routes: Vec<&HttpRoute> = value.http_routes.iter().collect();
    routes.sort_by_key(|route| (route.created, &route.name));
    for route in routes {
        let add = |to: &mut Destination| to.http_routes.push(route.clone());
        let instead =
            |to: &mut Destination, why: String| to.http_routes.push(refusing(route, &why));
        fitting.add(ResourcePart::Route(route.name.clone()), add, instead);
    }
    for route in &value.tls_routes {
        let closed = || TlsRoute { backends: Vec::new(), ..route.clone() };
        let add = |to: &mut Destination| to.tls_routes.push(route.clone());
        let instead = |to: &mut Destination, _| to.tls_routes.push(closed());
        fitting.add(ResourcePart::Route(route.name.clone()), add, instead);
    }
    if let Some(route) = &value.tcp_route {
        let closed = || TcpRoute { backends: Vec::new(), ..route.clone() };
        let add = |to: &mut Destination| to.tcp_route = Some(route.clone());
        let instead = |to: &mut Destination, _| to.tcp_route = Some(closed());
        fitting.add(ResourcePart::Route(route.name.clone()), add, instead);
    }
    Fitted::whole(encode(&fitting.value), fitting.left_out)
}

/// A destination that grows by what proxies would take.
struct Fitting {
    /// Without anything that may be left out.
    bare: Destination,
    bare_len: usize,
    value: Destination,
    len: usize,
    left_out: Vec<LeftOut>,
}

impl Fitting {
    fn new(value: &Destination) -> Self {
        let plain = |backend: &Backend| Backend {
            policy: BackendPolicy::default(),
            name: backend.name.clone(),
            protocol: backend.protocol,
            balancer: backend.balancer.clone(),
        };
        let bare = Destination {
            name: value.name.clone(),
            protocol: value.protocol,
            balancer: value.balancer.clone(),
            call: CallPolicy::default(),
            policy: BackendPolicy::default(),
            backends: value.backends.iter().map(plain).collect(),
            http_routes: Vec::new(),
            tls_routes: Vec::new(),
            tcp_route: None,
        };
        let bare_len = convert::destination::to_wire(&bare).encoded_len();
        Self { value: bare.clone(), len: bare_len, bare, bare_len, left_out: Vec::new() }
    }

    fn policies(&mut self, value: &Destination) {
        let nothing = |_: &mut Destination, _| {};
        self.add(ResourcePart::Policy, |to| to.policy = value.policy.clone(), nothing);
        self.add(ResourcePart::Policy, |to| to.call = value.call.clone(), nothing);
        for (i, backend) in value.backends.iter().enumerate() {
            let add = |to: &mut Destination| to.backends[i].policy = backend.policy.clone();
            self.add(ResourcePart::Policy, add, nothing);
        }
    }

    /// Adds a part if a proxy would take it and there is room, else what stands in its place. Each part
    /// is looked at by itself: what one needs of others, the backends, is always there.
    fn add(
        &mut self,
        part: ResourcePart,
        add: impl Fn(&mut Destination),
        instead: impl FnOnce(&mut Destination, String),
    ) {
        let mut alone = self.bare.clone();
        add(&mut alone);
        let checked = encode(&alone).and_then(|body| {
            let more = body.len().saturating_sub(self.bare_len);
            check_len(self.len + more).map(|()| more)
        });
        match checked {
            Ok(more) => {
                self.len += more;
                add(&mut self.value);
            }
            Err(problem) => {
                let before = self.value.clone();
                instead(&mut self.value, problem.to_string());
                let len = convert::destination::to_wire(&self.value).encoded_len();
                match check_len(len) {
                    Ok(()) => self.len = len,
                    Err(_) => self.value = before,
                }
                self.left_out.push(LeftOut { part, problem });
            }
        }
    }
}

/// The route as one that answers 500 to whatever no other rule matches.
fn refusing(route: &HttpRoute, why: &str) -> HttpRoute {
    let target = BackendTarget::Invalid(format!("the route is left out: {why}"));
    let rule = HttpRule {
        name: None,
        matches: Vec::new(),
        filters: Vec::new(),
        call: None,
        backends: vec![WeightedBackend { target, weight: 1, filters: Vec::new() }],
    };
    HttpRoute { rules: vec![rule], hostnames: Vec::new(), name: route.name.clone(), ..*route }
}

fn encode(value: &Destination) -> Result<Vec<u8>, FieldError> {
    let wire = convert::destination::to_wire(value);
    check_len(wire.encoded_len())?;
    compile(&convert::destination::from_wire(&wire)?)?;
    Ok(wire.encode_to_vec())
}

pub(super) fn inbound(value: &Inbound) -> Fitted {
    if let Ok(body) = encode_inbound(value) {
        return Fitted { body: Some(body), left_out: Vec::new() };
    }
    let mut left_out = Vec::new();
    let mut bare = value.clone();
    for port in &mut bare.ports {
        (port.access, port.server) = (Some(nobody()), None);
        // Who may call is worth more than what calls are counted as.
        port.services.truncate(1);
    }
    let mut fitted = bare.clone();
    for (i, port) in value.ports.iter().enumerate() {
        let mut with = fitted.clone();
        with.ports[i].server = port.server.clone();
        match encode_inbound(&with) {
            Ok(_) => fitted = with,
            Err(problem) => {
                left_out.push(LeftOut { part: ResourcePart::Server(port.port), problem });
            }
        }
        let mut with = fitted.clone();
        with.ports[i].access = port.access.clone();
        match encode_inbound(&with) {
            Ok(_) => fitted = with,
            Err(problem) => {
                left_out.push(LeftOut { part: ResourcePart::Access(port.port), problem });
            }
        }
    }
    Fitted::whole(encode_inbound(&fitted), left_out)
}

fn nobody() -> Access {
    Access { default: Action::Deny, ..Access::default() }
}

fn encode_inbound(value: &Inbound) -> Result<Vec<u8>, FieldError> {
    let wire = convert::inbound::to_wire(value);
    check_len(wire.encoded_len())?;
    let read = convert::inbound::from_wire(&wire)?;
    for (i, port) in read.ports.iter().enumerate() {
        let Some(access) = &port.access else { continue };
        let under = |e: FieldError| e.under(format!("ports[{i}].access"));
        CompiledAccess::new(access).map_err(under)?;
        for (j, token) in access.tokens.iter().enumerate() {
            check_keys(&token.keys).map_err(|e| under(e.under(format!("tokens[{j}].keys"))))?;
        }
    }
    Ok(wire.encode_to_vec())
}

/// Whether a message can be sent as one resource.
pub(super) fn check_len(len: usize) -> Result<(), FieldError> {
    if len <= MAX_RESOURCE {
        return Ok(());
    }
    Err(FieldError::here(format!(
        "would make {len} bytes for each proxy, at most {MAX_RESOURCE} are sent"
    )))
}
