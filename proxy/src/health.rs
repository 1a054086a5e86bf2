//! Active checks: asks the endpoints of services how they are, where a policy says so.
//!
//! One worker makes them all, over the connections that requests take, each as a task of its own: nothing
//! waits for a check. What they found is kept by [`crate::upstream::endpoint::guard::Health`], beside what requests have taught.

pub mod check;

use std::future::pending;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use crate::proxy::Phase;
use crate::proxy::worker::Worker;

/// The shortest time from one look for checks that are due to the next: what is due within it begins
/// together.
const PACE: Duration = Duration::from_millis(20);

/// Makes checks until the process closes.
pub async fn run(worker: Rc<Worker>) {
    let store = &worker.proxy.store;
    let ended = Rc::new(Notify::new());
    let mut closing = pin!(worker.proxy.lifecycle.reached(Phase::Closing));
    loop {
        // From before the look on, so that nothing new is missed.
        let changed = store.changed();
        let next = begin_due(&worker, &ended);
        let pause = async {
            match next {
                Some(at) => tokio::time::sleep_until(at.into()).await,
                None => pending().await,
            }
        };
        tokio::select! {
            () = pause => {}
            () = changed => {}
            () = ended.notified() => {}
            () = &mut closing => return,
        }
        tokio::time::sleep(PACE).await;
    }
}

/// Begins the checks that are due, and says when the next one is.
fn begin_due(worker: &Rc<Worker>, ended: &Rc<Notify>) -> Option<Instant> {
    let now = Instant::now();
    let mut next = None::<Instant>;
    for service in worker.proxy.store.all_endpoints() {
        if !service.guard.is_checked() {
            continue;
        }
        let random = || worker.random();
        let (due, then) = service.guard.due_checks(&service.load().endpoints, now, random);
        next = next.into_iter().chain(then).min();
        for check in due {
            // Weak: a check holds nobody's configuration.
            let (name, service) = (service.name.clone(), Arc::downgrade(&service));
            let (worker, ended) = (Rc::clone(worker), Rc::clone(ended));
            tokio::task::spawn_local(async move {
                let (found, said) = check::make(&worker, &name, &check).await;
                if let Some(service) = service.upgrade() {
                    service.guard.checked(&check, found, said);
                }
                ended.notify_one();
            });
        }
    }
    next
}
