//! The endpoints of one service, as requests choose among them.
//!
//! What is learnt about an endpoint (latency, requests in flight) is one per process and outlives
//! every change of configuration that still names it.

mod choice;
pub(crate) mod guard;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;
use http::HeaderValue;
use outrigger_core::balance::{self, Ring, ewma, failures};
use outrigger_core::config::{Balancer, Endpoint, Protocol};
use outrigger_core::name::{DestinationName, EndpointId};
use outrigger_core::policy::preference::WHOLE;

use self::choice::Preference;
use crate::base::clock::coarse_ms;
use crate::observe::metrics::{HeldLabel, Metrics};
use crate::tls::Expected;
use crate::upstream::endpoint::guard::Guard;
use crate::upstream::watches::Watches;

/// Latency that a failed connection counts as, so that the balancer turns away from it until
/// the estimate has decayed.
const FAILURE_PENALTY_US: u32 = 5_000_000;

/// Share of failures from which on an endpoint gets less than others, and for how long that is remembered:
/// until it counts no more. Below, every choice would cost more than it is worth.
const NOTABLE: f32 = 0.2;
const NOTABLE_FOR_MS: u32 = 30_000;

/// Every endpoint of one service port.
pub struct Endpoints {
    pub name: DestinationName,
    pub label: HeldLabel,
    /// It lies outside the mesh.
    pub is_outside: bool,
    /// Breaker, budget and limits of the service.
    pub guard: Guard,
    /// What this workload watches over for fault injections.
    pub watches: Watches,
    /// Slow start and zones.
    pub preference: Preference,
    /// One's own; none: zones mean nothing.
    zone: Option<String>,
    current: ArcSwap<EndpointSet>,
    turn: AtomicU64,
    /// Some endpoint has a sidecar.
    has_mesh: AtomicBool,
    /// Coarse milliseconds until which some endpoint shall get fewer requests than others.
    uneven_until_ms: AtomicU32,
}

/// One immutable state of the collection.
#[derive(Default)]
pub struct EndpointSet {
    pub endpoints: Vec<Arc<EndpointState>>,
    by_address: HashMap<SocketAddr, usize>,
    /// Built when a request first hashes.
    ring: OnceLock<Ring>,
    /// Likewise, when one first asks for the endpoint of its session.
    by_stable: OnceLock<HashMap<u64, usize>>,
    /// The control plane has sent the collection whole at least once.
    pub complete: bool,
}

pub struct EndpointState {
    /// Unique in the process; changes with the address, so that pools never mix two.
    pub key: u64,
    /// Names the workload and port for ever, whatever its address: a hash of its id.
    pub stable: u64,
    pub endpoint: Endpoint,
    pub peer: HeldLabel,
    /// What its sidecar must prove.
    pub expected: Expected,
    pub load: Arc<EndpointLoad>,
    /// Coarse milliseconds; 0: it was there from the beginning, or nobody minds new ones.
    pub joined_ms: u32,
    /// It stands in one's own zone.
    pub is_near: bool,
    /// It lies outside the mesh.
    pub is_outside: bool,
    hop_headers: Arc<HopHeaders>,
}

/// `x-outrigger-hop` for an app that speaks h1, h2 and gRPC; without and with a policy's deadline, each without and
/// with a trace that follows from the request's id.
type HopHeaders = [[HeaderValue; 4]; 3];

/// What was learnt about an endpoint.
#[derive(Default)]
pub struct EndpointLoad {
    latency: AtomicU64,
    in_flight: AtomicU32,
    sent: AtomicU64,
    /// [`failures`].
    failures: AtomicU64,
    /// Coarse milliseconds until which it has asked for fewer requests.
    full_until_ms: AtomicU32,
}

/// What the choice of an endpoint may depend on; by load alone unless something else is said.
pub struct Choice<'a> {
    pub random: u64,
    pub now_ms: u32,
    pub balancer: &'a Balancer,
    /// Hash of the request's key, for ring hash.
    pub hash: Option<u64>,
    /// The endpoint of the client's session, by its stable key.
    pub session: Option<u64>,
    /// Endpoints that this request has already tried in vain.
    pub tried: &'a [u64],
}

impl<'a> Choice<'a> {
    /// By load alone, and none of `tried`.
    pub fn by_load(random: u64, now_ms: u32, tried: &'a [u64]) -> Self {
        Self { random, now_ms, balancer: &Balancer::PowerOfTwo, hash: None, session: None, tried }
    }
}

