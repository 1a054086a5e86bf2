//! The exchanges in flight of one worker: which of them stand still, and which have had their time.
//!
//! An exchange is ended by a sweep, once a second, and never by polling one of its bodies: a body that
//! nobody polls is just what a stuck peer leads to. A request costs no timer. What happens to an exchange
//! that is ended is up to the task that serves it ([`crate::serve::request`] before the head of the answer,
//! `http/http2.rs` and [`crate::serve::connection`] after it).

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant};

use http::Response;
use outrigger_core::reason::Reason;

use crate::base::clock::coarse_ms;
use crate::base::sync::lock;
use crate::wire::watch::ConnectionWatch;

/// Informational responses of one exchange that wait for its caller; more are dropped.
const MAX_INFORMATIONAL: usize = 16;
/// Informational responses of one exchange, after which it is ended: an upstream that sends them without end
/// answers nothing, and keeps a worker busy.
const MOST_INFORMATIONAL: u32 = 256;

/// A body that is polled ends itself at its deadline, and can say why; the sweep comes after it.
const DEADLINE_GRACE_MS: u32 = 100;

/// What bounds an exchange that stands still; none: nothing.
#[derive(Clone, Copy, Debug)]
pub struct StallLimits {
    /// Without a byte in either direction, in sweeps.
    pub idle: Option<u32>,
    /// With an answer that the caller does not take, in sweeps.
    pub write: Option<u32>,
}

impl StallLimits {
    /// In whole seconds, rounded up; zero: none.
    pub fn new(idle: Duration, write: Duration) -> Self {
        let sweeps = |time: Duration| (!time.is_zero()).then(|| whole_seconds(time));
        Self { idle: sweeps(idle), write: sweeps(write) }
    }
}

fn whole_seconds(time: Duration) -> u32 {
    let more = u64::from(time.subsec_nanos() > 0);
    u32::try_from(time.as_secs().saturating_add(more)).unwrap_or(u32::MAX)
}

/// One exchange, as the sweep and the tasks that move it see it. Shared with hyper, which asks for `Send`,
/// hence atomics and a mutex; only one thread ever uses them.
#[derive(Default)]
pub struct Progress {
    /// Sweeps since a byte of it last moved.
    still: AtomicU32,
    /// Of the policy that it goes by, in sweeps; 0: that of the proxy.
    idle: AtomicU32,
    /// Coarse milliseconds at which it ends; 0: never.
    deadline_ms: AtomicU32,
    /// The caller does not take what there is for it.
    blocked: AtomicBool,
    /// The request has more to come.
    uploading: AtomicBool,
    /// The head of the answer has been handed on.
    head_sent: AtomicBool,
    ended: AtomicU8,
    state: Mutex<ProgressState>,
}

#[derive(Default)]
struct ProgressState {
    waker: Option<Waker>,
    informational: Vec<Response<()>>,
    /// How many have come in all.
    informed: u32,
}

/// Why an exchange is ended, as it fits one byte.
const ENDS: [Reason; 5] = [
    Reason::IdleTimeout,
    Reason::WriteTimeout,
    Reason::RequestBodyTimeout,
    Reason::DeadlineExceededAfterHead,
    Reason::UpstreamProtocolError,
];

impl Progress {
    /// A byte has moved.
    pub fn touch(&self) {
        self.still.store(0, Relaxed);
    }

    /// Ends the exchange at about this time, however it stands; none: no longer.
    pub fn set_deadline(&self, at: Option<Instant>) {
        let ms = |at| coarse_ms(at).saturating_add(DEADLINE_GRACE_MS);
        self.deadline_ms.store(at.map_or(0, ms), Relaxed);
    }

    /// Stands for the proxy's own limit.
    pub fn set_idle(&self, limit: Option<Duration>) {
        self.idle.store(limit.map_or(0, |limit| whole_seconds(limit).max(1)), Relaxed);
    }

    pub fn set_blocked(&self, blocked: bool) {
        self.blocked.store(blocked, Relaxed);
    }

    pub fn set_uploading(&self, uploading: bool) {
        self.uploading.store(uploading, Relaxed);
    }

    pub fn is_uploading(&self) -> bool {
        self.uploading.load(Relaxed)
    }

