//! What all threads of the process share.

pub mod connections;
pub mod registration;
pub mod worker;

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::time::Instant;

use arc_swap::ArcSwap;
use outrigger_core::config::{Inbound, MeshSettings};
use outrigger_core::error::FieldError;
use outrigger_core::telemetry::Telemetry;
use outrigger_logging::Log;
use outrigger_resolver::Resolver;
use tokio::sync::{mpsc, watch};

use crate::base::settings::Settings;
use crate::observe::access_log::AccessLog;
use crate::observe::access_log::otlp::SentLog;
use crate::observe::bus::Bus;
use crate::observe::correlation::Correlation;
use crate::observe::metrics::Metrics;
use crate::observe::push::Push;
use crate::observe::record::Record;
use crate::observe::tap::Taps;
use crate::observe::traces::Traces;
use crate::policy::cache::Cache;
use crate::policy::inbound_ports::InboundPorts;
use crate::policy::limits::known::LimitStates;
use crate::policy::mirrors::Mirrors;
use crate::policy::server_first::ServerFirst;
use crate::proxy::registration::RegistrationState;
use crate::tls::identity::Identity;
use crate::upstream::faults::{FaultInjections, Stop};
use crate::upstream::store::Store;

pub struct Proxy {
    pub settings: Settings,
    pub store: Store,
    /// Of names outside the mesh.
    pub resolver: Resolver,
    /// None: the mesh runs without identities.
    pub identity: Option<Arc<Identity>>,
    pub inbound: ArcSwap<InboundPorts>,
    /// Of this workload's own ports.
    pub limits: LimitStates,
    pub mesh: ArcSwap<MeshSettings>,
    pub mirrors: Arc<Mirrors>,
    pub metrics: Arc<Metrics>,
    /// Where what is known of exchanges goes at their end.
    pub records: Bus,
    pub access_log: Arc<AccessLog>,
    /// Which of them are recorded as spans.
    pub traces: Arc<Traces>,
    pub sent_log: Arc<SentLog>,
    /// Where metrics are sent.
    pub push: Push,
    /// Which of them somebody wants to see now.
    pub taps: Arc<Taps>,
    /// What the process says, access log included.
    pub log: Log,
    pub correlation: Correlation,
    pub cache: Cache,
    pub faults: FaultInjections,
    pub server_first: ServerFirst,
    /// As an endpoint of the mesh.
    pub registration: RegistrationState,
    pub lifecycle: Lifecycle,
}

/// What a new proxy leaves to others in the process.
pub struct BackgroundTasks {
    /// For [`crate::mesh::stop`].
    pub stops: mpsc::UnboundedReceiver<Stop>,
    /// For [`crate::mesh::tap`].
    pub tapped: mpsc::Receiver<Box<Record>>,
}

impl Proxy {
    pub fn new(
        settings: Settings,
        identity: Option<Arc<Identity>>,
        log: Log,
    ) -> (Arc<Self>, BackgroundTasks) {
        let metrics = Arc::new(Metrics::new(settings.workers()));
        let access_log =
            Arc::new(AccessLog::new(settings.access_log, settings.access_log_layout, log.clone()));
        let sent_log = Arc::new(SentLog::new(Arc::clone(&access_log)));
        let traces = Arc::<Traces>::default();
        let (taps, tapped) = Taps::new();
        let (faults, stops) = FaultInjections::new();
        let proxy = Self {
            correlation: Correlation::new(Arc::clone(&metrics)),
            cache: Cache::new(settings.cache_bytes),
            // Empty is what a pod has whose node is in no zone.
            store: Store::new(settings.zone.clone().filter(|zone| !zone.is_empty())),
            resolver: Resolver::default(),
            inbound: ArcSwap::from_pointee(InboundPorts::registered(&settings, identity.is_some())),
            limits: LimitStates::default(),
            identity,
            mesh: ArcSwap::from_pointee(MeshSettings::default()),
            mirrors: Arc::default(),
            records: Bus::new(vec![
                Box::new(Arc::clone(&access_log)),
                Box::new(Arc::clone(&sent_log)),
                Box::new(Arc::clone(&traces)),
                Box::new(Arc::clone(&taps)),
            ]),
            access_log,
            sent_log,
            push: Push::default(),
            traces,
            taps,
            log,
            faults,
            server_first: ServerFirst::default(),
            registration: RegistrationState::default(),
            lifecycle: Lifecycle::default(),
            metrics,
            settings,
        };
        (Arc::new(proxy), BackgroundTasks { stops, tapped })
    }

    /// Changes what is told of requests, and to whom.
    pub fn configure_telemetry(&self, telemetry: &Telemetry) {
        self.access_log.configure(telemetry.access_log, telemetry.access_log_layout);
        self.sent_log.configure(telemetry.logs.as_ref());
        self.traces.configure(telemetry.traces.as_ref());
        self.push.configure(telemetry);
    }

