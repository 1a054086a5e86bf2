//! What a session depends on: how much of it does, and which of its names.

use std::collections::HashMap;
use std::sync::Arc;

use foldhash::quality::RandomState;

use super::few::Few;
use crate::index::Dep;
use crate::publish::View;

#[derive(Debug, Default)]
pub(super) struct Interests {
    /// The keys are shared with everybody who depends on the same.
    all: HashMap<Arc<Dep>, Interest, RandomState>,
    /// What may be nothing to it any more.
    ended: Vec<Arc<Dep>>,
}

#[derive(Debug, Default)]
struct Interest {
    count: u32,
    /// Names whose meaning depends on it.
    names: Few<Arc<str>>,
}

impl Interests {
    /// One more depends on it. Gives the shared key.
    pub(super) fn add(&mut self, dep: &Dep, view: &View<'_>) -> Arc<Dep> {
        if let Some((key, _)) = self.all.get_key_value(dep) {
            let key = key.clone();
            self.all.entry(key.clone()).or_default().count += 1;
            return key;
        }
        let key = view.subscribe(dep);
        self.all.insert(key.clone(), Interest { count: 1, names: Few::default() });
        key
    }

    pub(super) fn remove(&mut self, dep: &Dep) {
        let Some((key, _)) = self.all.get_key_value(dep) else { return };
        let key = key.clone();
        let Some(interest) = self.all.get_mut(dep) else { return };
        interest.count = interest.count.saturating_sub(1);
        if interest.count == 0 {
            self.ended.push(key);
        }
    }

    pub(super) fn add_name(&mut self, dep: &Dep, name: &Arc<str>, view: &View<'_>) -> Arc<Dep> {
        let key = self.add(dep, view);
        if let Some(interest) = self.all.get_mut(&key) {
            interest.names.insert(name.clone());
        }
        key
    }

    pub(super) fn remove_name(&mut self, dep: &Dep, name: &str) {
        if let Some(interest) = self.all.get_mut(dep) {
            interest.names.remove(name);
        }
        self.remove(dep);
    }

    /// The names whose meaning depends on it.
    pub(super) fn names(&self, dep: &Dep) -> impl Iterator<Item = &Arc<str>> {
        self.all.get(dep).into_iter().flat_map(|interest| interest.names.iter())
    }

    /// What nothing depends on any more, since last asked.
    pub(super) fn take_ended(&mut self) -> Vec<Arc<Dep>> {
        let mut ended = std::mem::take(&mut self.ended);
        ended.retain(|dep| {
            let over = self.all.get(dep).is_some_and(|interest| interest.count == 0);
            if over {
                self.all.remove(dep);
            }
            over
        });
        if ended.len() > self.all.len() {
            self.all.shrink_to_fit();
        }
        ended
    }

    /// Everything; it is over.
    pub(super) fn take(&mut self) -> Vec<Arc<Dep>> {
        self.ended.clear();
        std::mem::take(&mut self.all).into_keys().collect()
    }
}
