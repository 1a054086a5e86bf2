//! Where one attempt goes: the address, how it is written there, and what its endpoint learns of it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use http::Response;
use http::header::{HeaderMap, HeaderValue};
use outrigger_core::config::Protocol;
use outrigger_core::outcome::Outcome;
use outrigger_core::reason::Reason;

use super::attempt::{Upstream, take_endpoint};
use super::headers::{PROXY_STATUS, REASON, UNPROCESSED};
use super::verdict::Verdict;
use crate::endpoint::{Choice, EndpointState, coarse_ms};
use crate::guard::{Attempt, ProbeIds};
use crate::local::is_private;
use crate::pool::{PoolKey, Wire};
use crate::streams::WireBody;
use crate::tls::Expected;
use crate::worker::Worker;

/// Where one attempt goes.
pub struct AttemptTarget {
    /// What its breaker and its endpoint make of the attempt.
    pub(super) probes: ProbeIds,
    pub address: SocketAddr,
    pub wire: Wire,
    pub(super) expected: Expected,
    pub(super) endpoint: Option<Arc<EndpointState>>,
    /// What the far proxy shall speak to the app.
    pub(super) protocol: Protocol,
    /// To where the mesh has no service.
    pub(super) unmatched: bool,
}

/// Which endpoint an attempt went to, and how.
pub(super) struct HedgeOf {
    pub(super) endpoint: u64,
    pub(super) wire: Wire,
    pub(super) protocol: Protocol,
}

impl AttemptTarget {
    /// Learns from the head of an answer how quick and how fit the endpoint is.
    pub(super) fn learn(
        &self,
        grpc: bool,
        upstream: &Upstream<'_>,
        attempt: Option<&mut Attempt>,
        began: Instant,
        response: &Response<WireBody>,
    ) {
        let (Some(endpoint), Some(attempt)) = (&self.endpoint, attempt) else { return };
        attempt.answered();
        let now = Instant::now();
        let latency = now.saturating_duration_since(began).as_micros();
        let (latency, now_ms) = (u32::try_from(latency).unwrap_or(u32::MAX), coarse_ms(now));
        match Verdict::of(response, grpc, self.wire.is_hop()) {
            Verdict::Healthy => endpoint.load.observe_answer(now_ms, latency),
            Verdict::Failed => {
                if let Some(endpoints) = upstream.endpoints() {
                    endpoints.failed(endpoint, began, now);
                }
            }
            verdict => {
                if let (Verdict::Full(time), Some(endpoints)) = (verdict, upstream.endpoints()) {
                    endpoints.set_full(endpoint, now_ms, time);
                }
                attempt.judge(Outcome::Refused, || 0);
            }
        }
    }

    /// Through the endpoint's proxy, or straight to its app when it has none.
    pub(super) fn to(
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

    pub(super) fn key(&self) -> PoolKey {
        PoolKey { address: self.address, wire: self.wire, expected: self.expected }
    }

    /// To somebody who is not of the mesh and is told nothing of it.
    pub(super) fn is_outside(&self) -> bool {
        self.endpoint.as_ref().is_some_and(|endpoint| endpoint.is_outside)
    }

    /// To where it might be somebody's admin server that answers.
    pub(super) fn is_proxied(&self) -> bool {
        self.unmatched && is_private(self.address.ip())
    }

    /// This proxy speaks TLS to somebody outside.
    pub(super) fn begins_tls(&self) -> bool {
        self.expected.is_outside()
    }

    /// What a second attempt beside this one has to know of it.
    pub(super) fn hedge_of(&self) -> Option<HedgeOf> {
        let (wire, protocol) = (self.wire, self.protocol);
        self.endpoint.as_ref().map(|endpoint| HedgeOf { endpoint: endpoint.key, wire, protocol })
    }

    /// Another endpoint of the same service that is reached in the same way, for a second attempt beside a
    /// first one. None: there is none that may be asked now.
    pub(super) fn beside(
        first: &HedgeOf,
        worker: &Worker,
        upstream: &Upstream<'_>,
        callers: Protocol,
    ) -> Option<Self> {
        let Upstream::Service { live, dialed, backend, .. } = *upstream else { return None };
        let tried = [first.endpoint];
        let choice = Choice::by_load(worker.random(), coarse_ms(Instant::now()), &tried);
        let (endpoint, probes) = take_endpoint(live, dialed, backend, &choice).ok()?;
        let other = endpoint.key != first.endpoint;
        let target = Self { probes, ..Self::to(endpoint, first.protocol, callers, false) };
        if !other || target.wire != first.wire {
            target.unused(upstream);
            return None;
        }
        Some(target)
    }

    /// The try is not made after all.
    pub(super) fn unused(&self, upstream: &Upstream<'_>) {
        if let Some(endpoints) = upstream.endpoints() {
            endpoints.guard.unused(&self.probes);
        }
    }

    /// The try as its endpoint and its service's breaker count it.
    pub(super) fn begin(&mut self, upstream: &Upstream<'_>, now: Instant) -> Option<Attempt> {
        let (endpoints, endpoint) = (upstream.endpoints()?, self.endpoint.as_ref()?);
        Some(Attempt::begin(endpoints, endpoint, std::mem::take(&mut self.probes), now))
    }

    pub(super) fn endpoint(&self) -> Option<&Arc<EndpointState>> {
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

    pub(super) fn header(&self, deadline_by_policy: bool, absolute: bool) -> HeaderValue {
        let Some(endpoint) = &self.endpoint else { return HeaderValue::from_static("") };
        let header = endpoint.hop_header(self.protocol, deadline_by_policy);
        if !absolute {
            return header;
        }
        let longer = [header.as_bytes(), b";form=absolute"].concat();
        HeaderValue::from_bytes(&longer).unwrap_or(header)
    }
}

pub(super) fn wire_of(protocol: Protocol, callers: Protocol, upgrade: bool) -> Wire {
    match (protocol, callers) {
        // An upgrade is an HTTP/1.1 matter whatever else the port speaks.
        _ if upgrade => Wire::Http1,
        (Protocol::Http1, _) => Wire::Http1,
        (Protocol::Http2 | Protocol::Grpc, _) => Wire::Http2,
        (_, Protocol::Http2 | Protocol::Grpc) => Wire::Http2,
        _ => Wire::Http1,
    }
}

/// Why the far proxy has refused the request, if it has.
pub fn refused(target: &AttemptTarget, response: &Response<WireBody>) -> Option<Reason> {
    let word = response.headers().get(REASON).filter(|_| target.wire.is_hop())?;
    Reason::from_word(word.to_str().ok()?)
}

/// The detail that the far proxy gives with its reason, of its `Proxy-Status`.
pub fn said(headers: &HeaderMap) -> Option<Box<str>> {
    let text = headers.get(PROXY_STATUS)?.to_str().ok()?;
    let (_, detail) = text.split_once("details=\"")?.1.split_once(": ")?;
    Some(detail.trim_end_matches('"').replace('\\', "").into())
}

/// Why the far proxy says that nobody processed the request, if it says so.
pub fn unprocessed(target: &AttemptTarget, response: &Response<WireBody>) -> Option<Reason> {
    if !target.wire.is_hop() {
        return None;
    }
    let word = response.headers().get(UNPROCESSED)?;
    Reason::from_word(word.to_str().ok()?)
}
