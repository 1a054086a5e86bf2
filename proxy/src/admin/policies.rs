//! `/policies`: what policies have learnt and what is in force in this process now, as JSON.

use std::sync::Arc;
use std::time::Instant;

use serde_json::{Value, json};

use crate::proxy::Proxy;
use crate::upstream::endpoint::Endpoints;

pub fn show(proxy: &Proxy) -> Value {
    let services = proxy.store.all_endpoints();
    let show = |one: &Arc<Endpoints>| one.guard.show(&one.load().endpoints);
    json!({
        // Of each called service: breaker, ejected endpoints, budget, limits.
        "services": services.iter().map(show).collect::<Vec<_>>(),
        // Faults that have hit calls of this workload.
        "faultInjections": proxy.faults.show(),
        // What this workload lets in, by port.
        "server": proxy.limits.show(Instant::now()),
    })
}
