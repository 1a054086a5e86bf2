//! The graph as it is shown: everything in JSON; [`super::formats`] makes other forms of it.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use outrigger_core::graph::TICK;
use outrigger_core::graph::baseline::Unusual;
use outrigger_core::graph::culprit::{UnusualEdge, rank};
use outrigger_core::policy::access::Action;
use serde::Serialize;

use super::cycles;
use super::edges::{EdgeId, Edges, Traffic, UNKNOWN, Words};
use super::nodes::{EndpointMtls, NodeKind, NodeResolver, app_of};
use crate::index::Index;
use crate::object::Policy;

/// An edge is new for a day.
const DAY: Duration = Duration::from_secs(24 * 3_600);

/// All that is shown.
#[derive(Debug, Serialize)]
pub struct GraphPage {
    /// Since when edges are known. Times are RFC 3339.
    pub since: String,
    pub nodes: Vec<GraphNode>,
    pub edges: Vec<ShownEdge>,
    pub cycles: Vec<ShownCycle>,
    /// What differs from what is usual, the culprit first.
    pub unusual: Vec<ShownUnusual>,
    /// What AccessPolicies allow by name and nobody has used since `since`.
    pub unused: Vec<Unused>,
    /// Reports of edges for which there was no room.
    pub left_out: u64,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct GraphNode {
    pub id: String,
    pub kind: NodeKind,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub versions: BTreeSet<String>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub zones: BTreeSet<String>,
    /// Of a Service: the apps that serve it.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub served_by: BTreeSet<String>,
}

/// Rates of the last minute.
#[derive(Debug, Serialize)]
pub struct ShownEdge {
    pub from: String,
    pub to: String,
    pub service: String,
    pub routes: BTreeSet<String>,
    pub protocols: BTreeSet<String>,
    pub mtls: EndpointMtls,
    pub from_versions: BTreeSet<String>,
    pub from_zones: BTreeSet<String>,
    pub to_versions: BTreeSet<String>,
    pub to_zones: BTreeSet<String>,
    /// Connections, where they are no requests.
    pub requests_per_second: f64,
    /// Of requests that were not canceled; none: there were none.
    pub success_rate: Option<f64>,
    /// Of those that succeeded, in milliseconds, off by at most 19 %.
    pub latency_ms: Option<LatencyMs>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub reasons: Vec<ShownReason>,
    pub first_seen: String,
    pub last_seen: String,
    /// First seen in the last 24 hours, in a graph that is older.
    pub new_today: bool,
}

#[derive(Debug, Serialize)]
pub struct LatencyMs {
    pub p50: f64,
    pub p95: f64,
    pub p99: f64,
}

#[derive(Debug, Serialize)]
pub struct ShownReason {
    pub reason: String,
    pub by: String,
    pub per_second: f64,
}

/// Nodes that call each other in a cycle.
#[derive(Debug, Serialize)]
pub struct ShownCycle {
    pub members: Vec<String>,
    /// A shortest way around, which ends where it begins.
    pub path: Vec<String>,
    /// The call of the path that was seen last of all: what closed the cycle.
    pub closed_by: Option<Closing>,
}

#[derive(Debug, Serialize)]
pub struct Closing {
    pub from: String,
    pub service: String,
    pub routes: BTreeSet<String>,
    pub first_seen: String,
}

#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct ShownUnusual {
    pub from: String,
    pub to: String,
    pub service: String,
    pub symptom: &'static str,
    pub since: String,
    /// Shares of requests, seconds at the 95th percentile, or requests per second.
    pub usual: f64,
    pub now: f64,
    /// Nothing else that is unusual explains it better.
    pub culprit: bool,
}

#[derive(Debug, PartialEq, Serialize)]
pub struct Unused {
    /// `namespace/name` of the AccessPolicy.
    pub policy: String,
    pub rule: String,
    /// `namespace/service-account`.
    pub from: String,
    pub to: String,
}

