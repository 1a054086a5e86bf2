//! One thread that carries traffic: its runtime, its pools, its caches.
//!
//! Nothing here is shared but [`Proxy`] and [`Load`]; futures need not be `Send`.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use outrigger_core::config::Protocol;
use outrigger_core::name::{Authority, Host};
use outrigger_core::outcome::classify_reason;
use outrigger_core::policy::CallPolicy;
use outrigger_core::policy::deadline::Deadline;
use outrigger_core::policy::visits::FirstVisits;
use outrigger_core::reason::Reason;

use crate::base::direction::Direction;
use crate::base::local;
use crate::base::memory::IdlePurge;
use crate::base::refusal::Refusal;
use crate::observe::metrics::{CountKey, Label, SeriesKey, Status, WorkerMetrics};
use crate::observe::record::{Ending, Record};
use crate::policy::inbound_ports::InboundPorts;
use crate::proxy::Proxy;
use crate::proxy::connections::Connections;
use crate::tls::pace::Pace;
use crate::upstream::pool::Pools;
use crate::upstream::pool::connect::{ConnectError, OpenedConnection, connect, race};
use crate::upstream::store::{Dialed, Full, MAX_NAMES};
use crate::wire::body::BodyMemory;
use crate::wire::hosts::Hosts;
use crate::wire::progress::{Exchanges, StallLimits};
use crate::wire::server::Builders;

/// Spellings of authorities remembered, before the cache starts anew.
const MAX_SPELLINGS: usize = 2_048;
/// Outside names whose address is remembered, likewise.
const MAX_ADDRESSES: usize = 256;
/// Addresses of this host that are remembered.
const MAX_OWN_ADDRESSES: usize = 16;
/// How long an outside name's address is used.
const ADDRESS_TTL: Duration = Duration::from_secs(5);
/// Port of an authority that names none.
const DEFAULT_PORT: u16 = 80;

pub struct Worker {
    pub proxy: Arc<Proxy>,
    pub metrics: WorkerMetrics,
    pub load: Arc<Load>,
    pub connections: Rc<Connections>,
    pub exchanges: Rc<Exchanges>,
    pub(crate) stall_limits: StallLimits,
    pub pools: Pools,
    pub bodies: Rc<BodyMemory>,
    pub pace: Rc<Pace>,
    pub(crate) idle_purge: IdlePurge,
    /// [`crate::tls::identity::Identity::generation`] at the last review of open connections.
    pub(crate) reviewed: Cell<u64>,
    /// The ports that open connections were last judged by.
    pub(crate) reviewed_ports: RefCell<Arc<InboundPorts>>,
    pub http: Builders,
    /// How requests are called that match no policy.
    pub call: CallPolicy,
    /// That requests have named.
    pub(crate) hosts: Hosts,
    pub(crate) visits: FirstVisits,
    spellings: RefCell<HashMap<Box<str>, Arc<Dialed>, foldhash::fast::RandomState>>,
    addresses: RefCell<HashMap<Authority, (Instant, SocketAddr)>>,
    own_addresses: RefCell<Vec<(Instant, IpAddr)>>,
    random: Cell<u64>,
    /// Seconds since the worker began.
    pub(crate) tick: Cell<u32>,
    /// The tick at which something was last said that may come often.
    said: Cell<u32>,
}

impl Worker {
    pub fn new(proxy: Arc<Proxy>, index: usize, load: Arc<Load>) -> Rc<Self> {
        let pace = Rc::new(Pace::default());
        Rc::new(Self {
            metrics: WorkerMetrics::new(Arc::clone(&proxy.metrics), index),
            load,
            connections: Rc::default(),
            exchanges: Rc::default(),
            stall_limits: StallLimits::new(
                proxy.settings.stream_idle_timeout,
                proxy.settings.write_timeout,
            ),
            pools: Pools::new(
                &proxy.settings,
                Arc::clone(&proxy.metrics),
                proxy.identity.clone(),
                Rc::clone(&pace),
            ),
            bodies: Rc::new(BodyMemory {
                metrics: Arc::clone(&proxy.metrics),
                limit: proxy.settings.max_buffered_bytes as u64,
            }),
            pace,
            idle_purge: IdlePurge::default(),
            reviewed: Cell::new(0),
            reviewed_ports: RefCell::new(proxy.inbound.load_full()),
            http: Builders::new(&proxy.settings),
            call: CallPolicy::default(),
            hosts: Hosts::default(),
            visits: FirstVisits::default(),
            spellings: RefCell::default(),
            addresses: RefCell::default(),
            own_addresses: RefCell::default(),
            random: Cell::new(RandomState::new().hash_one(index)),
            tick: Cell::new(1),
            said: Cell::new(0),
            proxy,
        })
    }

    /// True at most once a second: for what would flood the log.
    pub fn once_a_second(&self) -> bool {
        self.said.replace(self.tick()) != self.tick()
    }

    /// Seconds since the worker began.
    pub fn tick(&self) -> u32 {
        self.tick.get()
    }

    /// Makes [`Self::random`] repeat itself.
    pub fn seed(&self, seed: u64) {
        self.random.set(seed);
    }