/// Why there is no endpoint to choose.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoChoice {
    /// The service has none.
    None,
    /// Each is ejected or unhealthy.
    Unfit,
    /// None may take another request.
    Busy,
}

impl Endpoints {
    /// `zone`: one's own.
    pub fn new(name: DestinationName, zone: Option<String>, metrics: &Metrics) -> Self {
        let label = metrics.label(&name.to_string());
        let guard = Guard::new(name.clone());
        let is_outside = name.is_external();
        Self {
            name,
            label,
            is_outside,
            guard,
            watches: Watches::default(),
            preference: Preference::default(),
            zone,
            current: ArcSwap::default(),
            turn: AtomicU64::default(),
            has_mesh: AtomicBool::default(),
            uneven_until_ms: AtomicU32::default(),
        }
    }

    /// An endpoint asks for fewer requests for so long.
    pub fn set_full(&self, endpoint: &EndpointState, now_ms: u32, time: Duration) {
        let until = now_ms.saturating_add(u32::try_from(time.as_millis()).unwrap_or(u32::MAX));
        endpoint.load.set_full(until);
        self.uneven_until_ms.fetch_max(until, Relaxed);
    }

    /// An endpoint's answer was a failure. How long it took teaches nothing, unless it is long.
    pub fn failed(&self, endpoint: &EndpointState, began: Instant, now: Instant) {
        let (load, now_ms) = (&endpoint.load, coarse_ms(now));
        load.observe_failed(now_ms, true);
        if load.latency.load(Relaxed) > 0 {
            load.observe_at_least(began, now);
        }
        if failures::rate(load.failures.load(Relaxed), now_ms) >= NOTABLE {
            self.uneven_until_ms.fetch_max(now_ms.saturating_add(NOTABLE_FOR_MS), Relaxed);
        }
    }

    pub fn load(&self) -> arc_swap::Guard<Arc<EndpointSet>> {
        self.current.load()
    }

    /// How many endpoints are in their slow start; none: there is no such thing.
    pub fn warming(&self) -> Option<u64> {
        self.preference.slow_start()?;
        let now_ms = coarse_ms(Instant::now());
        let set = self.current.load();
        let warming = set.endpoints.iter().filter(|e| self.preference.warmth(e, now_ms) < WHOLE);
        Some(warming.count() as u64)
    }

    /// Whether some endpoint has a sidecar.
    pub fn has_mesh(&self) -> bool {
        self.has_mesh.load(Relaxed)
    }

    /// Puts a new set in force, keeping what is known of endpoints that stay.
    pub fn replace(&self, endpoints: Vec<Endpoint>, complete: bool, metrics: &Metrics) {
        let old = self.current.load_full();
        let now_ms = coarse_ms(Instant::now());
        let known: HashMap<&EndpointId, &Arc<EndpointState>> =
            old.endpoints.iter().map(|e| (&e.endpoint.id, e)).collect();
        // Most endpoints of a service have one port.
        let mut by_port: HashMap<u16, Arc<HopHeaders>> = HashMap::new();
        let mut hop_headers = |port| {
            let headers = by_port.entry(port);
            Arc::clone(headers.or_insert_with(|| Arc::new(hop_headers(port, &self.name))))
        };
        let endpoints: Vec<_> = endpoints
            .into_iter()
            .map(|endpoint| match known.get(&endpoint.id) {
                Some(state) if state.endpoint == endpoint => Arc::clone(state),
                known => Arc::new(EndpointState {
                    key: next_key(),
                    stable: balance::hash(endpoint.id.to_string().as_bytes()),
                    peer: peer_label(&endpoint, metrics),
                    expected: expected(&endpoint),
                    joined_ms: match known {
                        Some(state) if state.endpoint.address == endpoint.address => {
                            state.joined_ms
                        }
                        Some(_) | None if old.complete => self.preference.joined(now_ms),
                        Some(_) | None => 0,
                    },
                    is_outside: self.is_outside,
                    is_near: self.zone.is_some() && self.zone == endpoint.zone,
                    load: known.map(|state| Arc::clone(&state.load)).unwrap_or_default(),
                    hop_headers: hop_headers(endpoint.id.port),
                    endpoint,
                }),
            })
            .collect();
        let has_mesh = endpoints.iter().any(|endpoint| endpoint.endpoint.mesh.is_some());
        self.has_mesh.store(has_mesh, Relaxed);
        let by_address =
            endpoints.iter().enumerate().map(|(i, e)| (e.endpoint.address, i)).collect();
        let (ring, by_stable) = (OnceLock::new(), OnceLock::new());
        let set = EndpointSet { endpoints, by_address, ring, by_stable, complete };
        self.current.store(Arc::new(set));
    }

