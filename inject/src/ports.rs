//! The app's ports: those that its containers, the Services that select it and the kubelet's probes name.

use std::collections::BTreeMap;
use std::fmt;

use outrigger_core::config::Protocol;
use serde_json::Value;

use crate::pod::{containers, is_ours, name};
use crate::service::{Service, Target, number};

/// By number. UDP and SCTP are not among them: they pass by the proxy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct AppPorts(BTreeMap<u16, AppPort>);

#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct AppPort {
    protocol: Protocol,
    name: String,
}

impl AppPorts {
    /// A Service's word about a protocol stands for a port's name, as callers go by it.
    pub(crate) fn of(pod: &Value, services: &[Service]) -> Self {
        let mut ports: BTreeMap<u16, AppPort> = BTreeMap::new();
        for (_, container) in containers(pod).filter(|(_, container)| !is_ours(container)) {
            for raw in container["ports"].as_array().into_iter().flatten() {
                let Some(port) = number(&raw["containerPort"]).filter(|_| is_tcp(raw)) else {
                    continue;
                };
                let name = name(raw).to_owned();
                let protocol = Protocol::from_port_name(&name);
                ports.entry(port).or_insert(AppPort { protocol, name });
            }
        }
        let mut said = BTreeMap::new();
        let labels = &pod["metadata"]["labels"];
        let mut selecting: Vec<&Service> =
            services.iter().filter(|service| service.selects(labels)).collect();
        // In name order, as the control plane has them, so the first one that says something decides.
        selecting.sort_by_key(|service| &service.name);
        for port in selecting.into_iter().flat_map(|service| &service.ports) {
            let target = match &port.target {
                Target::Number(number) => Some(*number),
                Target::Name(name) => {
                    ports.iter().find(|(_, port)| port.name == *name).map(|(number, _)| *number)
                }
            };
            let Some(target) = target else { continue };
            ports.entry(target).or_default();
            if port.protocol != Protocol::Detect {
                said.entry(target).or_insert(port.protocol);
            }
        }
        for (target, protocol) in said {
            ports.entry(target).or_default().protocol = protocol;
        }
        Self(ports)
    }

    /// A port that a probe comes to, which need not be declared.
    pub(crate) fn add(&mut self, port: u16) {
        self.0.entry(port).or_default();
    }
}

/// As the proxy's `--app-port` takes them.
impl fmt::Display for AppPorts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, (number, port)) in self.0.iter().enumerate() {
            let comma = if i == 0 { "" } else { "," };
            write!(f, "{comma}{number}={}", port.protocol.as_str())?;
            if !port.name.is_empty() {
                write!(f, ":{}", port.name)?;
            }
        }
        Ok(())
    }
}

pub(crate) fn is_tcp(port: &Value) -> bool {
    port["protocol"].as_str().is_none_or(|protocol| protocol == "TCP")
}
