//! ExternalServices: what they say, and the names that others know them by.

use std::collections::BTreeSet;
use std::net::SocketAddr;

use outrigger_core::config::Protocol;
use outrigger_core::name::{Authority, Host};

use super::ServiceId;

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
