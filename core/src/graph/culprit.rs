//! Which of several unusual edges the others follow from.
//!
//! A service that fails or is slow makes its callers fail and be slow, up to the edge of the mesh, and what it would
//! have called itself falls silent. So the culprit is where failures and latency begin: the deepest edge, whose
//! callee has no such edge of its own. A drop of traffic follows from whatever is wrong before it, and is the
//! culprit only where nothing is.

use std::collections::HashSet;

use super::baseline::{Symptom, Unusual};

/// An edge on which something unusual goes on.
#[derive(Clone, Debug)]
pub struct UnusualEdge<'a> {
    pub from: &'a str,
    pub to: &'a str,
    /// At least one.
    pub unusual: &'a [Unusual],
}

impl UnusualEdge<'_> {
    /// It fails or is slow.
    fn suffers(&self) -> bool {
        self.unusual.iter().any(|one| matches!(one.symptom, Symptom::Failures | Symptom::Latency))
    }

    /// It has too many requests.
    fn surges(&self) -> bool {
        self.unusual.iter().any(|one| one.symptom == Symptom::TrafficSurge)
    }

    fn ticks(&self) -> u32 {
        self.unusual.iter().map(|one| one.ticks).max().unwrap_or_default()
    }

    fn deviations(&self) -> f64 {
        self.unusual.iter().map(|one| one.deviations).fold(0.0, f64::max)
    }
}

/// The places of `edges`, the culprit first: those that nothing else explains, of them those that fail or are slow,
/// then those that began first, then those that differ most.
pub fn rank(edges: &[UnusualEdge<'_>]) -> Vec<usize> {
    let suffering: HashSet<&str> =
        edges.iter().filter(|edge| edge.suffers()).map(|edge| edge.from).collect();
    let suffers_at: HashSet<&str> =
        edges.iter().filter(|edge| edge.suffers()).map(|edge| edge.to).collect();
    let reached: HashSet<&str> =
        edges.iter().filter(|edge| !edge.suffers()).map(|edge| edge.to).collect();
    let class = |edge: &UnusualEdge<'_>| match edge.suffers() {
        // The callee suffers from what it calls itself.
        true => (u8::from(suffering.contains(edge.to)), 0),
        // Less, or more, came to the caller; or the caller, or what it also calls, is what is wrong.
        false => {
            let follows = reached.contains(edge.from)
                || suffers_at.contains(edge.from)
                || suffering.contains(edge.from);
            (u8::from(follows), 1 + u8::from(!edge.surges()))
        }
    };
    let mut places: Vec<usize> = (0..edges.len()).collect();
    places.sort_by(|a, b| {
        let (a, b) = (&edges[*a], &edges[*b]);
        let order = class(a).cmp(&class(b)).then(b.ticks().cmp(&a.ticks()));
        order.then(b.deviations().total_cmp(&a.deviations()))
    });
    places
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unusual(symptom: Symptom, ticks: u32) -> [Unusual; 1] {
        [Unusual { symptom, ticks, usual: 0.0, now: 1.0, deviations: 9.0 }]
    }

    fn ranked(
        edges: &[(&'static str, &'static str, Symptom, u32)],
    ) -> Vec<(&'static str, &'static str)> {
        let all: Vec<_> =
            edges.iter().map(|(_, _, symptom, ticks)| unusual(*symptom, *ticks)).collect();
        let unusual: Vec<_> = edges
            .iter()
            .zip(&all)
            .map(|((from, to, _, _), unusual)| UnusualEdge { from, to, unusual })
            .collect();
        rank(&unusual).into_iter().map(|at| (edges[at].0, edges[at].1)).collect()
    }

    #[test]
    fn the_deepest_edge_that_suffers_is_the_culprit_though_its_callers_were_noticed_first() {
        use Symptom::{Failures, Latency, TrafficDrop};
        let ranked = ranked(&[
            ("load", "gateway", Failures, 6),
            ("gateway", "orders", Latency, 6),
            ("fees", "rates", TrafficDrop, 7),
            ("orders", "fees", Failures, 3),
        ]);
        assert_eq!(ranked[0], ("orders", "fees"));
        assert_eq!(ranked.len(), 4);
    }

    #[test]
    fn silence_is_the_culprit_where_it_begins() {
        use Symptom::TrafficDrop;
        let ranked = ranked(&[
            ("orders", "fees", TrafficDrop, 4),
            ("gateway", "orders", TrafficDrop, 4),
            ("load", "gateway", TrafficDrop, 3),
        ]);
        assert_eq!(ranked[0], ("load", "gateway"));
    }

    #[test]
    fn in_a_cycle_that_began_first_is_the_culprit() {
        use Symptom::Failures;
        let ranked =
            ranked(&[("a", "b", Failures, 3), ("b", "c", Failures, 9), ("c", "a", Failures, 4)]);
        assert_eq!(ranked[0], ("b", "c"));
    }
}
