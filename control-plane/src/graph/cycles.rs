//! Services that call each other in a cycle: strongly connected components of the graph.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use petgraph::algo::tarjan_scc;
use petgraph::graph::{DiGraph, NodeIndex};

/// A cycle of calls, as a shortest way around: the first node is not named again at the end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cycle<'a> {
    /// Every node from which each other one is reached, ordered.
    pub members: Vec<&'a str>,
    pub path: Vec<&'a str>,
}

/// All of them, of calls from node to node. One that calls itself is one, too.
pub fn find<'a>(calls: impl IntoIterator<Item = (&'a str, &'a str)>) -> Vec<Cycle<'a>> {
    let mut graph = DiGraph::<&str, ()>::new();
    let mut nodes: BTreeMap<&str, NodeIndex> = BTreeMap::new();
    for (from, to) in calls {
        let [from, to] =
            [from, to].map(|name| *nodes.entry(name).or_insert_with(|| graph.add_node(name)));
        graph.update_edge(from, to, ());
    }
    let mut cycles: Vec<_> = tarjan_scc(&graph)
        .into_iter()
        .filter(|members| members.len() > 1 || graph.contains_edge(members[0], members[0]))
        .map(|members| {
            let path = shortest(&graph, &members).into_iter().map(|node| graph[node]).collect();
            let mut members: Vec<_> = members.into_iter().map(|node| graph[node]).collect();
            members.sort_unstable();
            Cycle { members, path }
        })
        .collect();
    cycles.sort_by(|a, b| a.members.cmp(&b.members));
    cycles
}

/// The shortest way from a member back to it, over members. From the one whose name is first, so that it is the
/// same each time.
fn shortest(graph: &DiGraph<&str, ()>, members: &[NodeIndex]) -> Vec<NodeIndex> {
    let Some(first) = members.iter().copied().min_by_key(|node| graph[*node]) else {
        return Vec::new();
    };
    let inside: BTreeSet<NodeIndex> = members.iter().copied().collect();
    let mut came_from: BTreeMap<NodeIndex, NodeIndex> = BTreeMap::new();
    let mut queue = VecDeque::from([first]);
    while let Some(node) = queue.pop_front() {
        if graph.contains_edge(node, first) {
            let mut path = vec![node];
            while let Some(before) = path.last().and_then(|last| came_from.get(last)) {
                path.push(*before);
            }
            path.reverse();
            return path;
        }
        for next in graph.neighbors(node) {
            if next != first && inside.contains(&next) && !came_from.contains_key(&next) {
                came_from.insert(next, node);
                queue.push_back(next);
            }
        }
    }
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_are_found_and_named_by_a_shortest_way_around() {
        let calls = [
            ("load", "gateway"),
            ("gateway", "orders"),
            ("orders", "fees"),
            ("fees", "rates"),
            ("rates", "orders"),
            ("fees", "orders"),
            ("self", "self"),
            ("orders", "ledger"),
        ];
        let cycles = find(calls);
        assert_eq!(cycles.len(), 2);
        assert_eq!(cycles[0].members, ["fees", "orders", "rates"]);
        assert_eq!(cycles[0].path, ["fees", "orders"]);
        assert_eq!(cycles[1].path, ["self"]);
        assert_eq!(find([("a", "b"), ("b", "c"), ("a", "c")]), []);
    }

    #[test]
    fn a_long_cycle_is_walked_whole() {
        let names: Vec<String> = (0..5_000).map(|i| format!("s{i:04}")).collect();
        let calls = (0..names.len()).map(|i| (&*names[i], &*names[(i + 1) % names.len()]));
        let cycles = find(calls);
        assert_eq!(cycles[0].path.len(), names.len());
    }
}
