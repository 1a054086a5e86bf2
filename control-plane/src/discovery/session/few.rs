//! A set that nearly always holds one thing.

use std::collections::BTreeSet;

#[derive(Clone, Debug)]
pub(super) enum Few<T> {
    One(Option<T>),
    Many(BTreeSet<T>),
}

impl<T> Default for Few<T> {
    fn default() -> Self {
        Self::One(None)
    }
}

impl<T: Ord> Few<T> {
    /// Gives whether it was not there before.
    pub(super) fn insert(&mut self, new: T) -> bool {
        match self {
            Self::One(one @ None) => {
                *one = Some(new);
                true
            }
            Self::One(Some(one)) if *one == new => false,
            Self::One(one) => {
                let set = one.take().into_iter().chain([new]).collect();
                *self = Self::Many(set);
                true
            }
            Self::Many(set) => set.insert(new),
        }
    }

    pub(super) fn remove<Q: Ord + ?Sized>(&mut self, old: &Q)
    where
        T: std::borrow::Borrow<Q>,
    {
        match self {
            Self::One(one) => {
                if one.as_ref().is_some_and(|one| one.borrow() == old) {
                    *one = None;
                }
            }
            Self::Many(set) => {
                set.remove(old);
                if set.len() <= 1 {
                    *self = Self::One(set.pop_first());
                }
            }
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &T> {
        let (one, many) = match self {
            Self::One(one) => (one.as_ref(), None),
            Self::Many(set) => (None, Some(set.iter())),
        };
        one.into_iter().chain(many.into_iter().flatten())
    }

    pub(super) fn len(&self) -> usize {
        match self {
            Self::One(one) => usize::from(one.is_some()),
            Self::Many(set) => set.len(),
        }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_or_many_is_the_same_set() {
        let mut few = Few::default();
        assert!(few.is_empty());
        assert!(few.insert("b") && !few.insert("b"));
        assert!(few.insert("a") && few.insert("c") && !few.insert("a"));
        assert_eq!(few.iter().copied().collect::<Vec<_>>(), ["a", "b", "c"]);
        few.remove("b");
        few.remove("x");
        few.remove("a");
        assert_eq!((few.len(), few.iter().next()), (1, Some(&"c")));
        assert!(few.insert("d"));
        few.remove("c");
        few.remove("d");
        assert!(few.is_empty() && few.insert("c"));
    }
}