    /// Why the proxy is not ready, if it is not.
    pub fn not_ready(&self) -> Option<Cow<'static, str>> {
        if let Some(why) = self.lifecycle.draining() {
            return Some(why.into());
        }
        // Without a certificate there is no configuration either: the cause is worth more.
        let identity = self.identity.as_ref().and_then(|identity| identity.problem());
        let identity = identity.map(Cow::from);
        let registration = || self.registration.problem().map(Cow::from);
        identity.or_else(registration).or_else(|| self.lifecycle.unconfigured().map(Cow::from))
    }

    /// Lines for a person: how far the proxy has come.
    pub fn describe_readiness(&self) -> String {
        let configured = if self.lifecycle.configured() { "yes" } else { "no" };
        let registration = self.registration.describe(Instant::now());
        format!("live: yes\nconfigured: {configured}\n{registration}")
    }
}

/// Where the process is between its start and its end.
pub struct Lifecycle {
    phase: watch::Sender<Phase>,
    /// The first configuration has arrived, from the control plane or from disk.
    configured: AtomicBool,
    /// Connections, by the phase in which they end.
    open: [AtomicUsize; PHASES],
    /// Listeners, by the phase in which they do.
    listening: [AtomicUsize; PHASES],
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Default)]
pub enum Phase {
    #[default]
    Running,
    /// Not ready any more, still accepting: callers have not all heard yet.
    Leaving,
    /// Inbound connections end after what they have in flight. The app still works on that, and
    /// calls others for it.
    Finishing,
    /// Outbound connections end likewise.
    Closing,
}

/// Phases, as something is counted by them.
const PHASES: usize = 4;

impl Default for Lifecycle {
    fn default() -> Self {
        Self {
            phase: watch::Sender::new(Phase::Running),
            configured: AtomicBool::new(false),
            open: Default::default(),
            listening: Default::default(),
        }
    }
}

impl Lifecycle {
    pub fn phase(&self) -> Phase {
        *self.phase.borrow()
    }

    pub fn subscribe(&self) -> watch::Receiver<Phase> {
        self.phase.subscribe()
    }

    /// Waits until the process is at `phase` or past it.
    pub async fn reached(&self, phase: Phase) {
        // The sender lives as long as `self`, so this ends only by reaching the phase.
        drop(self.phase.subscribe().wait_for(|current| *current >= phase).await);
    }

    /// Goes to `phase`, never back.
    pub fn advance(&self, phase: Phase) {
        self.phase.send_if_modified(|current| {
            let later = phase > *current;
            if later {
                *current = phase;
            }
            later
        });
    }

    pub fn set_configured(&self) {
        self.configured.store(true, Relaxed);
    }

    pub fn configured(&self) -> bool {
        self.configured.load(Relaxed)
    }

    fn draining(&self) -> Option<&'static str> {
        (self.phase() != Phase::Running).then_some("draining")
    }

    fn unconfigured(&self) -> Option<&'static str> {
        (!self.configured()).then_some("no configuration yet")
    }

    pub fn open_connections(&self) -> usize {
        self.open.iter().map(|open| open.load(Relaxed)).sum()
    }

    /// Whether no connection is open that ends in `phase`.
    pub fn is_idle(&self, phase: Phase) -> bool {
        self.open[phase as usize].load(SeqCst) == 0
    }

    /// Whether nothing is open that ends in `phase`, nor can be any more.
    pub fn is_over(&self, phase: Phase) -> bool {
        // In this order: a listener hands over what it has accepted before it is gone.
        self.listening[phase as usize].load(SeqCst) == 0 && self.is_idle(phase)
    }

    /// A listener is there from now on, until [`Lifecycle::stopped_listening`].
    pub fn listens(&self, ends: Phase) {
        self.listening[ends as usize].fetch_add(1, SeqCst);
    }

    pub fn stopped_listening(&self, ends: Phase) {
        self.listening[ends as usize].fetch_sub(1, SeqCst);
    }

    /// Counts an accepted connection, unless there are `limit` already that end when it does.
    pub fn try_open(&self, limit: usize, ends: Phase) -> bool {
        let more = |open: usize| (open < limit).then(|| open.saturating_add(1));
        self.open[ends as usize].fetch_update(SeqCst, Relaxed, more).is_ok()
    }

    pub fn closed(&self, ends: Phase) {
        self.open[ends as usize].fetch_sub(1, Relaxed);
    }
}

impl Proxy {
    /// This workload's ports, as `inbound` has them.
    pub fn inbound_ports(&self, inbound: &Inbound) -> Result<InboundPorts, FieldError> {
        let settings = (&self.settings, self.identity.is_some());
        InboundPorts::from_config(settings, &self.metrics, &self.limits, inbound)
    }
}
