//! ExternalServices: what they say, and the names that others know them by.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use outrigger_core::config::{Balancer, Endpoint, OutsideTls, Protocol};
use outrigger_core::name::{Authority, DestinationName, EndpointId, Host};

use super::{Service, ServiceId, ServicePort, TargetPort};

/// A service outside the mesh.
#[derive(Clone, Debug, PartialEq)]
pub struct External {
    pub namespace: String,
    pub name: String,
    /// Seconds since the Unix epoch, 0 when the manifest says nothing.
    pub created: i64,
    /// Host name or IP address, IPv6 in brackets.
    pub host: String,
    pub port: u16,
    /// Host and port as apps of its namespace dial them.
    pub dialled: Authority,
    pub protocol: Protocol,
    /// None: the addresses of the host, which are looked up.
    pub endpoints: Option<BTreeSet<SocketAddr>>,
    pub tls: Option<ExternalTls>,
}

impl External {
    /// What callers and policies know it by: no Service has such a name.
    pub fn service(&self) -> ServiceId {
        ServiceId::external(&self.namespace, &self.name)
    }

    /// The name that has to be looked up.
    pub fn looked_up(&self) -> Option<&str> {
        match (&self.endpoints, &self.dialled.host) {
            // Without the namespace that short names are given.
            (None, Host::Name(_)) => Some(&self.host),
            _ => None,
        }
    }
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ExternalTls {
    /// In DER; empty: the system's.
    pub roots: Vec<Vec<u8>>,
}

impl External {
    /// As a Service with one port.
    pub fn as_service(&self) -> Service {
        let port = ServicePort {
            port: self.port,
            name: String::new(),
            target: TargetPort::Number(self.port),
            protocol: self.protocol,
        };
        Service {
            id: self.service(),
            cluster_ips: Vec::new(),
            headless: false,
            selector: BTreeMap::new(),
            ports: vec![port],
            balancer: Balancer::default(),
            publish_not_ready: false,
            min_healthy_percent: None,
            alias: None,
            same_node_only: false,
        }
    }

    /// The endpoints of its one port. `looked_up`: the addresses of its host, where its endpoints are not
    /// written down.
    pub fn endpoints(
        &self,
        destination: &DestinationName,
        looked_up: BTreeSet<IpAddr>,
    ) -> Vec<Endpoint> {
        let looked_up = looked_up.into_iter().map(|ip| SocketAddr::new(ip, self.port));
        let addresses: BTreeSet<SocketAddr> = match &self.endpoints {
            Some(endpoints) => endpoints.clone(),
            None => looked_up.collect(),
        };
        let tls = self.tls.as_ref().map(|tls| {
            let server_name = match &self.dialled.host {
                Host::Ip(ip) => ip.to_string(),
                // Without the namespace that short names are given.
                Host::Name(_) => self.host.trim_end_matches('.').to_owned(),
            };
            Arc::new(OutsideTls { server_name, roots: tls.roots.clone() })
        });
        let endpoint = |address: SocketAddr| {
            // An address makes a valid id.
            let id = EndpointId::new(address.ip().to_string(), address.port()).ok()?;
            Some(Endpoint {
                destination: destination.clone(),
                id,
                address,
                mesh: None,
                zone: None,
                hostname: None,
                workload: None,
                tls: tls.clone(),
            })
        };
        addresses.into_iter().filter_map(endpoint).collect()
    }
}
