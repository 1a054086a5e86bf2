//! A limited number of requests in flight to a service, and the few that may wait for one of them to end.

use std::sync::Arc;
use std::sync::atomic::Ordering::{Relaxed, SeqCst};
use std::time::{Duration, Instant};

use outrigger_core::reason::Reason;

use crate::base::refusal::Refusal;
use crate::observe::record::micros;
use crate::upstream::endpoint::Endpoints;
use crate::upstream::endpoint::guard::{Guard, UNLIMITED};

/// One of a limited number of requests in flight to a service.
pub struct InFlightPermit(Arc<Endpoints>);

impl Drop for InFlightPermit {
    fn drop(&mut self) {
        self.0.guard.leave();
    }
}

impl Guard {
    fn leave(&self) {
        // In one order with `wait_for_permit`, or each could miss what the other does.
        self.in_flight.fetch_sub(1, SeqCst);
        if self.waiting.load(SeqCst) > 0 {
            self.room.notify_one();
        }
    }

    fn try_enter(&self) -> bool {
        let most = self.max_in_flight.load(Relaxed);
        let enter = |now: u32| (now < most).then_some(now + 1);
        self.in_flight.fetch_update(SeqCst, SeqCst, enter).is_ok()
    }
}

/// Takes a permit where the service has a limit; waits for one where waiting is allowed, and adds the
/// microseconds to `queued`. The request's deadline bounds the wait.
pub async fn acquire_in_flight(
    endpoints: &Arc<Endpoints>,
    queued: &mut u32,
) -> Result<Option<InFlightPermit>, Refusal> {
    let guard = &endpoints.guard;
    if guard.max_in_flight.load(Relaxed) == UNLIMITED {
        return Ok(None);
    }
    if !guard.try_enter() {
        // Boxed: rare, and the future of every request would carry its size.
        Box::pin(wait_in_flight(guard, queued)).await?;
    }
    Ok(Some(InFlightPermit(Arc::clone(endpoints))))
}

async fn wait_in_flight(guard: &Guard, queued: &mut u32) -> Result<(), Refusal> {
    let most = guard.max_pending.load(Relaxed);
    let wait = |now: u32| (now < most).then_some(now + 1);
    if guard.waiting.fetch_update(SeqCst, SeqCst, wait).is_err() {
        let in_flight = guard.max_in_flight.load(Relaxed);
        let detail =
            format!("{in_flight} requests to {} are in flight and {most} wait", guard.name);
        let retry_after = Some(Duration::from_secs(1));
        return Err(Refusal { retry_after, ..Refusal::new(Reason::TooManyInFlight, detail) });
    }
    let _waiting = PendingRequest(guard);
    let began = Instant::now();
    loop {
        let room = guard.room.notified();
        if guard.try_enter() {
            let waited = micros(began.elapsed());
            guard.waited_us.fetch_add(waited.into(), Relaxed);
            *queued = queued.saturating_add(waited);
            return Ok(());
        }
        room.await;
    }
}

struct PendingRequest<'a>(&'a Guard);

impl Drop for PendingRequest<'_> {
    fn drop(&mut self) {
        self.0.waiting.fetch_sub(1, Relaxed);
    }
}
