//! The tables that find the rule for a request.
//!
//! Precedence is Gateway API's and is settled while a table is built: the most specific host name
//! first, then exact paths, then the longest prefix, then regular expressions, then what matches
//! every path; among equals a method, more headers, more query parameters, the older route, its
//! name, and its own order decide. Gateway API leaves open where regular expressions stand; before
//! the prefix `/`, or that one would hide them all. Paths are compared as they were sent.
//!
//! [`crate::condition`] holds what one match asks of a request. [`crate::compile`] builds these
//! tables, [`crate::compile::Compiled::route_http`] reads them.

use std::cmp::{Ordering, Reverse};
use std::collections::HashMap;

use http::{HeaderMap, Method};

use crate::condition::Match;
use crate::config::{HostMatch, HttpMatch, PathMatch};
use crate::error::FieldError;

/// The parts of a request that routes look at, borrowed.
#[derive(Clone, Copy, Debug)]
pub struct RequestView<'a> {
    /// As the request names it, with its port if it names one; empty: it has none.
    pub authority: &'a str,
    /// Without port; case does not matter.
    pub host: &'a str,
    pub path: &'a str,
    pub query: Option<&'a str>,
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
}

/// Every match of every HTTP route of a destination.
#[derive(Debug)]
pub(crate) struct HttpTable {
    matches: Vec<Match>,
    hosts: HostTable<PathTable>,
}

pub(crate) struct FoundRule<'a> {
    /// What [`HttpTableBuilder::add`] was given.
    pub(crate) rule: usize,
    pub(crate) prefix: Option<&'a str>,
}

impl HttpTable {
    pub(crate) fn find(&self, view: &RequestView<'_>) -> Option<FoundRule<'_>> {
        self.hosts
            .candidates(Some(view.host))
            .find_map(|paths| paths.find(view.path, |index| self.matches[index].holds(view)))
            .map(|index| {
                let found = &self.matches[index];
                FoundRule { rule: found.rule, prefix: found.prefix.as_deref() }
            })
    }
}

/// Where a match stands among others that are as specific.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order<'a> {
    pub(crate) created: i64,
    pub(crate) route: &'a str,
    pub(crate) rule: usize,
}

#[derive(Default)]
pub(crate) struct HttpTableBuilder<'a> {
    pending: Vec<Pending<'a>>,
}

struct Pending<'a> {
    found: Match,
    path: &'a PathMatch,
    hosts: &'a [HostMatch],
    order: Order<'a>,
}

/// What a match without a path means (Gateway API's default).
const EVERY_PATH: &PathMatch = &PathMatch::Prefix(String::new());

impl<'a> HttpTableBuilder<'a> {
    /// Adds the matches of one rule; `rule` is handed back when one of them is found.
    pub(crate) fn add(
        &mut self,
        hosts: &'a [HostMatch],
        matches: &'a [HttpMatch],
        rule: usize,
        order: Order<'a>,
    ) -> Result<(), FieldError> {
        if matches.is_empty() {
            let found = Match::new(&HttpMatch::default(), rule)?;
            self.pending.push(Pending { found, path: EVERY_PATH, hosts, order });
        }
        for (i, one) in matches.iter().enumerate() {
            let found = Match::new(one, rule).map_err(|e| e.under(format!("matches[{i}]")))?;
            let path = one.path.as_ref().unwrap_or(EVERY_PATH);
            self.pending.push(Pending { found, path, hosts, order });
        }
        Ok(())
    }

    pub(crate) fn build(mut self) -> HttpTable {
        // The sort is stable, so that matches of one rule stay in their order.
        self.pending.sort_by(|a, b| {
            let key = |p: &Pending<'_>| Reverse(p.found.specificity());
            key(a).cmp(&key(b)).then_with(|| a.order.cmp(&b.order))
        });
        let mut hosts: HostTable<PathTable> = HostTable::default();
        let mut matches = Vec::with_capacity(self.pending.len());
        for Pending { found, path, hosts: names, .. } in self.pending {
            let index = matches.len();
            hosts.for_each(names, |paths| paths.add(path, index));
            matches.push(found);
        }
        hosts.finish(PathTable::finish);
        HttpTable { matches, hosts }
    }
}

/// Values by host name: exact names, then the longest suffix, then those for every host.
#[derive(Debug)]
pub(crate) struct HostTable<T> {
    /// Sorted by name, lower case.
    exact: Vec<(Box<str>, T)>,
    /// Longest first; each begins with a dot.
    suffixes: Vec<(Box<str>, T)>,
    any: Option<T>,
}

impl<T> Default for HostTable<T> {
    fn default() -> Self {
        Self { exact: Vec::new(), suffixes: Vec::new(), any: None }
    }
}

