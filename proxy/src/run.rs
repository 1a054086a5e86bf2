//! The life of the process: start, run, drain, end.

use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{io, thread};

use outrigger_core::time::Later;
use outrigger_logging::Log;
use tokio::runtime::{Builder, LocalOptions};
use tokio::sync::{mpsc, oneshot};
use tracing::{info, warn};

use crate::admin::expose::gather;
use crate::admin::{self, LogHandle};
use crate::base::memory;
use crate::base::settings::Settings;
use crate::health;
use crate::listener::accept::{self, Accepted, Bound, WorkerHandle};
use crate::mesh::control_plane::ControlPlane;
use crate::mesh::discovery::Discovery;
use crate::mesh::state::StateDir;
use crate::mesh::{refuse, registration, renew, report, stop};
use crate::observe::access_log::otlp::LogSender;
use crate::observe::push::{ByOtlp, Pusher, ToStatsd};
use crate::observe::record::Record;
use crate::observe::traces::otlp::SpanExporter;
use crate::proxy::worker::{Load, Worker};
use crate::proxy::{BackgroundTasks, Phase, Proxy};
use crate::tls::identity::Identity;
use crate::tls::unix_now;
use crate::upstream::faults::Stop;

/// Time in which the answers to the app say that its connections end, before idle ones do.
const ANNOUNCE: Duration = Duration::from_secs(1);
/// How often the end of the last connection is looked for while draining.
const DRAIN_POLL: Duration = Duration::from_millis(20);
/// Tasks that a busy worker runs before it looks for new events. Tokio's 61 leaves a saturated worker
/// writing 6 answers at a time, this 11 (bench/README.md); an idle worker looks at once either way.
const POLLS_BETWEEN_EVENTS: u32 = 256;

/// How long the end of the process waits for what it sends last to be taken.
const LAST_SENT: Duration = Duration::from_secs(1);
/// How long the end of the process waits for work that blocks, on a disk that has stalled.
const BLOCKED: Duration = Duration::from_secs(1);

/// Runs the proxy until it is told to stop and has drained. `log`: of everything that it says;
/// `filter`: what of it.
pub fn run(settings: Settings, log: Log, filter: LogHandle) -> io::Result<()> {
    memory::set_purge_delay();
    let state = settings.state_dir.as_deref().map(StateDir::open).transpose()?;
    let identity = Identity::from_settings(&settings)?;
    let listeners = accept::bind(&settings)?;
    let admin = accept::listen(settings.admin)?;
    let socket = settings.admin_socket.clone();
    let workers = settings.workers();
    let (proxy, BackgroundTasks { stops, tapped }) = Proxy::new(settings, identity, log);
    // Everything that is not traffic shares this thread.
    let runtime = Builder::new_current_thread().enable_all().build()?;
    proxy.resolver.ask_on(runtime.handle().clone());
    // What the disk knows is in force before anybody is served: the first request may have waited for this process.
    let discovery = {
        let _inside = runtime.enter();
        Discovery::new(Arc::clone(&proxy), state)?
    };
    refuse::check(&proxy, unix_now()).map_err(io::Error::other)?;
    let handles = start_workers(&proxy, workers, listeners)?;
    info!(
        uid = proxy.settings.uid(),
        outbound = %proxy.settings.outbound,
        inbound = %proxy.settings.inbound,
        admin = %proxy.settings.admin,
        workers,
        "outrigger-proxy is up"
    );
    drop(handles);
    let ended = runtime.block_on(async {
        tokio::spawn(tick(Arc::clone(&proxy)));
        let senders = Arc::new(Senders::new(&proxy));
        let sending = Arc::clone(&senders);
        tokio::spawn(async move { sending.run().await });
        let socket = socket.map(|path| {
            let bound = admin::bind_socket(&path);
            bound.map_err(|error| {
                io::Error::new(error.kind(), format!("--admin-socket {}: {error}", path.display()))
            })
        });
        tokio::spawn(admin::serve(Arc::clone(&proxy), admin, socket.transpose()?, filter));
        let ended = control(proxy, stops, tapped, discovery).await;
        senders.finish(LAST_SENT).await;
        ended
    });
    runtime.shutdown_timeout(BLOCKED);
    ended
}

/// Everyone who sends what is known of requests.
struct Senders {
    spans: SpanExporter,
    log: LogSender,
    otlp: Pusher<ByOtlp>,
    statsd: Pusher<ToStatsd>,
}

