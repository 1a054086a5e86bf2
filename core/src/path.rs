//! The one form of a request's path that routes and access rules are matched against.
//!
//! Two spellings that a server may take for the same resource become one: percent-encoded
//! unreserved characters are decoded, other encodings are written in upper case, dot segments are
//! resolved and repeated slashes merged (RFC 3986 sections 6.2.2 and 5.2.4). What servers understand
//! differently, so that no rule could be sure of it, has no canonical form at all.

use std::borrow::Cow;
use std::fmt;

/// Why a path has no canonical form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ambiguous {
    /// Not `/...`.
    NotAbsolute,
    /// `%` without two hexadecimal digits behind it.
    BrokenEncoding,
    /// `%2F` or `%5C`: a separator to some servers, a character to others.
    EncodedSeparator,
    /// `\`: a separator to some servers.
    Backslash,
    /// A control character, encoded or not, NUL above all.
    Control,
    /// `..;` or `.;`: a dot segment to servers that know path parameters.
    DotParameter,
    /// `..` at the root.
    AboveRoot,
}

impl fmt::Display for Ambiguous {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAbsolute => "the path does not begin with \"/\"",
            Self::BrokenEncoding => "the path has a \"%\" without two hexadecimal digits",
            Self::EncodedSeparator => "the path has an encoded slash or backslash",
            Self::Backslash => "the path has a backslash",
            Self::Control => "the path has a control character",
            Self::DotParameter => "the path has a dot segment with parameters",
            Self::AboveRoot => "the path leads above the root",
        })
    }
}

/// The canonical form of a path without its query. Borrowed when it is canonical already, which costs
/// one look at each byte.
pub fn canonical(path: &str) -> Result<Cow<'_, str>, Ambiguous> {
    if !path.starts_with('/') {
        return Err(Ambiguous::NotAbsolute);
    }
    if is_plain(path.as_bytes()) {
        return Ok(Cow::Borrowed(path));
    }
    let decoded = decode(path.as_bytes())?;
    let resolved = resolve(&decoded)?;
    Ok(if resolved == path { Cow::Borrowed(path) } else { Cow::Owned(resolved) })
}

/// What a byte of a path may mean.
#[derive(Clone, Copy, PartialEq, Eq)]
enum ByteKind {
    Plain,
    Slash,
    /// May be part of a segment that means something.
    Dot,
    Suspicious,
}

/// Looked up, since every request's path is looked at.
const KINDS: [ByteKind; 256] = {
    let mut kinds = [ByteKind::Plain; 256];
    let mut byte = 0;
    while byte < kinds.len() {
        kinds[byte] = match byte as u8 {
            b'/' => ByteKind::Slash,
            b'.' => ByteKind::Dot,
            b'%' | b'\\' | 0..=0x20 | 0x7f..=0xff => ByteKind::Suspicious,
            _ => ByteKind::Plain,
        };
        byte += 1;
    }
    kinds
};

/// Nothing in it asks for a second look.
fn is_plain(path: &[u8]) -> bool {
    let mut before = ByteKind::Plain;
    path.iter().all(|&byte| {
        let kind = KINDS[usize::from(byte)];
        let begins_a_segment = std::mem::replace(&mut before, kind) == ByteKind::Slash;
        kind == ByteKind::Plain || kind != ByteKind::Suspicious && !begins_a_segment
    })
}

fn decode(path: &[u8]) -> Result<String, Ambiguous> {
    let mut decoded = String::with_capacity(path.len());
    let mut rest = path.iter();
    while let Some(&byte) = rest.next() {
        let byte = match byte {
            b'%' => {
                let mut digit = || char::from(*rest.next()?).to_digit(16);
                let (Some(high), Some(low)) = (digit(), digit()) else {
                    return Err(Ambiguous::BrokenEncoding);
                };
                (high * 16 + low) as u8
            }
            b'\\' => return Err(Ambiguous::Backslash),
            0x00..=0x1f | 0x7f => return Err(Ambiguous::Control),
            // Only a lenient client sends these; encoded, everybody reads the same.
            b' ' | 0x80.. => byte,
            _ => {
                decoded.push(char::from(byte));
                continue;
            }
        };
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => {
                decoded.push(char::from(byte));
            }
            b'/' | b'\\' => return Err(Ambiguous::EncodedSeparator),
            0x00..=0x1f | 0x7f => return Err(Ambiguous::Control),
            _ => {
                let digit = |n: u8| char::from(b"0123456789ABCDEF"[usize::from(n)]);
                decoded.extend(['%', digit(byte >> 4), digit(byte & 15)]);
            }
        }
    }
    Ok(decoded)
}

fn resolve(path: &str) -> Result<String, Ambiguous> {
    let mut resolved = String::with_capacity(path.len());
    let mut segments = path[1..].split('/').peekable();
    while let Some(segment) = segments.next() {
        let last = segments.peek().is_none();
        match segment {
            "" | "." => {}
            ".." => {
                let parent = resolved.rfind('/').ok_or(Ambiguous::AboveRoot)?;
                resolved.truncate(parent);
            }
            _ if is_dot_parameter(segment) => return Err(Ambiguous::DotParameter),
            _ => {
                resolved.push('/');
                resolved.push_str(segment);
                continue;
            }
        }
        // What was left out at the end named a folder.
        if last {
            resolved.push('/');
        }
    }
    if resolved.is_empty() {
        resolved.push('/');
    }
    Ok(resolved)
}

