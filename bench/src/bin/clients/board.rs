//! How far all clients are, and who has heard of what.

use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use outrigger_proto::wire::{self, DeltaDiscoveryResponse};
use serde::Serialize;
use serde_json::json;
use tokio::sync::Notify;

use crate::say;

#[derive(Debug)]
pub struct Board {
    clients: usize,
    state: RefCell<State>,
    changed: Notify,
}

#[derive(Debug, Default)]
struct State {
    steps: Vec<Step>,
    /// Clients that hold everything that they have asked for.
    current: usize,
    watched: String,
    waiting: HashSet<usize>,
    news: News,
    /// By endpoint, who held it when it was watched for the first time.
    holders: HashMap<String, HashSet<usize>>,
    tally: Tally,
    /// Why streams broke, each said once.
    reasons: HashSet<String>,
}

#[derive(Debug)]
struct Step {
    began: Instant,
    done: HashSet<usize>,
}

/// A change as it has come to those whom it concerns.
#[derive(Debug, Default, Serialize)]
pub struct News {
    /// When it was committed, in nanoseconds since the epoch.
    commit: u64,
    /// From the commit to its receipt, in microseconds.
    latencies_us: Vec<u64>,
    /// How many have not heard of it.
    missing: usize,
}

/// Since everybody connected.
#[derive(Debug)]
struct Tally {
    began: Instant,
    /// From then until all were current, in microseconds.
    current_us: u64,
    /// Resources that came, and names taken away.
    resources: u64,
    removed: u64,
    /// Streams that could not be opened, or broke.
    broken: u64,
}

impl Default for Tally {
    fn default() -> Self {
        Self { began: Instant::now(), current_us: 0, resources: 0, removed: 0, broken: 0 }
    }
}

impl Board {
    pub fn new(clients: usize) -> Self {
        Self { clients, state: RefCell::default(), changed: Notify::new() }
    }

    /// All connections begin anew.
    pub fn restart(&self) {
        let mut state = self.state.borrow_mut();
        state.steps.clear();
        state.current = 0;
        state.tally = Tally::default();
    }

    /// A client has begun a step; the first of all begins it for all.
    pub fn begin(&self, step: usize) {
        let mut state = self.state.borrow_mut();
        let began = if step == 0 { state.tally.began } else { Instant::now() };
        while state.steps.len() <= step {
            state.steps.push(Step { began, done: HashSet::new() });
        }
    }

    /// A client holds what it has asked for in a step; the last of all ends it for all.
    pub fn end(&self, client: usize, step: usize) {
        let mut state = self.state.borrow_mut();
        let Some(of_all) = state.steps.get_mut(step) else { return };
        if of_all.done.insert(client) && of_all.done.len() == self.clients {
            let us = micros(of_all.began);
            say(&json!({ "step": step, "us": us, "broken": state.tally.broken }));
        }
    }

    /// A client has taken its last step.
    pub fn is_current(&self) {
        let mut state = self.state.borrow_mut();
        state.current += 1;
        if state.current == self.clients {
            state.tally.current_us = micros(state.tally.began);
            self.changed.notify_one();
        }
    }

    /// It could not open its stream, or has lost it, and asks again.
    pub fn broke(&self, was_current: bool, why: String) {
        let mut state = self.state.borrow_mut();
        if !state.reasons.contains(&why) {
            eprintln!("after {} us: {why}", micros(state.tally.began));
            state.reasons.insert(why);
        }
        state.tally.broken += 1;
        state.current -= usize::from(was_current);
    }

    pub async fn everybody_current(&self) {
        while self.state.borrow().current < self.clients {
            self.changed.notified().await;
        }
    }

    /// From now on, `holders` shall hear of an endpoint; if there are none, those who held it once.
    pub fn watch(&self, endpoint: &str, holders: HashSet<usize>) -> usize {
        let mut state = self.state.borrow_mut();
        let known = state.holders.entry(endpoint.to_owned()).or_default();
        if !holders.is_empty() {
            *known = holders;
        }
        state.waiting = known.clone();
        endpoint.clone_into(&mut state.watched);
        state.news = News::default();
        state.waiting.len()
    }

    pub async fn everybody_heard(&self) {
        while !self.state.borrow().waiting.is_empty() {
            self.changed.notified().await;
        }
    }

    /// A response has come to a client.
    pub fn received(&self, client: usize, response: &DeltaDiscoveryResponse) {
        let mut state = self.state.borrow_mut();
        state.tally.resources += response.resources.len() as u64;
        state.tally.removed += response.removed_resources.len() as u64;
        if response.type_url != wire::ENDPOINT || !state.waiting.contains(&client) {
            return;
        }
        let mut sent = response.resources.iter().map(|resource| &resource.name);
        let watched = &state.watched;
        if !sent.any(|name| name == watched) && !response.removed_resources.contains(watched) {
            return;
        }
        let now =
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64;
        let commit = response.system_version_info.parse().unwrap_or(now);
        state.news.commit = commit;
        state.news.latencies_us.push(now.saturating_sub(commit) / 1_000);
        state.waiting.remove(&client);
        if state.waiting.is_empty() {
            self.changed.notify_one();
        }
    }

    /// What has been heard of the watched endpoint; nobody waits for it any longer.
    pub fn news(&self) -> News {
        let mut state = self.state.borrow_mut();
        let missing = std::mem::take(&mut state.waiting).len();
        News { missing, ..std::mem::take(&mut state.news) }
    }

    pub fn reconnected(&self) -> serde_json::Value {
        let missing = self.news().missing;
        let Tally { current_us, resources, removed, broken, .. } = self.state.borrow().tally;
        json!({
            "current_us": current_us, "resources": resources, "removed": removed,
            "broken": broken, "missing": missing,
        })
    }
}

fn micros(since: Instant) -> u64 {
    u64::try_from(since.elapsed().as_micros()).unwrap_or(u64::MAX)
}