    /// One endpoint for a request.
    pub fn choose(&self, choice: &Choice<'_>) -> Result<Arc<EndpointState>, NoChoice> {
        let set = self.current.load();
        let all = &set.endpoints;
        let choosy = self.guard.is_choosy()
            || self.preference.is_choosy(choice.now_ms)
            || choice.now_ms < self.uneven_until_ms.load(Relaxed);
        if let Some(endpoint) = choice.session.and_then(|stable| set.stable(stable))
            && self.may_keep(&set, endpoint, choice)
        {
            return Ok(Arc::clone(endpoint));
        }
        if choice.tried.is_empty() && !choosy {
            return set.pick(choice, &self.turn).map(|i| Arc::clone(&all[i])).ok_or(NoChoice::None);
        }
        choice::choose(&set, &self.guard, &self.preference, &self.turn, choice)
    }
}

impl Endpoints {
    /// Whether the endpoint of a session is fit to get its next request.
    fn may_keep(
        &self,
        set: &EndpointSet,
        endpoint: &Arc<EndpointState>,
        choice: &Choice<'_>,
    ) -> bool {
        if choice.tried.contains(&endpoint.key) {
            return false;
        }
        let all: Vec<_> = set.endpoints.iter().collect();
        let is_fit = |fit: Vec<&Arc<EndpointState>>| fit.iter().any(|fit| fit.key == endpoint.key);
        !self.guard.is_choosy() || self.guard.choosable(&all).is_ok_and(is_fit)
    }
}

impl EndpointSet {
    /// The endpoint with this stable key.
    fn stable(&self, stable: u64) -> Option<&Arc<EndpointState>> {
        let all = self.by_stable.get_or_init(|| {
            self.endpoints.iter().enumerate().map(|(i, endpoint)| (endpoint.stable, i)).collect()
        });
        all.get(&stable).map(|i| &self.endpoints[*i])
    }

    /// The endpoint with exactly this address of its app.
    pub fn at(&self, address: SocketAddr) -> Option<&Arc<EndpointState>> {
        self.by_address.get(&address).map(|i| &self.endpoints[*i])
    }

    pub fn named(&self, hostname: &str) -> Option<&Arc<EndpointState>> {
        self.endpoints.iter().find(|e| e.endpoint.hostname.as_deref() == Some(hostname))
    }

    fn pick(&self, choice: &Choice<'_>, turn: &AtomicU64) -> Option<usize> {
        let n = self.endpoints.len();
        if n < 2 {
            return n.checked_sub(1);
        }
        let by_load = || {
            balance::power_of_two(n, choice.random, |i| self.endpoints[i].load.cost(choice.now_ms))
        };
        Some(match (choice.balancer, choice.hash) {
            (Balancer::RoundRobin, _) => balance::round_robin(turn.fetch_add(1, Relaxed), n),
            (Balancer::RingHash(_), Some(hash)) => self.ring().pick(hash),
            _ => by_load(),
        })
    }

    fn ring(&self) -> &Ring {
        self.ring.get_or_init(|| {
            let ids: Vec<_> = self.endpoints.iter().map(|e| e.endpoint.id.to_string()).collect();
            Ring::new(&ids.iter().map(String::as_str).collect::<Vec<_>>())
        })
    }
}

impl EndpointState {
    /// What the far proxy needs to know: the app's port, what to speak there, whether it was a policy
    /// that started the request's deadline, whether the request's id tells its trace, and the service.
    pub fn hop_header(
        &self,
        protocol: Protocol,
        deadline_by_policy: bool,
        trace_by_id: bool,
    ) -> HeaderValue {
        let [h1, h2, grpc] = &*self.hop_headers;
        let headers = match protocol {
            Protocol::Http2 => h2,
            Protocol::Grpc => grpc,
            Protocol::Detect | Protocol::Http1 | Protocol::Tls | Protocol::Tcp => h1,
        };
        headers[usize::from(deadline_by_policy) + 2 * usize::from(trace_by_id)].clone()
    }
}

