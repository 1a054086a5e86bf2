//! The ports of this proxy's own app: what was registered, with what the control plane knows of it.

use std::net::IpAddr;

use outrigger_core::config::{Inbound, MtlsMode, Protocol};
use outrigger_core::reason::Reason;

use crate::http::respond::Refusal;
use crate::metrics::Label;
use crate::peer::Peer;
use crate::proxy::Proxy;
use crate::settings::Settings;

/// What the inbound side may forward to. Never anything else.
#[derive(Clone, Debug)]
pub struct InboundPorts {
    /// Where the app listens.
    pub app: IpAddr,
    ports: Vec<InboundPort>,
}

#[derive(Clone, Copy, Debug)]
pub struct InboundPort {
    pub port: u16,
    protocol: Protocol,
    pub service: Label,
    /// Only callers that have proved an identity; never in a mesh without.
    strict: bool,
}

impl InboundPorts {
    /// The ports named by `--app-port`, before the control plane says more: until it says whether
    /// plaintext may come in, none may.
    pub fn registered(settings: &Settings, identity: bool) -> Self {
        let ports = settings.app_ports.iter().map(|app| InboundPort {
            port: app.port,
            protocol: app.protocol,
            service: Label::UNKNOWN,
            strict: identity,
        });
        Self { app: settings.app_address, ports: ports.collect() }
    }

    /// The same with what the control plane knows of this workload.
    pub fn from_config(proxy: &Proxy, inbound: &Inbound) -> Self {
        let identity = proxy.identity.is_some();
        let mut all = Self::registered(&proxy.settings, identity);
        for known in &inbound.ports {
            let service = known
                .service
                .as_ref()
                .map_or(Label::UNKNOWN, |name| proxy.metrics.label(&name.to_string()));
            let strict = identity && known.mtls == MtlsMode::Strict;
            match all.ports.iter_mut().find(|port| port.port == known.port) {
                Some(port) => {
                    port.service = service;
                    port.strict = strict;
                    if port.protocol == Protocol::Detect {
                        port.protocol = known.protocol;
                    }
                }
                None => all.ports.push(InboundPort {
                    port: known.port,
                    protocol: known.protocol,
                    service,
                    strict,
                }),
            }
        }
        all
    }

    /// Whether every port takes only callers with an identity.
    pub fn all_strict(&self) -> bool {
        self.ports.iter().all(|port| port.strict)
    }

    pub fn port(&self, port: u16) -> Result<&InboundPort, Refusal> {
        self.ports.iter().find(|known| known.port == port).ok_or_else(|| {
            Refusal::new(Reason::PortNotServed, format!("this workload serves no port {port}"))
        })
    }
}

impl InboundPort {
    /// What the app speaks: as declared, else as the caller speaks.
    pub fn protocol_or(&self, callers: Protocol) -> Protocol {
        if self.protocol.is_http() { self.protocol } else { callers }
    }

    pub fn declared(&self) -> Protocol {
        self.protocol
    }

    pub fn strict(&self) -> bool {
        self.strict
    }

    /// Refuses a caller that has to prove who it is and has not.
    pub fn admit(&self, peer: Peer) -> Result<(), Refusal> {
        if self.strict && peer != Peer::Mesh {
            return Err(Refusal::new(
                Reason::MtlsRequired,
                format!("port {} takes no plaintext from outside the mesh", self.port),
            ));
        }
        Ok(())
    }
}
