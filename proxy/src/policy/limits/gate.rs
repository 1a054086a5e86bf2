//! A port's limit of requests at a time, and those that wait for one of them to end, whatever workers
//! they are on.

use std::borrow::Cow;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Instant;

use outrigger_core::policy::concurrency::{
    Concurrency, ConcurrencyConfig, Full, Queue, Sample, Ticket,
};
use outrigger_core::policy::priority::Priority;
use outrigger_core::time::Later;
use tokio::sync::oneshot;

use crate::base::sync::lock;
use crate::observe::metrics::add;

/// One for each port that has a limit, in the whole process.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<GateState>,
    /// Requests that had to wait.
    pub queued: AtomicU64,
    /// Microseconds that they have waited.
    pub waited_us: AtomicU64,
    pub refused: AtomicU64,
}

#[derive(Debug)]
struct GateState {
    concurrency: Concurrency,
    /// Who waits gets a permit, or nothing when a more important one takes its place.
    queue: Queue<oneshot::Sender<Permit>>,
}

/// A place among the requests at work, until it is dropped.
#[derive(Debug)]
pub struct Permit {
    gate: Arc<Gate>,
    entered: Instant,
    sample: Sample,
}

/// What a gate looks like from outside.
#[derive(Clone, Copy, Debug)]
pub struct View {
    pub config: ConcurrencyConfig,
    pub limit: u32,
    pub in_flight: u32,
    pub waiting: usize,
}

impl Gate {
    pub fn new(config: ConcurrencyConfig, now: Instant) -> Self {
        let concurrency = Concurrency::new(config, now);
        Self {
            state: Mutex::new(GateState { concurrency, queue: Queue::default() }),
            queued: AtomicU64::new(0),
            waited_us: AtomicU64::new(0),
            refused: AtomicU64::new(0),
        }
    }

    pub fn reconfigure(self: &Arc<Self>, config: ConcurrencyConfig, now: Instant) {
        let mut state = self.lock();
        state.concurrency.reconfigure(config);
        self.let_in(state, now);
    }

    /// At once, unless somebody of the same or higher rank waits already.
    pub fn enter(self: &Arc<Self>, priority: Priority) -> Option<Permit> {
        let mut state = self.lock();
        let first = state.queue.is_empty() || priority == Priority::Critical;
        let entered = first && state.concurrency.enter();
        drop(state);
        entered.then(|| self.permit(Instant::now()))
    }

    /// In its turn, at most as long as the configuration lets it and until `until`; else why not.
    pub async fn wait(
        self: &Arc<Self>,
        priority: Priority,
        until: Option<Instant>,
    ) -> Result<Permit, Cow<'static, str>> {
        let now = Instant::now();
        let (turn, place, until) = self.queue(priority, until, now).inspect_err(|_| {
            add(&self.refused, 1);
        })?;
        let waited = tokio::time::timeout_at(until.into(), turn).await;
        drop(place);
        add(&self.waited_us, u64::try_from(now.elapsed().as_micros()).unwrap_or(u64::MAX));
        let why = match waited {
            Ok(Ok(permit)) => return Ok(permit),
            Ok(Err(_)) => "preempted by a higher-priority request".into(),
            Err(_) => format!("queued for {:.1?} without being admitted", now.elapsed()).into(),
        };
        add(&self.refused, 1);
        Err(why)
    }

    pub fn view(&self) -> View {
        let state = self.lock();
        View {
            config: state.concurrency.config(),
            limit: state.concurrency.limit(),
            in_flight: state.concurrency.in_flight(),
            waiting: state.queue.len(),
        }
    }

    fn queue(
        self: &Arc<Self>,
        priority: Priority,
        until: Option<Instant>,
        now: Instant,
    ) -> Result<(oneshot::Receiver<Permit>, QueuePlace, Instant), Cow<'static, str>> {
        let mut state = self.lock();
        let ConcurrencyConfig { max_queue, max_wait, .. } = state.concurrency.config();
        let limit = state.concurrency.limit();
        if max_queue == 0 || max_wait.is_zero() {
            return Err(format!("concurrency limit of {limit} reached").into());
        }
        let longest = now.later(max_wait);
        let until = until.map_or(longest, |until| until.min(longest));
        let (sender, turn) = oneshot::channel();
        let (ticket, shed) = match state.queue.push(max_queue, priority, until, sender) {
            Ok(queued) => queued,
            Err(Full(_)) => {
                let why =
                    format!("concurrency limit of {limit} reached and {max_queue} requests queued");
                return Err(why.into());
            }
        };
        // A place may have come free since it was looked for.
        self.let_in(state, now);
        drop(shed);
        add(&self.queued, 1);
        Ok((turn, QueuePlace { gate: Arc::clone(self), ticket }, until))
    }

    fn leave(self: &Arc<Self>, sample: Sample) {
        let now = Instant::now();
        let mut state = self.lock();
        state.concurrency.leave(now, sample);
        self.let_in(state, now);
    }

    /// Gives what is free to those that wait. Permits are sent when the lock is released: the permit of
    /// somebody who has gone away comes back to it.
    fn let_in(self: &Arc<Self>, mut state: MutexGuard<'_, GateState>, now: Instant) {
        let mut turns = Vec::new();
        while !state.queue.is_empty() && state.concurrency.enter() {
            match state.queue.pop(now) {
                Some(turn) => turns.push(turn),
                None => state.concurrency.leave(now, Sample::None),
            }
        }
        drop(state);
        for turn in turns {
            drop(turn.send(self.permit(now)));
        }
    }

    fn permit(self: &Arc<Self>, entered: Instant) -> Permit {
        Permit { gate: Arc::clone(self), entered, sample: Sample::None }
    }

    fn lock(&self) -> MutexGuard<'_, GateState> {
        lock(&self.state)
    }

    pub fn counts(&self) -> (u64, u64) {
        (self.queued.load(Relaxed), self.refused.load(Relaxed))
    }
}

