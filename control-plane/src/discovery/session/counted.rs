//! Who needs what, counted, so that one more or one less costs the same however many there are.

use std::collections::HashMap;
use std::hash::Hash;

/// Things with how many need each, and which have begun or ceased to be needed.
#[derive(Debug)]
pub(super) struct Counted<K> {
    counts: HashMap<K, usize>,
    /// Whether each that has changed since [`Counted::changes`] was needed then.
    before: HashMap<K, bool>,
}

impl<K> Default for Counted<K> {
    fn default() -> Self {
        Self { counts: HashMap::new(), before: HashMap::new() }
    }
}

impl<K: Eq + Hash + Clone> Counted<K> {
    pub(super) fn add(&mut self, key: &K) {
        let known = self.counts.get_mut(key);
        if known.is_none() {
            self.before.entry(key.clone()).or_insert(false);
        }
        match known {
            Some(count) => *count += 1,
            None => drop(self.counts.insert(key.clone(), 1)),
        }
    }

    pub(super) fn remove(&mut self, key: &K) {
        let Some(count) = self.counts.get_mut(key) else { return };
        *count -= 1;
        if *count == 0 {
            self.counts.remove(key);
            self.before.entry(key.clone()).or_insert(true);
        }
    }

    /// Puts one list in the place of another.
    pub(super) fn replace(&mut self, old: &[K], new: &[K]) {
        new.iter().for_each(|key| self.add(key));
        old.iter().for_each(|key| self.remove(key));
    }

    /// What has begun and what has ceased to be needed since the last call.
    pub(super) fn changes(&mut self) -> (Vec<K>, Vec<K>) {
        let (mut begun, mut ceased) = (Vec::new(), Vec::new());
        for (key, before) in std::mem::take(&mut self.before) {
            match (before, self.counts.contains_key(&key)) {
                (false, true) => begun.push(key),
                (true, false) => ceased.push(key),
                _ => {}
            }
        }
        (begun, ceased)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_and_the_last_change_anything() {
        let mut counted = Counted::default();
        counted.replace(&[], &["a", "b"]);
        counted.add(&"a");
        let (mut begun, ceased) = counted.changes();
        begun.sort_unstable();
        assert_eq!((begun, ceased), (vec!["a", "b"], vec![]));
        counted.replace(&["a", "b"], &["c"]);
        counted.replace(&["c"], &["b"]);
        assert_eq!(counted.changes(), (vec![], vec![]), "c came and went, b stayed");
        counted.remove(&"a");
        counted.remove(&"a");
        assert_eq!(counted.changes(), (vec![], vec!["a"]));
    }
}