/// A canonical path as servers see it that take path parameters (RFC 3986 section 3.3) out of it before they
/// look for what is asked for: each segment ends at its first `;`, encoded or not, and a segment that is
/// nothing else is none. None: it has no parameters.
pub fn without_parameters(canonical: &str) -> Option<String> {
    if !canonical.contains(';') && !canonical.contains("%3B") {
        return None;
    }
    let mut bare = String::with_capacity(canonical.len());
    for segment in canonical.split('/').skip(1) {
        let end = segment.find(';').into_iter().chain(segment.find("%3B")).min();
        let name = &segment[..end.unwrap_or(segment.len())];
        // An empty last segment is a final slash, which means something.
        if !name.is_empty() || segment.is_empty() {
            bare.push('/');
            bare.push_str(name);
        }
    }
    if bare.is_empty() {
        bare.push('/');
    }
    Some(bare)
}

/// Also with the `;` encoded, since a server may decode it before it looks for parameters.
fn is_dot_parameter(segment: &str) -> bool {
    let rest = segment.strip_prefix("..").or_else(|| segment.strip_prefix('.'));
    rest.is_some_and(|rest| rest.starts_with(';') || rest.starts_with("%3B"))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn spellings_of_one_resource_become_one() {
        for (path, expected) in [
            ("/", "/"),
            ("/admin", "/admin"),
            ("/admin/", "/admin/"),
            ("//admin", "/admin"),
            ("/a//b///c", "/a/b/c"),
            ("/a/b//", "/a/b/"),
            ("/./admin", "/admin"),
            ("/a/./b/.", "/a/b/"),
            ("/a/../admin", "/admin"),
            ("/a/b/..", "/a/"),
            ("/a/..", "/"),
            ("/%61dmin", "/admin"),
            ("/%41", "/A"),
            ("/a/%2e%2e/admin", "/admin"),
            ("/a/%2E./admin", "/admin"),
            ("/%7euser", "/~user"),
            ("/a%20b", "/a%20b"),
            ("/a%3ab", "/a%3Ab"),
            ("/%e2%82%ac", "/%E2%82%AC"),
            ("/\u{20ac}", "/%E2%82%AC"),
            ("/a b", "/a%20b"),
            // Decoded once only: a second decoding is not ours to guess.
            ("/%252e%252e/admin", "/%252e%252e/admin"),
            ("/a/...", "/a/..."),
            ("/a;x=1/b", "/a;x=1/b"),
            ("/.well-known", "/.well-known"),
        ] {
            assert_eq!(canonical(path).as_deref(), Ok(expected), "{path:?}");
        }
    }

    #[test]
    fn what_servers_understand_differently_has_no_canonical_form() {
        for (path, expected) in [
            ("", Ambiguous::NotAbsolute),
            ("admin", Ambiguous::NotAbsolute),
            ("*", Ambiguous::NotAbsolute),
            ("/%", Ambiguous::BrokenEncoding),
            ("/%2", Ambiguous::BrokenEncoding),
            ("/%zz", Ambiguous::BrokenEncoding),
            ("/%+1", Ambiguous::BrokenEncoding),
            ("/a%2fb", Ambiguous::EncodedSeparator),
            ("/a%2F..%2Fadmin", Ambiguous::EncodedSeparator),
            ("/a%5cb", Ambiguous::EncodedSeparator),
            ("/a\\..\\admin", Ambiguous::Backslash),
            ("/a%00", Ambiguous::Control),
            ("/a%0d%0ab", Ambiguous::Control),
            ("/a\u{0}", Ambiguous::Control),
            ("/a\u{7f}", Ambiguous::Control),
            ("/a/..;/admin", Ambiguous::DotParameter),
            ("/a/..;x=1/admin", Ambiguous::DotParameter),
            ("/a/.;/admin", Ambiguous::DotParameter),
            ("/a/%2e%2e%3b/admin", Ambiguous::DotParameter),
            ("/..", Ambiguous::AboveRoot),
            ("/a/../../admin", Ambiguous::AboveRoot),
            ("/%2e%2e/admin", Ambiguous::AboveRoot),
        ] {
            assert_eq!(canonical(path), Err(expected), "{path:?}");
        }
    }

    #[test]
    fn parameters_are_what_some_servers_do_not_see() {
        for (path, expected) in [
            ("/admin;x=1", Some("/admin")),
            ("/;/admin", Some("/admin")),
            ("/admin;/x", Some("/admin/x")),
            ("/admin%3Bx", Some("/admin")),
            ("/a;x/b;y;z/c", Some("/a/b/c")),
            ("/;x", Some("/")),
            ("/a;x/", Some("/a/")),
            ("/a%3Bx;y", Some("/a")),
            ("/a/b", None),
        ] {
            assert_eq!(without_parameters(path).as_deref(), expected, "{path:?}");
        }
    }

    proptest! {
        #[test]
        fn canonical_is_a_fixed_point(path in "/[a-c%25eE2Ff./;\\\\ \u{e9}]{0,24}") {
            if let Ok(once) = canonical(&path) {
                let twice = canonical(&once);
                prop_assert_eq!(twice.as_deref(), Ok(&*once));
                prop_assert!(!once.contains("//") && !once.contains("/../") && !once.contains("/./"));
            }
        }

        #[test]
        fn any_text_is_decided(path in "\\PC{0,40}") {
            let _ = canonical(&path);
        }
    }
}