    /// A number that nobody needs to be unable to guess (splitmix64).
    pub fn random(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The handle of an authority as a request spells it.
    pub fn dial(&self, text: &str) -> Result<Arc<Dialed>, Refusal> {
        if let Some(dialed) = self.spellings.borrow().get(text)
            && !dialed.retired()
        {
            return Ok(Arc::clone(dialed));
        }
        let authority = Authority::parse(text, Some(DEFAULT_PORT))
            .map_err(|e| Refusal::new(Reason::BadRequest, e.to_string()))?;
        let dialed =
            self.dial_authority(&authority.in_namespace(&self.proxy.settings.namespace))?;
        let mut spellings = self.spellings.borrow_mut();
        if spellings.len() >= MAX_SPELLINGS {
            spellings.clear();
        }
        spellings.insert(text.into(), Arc::clone(&dialed));
        Ok(dialed)
    }

    /// Refused as `too_many_names` while as many as a proxy holds are in use.
    pub fn dial_authority(&self, authority: &Authority) -> Result<Arc<Dialed>, Refusal> {
        let dialed = self.proxy.store.dial(authority, self.tick()).map_err(|Full| {
            let why = format!("{authority} would be one more than {MAX_NAMES} names in use");
            Refusal::new(Reason::TooManyNames, why)
        })?;
        dialed.touch(self.tick());
        Ok(dialed)
    }

    /// The address of a destination outside the mesh: of several, one that answers. Waits no longer
    /// than `deadline`.
    pub async fn lookup(
        &self,
        authority: &Authority,
        deadline: Option<Deadline>,
    ) -> Result<SocketAddr, Refusal> {
        let name = match &authority.host {
            Host::Ip(ip) => return Ok(SocketAddr::new(*ip, authority.port)),
            Host::Name(name) => name,
        };
        if let Some((at, address)) = self.addresses.borrow().get(authority)
            && at.elapsed() < ADDRESS_TTL
        {
            return Ok(*address);
        }
        let looking = async {
            let found = self.proxy.resolver.addresses(name).await;
            let found =
                found.map_err(|why| Refusal::new(Reason::DnsError, format!("{name}: {why}")))?;
            let all: Vec<_> = found.iter().map(|ip| SocketAddr::new(*ip, authority.port)).collect();
            if all.iter().any(|address| self.proxy.settings.is_own_listener(*address)) {
                return Err(Refusal::new(
                    Reason::Loop,
                    format!("{authority} is this proxy itself"),
                ));
            }
            match all[..] {
                [one] => Ok(one),
                _ => Ok(race(&all, self.pools.opening()).await?),
            }
        };
        let address = match deadline.map(|deadline| deadline.at) {
            None => looking.await?,
            Some(until) => {
                tokio::time::timeout_at(until.into(), looking).await.map_err(|_| {
                    let what = format!("{name} was still being looked up when it passed");
                    Refusal::new(Reason::DeadlineExceeded, what)
                })??
            }
        };
        let mut addresses = self.addresses.borrow_mut();
        if addresses.len() >= MAX_ADDRESSES {
            addresses.clear();
        }
        addresses.insert(authority.clone(), (Instant::now(), address));
        Ok(address)
    }

    pub async fn connect(&self, address: SocketAddr) -> Result<OpenedConnection, ConnectError> {
        connect(address, self.pools.opening()).await
    }

    /// Whether an address is this host's own, as it was within the last seconds.
    pub fn is_own(&self, ip: IpAddr) -> bool {
        let mut known = self.own_addresses.borrow_mut();
        known.retain(|(at, _)| at.elapsed() < ADDRESS_TTL);
        if known.iter().any(|(_, own)| *own == ip) {
            return true;
        }
        let own = local::is_own(ip);
        if own && known.len() < MAX_OWN_ADDRESSES {
            known.push((Instant::now(), ip));
        }
        own
    }

    /// Counts and logs a connection that was ended before it became a request.
    pub fn refused(
        &self,
        direction: Direction,
        protocol: Protocol,
        reason: Reason,
        remote: SocketAddr,
    ) {
        let refusal = Refusal::new(reason, "");
        self.refuse_stream(direction, protocol, Label::UNKNOWN, &refusal, remote);
    }

    /// Counts and logs a connection that cannot be served and whose protocol has no way of saying so.
    pub fn refuse_stream(
        &self,
        direction: Direction,
        protocol: Protocol,
        service: Label,
        refusal: &Refusal,
        remote: SocketAddr,
    ) {
        let reason = refusal.reason;
        let outcome = classify_reason(reason);
        let key = SeriesKey { direction, service, route: Label::NONE, peer: Label::UNKNOWN };
        let count =
            CountKey { protocol, outcome, status: Status::Stream, cause: Some(refusal.cause()) };
        self.metrics.record(key, count, Duration::ZERO, 0);
        let ending = Ending::new(direction, outcome, Some(refusal.cause()));
        if let Some(wanted) = self.proxy.records.wanted(&ending, &|| self.random()) {
            let service = self.proxy.metrics.text(service);
            let record = Record {
                cause: Some(refusal.cause()),
                detail: Some(format!("from {remote}: {}", refusal.detail).into()),
                injected: refusal.injected.as_ref().map(|one| Arc::clone(&one.name)),
                ..Record::new(direction, service, protocol, outcome, Status::Stream)
            };
            self.proxy.records.publish(wanted, Box::new(record));
        }
    }
}

/// How busy a worker is, for anyone who hands out connections.
#[derive(Default)]
pub struct Load {
    pub connections: AtomicUsize,
    pub streams: AtomicUsize,
}

impl Load {
    /// What a worker is chosen by: relaxed, since a slightly stale choice does no harm.
    pub fn total(&self) -> usize {
        self.connections.load(Relaxed) + self.streams.load(Relaxed)
    }
}
