//! The ports of this proxy's own app: what was registered, with what the control plane knows of it.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use outrigger_core::config::{Inbound, MtlsMode, Protocol};
use outrigger_core::error::FieldError;
use outrigger_core::reason::Reason;

use crate::base::peer::Peer;
use crate::base::refusal::Refusal;
use crate::base::settings::Settings;
use crate::observe::metrics::{HeldLabel, Label, Metrics};
use crate::policy::access::PortRules;
use crate::policy::limits::PortLimits;
use crate::policy::limits::known::LimitStates;
use crate::tls::caller::MeshCaller;

/// What the inbound side may forward to. Never anything else.
#[derive(Clone, Debug)]
pub struct InboundPorts {
    /// Where the app listens.
    pub app: IpAddr,
    ports: Vec<InboundPort>,
    configured: bool,
}

#[derive(Clone, Debug)]
pub struct InboundPort {
    pub port: u16,
    protocol: Protocol,
    /// The services that select it, each with its name.
    services: Vec<(Box<str>, HeldLabel)>,
    /// Only callers that have proved an identity; never in a mesh without.
    strict: bool,
    /// The control plane, or what it said before, has spoken about it. Until then nobody may call it.
    configured: bool,
    /// Who may call it; none: everybody.
    pub rules: Option<Arc<PortRules>>,
    /// How much it takes; none: whatever comes.
    pub limits: Option<Arc<PortLimits>>,
}

impl InboundPorts {
    /// The ports named by `--app-port`, before the control plane says more: until it says who may come in,
    /// nobody may.
    pub fn registered(settings: &Settings, identity: bool) -> Self {
        let ports = settings.app_ports.iter().map(|app| InboundPort {
            port: app.port,
            protocol: app.protocol,
            services: Vec::new(),
            strict: identity,
            configured: false,
            rules: None,
            limits: None,
        });
        Self { app: settings.app_address, ports: ports.collect(), configured: false }
    }

    /// The same with what the control plane knows of this workload.
    /// `identity`: the mesh has identities.
    pub fn from_config(
        (settings, identity): (&Settings, bool),
        metrics: &Metrics,
        limits: &LimitStates,
        inbound: &Inbound,
    ) -> Result<Self, FieldError> {
        let mut all = Self::registered(settings, identity);
        all.configured = true;
        for port in &mut all.ports {
            port.configured = true;
        }
        for (i, known) in inbound.ports.iter().enumerate() {
            let label = |name: String| (name.clone().into(), metrics.label(&name));
            let services = known.services.iter().map(|name| label(name.to_string())).collect();
            let rules = known.access.as_ref().map(PortRules::new).transpose();
            let rules = rules.map_err(|e| e.under(format!("ports[{i}].access")))?.map(Arc::new);
            let strict = identity && known.mtls == MtlsMode::Strict;
            match all.ports.iter_mut().find(|port| port.port == known.port) {
                Some(port) => {
                    port.services = services;
                    port.strict = strict;
                    port.rules = rules;
                    // What callers speak may have changed since this process was started.
                    if known.protocol != Protocol::Detect {
                        port.protocol = known.protocol;
                    }
                }
                None => all.ports.push(InboundPort {
                    port: known.port,
                    protocol: known.protocol,
                    services,
                    strict,
                    configured: true,
                    rules,
                    limits: None,
                }),
            }
        }
        // Nothing can fail any more: what is refused as a whole must not change live limits.
        let limits = limits.apply(&inbound.ports, Instant::now());
        for (known, limits) in inbound.ports.iter().zip(limits) {
            if let Some(port) = all.ports.iter_mut().find(|port| port.port == known.port) {
                port.limits = limits;
            }
        }
        Ok(all)
    }

    /// Nobody may call anything: who may is written in a way that this build does not understand.
    pub fn closed(&self) -> Self {
        let rules = PortRules::nobody();
        let close =
            |port: &InboundPort| InboundPort { rules: Some(Arc::clone(&rules)), ..port.clone() };
        Self { ports: self.ports.iter().map(close).collect(), ..*self }
    }

    /// Whether every port has rules that let this caller do nothing.
    pub fn is_denied(&self, caller: Option<&MeshCaller>, address: IpAddr) -> bool {
        let could = |rules: &Arc<PortRules>| rules.could_allow(caller, address);
        !self.ports.is_empty()
            && self.ports.iter().all(|port| !port.rules.as_ref().is_none_or(could))
    }

    /// Whether every port takes only callers with an identity.
    pub fn all_strict(&self) -> bool {
        self.ports.iter().all(|port| port.strict)
    }

    pub fn ports(&self) -> impl Iterator<Item = &InboundPort> {
        self.ports.iter()
    }

    pub fn port(&self, port: u16) -> Result<&InboundPort, Refusal> {
        self.ports.iter().find(|known| known.port == port).ok_or_else(|| {
            if !self.configured {
                let why = "the ports of this workload are not configured yet";
                return Refusal::new(Reason::ConfigUnavailable, why);
            }
            Refusal::new(Reason::PortNotServed, format!("this workload does not serve port {port}"))
        })
    }
}

impl InboundPort {
    /// What the app speaks: as declared, else as the caller speaks.
    pub fn protocol_or(&self, callers: Protocol) -> Protocol {
        if self.protocol.is_http() { self.protocol } else { callers }
    }

    /// Names of the services that select it, in order.
    pub fn services(&self) -> impl Iterator<Item = &str> {
        self.services.iter().map(|(name, _)| &**name)
    }

    /// The service that is called: the one that another proxy has `named` where it is one of this port's, else
    /// the first.
    pub fn service(&self, named: Option<&[u8]>) -> Label {
        let is_named = |name: &str| named.is_some_and(|named| named == name.as_bytes());
        let called = match self.services.as_slice() {
            [_, _, ..] => self.services.iter().find(|(name, _)| is_named(name)),
            _ => None,
        };
        called.or(self.services.first()).map_or(Label::UNKNOWN, |(_, label)| label.get())
    }

    /// Whether anything has been said about it yet.
    pub fn is_configured(&self) -> bool {
        self.configured
    }

    pub fn declared(&self) -> Protocol {
        self.protocol
    }

    /// Whether plaintext is refused, so that a connection has to be looked into to tell why.
    pub fn strict(&self) -> bool {
        self.strict || !self.configured
    }

    /// Refuses a stream of bytes where requests are expected: none of what is said about requests would
    /// hold for those in it.
    pub fn admit_opaque(&self) -> Result<(), Refusal> {
        let undeclared = matches!(self.protocol, Protocol::Detect);
        if self.protocol.is_http() || (undeclared && self.limits.is_some()) {
            let why = format!(
                "port {} accepts only HTTP requests, but this is an opaque stream",
                self.port
            );
            return Err(Refusal::new(Reason::ProtocolError, why));
        }
        Ok(())
    }

    /// Refuses a caller that has to prove who it is and has not, and everybody before the first configuration.
    pub fn admit(&self, peer: Peer) -> Result<(), Refusal> {
        if !self.configured {
            let why = "the access rules of this workload are not configured yet";
            return Err(Refusal::new(Reason::ConfigUnavailable, why));
        }
        if self.strict && peer != Peer::Mesh {
            return Err(Refusal::new(
                Reason::MtlsRequired,
                format!("port {} accepts no plaintext from outside the mesh", self.port),
            ));
        }
        Ok(())
    }
}
