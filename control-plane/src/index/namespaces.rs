//! The namespaces that the mesh has ever had: a name in one of them is never looked for outside.

use std::collections::BTreeSet;

use imbl::{OrdSet, Vector};
use outrigger_core::bounds;
use outrigger_core::config::{MeshSettings, Unmatched};
use outrigger_core::name::check_label;

use super::{Dep, Index};

/// Namespaces that proxies are told of together: a new one makes no more than so many travel again.
pub const NAMESPACES_TOGETHER: usize = 64;

#[derive(Clone, Debug, Default)]
pub(super) struct Namespaces {
    /// That hold something, or did.
    known: OrdSet<String>,
    /// The same as they came: what has been told stays where it is.
    in_order: Vector<String>,
    /// There were more than are remembered.
    more: bool,
}

impl Index {
    /// The settings with every namespace.
    pub fn settings(&self) -> MeshSettings {
        let namespaces = self.namespaces.known.iter().cloned().collect();
        MeshSettings { namespaces, ..self.settings_of(0) }
    }

    /// The settings as they travel: with the namespaces of one part of all. The first one is always there;
    /// the others add to it.
    pub fn settings_of(&self, part: usize) -> MeshSettings {
        let all = &self.namespaces.in_order;
        let from = (part * NAMESPACES_TOGETHER).min(all.len());
        let to = (from + NAMESPACES_TOGETHER).min(all.len());
        let mut namespaces: Vec<String> = (from..to).filter_map(|i| all.get(i).cloned()).collect();
        namespaces.sort();
        let mut settings = MeshSettings { namespaces, ..(*self.settings).clone() };
        if self.namespaces.more {
            // Any name may be in one that is not remembered.
            settings.unmatched = Unmatched::Refuse;
        }
        settings
    }

    /// Of how many parts [`Self::settings_of`] has, at least one.
    pub fn settings_parts(&self) -> usize {
        self.namespaces.in_order.len().div_ceil(NAMESPACES_TOGETHER).max(1)
    }

    /// Namespaces that were known before this process began.
    #[must_use]
    pub fn with_namespaces(mut self, namespaces: BTreeSet<String>) -> Self {
        for namespace in namespaces {
            self.remember(&namespace);
        }
        self
    }

    /// Namespaces that another replica knows.
    pub fn learn_namespaces(&mut self, namespaces: &BTreeSet<String>) {
        for namespace in namespaces {
            self.remember(namespace);
        }
    }

    /// Every namespace that holds something, or ever did.
    pub fn known_namespaces(&self) -> BTreeSet<String> {
        self.namespaces.known.iter().cloned().collect()
    }

    /// What was in the mesh is never looked for outside, so no namespace is ever forgotten.
    pub(super) fn remember(&mut self, namespace: &str) {
        let namespaces = &mut self.namespaces;
        if namespaces.known.contains(namespace) || check_label(namespace).is_err() {
            return;
        }
        if namespaces.known.len() < bounds::NAMESPACES {
            namespaces.known.insert(namespace.to_owned());
            namespaces.in_order.push_back(namespace.to_owned());
        } else if std::mem::replace(&mut namespaces.more, true) {
            return;
        } else {
            tracing::error!(
                "there are more than {} namespaces: proxies refuse every destination that nobody declared",
                bounds::NAMESPACES
            );
        }
        self.dirty.insert(Dep::Settings);
    }
}