    pub fn set_head_sent(&self) {
        self.head_sent.store(true, Relaxed);
    }

    pub fn head_sent(&self) -> bool {
        self.head_sent.load(Relaxed)
    }

    /// Why it has to end now.
    pub fn ended(&self) -> Option<Reason> {
        usize::from(self.ended.load(Relaxed)).checked_sub(1).and_then(|at| ENDS.get(at).copied())
    }

    /// Ready when it has to end; until then the task is told when it has.
    pub fn poll_ended(&self, cx: &mut Context<'_>) -> Poll<()> {
        if self.ended().is_some() {
            return Poll::Ready(());
        }
        self.set_waker(cx.waker());
        Poll::Pending
    }

    /// Of the task that serves the exchange, so that it can be told.
    pub fn set_waker(&self, waker: &Waker) {
        let mut state = self.lock();
        if !state.waker.as_ref().is_some_and(|known| known.will_wake(waker)) {
            state.waker = Some(waker.clone());
        }
    }

    /// An informational response has come for the caller.
    pub fn inform(&self, response: Response<()>) {
        let mut state = self.lock();
        state.informed = state.informed.saturating_add(1);
        if state.informed > MOST_INFORMATIONAL {
            self.end(Reason::UpstreamProtocolError);
            return state.wake();
        }
        if state.informational.len() < MAX_INFORMATIONAL && !self.head_sent() {
            state.informational.push(response);
            state.wake();
        }
    }

    pub fn take_informational(&self) -> Vec<Response<()>> {
        std::mem::take(&mut self.lock().informational)
    }

    fn sweep(&self, now_ms: u32, limits: StallLimits, watch: Option<&ConnectionWatch>) {
        if self.ended.load(Relaxed) > 0 {
            return;
        }
        let moved = watch.is_some_and(ConnectionWatch::take_moved);
        let still = if moved { 0 } else { self.still.load(Relaxed).saturating_add(1) };
        self.still.store(still, Relaxed);
        let blocked = match watch {
            Some(watch) => watch.is_blocked(),
            None => self.blocked.load(Relaxed),
        };
        let deadline = self.deadline_ms.load(Relaxed);
        let own = Some(self.idle.load(Relaxed)).filter(|limit| *limit > 0);
        let is_over = |limit: Option<u32>| limit.is_some_and(|limit| still > limit);
        let reason = if deadline > 0 && now_ms >= deadline {
            Reason::DeadlineExceededAfterHead
        } else if blocked && is_over(own.or(limits.write)) {
            Reason::WriteTimeout
        } else if !blocked && is_over(own.or(limits.idle)) {
            match self.uploading.load(Relaxed) && !self.head_sent() {
                true => Reason::RequestBodyTimeout,
                false => Reason::IdleTimeout,
            }
        } else {
            return;
        };
        self.end(reason);
        self.lock().wake();
    }

    fn end(&self, reason: Reason) {
        let at = ENDS.iter().position(|end| *end == reason).unwrap_or_default();
        self.ended.store(at as u8 + 1, Relaxed);
    }

    fn lock(&self) -> MutexGuard<'_, ProgressState> {
        lock(&self.state)
    }
}

impl ProgressState {
    fn wake(&self) {
        if let Some(waker) = &self.waker {
            waker.wake_by_ref();
        }
    }
}

/// Every exchange in flight of a worker.
#[derive(Default)]
pub struct Exchanges {
    entries: RefCell<Vec<ProgressEntry>>,
    free: RefCell<Vec<usize>>,
}

struct ProgressEntry {
    progress: Arc<Progress>,
    in_use: bool,
    /// Of the connection that carries nothing but this exchange.
    watch: Option<Arc<ConnectionWatch>>,
}

/// An exchange's place in [`Exchanges`].
pub struct Tracked {
    exchanges: Rc<Exchanges>,
    slot: usize,
    progress: Arc<Progress>,
}

