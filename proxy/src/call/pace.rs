//! Obeying a called service's rate limits: a request is held up, by a little, before the service refuses it.

use std::sync::atomic::Ordering::Relaxed;
use std::time::Instant;

use outrigger_core::policy::pace::PaceTurn;
use outrigger_core::policy::priority::Priority;
use outrigger_core::reason::Reason;
use outrigger_core::time::short;

use crate::base::refusal::Refusal;
use crate::observe::record::micros;
use crate::request::exchange::Exchange;
use crate::upstream::endpoint::Endpoints;
use crate::upstream::endpoint::guard::pace::{PacedLimit, Pacing};

/// Waits for a request's turn where a limit of the service is nearly used up. A critical request goes at
/// once: other limits may hold for it.
pub async fn pace(endpoints: &Endpoints, exchange: &mut Exchange) -> Result<(), Refusal> {
    let pacing = &endpoints.guard.pacing;
    if !pacing.on.load(Relaxed) || exchange.priority == Priority::Critical {
        return Ok(());
    }
    // Boxed: rare, and the future of every request would carry its size.
    Box::pin(wait(pacing, endpoints, exchange)).await
}

async fn wait(
    pacing: &Pacing,
    endpoints: &Endpoints,
    exchange: &mut Exchange,
) -> Result<(), Refusal> {
    let now = Instant::now();
    let turn = {
        let mut kept = pacing.lock();
        let Some(PacedLimit { name, pace }) = &mut *kept else { return Ok(()) };
        if pace.is_idle(now) {
            pacing.stop(&mut kept);
            return Ok(());
        }
        match pace.turn(now, exchange.deadline.map(|deadline| deadline.at)) {
            PaceTurn::Now => return Ok(()),
            PaceTurn::At(at) => Ok(at),
            PaceTurn::Never(wait) => {
                Err((wait, format!("rate limit \"{name}\" of {}", endpoints.name)))
            }
        }
    };
    match turn {
        Ok(at) => {
            pacing.held_up.fetch_add(1, Relaxed);
            tokio::time::sleep_until(at.into()).await;
            let waited = micros(now.elapsed());
            endpoints.guard.waited_us.fetch_add(waited.into(), Relaxed);
            let queued = &mut exchange.phases.queue;
            *queued = queued.saturating_add(waited);
            Ok(())
        }
        Err((wait, limit)) => {
            pacing.refused.fetch_add(1, Relaxed);
            let why =
                format!("{limit} exceeded by the requests queued here; retry in {}", short(wait));
            Err(Refusal { retry_after: Some(wait), ..Refusal::new(Reason::RateLimited, why) })
        }
    }
}