impl Senders {
    fn new(proxy: &Arc<Proxy>) -> Self {
        let gather = || {
            let proxy = Arc::clone(proxy);
            Box::new(move || gather(&proxy))
        };
        let settings = &proxy.settings;
        Self {
            spans: SpanExporter::new(Arc::clone(&proxy.traces), settings),
            log: LogSender::new(Arc::clone(&proxy.sent_log), settings),
            otlp: Pusher::new(&proxy.push.otlp, settings, gather()),
            statsd: Pusher::new(&proxy.push.statsd, settings, gather()),
        }
    }

    /// For ever.
    async fn run(&self) {
        tokio::join!(self.spans.run(), self.log.run(), self.otlp.run(), self.statsd.run());
    }

    /// For the last time, within `limit`: what is on its way, and what is there. The rest is lost with the process.
    async fn finish(&self, limit: Duration) {
        let all = async {
            tokio::join!(
                self.spans.finish(),
                self.log.finish(),
                self.otlp.finish(),
                self.statsd.finish()
            );
        };
        let _ = tokio::time::timeout(limit, all).await;
    }
}

/// Lets time pass for what policies have learnt, about once a second.
async fn tick(proxy: Arc<Proxy>) {
    let mut seconds = tokio::time::interval(Duration::from_secs(1));
    seconds.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    for second in 1_u64.. {
        let now = seconds.tick().await.into_std();
        if second.is_multiple_of(60) {
            proxy.metrics.sweep_labels();
        }
        for service in proxy.store.all_endpoints() {
            service.guard.tick(now, &service.load().endpoints);
            proxy.faults.watch(&proxy.metrics, &service, now);
        }
    }
}

/// Starts one thread per worker, and with several one that accepts for all.
fn start_workers(
    proxy: &Arc<Proxy>,
    workers: usize,
    listeners: Vec<Bound>,
) -> io::Result<Vec<WorkerHandle>> {
    let mut handles = Vec::new();
    let mut queues = Vec::new();
    for _ in 0..workers {
        let (queue, accepted) = mpsc::unbounded_channel();
        handles.push(WorkerHandle { load: Arc::new(Load::default()), queue });
        queues.push(accepted);
    }
    let mut listeners = Some(listeners);
    let alone = workers == 1;
    for (index, accepted) in queues.into_iter().enumerate() {
        let proxy = Arc::clone(proxy);
        let load = Arc::clone(&handles[index].load);
        let own = if alone { listeners.take().unwrap_or_default() } else { Vec::new() };
        let handles = handles.clone();
        thread::Builder::new()
            .name(format!("worker-{index}"))
            .spawn(move || work(&proxy, index, load, accepted, own, &handles))?;
    }
    if let Some(listeners) = listeners {
        let (proxy, handles) = (Arc::clone(proxy), handles.clone());
        thread::Builder::new()
            .name("accept".to_owned())
            .spawn(move || work_nothing_but_accept(&proxy, listeners, &handles))?;
    }
    Ok(handles)
}

fn work(
    proxy: &Arc<Proxy>,
    index: usize,
    load: Arc<Load>,
    accepted: mpsc::UnboundedReceiver<Accepted>,
    listeners: Vec<Bound>,
    handles: &[WorkerHandle],
) {
    let runtime = Builder::new_current_thread()
        .event_interval(POLLS_BETWEEN_EVENTS)
        .enable_all()
        .build_local(LocalOptions::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            warn!(%error, "a worker cannot start");
            return;
        }
    };
    runtime.block_on(async {
        for bound in listeners {
            let accepting = accept::accept(Arc::clone(proxy), bound, handles.to_vec());
            tokio::task::spawn_local(accepting);
        }
        let worker = Worker::new(Arc::clone(proxy), index, load);
        // One of them is enough, and has the connections that requests take.
        if index == 0 {
            tokio::task::spawn_local(health::run(Rc::clone(&worker)));
        }
        worker.run(accepted).await;
    });
}

fn work_nothing_but_accept(proxy: &Arc<Proxy>, listeners: Vec<Bound>, handles: &[WorkerHandle]) {
    let Ok(runtime) = Builder::new_current_thread().enable_all().build() else { return };
    runtime.block_on(async {
        let accepting = listeners
            .into_iter()
            .map(|bound| accept::accept(Arc::clone(proxy), bound, handles.to_vec()));
        futures::future::join_all(accepting).await;
    });
}

