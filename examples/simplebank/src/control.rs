//! What can be changed and counted while a service runs, on its admin port.
//!
//! `POST /admin/fault` makes it slow, narrow, failing or dead, `GET /admin/stats` counts, and
//! `GET /admin/operations` lists every operation id with the times that it arrived, so that a
//! request that came twice is seen.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::extract::State;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio::time::Instant;

/// Operation ids that are remembered; more than an hour of a brisk demo.
const MAX_OPERATIONS: usize = 1_000_000;

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize, Serialize)]
#[serde(default, deny_unknown_fields)]
pub(crate) struct Fault {
    /// Added to every answer.
    pub(crate) delay_ms: u64,
    /// Requests that it carries in a second; what comes beyond waits in line, and is worked off even
    /// when its caller has gone. 0: any number.
    pub(crate) capacity: f64,
    /// Share of the requests that fail, 0 to 1.
    pub(crate) fail_ratio: f64,
    /// Nothing listens any more and open connections are cut.
    pub(crate) dead: bool,
    /// Requests that it works on at a time, the calls that it waits for included; others wait. 0: any
    /// number. Only the role `tier` has workers.
    pub(crate) workers: u32,
    /// How often it calls again at once what failed, as many apps do; only the role `tier` does.
    pub(crate) retries: u32,
}

#[derive(Debug)]
pub(crate) struct Control {
    role: &'static str,
    version: String,
    fault: watch::Sender<Fault>,
    /// When everything in line will have been worked off.
    free_at: Mutex<Instant>,
    /// None: there are enough for everybody.
    workers: Mutex<Option<Arc<Semaphore>>>,
    counts: Mutex<Counts>,
}

#[derive(Debug, Default)]
struct Counts {
    requests: u64,
    failures: u64,
    in_flight: u64,
    operations: BTreeMap<String, u32>,
}

#[derive(Debug, Serialize)]
struct Stats {
    role: &'static str,
    version: String,
    requests: u64,
    failures: u64,
    in_flight: u64,
    /// Different operation ids.
    operations: usize,
    /// Arrivals beyond the first of each.
    duplicates: u64,
    /// Some of the ids that arrived more than once.
    duplicated: Vec<String>,
    fault: Fault,
}

impl Control {
    pub(crate) fn new(role: &'static str, version: &str) -> Arc<Self> {
        Arc::new(Self {
            role,
            version: version.to_owned(),
            fault: watch::Sender::new(Fault::default()),
            free_at: Mutex::new(Instant::now()),
            workers: Mutex::default(),
            counts: Mutex::default(),
        })
    }

