//! Who may depend on whom. A crate below must stay free of what belongs above it, also through
//! others.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use serde_json::Value;

struct Rule {
    package: &'static str,
    /// Names of packages; one that ends in `*` stands for every name that begins so.
    never: &'static [&'static str],
    why: &'static str,
}

const RULES: &[Rule] = &[
    Rule {
        package: "outrigger-core",
        never: &[
            "tokio",
            "hyper",
            "tonic",
            "prost",
            "kube",
            "kube-*",
            "k8s-openapi",
            "rustls",
            "outrigger-*",
        ],
        why: "core only decides: it has no I/O and no wire",
    },
    Rule {
        package: "outrigger-proto",
        never: &["kube", "kube-*", "k8s-openapi", "outrigger-proxy", "outrigger-control-plane"],
        why: "proto is the wire between the two, and knows neither",
    },
    Rule {
        package: "outrigger-proxy",
        never: &["kube", "kube-*", "k8s-openapi", "outrigger-control-plane"],
        why: "the proxy runs anywhere and is told everything over the wire",
    },
    Rule {
        package: "outrigger-control-plane",
        never: &["outrigger-proxy"],
        why: "the control plane must not need the data plane's code",
    },
    Rule {
        package: "outrigger-inject",
        never: &[
            "tokio",
            "hyper",
            "tonic",
            "prost",
            "kube",
            "kube-*",
            "rustls",
            "outrigger-proto",
            "outrigger-proxy",
            "outrigger-control-plane",
        ],
        why: "injecting is a function from a pod to a pod, for the webhook and for files alike",
    },
    Rule {
        package: "outrigger-upgrade",
        never: &["outrigger-proxy", "outrigger-control-plane"],
        why: "the control plane and the command line upgrade pods alike",
    },
    Rule {
        package: "outrigger-redirect",
        never: &["tokio", "hyper", "kube", "kube-*", "rustls", "outrigger-*"],
        why: "the rules of a pod are the same for the proxy's program and for the CNI plugin",
    },
    Rule {
        package: "outrigger-cni",
        never: &["outrigger-proto", "outrigger-proxy", "outrigger-control-plane"],
        why: "the CNI plugin works while the rest of the mesh is away",
    },
    Rule {
        package: "outrigger-cli",
        never: &["outrigger-proxy", "outrigger-control-plane"],
        why: "the command line talks to both, and is neither",
    },
    Rule { package: "simplebank", never: &["outrigger-*"], why: "apps know nothing of the mesh" },
    Rule {
        package: "xtask",
        never: &["outrigger-*", "simplebank"],
        why: "tasks must work when the workspace does not build",
    },
];

/// Problems in what `cargo metadata` says.
pub(crate) fn check(metadata: &Value) -> Vec<String> {
    let graph = Graph::new(metadata);
    RULES.iter().flat_map(|rule| graph.check(rule)).collect()
}

struct Graph<'a> {
    names: BTreeMap<&'a str, &'a str>,
    /// By package id; dependencies of tests and examples alone are left out.
    edges: BTreeMap<&'a str, Vec<&'a str>>,
}

impl<'a> Graph<'a> {
    fn new(metadata: &'a Value) -> Self {
        let names = list(&metadata["packages"])
            .iter()
            .filter_map(|package| Some((package["id"].as_str()?, package["name"].as_str()?)))
            .collect();
        let used = |dependency: &&Value| {
            list(&dependency["dep_kinds"]).iter().any(|kind| kind["kind"] != "dev")
        };
        let edges = list(&metadata["resolve"]["nodes"])
            .iter()
            .filter_map(|node| {
                let to = list(&node["deps"]).iter().filter(used);
                let to = to.filter_map(|dependency| dependency["pkg"].as_str());
                Some((node["id"].as_str()?, to.collect()))
            })
            .collect();
        Self { names, edges }
    }

