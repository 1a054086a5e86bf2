//! How far proxies have come with what they were sent: kept as streams report it, so that nobody has to ask
//! every one of them.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Mutex;

use foldhash::quality::RandomState;
use serde::Serialize;

use super::Acknowledgement;
use crate::index::Dep;
use crate::sync::lock;

/// How many of the proxies that have a Service's destinations have acknowledged the current ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Programmed {
    pub acknowledged: usize,
    pub proxies: usize,
    /// Why proxies refused, each reason once.
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    pub refused: BTreeSet<String>,
}

impl Programmed {
    pub fn add(&mut self, other: &Self) {
        self.acknowledged += other.acknowledged;
        self.proxies += other.proxies;
        self.refused.extend(other.refused.iter().cloned());
    }
}

/// What one proxy has made of everything that it was sent of a Service, or of its own ports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answers {
    acknowledged: bool,
    refused: BTreeSet<String>,
}

impl Answers {
    /// Of several resources; none: it was sent nothing.
    pub fn of<'a>(all: impl IntoIterator<Item = Acknowledgement<'a>>) -> Option<Self> {
        let mut together: Option<Self> = None;
        for answer in all {
            let nothing = Self { acknowledged: true, refused: BTreeSet::new() };
            let so_far = together.get_or_insert(nothing);
            so_far.acknowledged &= answer == Acknowledgement::Acknowledged;
            if let Acknowledgement::Refused(reason) = answer {
                so_far.refused.insert(reason.to_owned());
            }
        }
        together
    }
}

#[derive(Debug, Default)]
pub(super) struct Progress(Mutex<AllProgress>);

#[derive(Debug, Default)]
struct AllProgress {
    /// By Service or workload.
    of: HashMap<Dep, OfProxies, RandomState>,
    /// Of each stream that has not acknowledged everything, of how many Services or workloads.
    behind: BTreeMap<u64, usize>,
}

#[derive(Debug, Default)]
struct OfProxies {
    /// Of each stream, whether it has acknowledged everything: a few bytes, since there is one for every
    /// Service that a proxy calls.
    streams: BTreeMap<u64, bool>,
    acknowledged: usize,
    /// Of the few streams that have refused something, why.
    refused: BTreeMap<u64, BTreeSet<String>>,
}

impl Progress {
    /// Puts a stream's answers in the place of earlier ones; gives whether they differ.
    pub(super) fn set(&self, of: &Dep, stream: u64, answers: Option<Answers>) -> bool {
        let AllProgress { of: all, behind } = &mut *lock(&self.0);
        let Some(answers) = answers else {
            let Some(known) = all.get_mut(of) else { return false };
            let before = known.streams.remove(&stream);
            known.acknowledged -= usize::from(before == Some(true));
            known.refused.remove(&stream);
            if known.streams.is_empty() {
                all.remove(of);
            }
            note_behind(behind, stream, before, None);
            return before.is_some();
        };
        if !all.contains_key(of) {
            all.insert(of.clone(), OfProxies::default());
        }
        let known = all.get_mut(of).expect("invariant: put there above");
        let before = known.streams.insert(stream, answers.acknowledged);
        note_behind(behind, stream, before, Some(answers.acknowledged));
        known.acknowledged += usize::from(answers.acknowledged);
        known.acknowledged -= usize::from(before == Some(true));
        let refused = match answers.refused.is_empty() {
            true => known.refused.remove(&stream),
            false => known.refused.insert(stream, answers.refused.clone()),
        };
        before != Some(answers.acknowledged) || refused.unwrap_or_default() != answers.refused
    }

    /// None: no proxy has anything of it.
    pub(super) fn of(&self, dep: &Dep) -> Option<Programmed> {
        let all = lock(&self.0);
        let known = all.of.get(dep)?;
        Some(Programmed {
            acknowledged: known.acknowledged,
            proxies: known.streams.len(),
            refused: known.refused.values().flatten().cloned().collect(),
        })
    }

    /// Proxies that have not acknowledged everything that they were sent.
    pub(super) fn proxies_behind(&self) -> usize {
        lock(&self.0).behind.len()
    }
}

/// What a stream has acknowledged of one Service or workload, before and now.
fn note_behind(
    behind: &mut BTreeMap<u64, usize>,
    stream: u64,
    before: Option<bool>,
    now: Option<bool>,
) {
    let was_behind = before == Some(false);
    let is_behind = now == Some(false);
    if is_behind && !was_behind {
        *behind.entry(stream).or_default() += 1;
    } else if was_behind
        && !is_behind
        && let Some(count) = behind.get_mut(&stream)
    {
        *count -= 1;
        if *count == 0 {
            behind.remove(&stream);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_proxy_is_behind_until_it_has_acknowledged_all_or_is_gone() {
        let progress = Progress::default();
        let of = |name: &str| Dep::Inbound(name.to_owned());
        let answers = |acknowledged| Some(Answers { acknowledged, refused: BTreeSet::new() });
        let check = |name: &str, stream, acknowledged: Option<bool>, behind| {
            progress.set(&of(name), stream, acknowledged.and_then(answers));
            assert_eq!(progress.proxies_behind(), behind, "{name} {stream} {acknowledged:?}");
        };
        check("a", 1, Some(false), 1);
        check("a", 1, Some(false), 1);
        check("b", 1, Some(false), 1);
        check("a", 2, Some(false), 2);
        check("a", 1, Some(true), 2);
        check("b", 1, Some(true), 1);
        check("b", 1, Some(false), 2);
        check("b", 1, None, 1);
        check("b", 1, None, 1);
        check("a", 2, None, 0);
    }
}
