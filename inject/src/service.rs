//! What is read of a Service: which pods it selects, and how they are spoken to.

use std::collections::BTreeMap;

use outrigger_core::config::Protocol;
use serde_json::Value;

/// A v1 `Service`, as far as it says something about the ports of pods.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Service {
    pub name: String,
    /// Labels that a pod must have; empty selects none.
    pub selector: BTreeMap<String, String>,
    /// TCP alone.
    pub ports: Vec<ServicePort>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServicePort {
    pub target: Target,
    /// By `appProtocol`, else by the port's name.
    pub protocol: Protocol,
}

/// The port of a pod that a Service's port leads to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Number(u16),
    Name(String),
}

impl Service {
    /// Reads a Service as it is written in a manifest. None: it is none, or selects no pods. What is wrong in it
    /// is left out: it is for the control plane to say so.
    pub fn read(object: &Value) -> Option<Self> {
        let (kind, version) = (object["kind"].as_str()?, object["apiVersion"].as_str()?);
        let spec = &object["spec"];
        if (kind, version) != ("Service", "v1") || spec["type"] == "ExternalName" {
            return None;
        }
        let selector = spec["selector"].as_object()?.iter();
        let selector: Option<BTreeMap<_, _>> =
            selector.map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect();
        let ports = spec["ports"].as_array().into_iter().flatten().filter_map(port);
        let name = object["metadata"]["name"].as_str()?.to_owned();
        Some(Self { name, selector: selector?, ports: ports.collect() })
    }

    pub(crate) fn selects(&self, labels: &Value) -> bool {
        !self.selector.is_empty() && self.selector.iter().all(|(key, value)| labels[key] == **value)
    }
}

fn port(raw: &Value) -> Option<ServicePort> {
    if raw["protocol"].as_str().is_some_and(|protocol| protocol != "TCP") {
        return None;
    }
    let target = match &raw["targetPort"] {
        Value::String(name) => match name.parse() {
            Ok(port) if port != 0 => Target::Number(port),
            _ => Target::Name(name.clone()),
        },
        // 0 is what some writers leave for "same as port".
        Value::Number(port) if port.as_u64() != Some(0) => {
            Target::Number(number(&raw["targetPort"])?)
        }
        _ => Target::Number(number(&raw["port"])?),
    };
    let protocol = match raw["appProtocol"].as_str() {
        Some(app) => Protocol::from_app_protocol(app).unwrap_or_default(),
        None => Protocol::from_port_name(raw["name"].as_str().unwrap_or_default()),
    };
    Some(ServicePort { target, protocol })
}

/// A port number, as YAML or JSON has it.
pub(crate) fn number(value: &Value) -> Option<u16> {
    u16::try_from(value.as_u64()?).ok().filter(|port| *port != 0)
}
