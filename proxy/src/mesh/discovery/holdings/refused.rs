//! Never a removal whose replacement was refused: what a name led to before goes on meanwhile.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_core::name::{Authority, DestinationName};
use outrigger_proto::convert;

use crate::mesh::discovery::holdings::Holdings;
use crate::upstream::store::Resolution;

/// Destinations that were refused, and what goes on in their place.
#[derive(Default)]
pub(crate) struct RefusedDestinations {
    /// The names that were to lead to each refused one that was never taken.
    replacements: BTreeMap<String, BTreeSet<Authority>>,
    /// Destinations that the control plane has withdrawn for one of those.
    kept: BTreeSet<String>,
}

impl RefusedDestinations {
    pub(crate) fn add(&mut self, name: &str, aliases: Vec<Authority>) {
        self.replacements.entry(name.to_owned()).or_default().extend(aliases);
    }

    /// A destination was taken, or is gone: nothing waits for it.
    pub(crate) fn taken(&mut self, name: &str) {
        self.replacements.remove(name);
    }

    fn waits(&self, authority: &Authority) -> bool {
        self.replacements.values().any(|waiting| waiting.contains(authority))
    }

    pub(crate) fn forget(&mut self, authority: &Authority) {
        self.replacements.retain(|_, waiting| {
            waiting.remove(authority);
            !waiting.is_empty()
        });
    }
}

impl Holdings {
    /// `name`: a dialled name that nobody knows, or a destination that is gone. One whose replacement was
    /// refused goes on, for the names that were to move.
    pub(crate) fn remove_destination(&mut self, name: &str) {
        self.refused.taken(name);
        if let Ok(authority) = Authority::parse(name, None) {
            self.refused.forget(&authority);
        }
        if self.resolved.of(name).any(|authority| self.refused.waits(authority)) {
            self.refused.kept.insert(name.to_owned());
        } else {
            self.destinations.remove(name);
        }
        let dialled = Authority::parse(name, None).ok();
        let gone = self.resolved.of(name).cloned().chain(dialled);
        let gone: Vec<_> = gone.filter(|authority| !self.refused.waits(authority)).collect();
        for authority in gone {
            self.resolved.remove(&authority);
            self.proxy.store.resolve(&authority, Resolution::Unknown);
        }
        self.drop_replaced();
    }

    /// Drops destinations that were kept for names that have a replacement now, or need none.
    pub(crate) fn drop_replaced(&mut self) {
        let (resolved, refused) = (&self.resolved, &self.refused);
        let is_done = |name: &&String| !resolved.of(name).any(|authority| refused.waits(authority));
        let replaced: Vec<String> = refused.kept.iter().filter(is_done).cloned().collect();
        for name in replaced {
            self.refused.kept.remove(&name);
            self.destinations.remove(&name);
            for authority in self.resolved.of(&name).cloned().collect::<Vec<_>>() {
                self.resolved.remove(&authority);
                self.proxy.store.resolve(&authority, Resolution::Unknown);
            }
        }
    }

    /// Collections that are withdrawn as a whole although a destination needs them that was kept.
    pub(crate) fn still_needed(&self, removed: &[String]) -> BTreeSet<DestinationName> {
        if self.refused.kept.is_empty() {
            return BTreeSet::new();
        }
        let kept = self.refused.kept.iter().filter_map(|name| self.destinations.get(name));
        let backends = kept.flat_map(|kept| &kept.live.compiled.backends);
        let needed: BTreeSet<_> = backends.map(|backend| &backend.name).collect();
        let parsed = removed.iter().filter_map(|name| convert::endpoint::parse_name(name).ok());
        let whole = parsed.filter(|(of, id)| id.is_none() && needed.contains(of));
        whole.map(|(of, _)| of).collect()
    }
}
