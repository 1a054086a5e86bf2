//! The namespaces that the mesh was ever said to have: names in them are never looked up outside.

use std::collections::{BTreeMap, BTreeSet};

use outrigger_core::bounds;
use outrigger_core::config::{MeshSettings, Unmatched};

/// All of them, over every control plane that this proxy has heard, as far as it may remember.
#[derive(Debug)]
pub(crate) struct Namespaces {
    known: BTreeSet<String>,
    /// There were more: any name may be in one of those.
    more: bool,
    /// Versions of the further parts of the settings, by name: who has them is not sent them again.
    parts: BTreeMap<String, String>,
}

impl Namespaces {
    /// A short name is one of the proxy's own namespace, whatever is there.
    pub(crate) fn with(own: &str) -> Self {
        Self { known: BTreeSet::from([own.to_owned()]), more: false, parts: BTreeMap::new() }
    }

    pub(crate) fn add(&mut self, namespaces: impl IntoIterator<Item = String>, more: bool) {
        self.more |= more;
        for namespace in namespaces {
            if self.known.len() < bounds::NAMESPACES {
                self.known.insert(namespace);
            } else {
                self.more |= !self.known.contains(&namespace);
            }
        }
    }

    /// Takes a further part of the settings.
    pub(crate) fn add_part(&mut self, name: &str, version: &str, namespaces: Vec<String>) {
        self.add(namespaces, false);
        // There are never more parts than namespaces, whatever a control plane says.
        if self.parts.len() < bounds::NAMESPACES {
            self.parts.insert(name.to_owned(), version.to_owned());
        }
    }

    /// The name and version of each further part of the settings.
    pub(crate) fn parts(&self) -> impl Iterator<Item = (String, String)> {
        self.parts.iter().map(|(name, version)| (name.clone(), version.clone()))
    }

    /// What the control plane says, with everything that it or another one said before.
    pub(crate) fn complete(&mut self, mut settings: MeshSettings) -> MeshSettings {
        self.add(std::mem::take(&mut settings.namespaces), false);
        // In order: they are searched.
        settings.namespaces = self.known.iter().cloned().collect();
        if self.more {
            settings.unmatched = Unmatched::Refuse;
        }
        settings
    }

    /// For the disk copy.
    pub(crate) fn saved(&self) -> (Vec<String>, bool) {
        (self.known.iter().cloned().collect(), self.more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn said(namespaces: &[&str]) -> MeshSettings {
        let namespaces = namespaces.iter().map(|name| (*name).to_owned()).collect();
        MeshSettings { namespaces, ..MeshSettings::default() }
    }

    #[test]
    fn nothing_that_was_said_is_forgotten() {
        let mut known = Namespaces::with("own");
        assert_eq!(known.complete(said(&["shop", "bank"])).namespaces, ["bank", "own", "shop"]);
        assert_eq!(known.complete(said(&[])).namespaces, ["bank", "own", "shop"]);
        let (saved, more) = known.saved();
        let mut restarted = Namespaces::with("own");
        restarted.add(saved, more);
        assert_eq!(restarted.complete(said(&["new"])).namespaces, ["bank", "new", "own", "shop"]);
    }

    #[test]
    fn beyond_the_bound_no_name_is_outside() {
        let mut known = Namespaces::with("own");
        known.add((1..bounds::NAMESPACES).map(|n| format!("n{n}")), false);
        assert_eq!(known.complete(said(&["own", "n1"])).unmatched, Unmatched::Passthrough);
        let full = known.complete(said(&["one-more"]));
        assert_eq!(
            (full.namespaces.len(), full.unmatched),
            (bounds::NAMESPACES, Unmatched::Refuse)
        );
        let (saved, more) = known.saved();
        let mut restarted = Namespaces::with("own");
        restarted.add(saved, more);
        assert_eq!(restarted.complete(said(&[])).unmatched, Unmatched::Refuse);
    }
}
