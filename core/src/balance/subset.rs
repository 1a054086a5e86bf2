//! At most so many of the endpoints of a large service for each of its callers, own zone first.
//!
//! Rendezvous hashing (Thaler and Ravishankar, 1998): proxies spread evenly over the endpoints, and an
//! endpoint that comes or goes changes at most one member of anybody's choice. What an endpoint is ranked by
//! is kept with it ([`hash_of`]), so that whether a change concerns a proxy costs one comparison.

use std::cmp::Ordering;

use super::{combine, hash};

/// How much one proxy wants an endpoint; more is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Rank {
    near: bool,
    hash: u64,
}

impl Rank {
    /// `seed`: the hash of the proxy's id. `near`: the endpoint is in its zone. `hash`: that of the endpoint's id.
    pub fn new(seed: u64, near: bool, hash: u64) -> Self {
        Self { near, hash: combine(seed, hash) }
    }
}

/// What a proxy or an endpoint is ranked by.
pub fn hash_of(id: &str) -> u64 {
    hash(id.as_bytes())
}

/// The best `max`, in no order; of equals the first by id. Takes room for twice as many, whatever there is.
pub fn best<T, I: Ord + ?Sized>(
    ranked: impl Iterator<Item = (Rank, T)>,
    max: usize,
    id: impl Fn(&T) -> &I,
) -> Vec<(Rank, T)> {
    if max == 0 {
        return Vec::new();
    }
    let order = |a: &(Rank, T), b: &(Rank, T)| -> Ordering {
        b.0.cmp(&a.0).then_with(|| id(&a.1).cmp(id(&b.1)))
    };
    let mut best: Vec<(Rank, T)> = Vec::new();
    // What ranks below is not among the best.
    let mut least = None;
    for one in ranked {
        if least.is_some_and(|least| one.0 < least) {
            continue;
        }
        best.push(one);
        if best.len() == max.saturating_mul(2) {
            best.select_nth_unstable_by(max - 1, order);
            best.truncate(max);
            least = best.last().map(|(rank, _)| *rank);
        }
    }
    if best.len() > max {
        best.select_nth_unstable_by(max - 1, order);
        best.truncate(max);
    }
    best
}

/// At most `max` of the endpoints for one proxy, own zone first, as sorted indexes.
pub fn subset(
    proxy: &str,
    zone: Option<&str>,
    candidates: &[(&str, Option<&str>)],
    max: usize,
) -> Vec<usize> {
    if candidates.len() <= max {
        return (0..candidates.len()).collect();
    }
    if max == 0 {
        return Vec::new();
    }
    let seed = hash_of(proxy);
    let ranked = candidates.iter().enumerate().map(|(index, (id, at))| {
        let near = zone.is_some() && *at == zone;
        (Rank::new(seed, near, hash_of(id)), (index, *id))
    });
    let mut chosen: Vec<_> =
        best(ranked, max, |(_, id)| *id).into_iter().map(|(_, (index, _))| index).collect();
    chosen.sort_unstable();
    chosen
}