impl Permit {
    /// The app has begun to answer: how long that took tells how loaded it is.
    pub fn answered(&mut self, now: Instant) {
        let latency = now.saturating_duration_since(self.entered);
        self.sample = Sample::Answered { entered: self.entered, latency };
    }

    /// The app did not answer in time.
    pub fn overloaded(&mut self) {
        self.sample = Sample::Overload { entered: self.entered };
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.gate.leave(self.sample);
    }
}

/// A place in the queue, given up with the request.
struct QueuePlace {
    gate: Arc<Gate>,
    ticket: Ticket,
}

impl Drop for QueuePlace {
    fn drop(&mut self) {
        let left = self.gate.lock().queue.remove(self.ticket);
        drop(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt;
    use outrigger_core::policy::concurrency::Limit;
    use std::time::Duration;

    fn gate(limit: u32, max_queue: u32) -> Arc<Gate> {
        let max_wait = Duration::from_millis(100);
        let config = ConcurrencyConfig { limit: Limit::Static(limit), max_queue, max_wait };
        Arc::new(Gate::new(config, Instant::now()))
    }

    #[tokio::test]
    async fn the_next_one_comes_in_when_one_leaves() {
        let gate = gate(1, 2);
        let first = gate.enter(Priority::Default).unwrap();
        assert!(gate.enter(Priority::Default).is_none());
        let mut waiting = Box::pin(gate.wait(Priority::Default, None));
        assert!(waiting.as_mut().now_or_never().is_none());
        let mut important = Box::pin(gate.wait(Priority::Critical, None));
        assert!(important.as_mut().now_or_never().is_none());
        assert!(gate.wait(Priority::Default, None).await.is_err(), "the queue is full");
        drop(first);
        let second = important.await.unwrap();
        assert!(waiting.as_mut().now_or_never().is_none());
        assert_eq!((gate.view().in_flight, gate.view().waiting), (1, 1));
        drop(second);
        drop(waiting.await.unwrap());
        assert_eq!((gate.view().in_flight, gate.view().waiting), (0, 0));
        assert_eq!(gate.counts(), (2, 1));
    }

    #[tokio::test]
    async fn a_caller_that_goes_away_takes_nothing_along() {
        let gate = gate(1, 5);
        let first = gate.enter(Priority::Default).unwrap();
        let mut gone = Box::pin(gate.wait(Priority::Default, None));
        assert!(gone.as_mut().now_or_never().is_none());
        let mut late = Box::pin(gate.wait(Priority::Default, None));
        assert!(late.as_mut().now_or_never().is_none());
        drop(gone);
        assert_eq!(gate.view().waiting, 1);
        // It has got its turn and goes away before it hears of it.
        drop(first);
        assert_eq!(gate.view().in_flight, 1);
        drop(late);
        assert_eq!((gate.view().in_flight, gate.view().waiting), (0, 0));
    }

    #[tokio::test]
    async fn nobody_waits_longer_than_it_may() {
        let gate = gate(1, 5);
        let _first = gate.enter(Priority::Default).unwrap();
        let began = Instant::now();
        let until = Some(Instant::now() + Duration::from_millis(30));
        assert!(gate.wait(Priority::Default, until).await.is_err());
        assert!(began.elapsed() < Duration::from_millis(90));
        assert!(gate.wait(Priority::Default, None).await.is_err());
        assert_eq!(gate.view().waiting, 0);
    }

    #[tokio::test]
    async fn a_higher_limit_lets_those_in_that_wait() {
        let gate = gate(1, 5);
        let _first = gate.enter(Priority::Default).unwrap();
        let mut waiting = Box::pin(gate.wait(Priority::Sheddable, None));
        assert!(waiting.as_mut().now_or_never().is_none());
        let config = ConcurrencyConfig { limit: Limit::Static(2), ..gate.view().config };
        gate.reconfigure(config, Instant::now());
        assert!(waiting.await.is_ok());
    }
}
