//! Many-to-many links of the index, as one ordered set of pairs: a link costs the same however many others
//! its ends have, and a copy of all of them costs nothing.

use imbl::OrdSet;

/// From a key to the things that belong to it, in order.
#[derive(Clone, Debug)]
pub(super) struct Links<K: Ord, V: Ord>(
    /// Without a value a pair is in front of all others of its key.
    OrdSet<(K, Option<V>)>,
);

impl<K: Ord, V: Ord> Default for Links<K, V> {
    fn default() -> Self {
        Self(OrdSet::new())
    }
}

impl<K: Ord + Clone, V: Ord + Clone> Links<K, V> {
    pub(super) fn link(&mut self, key: K, value: V) {
        self.0.insert((key, Some(value)));
    }

    pub(super) fn unlink(&mut self, key: &K, value: &V) {
        self.0.remove(&(key.clone(), Some(value.clone())));
    }

    pub(super) fn of<'a>(&'a self, key: &K) -> impl Iterator<Item = &'a V> + use<'a, K, V> {
        let key = key.clone();
        self.from(&key).take_while(move |(of, _)| **of == key).map(|(_, value)| value)
    }

    /// Every pair from a key on.
    pub(super) fn from<'a>(
        &'a self,
        key: &K,
    ) -> impl Iterator<Item = (&'a K, &'a V)> + use<'a, K, V> {
        let pairs = self.0.range((key.clone(), None)..);
        pairs.filter_map(|(key, value)| Some((key, value.as_ref()?)))
    }

    pub(super) fn all(&self) -> impl Iterator<Item = (&K, &V)> {
        self.0.iter().filter_map(|(key, value)| Some((key, value.as_ref()?)))
    }

    pub(super) fn has(&self, key: &K) -> bool {
        self.of(key).next().is_some()
    }
}

/// From a label of a namespace to the things that have it.
#[derive(Clone, Debug)]
pub(super) struct Labels<V: Ord>(Links<String, V>);

impl<V: Ord> Default for Labels<V> {
    fn default() -> Self {
        Self(Links::default())
    }
}

impl<V: Ord + Clone> Labels<V> {
    pub(super) fn link(&mut self, namespace: &str, key: &str, value: &str, item: V) {
        self.0.link(joined(namespace, key, value), item);
    }

    pub(super) fn unlink(&mut self, namespace: &str, key: &str, value: &str, item: &V) {
        self.0.unlink(&joined(namespace, key, value), item);
    }

    pub(super) fn of<'a>(
        &'a self,
        namespace: &str,
        key: &str,
        value: &str,
    ) -> impl Iterator<Item = &'a V> + use<'a, V> {
        self.0.of(&joined(namespace, key, value))
    }
}

/// No part can hold a zero byte, so the joined key is unambiguous.
fn joined(namespace: &str, key: &str, value: &str) -> String {
    format!("{namespace}\0{key}\0{value}")
}
