//! Sending metrics to those who do not read them: by OTLP ([`ByOtlp`]) and to StatsD ([`ToStatsd`]).
//!
//! What is sent is what `/metrics` says, gathered on the thread that is not traffic.

mod otlp;
mod statsd;

pub use self::otlp::ByOtlp;
pub use self::statsd::ToStatsd;

use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use arc_swap::ArcSwapOption;
use outrigger_core::telemetry::{OtlpMetrics, Statsd, Telemetry};
use outrigger_core::time::Later as _;
use outrigger_proto::prometheus::{LabelPair, MetricFamily};
use tokio::sync::Mutex;

use crate::base::settings::Settings;
use crate::observe::metrics::add;
use crate::observe::metrics::table::{self, Exposition};
use crate::observe::otlp::Complaints;

/// How often it is looked whether it is time.
const TICK: Duration = Duration::from_secs(1);

/// Where metrics are sent, as the control plane says.
#[derive(Default)]
pub struct Push {
    pub otlp: Arc<PushState<OtlpMetrics>>,
    pub statsd: Arc<PushState<Statsd>>,
}

/// One way of sending.
pub struct PushState<S> {
    /// None: nothing is sent.
    settings: ArcSwapOption<S>,
    /// Whether the first thing that the control plane said was to send: all that was counted is news then.
    from_start: OnceLock<bool>,
    sent: AtomicU64,
    failed: AtomicU64,
}

impl<S> Default for PushState<S> {
    fn default() -> Self {
        let (sent, failed) = (AtomicU64::new(0), AtomicU64::new(0));
        Self { settings: ArcSwapOption::empty(), from_start: OnceLock::new(), sent, failed }
    }
}

impl<S: PartialEq + Clone> PushState<S> {
    fn configure(&self, settings: Option<&S>) {
        let _ = self.from_start.set(settings.is_some());
        if self.settings.load().as_deref() != settings {
            self.settings.store(settings.cloned().map(Arc::new));
        }
    }
}

impl Push {
    /// Changes where they are sent from now on.
    pub fn configure(&self, telemetry: &Telemetry) {
        self.otlp.configure(telemetry.metrics.as_ref());
        self.statsd.configure(telemetry.statsd.as_ref());
    }

    pub fn expose(&self, out: &mut Exposition) {
        for (by, result, counter) in [
            ("otlp", "sent", &self.otlp.sent),
            ("otlp", "failed", &self.otlp.failed),
            ("statsd", "sent", &self.statsd.sent),
            ("statsd", "failed", &self.statsd.failed),
        ] {
            out.add(&table::METRICS_PUSHED, &[&by, &result], counter.load(Relaxed));
        }
    }
}

/// A way of sending metrics.
pub trait Receiver: Sized {
    type Settings: PartialEq;
    /// Of the control plane, by which it is set.
    const FLAG: &'static str;

    fn every(settings: &Self::Settings) -> Duration;

    fn address(settings: &Self::Settings) -> &str;

    /// `began`: when counting did; `so_far`: what has been counted before anybody wanted to know.
    fn new(from: &Settings, began: SystemTime, so_far: Vec<MetricFamily>) -> Self;

    /// Sends what there is at `now`, each change once.
    fn send(
        &mut self,
        settings: &Self::Settings,
        all: Vec<MetricFamily>,
        now: SystemTime,
    ) -> impl Future<Output = Result<(), String>> + Send;
}

/// Name and labels.
type SeriesId = (String, Vec<LabelPair>);

/// Says what has been counted.
pub type Gather = Box<dyn Fn() -> Vec<MetricFamily> + Send + Sync>;

/// Sends to one receiver.
pub struct Pusher<R: Receiver> {
    state: Arc<PushState<R::Settings>>,
    from: Settings,
    /// About when the process did.
    began: SystemTime,
    gather: Gather,
    running: Mutex<Running<R>>,
}

/// What is remembered from one time to the next.
struct Running<R: Receiver> {
    /// Nothing was ever sent.
    is_new: bool,
    /// For the settings that it was made of, and when it sends next.
    receiver: Option<(Arc<R::Settings>, R, Instant)>,
    complaints: Complaints,
}

impl<R: Receiver> Pusher<R> {
    pub fn new(state: &Arc<PushState<R::Settings>>, from: &Settings, gather: Gather) -> Self {
        let complaints = Complaints::about("metrics", R::FLAG);
        let running = Mutex::new(Running { is_new: true, receiver: None, complaints });
        let began = SystemTime::now();
        Self { state: Arc::clone(state), from: from.clone(), began, gather, running }
    }

    /// For ever.
    pub async fn run(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let now = ticks.tick().await.into_std();
            self.running.lock().await.tick(self, now, false).await;
        }
    }

    /// For the last time: what has been counted since the time before.
    pub async fn finish(&self) {
        self.running.lock().await.tick(self, Instant::now(), true).await;
    }
}

impl<R: Receiver> Running<R> {
    /// Sends if it is time for it, or if it is the last time.
    async fn tick(&mut self, pusher: &Pusher<R>, now: Instant, is_last: bool) {
        let Some(settings) = pusher.state.settings.load_full() else {
            self.receiver = None;
            return;
        };
        let every = R::every(&settings);
        let (_, receiver, due) = match &mut self.receiver {
            Some(running) if running.0 == settings => running,
            other => {
                let from_start = pusher.state.from_start.get() == Some(&true);
                let all_is_news = from_start && std::mem::take(&mut self.is_new);
                let so_far = if all_is_news { Vec::new() } else { (pusher.gather)() };
                let receiver = R::new(&pusher.from, pusher.began, so_far);
                other.insert((settings.clone(), receiver, now.later(some_of(every))))
            }
        };
        if now < *due && !is_last {
            return;
        }
        *due = now.later(every);
        let address = R::address(&settings);
        match receiver.send(&settings, (pusher.gather)(), SystemTime::now()).await {
            Ok(()) => {
                add(&pusher.state.sent, 1);
                self.complaints.taken(address);
            }
            Err(why) => {
                add(&pusher.state.failed, 1);
                self.complaints.lost(address, &why);
            }
        }
    }
}

/// Another part for each process: all of them are told where to send at one time.
fn some_of(every: Duration) -> Duration {
    let millis = u64::try_from(every.as_millis()).unwrap_or(u64::MAX).max(1);
    Duration::from_millis(RandomState::new().hash_one(()) % millis)
}
