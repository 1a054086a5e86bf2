//! Where one attempt goes, and how it is written there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderValue;
use outrigger_core::config::Protocol;

use crate::base::clock::coarse_ms;
use crate::base::local::is_private;
use crate::tls::Expected;
use crate::upstream::endpoint::EndpointState;
use crate::upstream::endpoint::guard::ProbeIds;
use crate::upstream::pool::PoolKey;
use crate::wire::Wire;

/// Where one attempt goes.
pub struct AttemptTarget {
    /// What its breaker and its endpoint make of the attempt.
    pub(crate) probes: ProbeIds,
    pub address: SocketAddr,
    pub wire: Wire,
    pub(crate) expected: Expected,
    pub(crate) endpoint: Option<Arc<EndpointState>>,
    /// What the far proxy shall speak to the app.
    pub(crate) protocol: Protocol,
    /// To where the mesh has no service.
    pub(crate) unmatched: bool,
}

/// Which endpoint an attempt went to, and how.
pub(crate) struct HedgeOf {
    pub(crate) endpoint: u64,
    pub(crate) wire: Wire,
    pub(crate) protocol: Protocol,
}

impl AttemptTarget {
    /// Through the endpoint's proxy, or straight to its app when it has none.
    pub(crate) fn to(
        endpoint: Arc<EndpointState>,
        protocol: Protocol,
        callers: Protocol,
        upgrade: bool,
    ) -> Self {
        let (address, wire) = match &endpoint.endpoint.mesh {
            Some(mesh) => (mesh.address, Wire::Hop),
            None => (endpoint.endpoint.address, wire_of(protocol, callers, upgrade)),
        };
        let (probes, expected) = (ProbeIds::default(), endpoint.expected);
        let (endpoint, unmatched) = (Some(endpoint), false);
        Self { probes, address, wire, expected, endpoint, protocol, unmatched }
    }

    pub(crate) fn key(&self) -> PoolKey {
        PoolKey { address: self.address, wire: self.wire, expected: self.expected }
    }

    /// To somebody who is not of the mesh and is told nothing of it.
    pub(crate) fn is_outside(&self) -> bool {
        self.endpoint.as_ref().is_some_and(|endpoint| endpoint.is_outside)
    }

    /// To where it might be somebody's admin server that answers.
    pub(crate) fn is_proxied(&self) -> bool {
        self.unmatched && is_private(self.address.ip())
    }

    /// This proxy speaks TLS to somebody outside.
    pub(crate) fn begins_tls(&self) -> bool {
        self.expected.is_outside()
    }

    /// What a second attempt beside this one has to know of it.
    pub(crate) fn hedge_of(&self) -> Option<HedgeOf> {
        let (wire, protocol) = (self.wire, self.protocol);
        self.endpoint.as_ref().map(|endpoint| HedgeOf { endpoint: endpoint.key, wire, protocol })
    }

    pub(crate) fn endpoint(&self) -> Option<&Arc<EndpointState>> {
        self.endpoint.as_ref()
    }

    /// So that the next attempt, and the next request, turn elsewhere.
    /// `unreachable`: nothing could be sent to it, which its latency does not show.
    pub fn note_failure(&self, tried: &mut Vec<u64>, unreachable: bool) {
        if let Some(endpoint) = &self.endpoint {
            if unreachable {
                endpoint.load.observe_failure(coarse_ms(Instant::now()));
            }
            tried.push(endpoint.key);
        }
    }

    pub(crate) fn header(
        &self,
        deadline_by_policy: bool,
        trace_by_id: bool,
        absolute: bool,
    ) -> HeaderValue {
        let Some(endpoint) = &self.endpoint else { return HeaderValue::from_static("") };
        let header = endpoint.hop_header(self.protocol, deadline_by_policy, trace_by_id);
        if !absolute {
            return header;
        }
        let longer = [header.as_bytes(), b";form=absolute"].concat();
        HeaderValue::from_bytes(&longer).unwrap_or(header)
    }
}

pub(crate) fn wire_of(protocol: Protocol, callers: Protocol, upgrade: bool) -> Wire {
    match (protocol, callers) {
        // An upgrade is an HTTP/1.1 matter whatever else the port speaks.
        _ if upgrade => Wire::Http1,
        (Protocol::Http1, _) => Wire::Http1,
        (Protocol::Http2 | Protocol::Grpc, _) => Wire::Http2,
        (_, Protocol::Http2 | Protocol::Grpc) => Wire::Http2,
        _ => Wire::Http1,
    }
}