/// All of it. `now`: seconds since the Unix epoch.
pub fn page(edges: &Edges, index: &Index, now: u64) -> GraphPage {
    let mut resolver = NodeResolver::new(index);
    let mut nodes: BTreeMap<String, GraphNode> = BTreeMap::new();
    let mut calls: Vec<(String, String)> = Vec::new();
    let is_old = edges.since < now.saturating_sub(DAY.as_secs());
    let mut shown = Vec::with_capacity(edges.count());
    for (id, edge) in edges.iter() {
        let served = resolver.served(&id.service);
        let from = id.from.to_string();
        let caller = match &*id.from {
            UNKNOWN => NodeKind::Unknown,
            _ => NodeKind::App,
        };
        let node = node(&mut nodes, &from, caller);
        node.versions.extend(texts(&edge.versions));
        node.zones.extend(texts(&edge.zones));
        let called = self::node(&mut nodes, &served.node, served.kind);
        called.versions.extend(served.versions.iter().cloned());
        called.zones.extend(served.zones.iter().cloned());
        if served.kind == NodeKind::Service {
            called.served_by.extend(served.apps.iter().cloned());
            calls.extend(served.apps.iter().map(|app| (served.node.clone(), app.clone())));
        }
        calls.push((from.clone(), served.node.clone()));
        let lately = edge.lately();
        let seconds = edge.length().as_secs_f64().max(1.0);
        shown.push(ShownEdge {
            from,
            to: served.node.clone(),
            service: id.service.to_string(),
            routes: texts(&edge.routes),
            protocols: texts(&edge.protocols),
            mtls: served.mtls,
            from_versions: texts(&edge.versions),
            from_zones: texts(&edge.zones),
            to_versions: served.versions.clone(),
            to_zones: served.zones.clone(),
            requests_per_second: rounded(lately.requests() as f64 / seconds),
            success_rate: success_rate(&lately),
            latency_ms: latency_ms(&lately),
            reasons: reasons(&lately, seconds),
            first_seen: timestamp(edge.first_seen),
            last_seen: timestamp(edge.last_seen),
            new_today: is_old && edge.first_seen > now.saturating_sub(DAY.as_secs()),
        });
    }
    GraphPage {
        since: timestamp(edges.since),
        nodes: nodes.into_values().collect(),
        cycles: cycles(&calls, &shown),
        edges: shown,
        unusual: unusual(edges, index, now),
        unused: unused(edges, index, &mut resolver),
        left_out: edges.left_out,
    }
}

fn texts(words: &Words) -> BTreeSet<String> {
    words.iter().map(|word| word.to_string()).collect()
}

fn node<'a>(
    nodes: &'a mut BTreeMap<String, GraphNode>,
    id: &str,
    kind: NodeKind,
) -> &'a mut GraphNode {
    let new = || GraphNode {
        id: id.to_owned(),
        kind,
        versions: BTreeSet::new(),
        zones: BTreeSet::new(),
        served_by: BTreeSet::new(),
    };
    nodes.entry(id.to_owned()).or_insert_with(new)
}

/// What differs from what is usual, the culprit first.
pub fn unusual(edges: &Edges, index: &Index, now: u64) -> Vec<ShownUnusual> {
    let mut resolver = NodeResolver::new(index);
    let found: Vec<(&EdgeId, String, Vec<Unusual>)> = edges
        .iter()
        .filter_map(|(id, edge)| {
            let unusual: Vec<_> = edge.baseline.unusual().collect();
            let to = (!unusual.is_empty()).then(|| resolver.served(&id.service).node.clone())?;
            Some((id, to, unusual))
        })
        .collect();
    let ranked: Vec<_> =
        found.iter().map(|(id, to, unusual)| UnusualEdge { from: &id.from, to, unusual }).collect();
    let mut shown = Vec::new();
    for (place, at) in rank(&ranked).into_iter().enumerate() {
        let (id, to, unusual) = &found[at];
        shown.extend(unusual.iter().map(|one| ShownUnusual {
            from: id.from.to_string(),
            to: to.clone(),
            service: id.service.to_string(),
            symptom: one.symptom.as_str(),
            since: timestamp(now.saturating_sub(u64::from(one.ticks) * TICK.as_secs())),
            usual: significant(one.usual),
            now: significant(one.now),
            culprit: place == 0,
        }));
    }
    shown
}

fn success_rate(traffic: &Traffic) -> Option<f64> {
    let judged = traffic.judged();
    (judged > 0).then(|| (traffic.succeeded as f64 / judged as f64 * 1e4).round() / 1e4)
}