impl Exchanges {
    /// `watch`: of the connection, where it carries one exchange at a time.
    pub fn begin(self: &Rc<Self>, watch: Option<Arc<ConnectionWatch>>) -> Tracked {
        let mut entries = self.entries.borrow_mut();
        let slot = match self.free.borrow_mut().pop() {
            Some(slot) => slot,
            None => {
                entries.push(ProgressEntry {
                    progress: Arc::default(),
                    in_use: false,
                    watch: None,
                });
                entries.len() - 1
            }
        };
        let entry = &mut entries[slot];
        match Arc::get_mut(&mut entry.progress) {
            Some(progress) => progress.reset(),
            // Somebody still refers to the exchange that had it before.
            None => entry.progress = Arc::default(),
        }
        (entry.in_use, entry.watch) = (true, watch);
        let progress = Arc::clone(&entry.progress);
        Tracked { exchanges: Rc::clone(self), slot, progress }
    }

    /// Ages every exchange by one second.
    pub fn sweep(&self, now: Instant, limits: StallLimits) {
        let now_ms = coarse_ms(now);
        for entry in self.entries.borrow().iter().filter(|entry| entry.in_use) {
            entry.progress.sweep(now_ms, limits, entry.watch.as_deref());
        }
    }
}

impl Progress {
    /// As new; its memory stays.
    fn reset(&mut self) {
        let state = self.state.get_mut().unwrap_or_else(PoisonError::into_inner);
        let mut informational = std::mem::take(&mut state.informational);
        informational.clear();
        let state = Mutex::new(ProgressState { waker: None, informational, informed: 0 });
        *self = Self { state, ..Self::default() };
    }
}

impl Tracked {
    pub fn progress(&self) -> &Arc<Progress> {
        &self.progress
    }
}

impl Drop for Tracked {
    fn drop(&mut self) {
        let entry = &mut self.exchanges.entries.borrow_mut()[self.slot];
        (entry.in_use, entry.watch) = (false, None);
        self.exchanges.free.borrow_mut().push(self.slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: StallLimits = StallLimits { idle: Some(3), write: Some(2) };

    fn sweep(exchanges: &Exchanges, times: usize) {
        for _ in 0..times {
            exchanges.sweep(Instant::now(), LIMITS);
        }
    }

    #[test]
    fn what_stands_still_for_too_long_is_ended_and_says_why() {
        let table: [(bool, bool, bool, usize, Reason); 4] = [
            (false, false, false, 4, Reason::IdleTimeout),
            (false, true, false, 4, Reason::RequestBodyTimeout),
            (false, true, true, 4, Reason::IdleTimeout),
            (true, false, true, 3, Reason::WriteTimeout),
        ];
        for (blocked, uploading, head_sent, sweeps, reason) in table {
            let exchanges = Rc::new(Exchanges::default());
            let tracked = exchanges.begin(None);
            let progress = tracked.progress();
            progress.set_blocked(blocked);
            progress.set_uploading(uploading);
            if head_sent {
                progress.set_head_sent();
            }
            sweep(&exchanges, sweeps - 1);
            assert_eq!(progress.ended(), None);
            progress.touch();
            sweep(&exchanges, sweeps - 1);
            assert_eq!(progress.ended(), None, "a byte has moved");
            sweep(&exchanges, 1);
            assert_eq!(progress.ended(), Some(reason));
        }
    }

    #[test]
    fn a_deadline_ends_an_exchange_that_nobody_polls() {
        let exchanges = Rc::new(Exchanges::default());
        let (early, late) = (exchanges.begin(None), exchanges.begin(None));
        // The clock begins with the process.
        coarse_ms(Instant::now());
        let now = Instant::now() + Duration::from_secs(1);
        early.progress().set_deadline(Some(now));
        late.progress().set_deadline(Some(now + Duration::from_secs(60)));
        exchanges.sweep(now + Duration::from_millis(101), LIMITS);
        assert_eq!(early.progress().ended(), Some(Reason::DeadlineExceededAfterHead));
        assert_eq!(late.progress().ended(), None);
    }

    #[test]
    fn a_place_is_used_again_but_never_for_two_at_a_time() {
        let exchanges = Rc::new(Exchanges::default());
        let first = exchanges.begin(None);
        let late = Arc::clone(first.progress());
        drop(first);
        let second = exchanges.begin(None);
        assert_eq!(exchanges.entries.borrow().len(), 1);
        late.inform(Response::new(()));
        assert!(second.progress().take_informational().is_empty());
    }
}
