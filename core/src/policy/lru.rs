//! A map of bounded size: when it is full, the key that was used least recently makes room.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// Keys are hashes. Allocates only while it grows.
#[derive(Clone, Debug)]
pub(super) struct Lru<V> {
    capacity: usize,
    places: HashMap<u64, usize, foldhash::fast::RandomState>,
    /// A list from the most to the least recently used, linked by places.
    nodes: Vec<Node<V>>,
    newest: usize,
    oldest: usize,
}

#[derive(Clone, Debug)]
struct Node<V> {
    key: u64,
    newer: usize,
    older: usize,
    value: V,
}

/// No place.
const NONE: usize = usize::MAX;

impl<V> Lru<V> {
    /// `capacity` is at least 1.
    pub fn new(capacity: usize) -> Self {
        Self { capacity, places: HashMap::default(), nodes: Vec::new(), newest: NONE, oldest: NONE }
    }

    /// The value of a key, used now.
    pub fn get_or_insert_with(&mut self, key: u64, new: impl FnOnce() -> V) -> &mut V {
        let full = self.nodes.len() >= self.capacity;
        let place = match self.places.entry(key) {
            Entry::Occupied(place) => {
                let place = *place.get();
                self.unlink(place);
                place
            }
            Entry::Vacant(vacant) if !full => {
                let place = self.nodes.len();
                vacant.insert(place);
                self.nodes.push(Node { key, newer: NONE, older: NONE, value: new() });
                place
            }
            Entry::Vacant(vacant) => {
                let place = self.oldest;
                vacant.insert(place);
                let gone = std::mem::replace(&mut self.nodes[place].key, key);
                self.places.remove(&gone);
                self.nodes[place].value = new();
                self.unlink(place);
                place
            }
        };
        self.link(place);
        &mut self.nodes[place].value
    }

    /// The value of a key, without using it.
    pub fn peek_mut(&mut self, key: u64) -> Option<&mut V> {
        let place = *self.places.get(&key)?;
        Some(&mut self.nodes[place].value)
    }

    /// Drops the least recently used ones for as long as they may go.
    pub fn drop_oldest_while(&mut self, mut may_go: impl FnMut(&mut V) -> bool) {
        while self.oldest != NONE && may_go(&mut self.nodes[self.oldest].value) {
            let place = self.oldest;
            self.unlink(place);
            self.places.remove(&self.nodes[place].key);
            self.nodes.swap_remove(place);
            // The last node has moved to the free place.
            if let Some(moved) = self.nodes.get(place) {
                let (key, newer, older) = (moved.key, moved.newer, moved.older);
                self.places.insert(key, place);
                *self.older_of(newer) = place;
                *self.newer_of(older) = place;
            }
        }
        if self.nodes.is_empty() {
            // Gives the memory back.
            *self = Self::new(self.capacity);
        }
    }

    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.nodes.iter_mut().map(|node| &mut node.value)
    }

    pub fn len(&self) -> usize {
        self.nodes.len()
    }

    fn unlink(&mut self, place: usize) {
        let (newer, older) = (self.nodes[place].newer, self.nodes[place].older);
        *self.older_of(newer) = older;
        *self.newer_of(older) = newer;
    }

    fn link(&mut self, place: usize) {
        let older = self.newest;
        (self.nodes[place].newer, self.nodes[place].older) = (NONE, older);
        *self.newer_of(older) = place;
        self.newest = place;
    }

    /// What points from `place` to the one before it; from outside, the newest.
    fn older_of(&mut self, place: usize) -> &mut usize {
        if place == NONE { &mut self.newest } else { &mut self.nodes[place].older }
    }

    fn newer_of(&mut self, place: usize) -> &mut usize {
        if place == NONE { &mut self.oldest } else { &mut self.nodes[place].newer }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_does_what_a_plain_list_does() {
        let mut lru = Lru::new(5);
        // The same, naively: newest first.
        let mut list: Vec<(u64, u64)> = Vec::new();
        let mut random = 1u64;
        for step in 0..20_000 {
            random = crate::balance::hash(&random.to_be_bytes());
            let key = random % 9;
            let known = list.iter().position(|(of, _)| *of == key).map(|at| list.remove(at));
            list.insert(0, known.unwrap_or((key, step)));
            list.truncate(5);
            assert_eq!(*lru.get_or_insert_with(key, || step), list[0].1);
            if random >> 60 == 0 {
                let least = step.saturating_sub(random >> 56 & 15);
                lru.drop_oldest_while(|value| *value < least);
                while list.last().is_some_and(|(_, value)| *value < least) {
                    list.pop();
                }
            }
            assert_eq!(lru.len(), list.len());
            assert!(list.iter().all(|(key, value)| lru.peek_mut(*key) == Some(&mut value.clone())));
        }
    }
}
