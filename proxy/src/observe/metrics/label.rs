//! Label texts, kept once for everybody who names them.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

/// Distinct label texts beyond which every other one is `other`.
pub(super) const MAX_LABELS: usize = 20_000;
/// Sweeps, one a minute, after which a text that nobody holds is given back.
pub(super) const IDLE_MINUTES: u32 = 30;

/// An interned label text. Copied freely: what it stands for stays known for half an hour after the last
/// [`HeldLabel`] of it and the last series with it are gone, and is `other` then.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Label(u32);

impl Label {
    /// The empty text.
    pub const NONE: Self = Self(0);
    pub const UNKNOWN: Self = Self(1);
    pub const OTHER: Self = Self(2);
    /// Those that are always there.
    const FIXED: [(&'static str, Self); 3] =
        [("", Self::NONE), ("unknown", Self::UNKNOWN), ("other", Self::OTHER)];
}

/// A label whose text stays known: for what lives as long as a configuration or a connection.
#[derive(Clone, Debug)]
pub struct HeldLabel {
    label: Label,
    /// One of the fixed ones needs none.
    _text: Option<Arc<str>>,
}

impl HeldLabel {
    pub const UNKNOWN: Self = Self { label: Label::UNKNOWN, _text: None };

    pub fn get(&self) -> Label {
        self.label
    }
}

/// All label texts of the process.
pub(super) struct Interner {
    labels: HashMap<Arc<str>, Label>,
    texts: HashMap<Label, Interned, foldhash::fast::FixedState>,
    /// Never given twice.
    next: u32,
}

struct Interned {
    text: Arc<str>,
    /// Sweeps since somebody held it.
    idle: u32,
}

impl Default for Interner {
    fn default() -> Self {
        let mut new = Self { labels: HashMap::new(), texts: HashMap::default(), next: 0 };
        for (text, label) in Label::FIXED {
            let interned = new.intern(text);
            debug_assert_eq!(interned.get(), label);
        }
        new
    }
}

impl Interner {
    pub fn intern(&mut self, text: &str) -> HeldLabel {
        if let Some((text, label)) = self.labels.get_key_value(text) {
            return HeldLabel { label: *label, _text: Some(Arc::clone(text)) };
        }
        if self.texts.len() >= MAX_LABELS || self.next == u32::MAX {
            return HeldLabel { label: Label::OTHER, _text: None };
        }
        let (label, text) = (Label(self.next), Arc::<str>::from(text));
        self.next += 1;
        self.labels.insert(Arc::clone(&text), label);
        self.texts.insert(label, Interned { text: Arc::clone(&text), idle: 0 });
        HeldLabel { label, _text: Some(text) }
    }

    /// `other`, where it was given back.
    pub fn text(&self, label: Label) -> Arc<str> {
        let known = self.texts.get(&label).or_else(|| self.texts.get(&Label::OTHER));
        known.map(|interned| Arc::clone(&interned.text)).unwrap_or_default()
    }

    /// Once a minute: gives back what nobody has held and no series had for [`IDLE_MINUTES`].
    pub fn sweep(&mut self, has_series: impl Fn(Label) -> bool) {
        let labels = &mut self.labels;
        self.texts.retain(|label, interned| {
            // Two are the interner's own.
            let held = Arc::strong_count(&interned.text) > 2 || has_series(*label);
            interned.idle = if held { 0 } else { interned.idle + 1 };
            let keep = interned.idle < IDLE_MINUTES || label.0 < Label::FIXED.len() as u32;
            if !keep && let Entry::Occupied(entry) = labels.entry(Arc::clone(&interned.text)) {
                entry.remove();
            }
            keep
        });
        labels.shrink_to(2 * labels.len());
        self.texts.shrink_to(2 * self.texts.len());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_nobody_holds_is_given_back_and_its_label_never_means_another() {
        let mut interner = Interner::default();
        let held = interner.intern("bank/ledger:80");
        let (gone, counted) = (interner.intern("a").get(), interner.intern("b").get());
        for _ in 0..IDLE_MINUTES - 1 {
            interner.sweep(|label| label == counted);
        }
        assert_eq!(&*interner.text(gone), "a", "too early");
        interner.sweep(|label| label == counted);
        assert_eq!(&*interner.text(gone), "other");
        assert_eq!(&*interner.text(counted), "b");
        assert_eq!(&*interner.text(held.get()), "bank/ledger:80");
        assert_ne!(interner.intern("c").get(), gone);
        assert_ne!(interner.intern("a").get(), gone);
        for (text, label) in Label::FIXED {
            assert_eq!(&*interner.text(label), text);
        }
    }

    #[test]
    fn labels_beyond_the_bound_are_other_until_there_is_room() {
        let mut interner = Interner::default();
        for i in 0..MAX_LABELS {
            let _ = interner.intern(&format!("s{i}"));
        }
        assert_eq!(interner.texts.len(), MAX_LABELS);
        assert_eq!(interner.intern("one more").get(), Label::OTHER);
        for _ in 0..IDLE_MINUTES {
            interner.sweep(|_| false);
        }
        assert_eq!(interner.texts.len(), Label::FIXED.len());
        assert!(interner.labels.capacity() < 100, "{}", interner.labels.capacity());
        assert_ne!(interner.intern("one more").get(), Label::OTHER);
    }
}
