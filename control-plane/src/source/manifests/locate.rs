//! From a field path to the line that it stands on.
//!
//! Only used to report a problem, so a second reading of the document is fine.

use std::cell::Cell;
use std::fmt;

use serde::Deserializer;
use serde::de::{DeserializeSeed, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_saphyr::Spanned;

/// The line, counted from 1, of the field at `path` (as in `spec.rules[2].name`), or of the
/// nearest field around it that exists.
pub(super) fn line(text: &str, path: &str) -> Option<u64> {
    let segments = parse(path);
    let found = Cell::new(None);
    // An error means that the text is not well formed from there on; what was found before holds.
    let _ = serde_saphyr::with_deserializer_from_str(text, |deserializer| {
        Seek { segments: &segments, found: &found }.deserialize(deserializer)
    });
    found.get()
}

#[derive(Debug, PartialEq)]
enum Segment<'a> {
    Key(&'a str),
    Item(usize),
}

fn parse(path: &str) -> Vec<Segment<'_>> {
    let mut segments = Vec::new();
    for part in path.split('.').filter(|part| !part.is_empty()) {
        let mut pieces = part.split('[');
        segments.extend(pieces.next().filter(|key| !key.is_empty()).map(Segment::Key));
        let items = pieces.filter_map(|piece| piece.strip_suffix(']')?.parse().ok());
        segments.extend(items.map(Segment::Item));
    }
    segments
}

struct Seek<'a> {
    segments: &'a [Segment<'a>],
    found: &'a Cell<Option<u64>>,
}

impl Seek<'_> {
    fn note(&self, line: u64) {
        if line > 0 {
            self.found.set(Some(line));
        }
    }
}

impl<'de> DeserializeSeed<'de> for Seek<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        if self.segments.is_empty() {
            serde::Deserialize::deserialize(deserializer).map(|IgnoredAny| ())
        } else {
            deserializer.deserialize_any(self)
        }
    }
}

impl<'de> Visitor<'de> for Seek<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("anything")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        while let Some(key) = map.next_key::<Spanned<String>>()? {
            if self.segments[0] == Segment::Key(&key.value) {
                self.note(key.referenced.line());
                let rest = Seek { segments: &self.segments[1..], found: self.found };
                map.next_value_seed(rest)?;
            } else {
                map.next_value::<IgnoredAny>()?;
            }
        }
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut at = 0;
        loop {
            let wanted = self.segments[0] == Segment::Item(at);
            let more = if wanted && self.segments.len() == 1 {
                let item = seq.next_element::<Spanned<IgnoredAny>>()?;
                item.map(|item| self.note(item.referenced.line()))
            } else if wanted {
                let rest = Seek { segments: &self.segments[1..], found: self.found };
                seq.next_element_seed(rest)?
            } else {
                seq.next_element::<IgnoredAny>()?.map(|_| ())
            };
            if more.is_none() {
                return Ok(());
            }
            at += 1;
        }
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_by_path() {
        let yaml = "kind: X\nspec:\n  rules:\n  - name: a\n    weight: 1\n  - name: b\n    list: [1,\n      2]\n  port: 3\n";
        for (path, want) in [
            ("kind", 1),
            ("spec", 2),
            ("spec.rules[0].name", 4),
            ("spec.rules[0].weight", 5),
            ("spec.rules[1].name", 6),
            ("spec.rules[1].list[1]", 8),
            ("spec.rules[1].missing", 3),
            ("spec.port", 9),
        ] {
            assert_eq!(line(yaml, path), Some(want), "{path}");
        }
        assert_eq!(line("[", "a"), None);
    }
}
