//! Obeying a service's rate limits: requests are held up, by a little, before the service refuses them.
//!
//! What it says is trusted only of proxies, which say what they will do. One [`Pace`] serves the whole
//! process, and nobody asks it while no limit is nearly used up.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use http::StatusCode;
use http::header::{HeaderMap, HeaderName};
use outrigger_core::policy::pace::{self, Pace, PaceTurn, Tight};
use outrigger_core::policy::priority::Priority;
use outrigger_core::reason::Reason;
use outrigger_core::time::{Part, short};
use serde_json::{Value, json};

use crate::endpoint::Endpoints;
use crate::http::exchange::Exchange;
use crate::http::headers::GRPC_STATUS;
use crate::http::respond::Refusal;
use crate::record::micros;

pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

#[derive(Default)]
pub(super) struct Pacing {
    on: AtomicBool,
    kept: Mutex<Option<PacedLimit>>,
    held_up: AtomicU64,
    refused: AtomicU64,
}

/// A limit that is kept to.
struct PacedLimit {
    name: Box<str>,
    pace: Pace,
}

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
            let queued = &mut exchange.phases.queue;
            *queued = queued.saturating_add(micros(now.elapsed()));
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

impl Endpoints {
    /// What the head of an answer says about the service's limits; `says`: whether it says anything.
    pub fn limits_said(&self, says: bool, status: StatusCode, headers: &HeaderMap) {
        let pacing = &self.guard.pacing;
        let on = pacing.on.load(Relaxed);
        // An app without a sidecar may say what it likes: it may be about one user of many.
        if !(on || says && self.has_mesh()) {
            return;
        }
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
        let (limit, rule) = (text(RATE_LIMIT), text(RATE_LIMIT_POLICY));
        let refused = status == StatusCode::TOO_MANY_REQUESTS || text(GRPC_STATUS) == "8";
        let now = Instant::now();
        let mut kept = pacing.lock();
        if let Some(PacedLimit { name, pace }) = &mut *kept {
            let left = pace::left(limit, name);
            if refused && left == Some(0) {
                pace.refused(now);
            }
            // It is there no more, or has room for everybody.
            if limit.is_empty() || left.is_some_and(|left| !pace.left(left)) {
                pacing.stop(&mut kept);
            }
            return;
        }
        let instances = u32::try_from(self.load().endpoints.len()).unwrap_or(u32::MAX).max(1);
        let Some(tight) = pace::tight(limit, rule) else { return };
        // Each instance counts for itself.
        if let Some(pace) = Pace::new(&Tight { gap: tight.gap.part(instances), ..tight }, now) {
            tracing::info!(service = %self.name, limit = tight.name, "slowing down for a rate limit");
            *kept = Some(PacedLimit { name: tight.name.into(), pace });
            pacing.on.store(true, Relaxed);
        }
    }
}

impl Pacing {
    fn lock(&self) -> MutexGuard<'_, Option<PacedLimit>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn stop(&self, kept: &mut Option<PacedLimit>) {
        *kept = None;
        self.on.store(false, Relaxed);
    }

    /// Requests that were held up, and those that were refused here.
    pub(super) fn counts(&self) -> [u64; 2] {
        [&self.held_up, &self.refused].map(|count| count.load(Relaxed))
    }

    pub(super) fn show(&self) -> Option<Value> {
        let kept = self.lock();
        let PacedLimit { name, pace } = kept.as_ref()?;
        Some(json!({ "limit": **name, "gapMs": pace.gap().as_secs_f64() * 1e3 }))
    }
}