fn latency_ms(traffic: &Traffic) -> Option<LatencyMs> {
    let at = |quantile| {
        let latency = traffic.latencies.quantile(quantile);
        latency.map(|latency| significant(latency.as_secs_f64() * 1e3))
    };
    Some(LatencyMs { p50: at(0.5)?, p95: at(0.95)?, p99: at(0.99)? })
}

/// What is most frequent comes first.
fn reasons(traffic: &Traffic, seconds: f64) -> Vec<ShownReason> {
    let mut all: Vec<_> = traffic.reasons.iter().collect();
    all.sort_by(|a, b| b.1.cmp(a.1));
    all.into_iter()
        .map(|((reason, by), n)| ShownReason {
            reason: reason.to_string(),
            by: by.to_string(),
            per_second: rounded(*n as f64 / seconds),
        })
        .collect()
}

fn cycles(calls: &[(String, String)], edges: &[ShownEdge]) -> Vec<ShownCycle> {
    let found = cycles::find(calls.iter().map(|(from, to)| (&**from, &**to)));
    let mut by_ends: BTreeMap<(&str, &str), Vec<&ShownEdge>> = BTreeMap::new();
    if !found.is_empty() {
        for edge in edges {
            by_ends.entry((&edge.from, &edge.to)).or_default().push(edge);
        }
    }
    let shown = found.into_iter().map(|cycle| {
        let mut path: Vec<&str> = cycle.path.clone();
        path.extend(cycle.path.first());
        let steps = path.windows(2).filter_map(|step| by_ends.get(&(step[0], step[1])));
        let closing = steps.flatten().max_by_key(|edge| &edge.first_seen);
        ShownCycle {
            members: cycle.members.into_iter().map(str::to_owned).collect(),
            path: path.into_iter().map(str::to_owned).collect(),
            closed_by: closing.map(|edge| Closing {
                from: edge.from.clone(),
                service: edge.service.clone(),
                routes: edge.routes.clone(),
                first_seen: edge.first_seen.clone(),
            }),
        }
    });
    shown.collect()
}

/// Callers that a policy names, and that have never called what it is for.
fn unused(edges: &Edges, index: &Index, resolver: &mut NodeResolver<'_>) -> Vec<Unused> {
    let mut called: BTreeMap<String, BTreeSet<&str>> = BTreeMap::new();
    for (id, edge) in edges.iter() {
        let served = resolver.served(&id.service);
        let apps = served.apps.iter().chain([&served.node]);
        for app in apps {
            let accounts = edge.accounts.iter().map(|account| &**account);
            called.entry(app.clone()).or_default().extend(accounts);
        }
    }
    let mut unused = Vec::new();
    for policy in index.policies().filter(|policy| policy.closed.is_none()) {
        for app in apps_of(policy, index) {
            for rule in policy.rules.iter().filter(|rule| rule.action == Action::Allow) {
                let named = rule.from.iter().flat_map(|from| &from.service_accounts);
                let callers = called.get(&app);
                for account in named {
                    if callers.is_none_or(|callers| !callers.contains(&**account)) {
                        unused.push(Unused {
                            policy: policy.full_name(),
                            rule: rule.name.clone(),
                            from: account.clone(),
                            to: app.clone(),
                        });
                    }
                }
            }
        }
    }
    unused
}

fn apps_of(policy: &Policy, index: &Index) -> BTreeSet<String> {
    let uids = index.workloads_of_access(policy);
    uids.iter().filter_map(|uid| index.workload(uid)).map(app_of).collect()
}

/// Three digits suffice for a rate.
fn rounded(value: f64) -> f64 {
    (value * 1e3).round() / 1e3
}

/// To three significant digits.
fn significant(value: f64) -> f64 {
    if value == 0.0 || !value.is_finite() {
        return 0.0;
    }
    let digits = 10_f64.powf(2.0 - value.abs().log10().floor());
    (value * digits).round() / digits
}

/// RFC 3339 in UTC, of seconds since the Unix epoch.
fn timestamp(seconds: u64) -> String {
    let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
    let time = time::OffsetDateTime::from_unix_timestamp(seconds).ok();
    let text =
        time.and_then(|time| time.format(&time::format_description::well_known::Rfc3339).ok());
    text.unwrap_or_default()
}
