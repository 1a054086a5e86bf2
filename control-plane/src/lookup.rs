//! The addresses of ExternalServices that are known by their host's name.
//!
//! Looked up here, once for the whole mesh: a proxy gets them as endpoints and asks nobody. A look-up
//! that fails is said once, and the last good answer stays in force. None holds up another.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_core::policy::bounds::MAX_OUTSIDE;
use tokio::task::JoinSet;

use crate::publish::Publisher;

/// How often new hosts are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// Between two answers for a host. What the system caches is served from there.
const AGAIN: Duration = Duration::from_secs(10);
/// After this the system's resolver has given up itself.
const LIMIT: Duration = Duration::from_secs(10);

type Answer = Result<BTreeSet<IpAddr>, String>;

/// What is known of a host.
#[derive(Default)]
struct Known {
    /// None: a look-up is under way.
    next: Option<Instant>,
    problem: Option<String>,
}

/// Keeps the addresses of the index as the system's resolver has them, until dropped.
pub async fn run(publisher: Arc<Publisher>) {
    let mut known: HashMap<String, Known> = HashMap::new();
    let mut under_way: JoinSet<(String, Answer)> = JoinSet::new();
    let mut tick = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            _ = tick.tick() => {
                let wanted = publisher.view().index.looked_up();
                known.retain(|host, _| wanted.contains(host));
                let now = Instant::now();
                for host in wanted {
                    let due = known.get(&host).is_none_or(|k| k.next.is_some_and(|at| at <= now));
                    if due {
                        known.entry(host.clone()).or_default().next = None;
                        under_way.spawn(async move { (host.clone(), look_up(&host).await) });
                    }
                }
            }
            Some(Ok((host, answer))) = under_way.join_next() => {
                if let Some(known) = known.get_mut(&host) {
                    known.next = Some(Instant::now() + AGAIN);
                    known.say(&host, answer.as_ref().err());
                    publisher.commit(|index| index.set_addresses(&host, answer));
                }
            }
        }
    }
}

impl Known {
    fn say(&mut self, host: &str, problem: Option<&String>) {
        match problem {
            Some(problem) if self.problem.as_ref() != Some(problem) => tracing::warn!(
                host,
                problem,
                "cannot look up an ExternalService, going on with its last addresses"
            ),
            None if self.problem.is_some() => tracing::info!(host, "looked up again"),
            _ => {}
        }
        self.problem = problem.cloned();
    }
}

async fn look_up(host: &str) -> Answer {
    let asking = tokio::time::timeout(LIMIT, tokio::net::lookup_host((host, 0)));
    let found = asking.await.map_err(|_| format!("no answer in {LIMIT:?}"))?;
    let found = found.map_err(|error| error.to_string())?;
    let all: BTreeSet<IpAddr> = found.map(|address| address.ip().to_canonical()).collect();
    if all.is_empty() {
        return Err("it has no address".to_owned());
    }
    Ok(all.into_iter().take(MAX_OUTSIDE).collect())
}