    fn check(&self, rule: &Rule) -> Vec<String> {
        let of_rule = self.names.iter().find(|(_, name)| **name == rule.package);
        let Some((start, _)) = of_rule else {
            // A rule about nothing would always hold.
            return vec![format!("{}: there is a rule for it, and no such crate", rule.package)];
        };
        let mut from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut seen = BTreeSet::from([*start]);
        let mut queue = VecDeque::from([*start]);
        let mut problems = Vec::new();
        while let Some(id) = queue.pop_front() {
            for next in self.edges.get(id).into_iter().flatten() {
                if !seen.insert(next) {
                    continue;
                }
                from.insert(next, id);
                let name = self.names.get(next).copied().unwrap_or(next);
                if rule.never.iter().any(|never| names(never, name)) {
                    let way = self.way(&from, next);
                    problems.push(format!("{way}: not allowed, {}", rule.why));
                } else {
                    queue.push_back(next);
                }
            }
        }
        problems
    }

    /// `core -> a -> tokio`.
    fn way(&self, from: &BTreeMap<&str, &'a str>, end: &'a str) -> String {
        let mut ids = vec![end];
        while let Some(before) = ids.last().and_then(|id| from.get(id)) {
            ids.push(before);
        }
        let names = ids.iter().rev().map(|id| self.names.get(id).copied().unwrap_or(id));
        names.collect::<Vec<_>>().join(" -> ")
    }
}

fn list(value: &Value) -> &[Value] {
    value.as_array().map(Vec::as_slice).unwrap_or_default()
}

fn names(pattern: &str, name: &str) -> bool {
    match pattern.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => pattern == name,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A name, and what it depends on and how.
    type Crate<'a> = (&'a str, &'a [(&'a str, Option<&'a str>)]);

    /// What cargo would say of these crates.
    fn metadata(crates: &[Crate<'_>]) -> Value {
        let packages: Vec<Value> = crates
            .iter()
            .map(|(name, _)| json!({ "id": format!("{name}#1"), "name": name }))
            .collect();
        let nodes: Vec<Value> = crates
            .iter()
            .map(|(name, dependencies)| {
                let deps: Vec<Value> = dependencies
                    .iter()
                    .map(|(to, kind)| {
                        json!({ "pkg": format!("{to}#1"), "dep_kinds": [{ "kind": kind }] })
                    })
                    .collect();
                json!({ "id": format!("{name}#1"), "deps": deps })
            })
            .collect();
        json!({ "packages": packages, "resolve": { "nodes": nodes } })
    }

    fn broken(metadata: &Value) -> Vec<String> {
        check(metadata).into_iter().filter(|problem| problem.contains(" -> ")).collect()
    }

    #[test]
    fn core_must_not_reach_tokio_even_through_others() {
        let bad = metadata(&[
            ("outrigger-core", &[("http", None), ("helper", None)]),
            ("http", &[]),
            ("helper", &[("tokio", None)]),
            ("tokio", &[]),
        ]);
        let problems = broken(&bad);
        assert_eq!(problems.len(), 1);
        assert!(problems[0].starts_with("outrigger-core -> helper -> tokio: not allowed"));
    }

    #[test]
    fn what_only_tests_use_is_allowed() {
        let good = metadata(&[
            ("outrigger-core", &[("tokio", Some("dev"))]),
            ("outrigger-proxy", &[("outrigger-core", None), ("tokio", None)]),
            ("tokio", &[]),
        ]);
        assert_eq!(broken(&good), Vec::<String>::new());
        assert!(
            check(&good).contains(&"xtask: there is a rule for it, and no such crate".to_owned())
        );
    }

    #[test]
    fn every_rule_bites() {
        let cases: [(&str, &str); 11] = [
            ("outrigger-core", "outrigger-proto"),
            ("outrigger-proto", "kube"),
            ("outrigger-proxy", "kube-client"),
            ("outrigger-control-plane", "outrigger-proxy"),
            ("outrigger-inject", "kube-core"),
            ("outrigger-upgrade", "outrigger-proxy"),
            ("outrigger-redirect", "tokio"),
            ("outrigger-cni", "outrigger-proxy"),
            ("outrigger-cli", "outrigger-control-plane"),
            ("simplebank", "outrigger-core"),
            ("xtask", "simplebank"),
        ];
        for (from, to) in cases {
            let edge: [(&str, Option<&str>); 1] = [(to, None)];
            let problems = check(&metadata(&[(from, &edge), (to, &[])]));
            assert!(problems.iter().any(|p| p.starts_with(&format!("{from} -> {to}"))), "{from}");
        }
        assert_eq!(
            cases.map(|(from, _)| from),
            RULES.iter().map(|r| r.package).collect::<Vec<_>>()[..]
        );
    }
}