impl<T: Default> HostTable<T> {
    /// Calls `f` on the value of each name, or of every host when there are no names.
    pub(crate) fn for_each(&mut self, names: &[HostMatch], mut f: impl FnMut(&mut T)) {
        if names.is_empty() {
            f(self.any.get_or_insert_default());
        }
        for name in names {
            f(match name {
                HostMatch::Exact(host) => {
                    let host = host.to_ascii_lowercase();
                    let at = self.exact.binary_search_by(|(have, _)| (**have).cmp(&host));
                    entry(&mut self.exact, at, host)
                }
                HostMatch::Suffix(suffix) => {
                    let suffix = suffix.to_ascii_lowercase();
                    let key = |text: &str| (Reverse(text.len()), text.to_owned());
                    let at =
                        self.suffixes.binary_search_by(|(have, _)| key(have).cmp(&key(&suffix)));
                    entry(&mut self.suffixes, at, suffix)
                }
            });
        }
    }
}

fn entry<T: Default>(
    list: &mut Vec<(Box<str>, T)>,
    at: Result<usize, usize>,
    name: String,
) -> &mut T {
    let at = at.unwrap_or_else(|at| {
        list.insert(at, (name.into_boxed_str(), T::default()));
        at
    });
    &mut list[at].1
}

impl<T> HostTable<T> {
    /// The values for a host, the most specific first.
    pub(crate) fn candidates(&self, host: Option<&str>) -> impl Iterator<Item = &T> {
        let host = host.unwrap_or("");
        let exact = self
            .exact
            .binary_search_by(|(have, _)| compare_ignoring_case(have, host))
            .ok()
            .map(|at| &self.exact[at].1);
        let suffixes = self
            .suffixes
            .iter()
            .filter(move |(suffix, _)| ends_with_ignoring_case(host, suffix))
            .map(|(_, value)| value);
        exact.into_iter().chain(suffixes).chain(self.any.as_ref())
    }

    fn finish(&mut self, f: impl Fn(&mut T)) {
        let named = self.exact.iter_mut().chain(&mut self.suffixes).map(|(_, value)| value);
        named.chain(self.any.as_mut()).for_each(f);
    }
}

fn compare_ignoring_case(lower: &str, any: &str) -> Ordering {
    lower.bytes().cmp(any.bytes().map(|b| b.to_ascii_lowercase()))
}

/// Whether `host` lies at least one label below `suffix`.
fn ends_with_ignoring_case(host: &str, suffix: &str) -> bool {
    let (host, suffix) = (host.as_bytes(), suffix.as_bytes());
    host.len() > suffix.len() && host[host.len() - suffix.len()..].eq_ignore_ascii_case(suffix)
}

/// Indexes of matches by path; each list in the order in which matches are to be tried.
#[derive(Debug, Default)]
struct PathTable {
    exact: PathMap,
    /// Without a final slash.
    prefixes: PathMap,
    /// The lengths that occur in `prefixes`, longest first: a request costs at most as many
    /// look-ups, however many slashes its path has.
    prefix_lengths: Vec<usize>,
    /// The expressions themselves are in the matches.
    regexes: Vec<usize>,
    every: Vec<usize>,
}

/// Only keys from the configuration enter, so a caller cannot make it degenerate.
type PathMap = HashMap<Box<str>, Vec<usize>, foldhash::fast::FixedState>;

impl PathTable {
    fn add(&mut self, path: &PathMatch, index: usize) {
        match path {
            PathMatch::Exact(path) => {
                self.exact.entry(path.as_str().into()).or_default().push(index);
            }
            PathMatch::Regex(_) => self.regexes.push(index),
            PathMatch::Prefix(prefix) => match without_final_slash(prefix) {
                "" => self.every.push(index),
                prefix => self.prefixes.entry(prefix.into()).or_default().push(index),
            },
        }
    }

    fn finish(&mut self) {
        self.prefix_lengths = self.prefixes.keys().map(|prefix| prefix.len()).collect();
        self.prefix_lengths.sort_unstable_by_key(|length| Reverse(*length));
        self.prefix_lengths.dedup();
    }

    fn find(&self, path: &str, holds: impl Fn(usize) -> bool) -> Option<usize> {
        let first = |list: &[usize]| list.iter().copied().find(|index| holds(*index));
        if let Some(found) = self.exact.get(path).and_then(|list| first(list)) {
            return Some(found);
        }
        for &length in &self.prefix_lengths {
            if matches!(path.as_bytes().get(length), Some(b'/') | None)
                && let Some(prefix) = path.get(..length)
                && let Some(found) = self.prefixes.get(prefix).and_then(|list| first(list))
            {
                return Some(found);
            }
        }
        first(&self.regexes).or_else(|| first(&self.every))
    }
}

/// `/a/` as a prefix means the same as `/a` (Gateway API).
pub(crate) fn without_final_slash(prefix: &str) -> &str {
    prefix.strip_suffix('/').unwrap_or(prefix)
}
