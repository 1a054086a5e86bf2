//! The bounds of whatever stands in a manifest, of any kind and in any field: what has no bound of its own
//! has the general one, fields of the future included.
//!
//! A path is the keys that lead to a value, without the positions in lists.

use super::{LABEL_KEY, LABEL_VALUE, LABELS};
use crate::policy::bounds::{ROOTS_BYTES, STATIC_BYTES};

/// Bytes of a text: the value of a header in the Gateway API's schema, its longest.
const TEXT: usize = 4096;
/// Items of a list.
const LIST: usize = 256;
/// Fields of an object or entries of a map.
pub const MAP: usize = LABELS;
/// Bytes of the name of a field or of the key of an entry.
pub const KEY: usize = LABEL_KEY;

/// Bytes of a regular expression: each is compiled by every proxy, and tried for each request.
const REGEX: usize = 1024;
/// Bytes of a key set that stands in a policy.
const KEY_SET: usize = 64 * 1024;

/// What the last keys of a path must be (`*`: anything), and the bound of the text there.
const TEXTS: &[(&[&str], usize)] = &[
    (&["metadata", "labels", "*"], LABEL_VALUE),
    (&["matchLabels", "*"], LABEL_VALUE),
    (&["spec", "selector", "*"], LABEL_VALUE),
    (&["regex"], REGEX),
    (&["jwks", "inline"], KEY_SET),
    (&["tls", "caCertificates"], ROOTS_BYTES),
    (&["static", "body"], STATIC_BYTES),
];

/// The same for the items of a list.
const LISTS: &[(&[&str], usize)] = &[
    // Of an AccessPolicy; a route has fewer.
    (&["spec", "rules"], 1_000),
    // Of an EndpointSlice, from its schema.
    (&["endpoints"], 1_000),
];

/// What other programs write into an object, and what nobody here reads.
pub const SKIPPED: &[&[&str]] =
    &[&["metadata", "annotations"], &["metadata", "managedFields"], &["status"]];

/// Bytes of the text at a path.
pub fn text(path: &[&str]) -> usize {
    find(TEXTS, path).unwrap_or(TEXT)
}

/// Items of the list at a path.
pub fn list(path: &[&str]) -> usize {
    find(LISTS, path).unwrap_or(LIST)
}

fn find(table: &[(&[&str], usize)], path: &[&str]) -> Option<usize> {
    let fits = |last: &&[&str]| {
        let pairs = path.iter().rev().zip(last.iter().rev());
        path.len() >= last.len() && pairs.into_iter().all(|(key, is)| *is == "*" || is == key)
    };
    table.iter().find(|(last, _)| fits(last)).map(|(_, bound)| *bound)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_has_its_own_bound_or_the_general_one() {
        assert_eq!(text(&["spec", "host"]), TEXT);
        assert_eq!(text(&["spec", "selector", "matchLabels", "app"]), LABEL_VALUE);
        assert_eq!(text(&["spec", "rules", "to", "paths", "regex"]), REGEX);
        assert_eq!(text(&["inline"]), TEXT);
        assert_eq!(list(&["spec", "rules", "to"]), LIST);
        assert_eq!(list(&["spec", "rules"]), 1_000);
    }
}