fn expected(endpoint: &Endpoint) -> Expected {
    match (&endpoint.mesh, &endpoint.tls) {
        (None, Some(tls)) => Expected::outside(tls),
        (mesh, _) => Expected::of(mesh.as_ref().and_then(|mesh| mesh.identity.as_ref())),
    }
}

/// Who is called: the identity that it has to prove, else what it is said to be.
fn peer_label(endpoint: &Endpoint, metrics: &Metrics) -> HeldLabel {
    match endpoint.mesh.as_ref().and_then(|mesh| mesh.identity.as_ref()) {
        Some(id) => metrics.label(&id.workload()),
        None => metrics.label(endpoint.workload.as_deref().unwrap_or("unknown")),
    }
}

fn hop_headers(port: u16, service: &DestinationName) -> HopHeaders {
    [Protocol::Http1, Protocol::Http2, Protocol::Grpc].map(|protocol| {
        ["", ";deadline=policy", ";trace=id", ";deadline=policy;trace=id"].map(|more| {
            let text = format!("1;port={port};proto={}{more};service={service}", protocol.as_str());
            HeaderValue::from_str(&text).unwrap_or_else(|_| HeaderValue::from_static("1"))
        })
    })
}

impl EndpointLoad {
    fn cost(&self, now_ms: u32) -> f32 {
        let in_flight = self.in_flight.load(Relaxed);
        ewma::load(self.latency.load(Relaxed), now_ms, in_flight)
    }

    /// Learns how long the endpoint took to answer.
    pub fn observe(&self, now_ms: u32, latency_us: u32) {
        // Two workers may race and one observation be lost: an estimate can bear that.
        let old = self.latency.load(Relaxed);
        self.latency.store(ewma::observe(old, now_ms, latency_us), Relaxed);
    }

    /// Learns from an answer that was no failure.
    pub fn observe_answer(&self, now_ms: u32, latency_us: u32) {
        self.observe(now_ms, latency_us);
        self.observe_failed(now_ms, false);
    }

    /// Learns that an attempt from `began` on has brought no answer yet, by which it was given up. Never
    /// makes the endpoint look quicker.
    pub fn observe_at_least(&self, began: Instant, now: Instant) {
        let (now_ms, waited) = (coarse_ms(now), now.saturating_duration_since(began).as_micros());
        let waited = u32::try_from(waited).unwrap_or(u32::MAX);
        if waited as f32 > ewma::cost(self.latency.load(Relaxed), now_ms) {
            self.observe(now_ms, waited);
        }
    }

    /// Learns that nothing could be sent to the endpoint.
    pub fn observe_failure(&self, now_ms: u32) {
        self.observe(now_ms, FAILURE_PENALTY_US);
    }

    /// Learns whether an answer was a failure.
    fn observe_failed(&self, now_ms: u32, failed: bool) {
        let old = self.failures.load(Relaxed);
        if failed || old > 0 {
            let known = self.latency.load(Relaxed) > 0;
            self.failures.store(failures::observe(old, now_ms, failed, known), Relaxed);
        }
    }

    /// Of what it would get if it did not fail, in parts of [`WHOLE`].
    fn share(&self, now_ms: u32) -> u16 {
        (failures::share(self.failures.load(Relaxed), now_ms) * f32::from(WHOLE)) as u16
    }

    /// The endpoint asks for fewer requests until then.
    fn set_full(&self, until_ms: u32) {
        self.full_until_ms.fetch_max(until_ms, Relaxed);
    }

    pub(crate) fn is_full(&self, now_ms: u32) -> bool {
        now_ms < self.full_until_ms.load(Relaxed)
    }

    /// Nothing is known of it any more.
    pub fn forget(&self) {
        self.failures.store(0, Relaxed);
        self.latency.store(0, Relaxed);
    }

    /// Attempts sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Relaxed)
    }

    pub fn in_flight(&self) -> u32 {
        self.in_flight.load(Relaxed)
    }

    /// An attempt has been sent.
    pub fn began(&self) {
        self.in_flight.fetch_add(1, Relaxed);
        self.sent.fetch_add(1, Relaxed);
    }

    pub fn ended(&self) {
        self.in_flight.fetch_sub(1, Relaxed);
    }
}

fn next_key() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Relaxed)
}
