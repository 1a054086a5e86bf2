//! The ports of this proxy's own app: what was registered, with what the control plane knows of it.

use std::net::IpAddr;

use outrigger_core::config::{Inbound, Protocol};
use outrigger_core::reason::Reason;

use crate::http::respond::Refusal;
use crate::metrics::{Label, Metrics};
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
}

impl InboundPorts {
    /// The ports named by `--app-port`, before the control plane says more.
    pub fn registered(settings: &Settings) -> Self {
        let ports = settings.app_ports.iter().map(|app| InboundPort {
            port: app.port,
            protocol: app.protocol,
            service: Label::UNKNOWN,
        });
        Self { app: settings.app_address, ports: ports.collect() }
    }

    /// The same with what the control plane knows of this workload.
    pub fn from_config(settings: &Settings, inbound: &Inbound, metrics: &Metrics) -> Self {
        let mut all = Self::registered(settings);
        for known in &inbound.ports {
            let service = known
                .service
                .as_ref()
                .map_or(Label::UNKNOWN, |name| metrics.label(&name.to_string()));
            match all.ports.iter_mut().find(|port| port.port == known.port) {
                Some(port) => {
                    port.service = service;
                    if port.protocol == Protocol::Detect {
                        port.protocol = known.protocol;
                    }
                }
                None => all.ports.push(InboundPort {
                    port: known.port,
                    protocol: known.protocol,
                    service,
                }),
            }
        }
        all
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
}
