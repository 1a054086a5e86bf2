//! Dialled names and the destinations that they lead to, from both sides.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_core::name::Authority;

#[derive(Default)]
pub(crate) struct SubscribedNames {
    canonical: BTreeMap<Authority, String>,
    /// The same by destination; none is empty.
    of: BTreeMap<String, BTreeSet<Authority>>,
}

impl SubscribedNames {
    pub(crate) fn insert(&mut self, authority: Authority, canonical: &str) {
        if self.canonical.get(&authority).is_some_and(|old| old == canonical) {
            return;
        }
        self.remove(&authority);
        self.of.entry(canonical.to_owned()).or_default().insert(authority.clone());
        self.canonical.insert(authority, canonical.to_owned());
    }

    pub(crate) fn remove(&mut self, authority: &Authority) {
        let Some(canonical) = self.canonical.remove(authority) else { return };
        if let Some(names) = self.of.get_mut(&canonical) {
            names.remove(authority);
            if names.is_empty() {
                self.of.remove(&canonical);
            }
        }
    }

    /// The names of a destination.
    pub(crate) fn of(&self, canonical: &str) -> impl Iterator<Item = &Authority> {
        self.of.get(canonical).into_iter().flatten()
    }

    /// Whether any name leads to a destination.
    pub(crate) fn has(&self, canonical: &str) -> bool {
        self.of.contains_key(canonical)
    }

    pub(crate) fn contains(&self, authority: &Authority) -> bool {
        self.canonical.contains_key(authority)
    }

    /// Each name, and the destination that it leads to.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (&Authority, &String)> {
        self.canonical.iter()
    }

    /// How many destinations some name leads to.
    pub(crate) fn destinations(&self) -> usize {
        self.of.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_agree_whichever_way_a_name_goes() {
        let name = |text: &str| Authority::parse(text, None).unwrap();
        let (a, b) = (name("a.bank:80"), name("b.bank:80"));
        let mut names = SubscribedNames::default();
        names.insert(a.clone(), "bank/x:80");
        names.insert(b.clone(), "bank/x:80");
        assert_eq!(names.of("bank/x:80").collect::<Vec<_>>(), [&a, &b]);
        // One moves: where it was it is no more.
        names.insert(a.clone(), "bank/y:80");
        assert_eq!(names.of("bank/x:80").collect::<Vec<_>>(), [&b]);
        assert_eq!(names.of("bank/y:80").collect::<Vec<_>>(), [&a]);
        assert_eq!((names.iter().count(), names.destinations()), (2, 2));
        // With its last name a destination is gone.
        names.remove(&b);
        names.remove(&b);
        assert!(!names.has("bank/x:80") && names.has("bank/y:80"));
        assert!(!names.contains(&b) && names.contains(&a));
        assert_eq!(names.destinations(), 1);
    }
}
