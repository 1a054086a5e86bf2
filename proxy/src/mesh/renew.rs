//! Keeps the certificate alive: renewed at two thirds of its life, or at once when the mesh issues
//! under another root, with jitter so that a fleet does not come all at once.

use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::Duration;

use outrigger_core::time::Later;
use tokio::time::Instant;
use tracing::{info, warn};

use crate::mesh::certify::certify;
use crate::mesh::control_plane::{Backoff, ControlPlane, FailureLog};
use crate::observe::metrics::add;
use crate::tls::identity::Identity;
use crate::tls::unix_now;

/// Share of a certificate's life after which it is renewed: the last third is for failures.
const SHARE: f64 = 2.0 / 3.0;
/// Of that moment, earlier or later.
const JITTER: f64 = 0.1;
/// Within this time a changed issuing root is followed. Short beside the steps of a rotation, long
/// enough that the control plane signs for a thousand proxies in it.
const FOLLOW: Duration = Duration::from_secs(5);
/// How often the clock is looked at: it may jump, and alarms are raised on time.
const LOOK: Duration = Duration::from_secs(1);
/// Pause when a new certificate, too, is not under the root that the bundle says issues now: the two
/// reach this proxy by different ways.
const STILL_OTHER: Duration = Duration::from_secs(30);

/// Runs until the process ends.
pub async fn run(identity: Arc<Identity>, control_plane: ControlPlane) {
    let mut changed = identity.subscribe();
    let mut warned = false;
    let mut backoff = Backoff::default();
    let mut complaints = FailureLog::default();
    let mut share = jittered(SHARE);
    // When a changed issuing root is followed, and when the next attempt after a failure is made.
    let (mut follow, mut retry) = (None, None);
    let mut look = tokio::time::interval(LOOK);
    look.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = look.tick() => {}
            _ = changed.changed() => {}
            () = until(retry), if retry.is_some() => {}
            () = until(follow), if follow.is_some() => {}
        }
        identity.alarm(&mut warned);
        let now = Instant::now();
        if identity.outdated() {
            follow.get_or_insert_with(|| later(now, FOLLOW.mul_f64(random())));
        } else {
            follow = None;
        }
        let due = identity.due(share).is_none_or(|due| unix_now() >= due)
            || follow.is_some_and(|at| now >= at);
        if !due || retry.is_some_and(|at| now < at) {
            continue;
        }
        match renew(&identity, &control_plane).await {
            Ok(()) => {
                add(&identity.counts.renewals_succeeded, 1);
                share = jittered(SHARE);
                // One that is due again already, by a clock that goes wrong, is no success to build on.
                let lasts = identity.due(share).is_some_and(|due| due > unix_now());
                if lasts {
                    backoff.reset();
                    complaints.reset();
                }
                retry = (!lasts).then(|| later(Instant::now(), backoff.pause()));
                follow = identity.outdated().then(|| later(Instant::now(), STILL_OTHER));
            }
            Err(why) => {
                add(&identity.counts.renewals_failed, 1);
                // The old one serves on: a warning, unless there is none.
                if let Some(left_out) = complaints.say(&why, Instant::now().into_std()) {
                    warn!(why, left_out, "no new certificate, trying again");
                }
                identity.failed(&why);
                retry = Some(later(Instant::now(), backoff.pause()));
            }
        }
    }
}

async fn renew(identity: &Identity, control_plane: &ControlPlane) -> Result<(), String> {
    let issued = certify(control_plane, &identity.node).await?;
    identity
        .install(issued.key, issued.chain, issued.bundle, unix_now())
        .map_err(|e| e.to_string())?;
    if let Ok(current) = identity.current() {
        let seconds = current.not_after.saturating_sub(unix_now());
        info!(id = %current.id, seconds, "a new certificate is in force");
    }
    Ok(())
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at).await,
        None => std::future::pending().await,
    }
}

fn later(at: Instant, by: Duration) -> Instant {
    at.into_std().later(by).into()
}

fn jittered(share: f64) -> f64 {
    share * (1.0 - JITTER + 2.0 * JITTER * random())
}

/// Between 0 and 1.
fn random() -> f64 {
    RandomState::new().hash_one(0) as f64 / u64::MAX as f64
}
