//! The addresses of ExternalServices that are known by their host's name.
//!
//! Looked up here, once for the whole mesh: a proxy gets them as endpoints and asks nobody. A look-up
//! that fails is said once, and the last good answer stays in force. None holds up another.

use std::collections::{BTreeSet, HashMap};
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use outrigger_core::address::LocalEndpoints;
use outrigger_core::policy::bounds::MAX_OUTSIDE;
use outrigger_resolver::Resolver;
use tokio::task::JoinSet;

use crate::publish::Publisher;
use crate::translate::workload::check_endpoint;

/// How often new hosts are looked for.
const LOOK: Duration = Duration::from_secs(1);
/// Between two answers for a host. What still holds by its own time is not asked for again.
const AGAIN: Duration = Duration::from_secs(10);

type LookupAnswer = Result<BTreeSet<IpAddr>, String>;

/// What is known of a host.
#[derive(Default)]
struct KnownHost {
    /// None: a look-up is under way.
    next: Option<Instant>,
    problem: Option<String>,
}

/// Keeps the addresses of the index as the system's resolver has them, until dropped.
/// `local`: which addresses of the callers' own machines are taken.
pub async fn run(publisher: Arc<Publisher>, local: LocalEndpoints) {
    let mut known: HashMap<String, KnownHost> = HashMap::new();
    let resolver = Resolver::default();
    let mut under_way: JoinSet<(String, LookupAnswer)> = JoinSet::new();
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
                        let resolver = resolver.clone();
                        under_way.spawn(async move {
                            let answer = look_up(&resolver, &host, local).await;
                            (host, answer)
                        });
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

impl KnownHost {
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

/// Anyone who answers for a name could otherwise send callers to their own machines.
async fn look_up(resolver: &Resolver, host: &str, local: LocalEndpoints) -> LookupAnswer {
    let found = resolver.addresses(host).await.map_err(|why| why.to_string())?;
    // Sorted before it is cut: an answer in another order is no other answer.
    let mut refused = None;
    let mut all = BTreeSet::new();
    for ip in found.iter() {
        match check_endpoint(*ip, local) {
            Ok(()) => drop(all.insert(*ip)),
            Err(error) => refused = Some(error.to_string()),
        }
    }
    if let Some(why) = refused.filter(|_| all.is_empty()) {
        return Err(why);
    }
    Ok(all.into_iter().take(MAX_OUTSIDE).collect())
}