    pub(crate) fn role(&self) -> &'static str {
        self.role
    }

    /// Counts an arrival and applies the fault to it: whether it is to fail. Holding the guard
    /// says that it is in flight.
    pub(crate) async fn arrive(self: &Arc<Self>, operation: Option<&str>) -> (InFlight, bool) {
        let number = self.count(|counts| {
            counts.requests += 1;
            counts.in_flight += 1;
            if let Some(id) = operation
                && (counts.operations.len() < MAX_OPERATIONS || counts.operations.contains_key(id))
            {
                *counts.operations.entry(id.to_owned()).or_default() += 1;
            }
            counts.requests
        });
        let guard = InFlight(Arc::clone(self));
        let mut faults = self.fault.subscribe();
        let fault = *faults.borrow_and_update();
        let turn = self.next_turn(fault.capacity);
        tokio::select! {
            () = tokio::time::sleep_until(turn + Duration::from_millis(fault.delay_ms)) => {}
            // Another fault: nobody waits for the end of the old one.
            _ = faults.changed() => {}
        }
        // Spread evenly, without a source of randomness: 0.25 fails every fourth.
        let fails = (number as f64 * fault.fail_ratio).floor()
            > ((number - 1) as f64 * fault.fail_ratio).floor();
        (guard, fails)
    }

    /// When the work on a request that comes now is done: one at a time, each its share of a second.
    fn next_turn(&self, capacity: f64) -> Instant {
        let now = Instant::now();
        if capacity <= 0.0 {
            return now;
        }
        let mut free_at = self.free_at.lock().unwrap_or_else(PoisonError::into_inner);
        *free_at = (*free_at).max(now) + Duration::from_secs_f64(1.0 / capacity);
        *free_at
    }

    /// Waits for a worker and holds it.
    pub(crate) async fn worker(&self) -> Option<OwnedSemaphorePermit> {
        let workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner).clone();
        // It is never closed, so there is one in the end.
        workers?.acquire_owned().await.ok()
    }

    /// Whether it works on a limited number of requests at a time.
    pub(crate) fn has_workers(&self) -> bool {
        self.fault.borrow().workers > 0
    }

    /// Puts a fault in force; anyone who sets it begins with nobody in line.
    fn set(&self, fault: Fault) {
        *self.free_at.lock().unwrap_or_else(PoisonError::into_inner) = Instant::now();
        let workers = (fault.workers > 0).then(|| Arc::new(Semaphore::new(fault.workers as usize)));
        *self.workers.lock().unwrap_or_else(PoisonError::into_inner) = workers;
        self.fault.send_replace(fault);
    }

    pub(crate) fn retries(&self) -> u32 {
        self.fault.borrow().retries
    }

    pub(crate) fn failed(&self) {
        self.count(|counts| counts.failures += 1);
    }

    /// Ends when the service is to be dead (or alive, with `false`).
    pub(crate) async fn dead(&self, dead: bool) {
        // The sender lives in `self`, so waiting cannot fail.
        let _ = self.fault.subscribe().wait_for(|fault| fault.dead == dead).await;
    }

    fn count<T>(&self, change: impl FnOnce(&mut Counts) -> T) -> T {
        change(&mut self.counts.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn stats(&self) -> Stats {
        self.count(|counts| {
            let twice = || counts.operations.iter().filter(|(_, times)| **times > 1);
            Stats {
                role: self.role,
                version: self.version.clone(),
                requests: counts.requests,
                failures: counts.failures,
                in_flight: counts.in_flight,
                operations: counts.operations.len(),
                duplicates: twice().map(|(_, times)| u64::from(*times) - 1).sum(),
                duplicated: twice().take(20).map(|(id, _)| id.clone()).collect(),
                fault: *self.fault.borrow(),
            }
        })
    }
}

/// One request that is being served.
#[derive(Debug)]
pub(crate) struct InFlight(Arc<Control>);

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.count(|counts| counts.in_flight -= 1);
    }
}

pub(crate) fn router(control: Arc<Control>) -> Router {
    Router::new()
        .route("/admin/stats", get(async |State(control): Shared| Json(control.stats())))
        .route("/admin/operations", get(operations))
        .route("/admin/fault", post(set_fault).get(get_fault))
        .with_state(control)
}

type Shared = State<Arc<Control>>;

async fn operations(State(control): Shared) -> Json<BTreeMap<String, u32>> {
    Json(control.count(|counts| counts.operations.clone()))
}

async fn get_fault(State(control): Shared) -> Json<Fault> {
    Json(*control.fault.borrow())
}

async fn set_fault(
    State(control): Shared,
    Json(fault): Json<Fault>,
) -> Result<Json<Fault>, (StatusCode, String)> {
    if !(0.0..=1.0).contains(&fault.fail_ratio) {
        let problem = format!("fail_ratio: {} must be between 0 and 1\n", fault.fail_ratio);
        return Err((StatusCode::BAD_REQUEST, problem));
    }
    let sensible = fault.capacity == 0.0 || (0.01..=1e6).contains(&fault.capacity);
    if !sensible {
        let problem = format!("capacity: {} must be 0 or between 0.01 and 1e6\n", fault.capacity);
        return Err((StatusCode::BAD_REQUEST, problem));
    }
    control.set(fault);
    Ok(Json(fault))
}
