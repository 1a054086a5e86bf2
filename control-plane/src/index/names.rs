//! From what an app dials to the destination that it means.
//!
//! A Service answers to `svc.ns:port`, `svc.ns.svc:port`, `svc.ns.svc.<cluster domain>:port` and
//! its cluster addresses; an endpoint to its own address (of a headless Service first, then of the first by
//! name; see `Index::speakers`), and any endpoint with a host name to that name in front of the Service's. What none of them answers to may be the
//! host and port of an ExternalService of the caller's namespace. A Service of type ExternalName
//! is another name for its host, at any port.

use std::net::SocketAddr;

use outrigger_core::name::{Authority, DestinationName, EndpointId, Host};

use super::endpoints::may_speak;
use super::{Dep, Index, PortId};
use crate::object::ServiceId;

/// How many Services of type ExternalName may stand for one another before a name means nothing.
const MAX_ALIASES: u8 = 4;

/// What a dialled name means, and what that depends on.
#[derive(Clone, Debug, PartialEq, Eq, Default)]
pub struct Resolution {
    pub target: Option<Target>,
    /// The name is to be resolved again when one of these changes.
    pub deps: Vec<Dep>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    pub name: DestinationName,
    /// The one endpoint that was meant.
    pub pin: Option<EndpointId>,
}

impl Index {
    /// Resolves a name as a caller in `namespace` means it. A canonical destination name means
    /// itself, so that a proxy can ask again for what it has on disk.
    pub fn resolve(&self, dialled: &str, namespace: &str) -> Resolution {
        self.resolve_within(dialled, namespace, MAX_ALIASES)
    }

    fn resolve_within(&self, dialled: &str, namespace: &str, aliases: u8) -> Resolution {
        if let Ok(name) = dialled.parse::<DestinationName>() {
            let mut found = self.resolve_service(&PortId::from(&name), namespace);
            found.target =
                found.target.filter(|_| !name.is_external() || name.namespace == namespace);
            return found;
        }
        let Ok(authority) = Authority::parse(dialled, None) else {
            return Resolution::default();
        };
        match authority.in_namespace(namespace) {
            Authority { host: Host::Name(host), port } => {
                let mut found = self.resolve_host(&host, port, namespace);
                let alias = self.inside(&host).and_then(|(_, service, in_namespace)| {
                    self.service(&ServiceId::new(in_namespace, service))?.alias.as_ref()
                });
                let alias = alias.map(|alias| format!("{alias}:{port}"));
                if let Some(left) = aliases.checked_sub(1)
                    && let Some(alias) = alias.filter(|alias| alias.contains('.'))
                {
                    let meant = self.resolve_within(&alias, namespace, left);
                    found.target = meant.target;
                    found.deps.extend(meant.deps);
                }
                let dialled = Authority { host: Host::Name(host), port };
                self.resolve_external(dialled, namespace, found)
            }
            Authority { host: Host::Ip(ip), port } => {
                let ip = ip.to_canonical();
                let cluster_ip = self.cluster_ips.of(&ip).next();
                let mut found = match cluster_ip {
                    Some(service) => self.resolve_service(&PortId::new(service, port), namespace),
                    None => self.resolve_endpoint(SocketAddr::new(ip, port), namespace),
                };
                found.deps.push(Dep::Ip(ip));
                let dialled = Authority { host: Host::Ip(ip), port };
                self.resolve_external(dialled, namespace, found)
            }
        }
    }

    /// A host as the mesh may know it: the host name of an endpoint, the Service, its namespace.
    pub(super) fn inside<'a>(&self, host: &'a str) -> Option<(Option<&'a str>, &'a str, &'a str)> {
        let inside = host
            .strip_suffix(self.settings.cluster_domain.as_str())
            .and_then(|host| host.strip_suffix('.'))
            .filter(|host| host.ends_with(".svc"));
        let labels: Vec<&str> = inside.unwrap_or(host).split('.').collect();
        match labels[..] {
            [service, ns] | [service, ns, "svc"] => Some((None, service, ns)),
            [hostname, service, ns] | [hostname, service, ns, "svc"] => {
                Some((Some(hostname), service, ns))
            }
            _ => None,
        }
    }

    pub(super) fn resolve_host(&self, host: &str, port: u16, namespace: &str) -> Resolution {
        let Some((hostname, service, service_namespace)) = self.inside(host) else {
            return Resolution::default();
        };
        let port = PortId::new(&ServiceId::new(service_namespace, service), port);
        let mut found = self.resolve_service(&port, namespace);
        if let Some(hostname) = hostname {
            // Which endpoint has the name changes with the endpoints.
            found.deps.push(Dep::Endpoints(port.clone()));
            let named = found.target.as_ref().and_then(|_| self.named(&port, hostname));
            found.target = match (found.target, named) {
                (Some(target), Some(named)) => Some(Target { pin: Some(named), ..target }),
                _ => None,
            };
        }
        found
    }

    /// An address that an endpoint has.
    fn resolve_endpoint(&self, address: SocketAddr, namespace: &str) -> Resolution {
        let speakers = self.speakers(address.ip(), namespace);
        let mut of_headless = self.pods.of(&address);
        let of_headless =
            of_headless.find(|(port, _)| may_speak(speakers.as_ref(), &port.service.namespace));
        let (at, services) = match of_headless {
            Some(pod) => (Some(pod.clone()), Vec::new()),
            None => self.at(address, namespace),
        };
        let mut found = Resolution::default();
        if let Some((port, endpoint)) = at {
            found = self.resolve_service(&port, namespace);
            if let Some(target) = &mut found.target {
                target.pin = Some(endpoint);
            }
        }
        // Their ports may change, and so may what stands behind these.
        found.deps.extend(services.into_iter().map(Dep::Service));
        found
    }

    fn resolve_service(&self, port: &PortId, namespace: &str) -> Resolution {
        let service = self.service(&port.service);
        let target = service.and_then(|service| service.port(port.port)).map(|service_port| {
            let consumer = port.service.namespace != namespace
                && self.routes_of(&port.service).any(|route| {
                    route.id.namespace == namespace
                        && route
                            .parents
                            .iter()
                            .any(|p| p.service == port.service && p.attaches_to(service_port))
                });
            let name = port.destination();
            let name = if consumer { name.for_consumer(namespace) } else { name };
            Target { name, pin: None }
        });
        Resolution { target, deps: vec![Dep::Service(port.service.clone())] }
    }
}