/// Discovery, registration, signals; returns when the process may end.
async fn control(
    proxy: Arc<Proxy>,
    stops: mpsc::UnboundedReceiver<Stop>,
    tapped: mpsc::Receiver<Box<Record>>,
    discovery: Discovery,
) -> io::Result<()> {
    let settings = &proxy.settings;
    let control_plane = settings
        .control_plane
        .clone()
        .map(|uri| ControlPlane::new(uri, settings.token_file.clone(), proxy.identity.clone()));
    if let (Some(identity), Some(control_plane)) = (&proxy.identity, &control_plane) {
        tokio::spawn(renew::run(Arc::clone(identity), control_plane.clone()));
    }
    if let Some(control_plane) = control_plane.clone() {
        tokio::spawn(report::run(Arc::clone(&proxy), control_plane.clone(), tapped));
        tokio::spawn(stop::run(Arc::clone(&proxy), control_plane, stops));
    }
    let discovery = tokio::spawn(discovery.run(control_plane.clone()));
    // With a configuration from disk there is something to serve, whatever the command line says.
    let wrong = {
        let (proxy, control_plane) = (Arc::clone(&proxy), control_plane.clone());
        async move {
            match control_plane {
                Some(control_plane) if !proxy.lifecycle.configured() => control_plane.wrong().await,
                _ => std::future::pending().await,
            }
        }
    };
    let mut removed = None;
    let why_none = settings.why_no_registration();
    proxy.registration.why_none.store(Arc::new(why_none.unwrap_or_default()));
    if let Some(control_plane) = control_plane.filter(|_| why_none.is_none()) {
        let (tell, heard) = oneshot::channel();
        removed = Some(heard);
        tokio::spawn(registration::run(Arc::clone(&proxy), control_plane, tell));
    }
    tokio::select! {
        signal = stop_signal() => info!(signal = signal?, "told to stop"),
        () = proxy.lifecycle.reached(Phase::Leaving) => info!("told to drain"),
        () = stdin_ends(settings.exit_with_stdin) => info!("standard input has ended"),
        why = wrong => return Err(io::Error::other(why)),
    }
    drain(&proxy, removed).await;
    // It writes the disk copy at its end.
    let _ = discovery.await;
    if let Some(identity) = &proxy.identity {
        identity.persisted(BLOCKED).await;
    }
    Ok(())
}

/// Not ready, still accepting; then inbound connections end after what they have in flight, and
/// outbound ones when the app needs none any more.
async fn drain(proxy: &Proxy, removed: Option<oneshot::Receiver<()>>) {
    let settings = &proxy.settings;
    proxy.lifecycle.advance(Phase::Leaving);
    let delay = tokio::time::sleep(settings.drain_delay);
    let unheard_of = async {
        match removed {
            // Sooner when every caller has acknowledged that this workload is gone; those that the
            // control plane does not know need the delay.
            Some(heard) => {
                tokio::select! {
                    () = delay => {}
                    Ok(()) = heard => {}
                }
            }
            None => delay.await,
        }
    };
    // Idle connections of the app will end without a word: those in use shall have ended by one before. Not later,
    // or others would wait for longer for the proxy that comes after this one.
    let announced =
        gone(Instant::now().later(ANNOUNCE), || proxy.lifecycle.is_idle(Phase::Closing));
    tokio::join!(unheard_of, announced);
    let lifecycle = &proxy.lifecycle;
    let end = Instant::now().later(settings.drain_timeout);
    lifecycle.advance(Phase::Finishing);
    let mut drained = gone(end, || lifecycle.is_over(Phase::Finishing)).await;
    lifecycle.advance(Phase::Closing);
    drained &= gone(end, || lifecycle.is_over(Phase::Closing)).await;
    if drained {
        info!("drained");
    } else {
        let open = lifecycle.open_connections();
        warn!(open, "the drain limit has passed, ending what is still open");
    }
}

/// Waits until nothing is open; false when `end` came first.
async fn gone(end: Instant, is_over: impl Fn() -> bool) -> bool {
    while !is_over() {
        if Instant::now() >= end {
            return false;
        }
        tokio::time::sleep(DRAIN_POLL).await;
    }
    true
}

async fn stop_signal() -> io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! {
        _ = terminate.recv() => Ok("SIGTERM"),
        _ = interrupt.recv() => Ok("SIGINT"),
    }
}

/// Resolves when anyone who started the process has closed its standard input; never, if not asked.
async fn stdin_ends(asked: bool) {
    if !asked {
        return std::future::pending().await;
    }
    let (ended, wait) = oneshot::channel();
    // A thread: reading a terminal or pipe blocks, and the process must be able to end without it.
    thread::spawn(move || {
        let _ = io::copy(&mut io::stdin(), &mut io::sink());
        let _ = ended.send(());
    });
    let _ = wait.await;
}
