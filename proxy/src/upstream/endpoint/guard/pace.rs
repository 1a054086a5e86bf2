//! Obeying a service's rate limits: requests are held up, by a little, before the service refuses them.
//!
//! What it says is trusted only of proxies, which say what they will do. One [`Pace`] serves the whole
//! process, and nobody asks it while no limit is nearly used up.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Mutex, MutexGuard};
use std::time::Instant;

use http::StatusCode;
use http::header::{HeaderMap, HeaderName};
use outrigger_core::policy::pace::{self, Pace, Tight};
use outrigger_core::time::Part;
use serde_json::{Value, json};

use crate::base::sync::lock;
use crate::upstream::endpoint::Endpoints;
use crate::wire::headers::GRPC_STATUS;

pub const RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
pub const RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

#[derive(Default)]
pub(crate) struct Pacing {
    pub(crate) on: AtomicBool,
    kept: Mutex<Option<PacedLimit>>,
    pub(crate) held_up: AtomicU64,
    pub(crate) refused: AtomicU64,
}

/// A limit that is kept to.
pub(crate) struct PacedLimit {
    pub(crate) name: Box<str>,
    pub(crate) pace: Pace,
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
    pub(crate) fn lock(&self) -> MutexGuard<'_, Option<PacedLimit>> {
        lock(&self.kept)
    }

    pub(crate) fn stop(&self, kept: &mut Option<PacedLimit>) {
        *kept = None;
        self.on.store(false, Relaxed);
    }

    /// Requests that were held up, and those that were refused here.
    pub(crate) fn counts(&self) -> [u64; 2] {
        [&self.held_up, &self.refused].map(|count| count.load(Relaxed))
    }

    pub(crate) fn show(&self) -> Option<Value> {
        let kept = self.lock();
        let PacedLimit { name, pace } = kept.as_ref()?;
        Some(json!({ "limit": **name, "gapMs": pace.gap().as_secs_f64() * 1e3 }))
    }
}
