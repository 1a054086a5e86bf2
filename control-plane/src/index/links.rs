//! Many-to-many links of the index: sets that vanish when they become empty.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// From a key to the things that belong to it, in order.
#[derive(Debug)]
pub(super) struct Links<K, V>(HashMap<K, BTreeSet<V>>);

impl<K, V> Default for Links<K, V> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<K: Eq + Hash, V: Ord> Links<K, V> {
    pub(super) fn link(&mut self, key: K, value: V) {
        self.0.entry(key).or_default().insert(value);
    }

    pub(super) fn unlink(&mut self, key: &K, value: &V) {
        if let Some(values) = self.0.get_mut(key) {
            values.remove(value);
            if values.is_empty() {
                self.0.remove(key);
            }
        }
    }

    pub(super) fn of(&self, key: &K) -> impl Iterator<Item = &V> {
        self.0.get(key).into_iter().flatten()
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &K> {
        self.0.keys()
    }
}

/// From a label of a namespace to the things that have it.
#[derive(Debug)]
pub(super) struct Labels<V>(Links<String, V>);

impl<V> Default for Labels<V> {
    fn default() -> Self {
        Self(Links::default())
    }
}

impl<V: Ord> Labels<V> {
    pub(super) fn link(&mut self, namespace: &str, key: &str, value: &str, item: V) {
        self.0.link(joined(namespace, key, value), item);
    }

    pub(super) fn unlink(&mut self, namespace: &str, key: &str, value: &str, item: &V) {
        self.0.unlink(&joined(namespace, key, value), item);
    }

    pub(super) fn of(&self, namespace: &str, key: &str, value: &str) -> impl Iterator<Item = &V> {
        let key = joined(namespace, key, value);
        self.0.0.get(&key).into_iter().flatten()
    }
}

/// No part can hold a zero byte, so the joined key is unambiguous.
fn joined(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}\0{key}\0{value}")
}
