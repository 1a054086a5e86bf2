//! `Cache-Control` (RFC 9111 section 5.2): what allows is trusted only where it is said as it must be, what
//! forbids however it is said.

use std::time::Duration;

use http::HeaderMap;
use http::header::CACHE_CONTROL;

use super::seconds;

/// What `Cache-Control` says, to whomever. `Pragma` says nothing (section 5.4).
#[derive(Default)]
pub(super) struct Directives {
    pub(super) no_store: bool,
    pub(super) no_cache: bool,
    pub(super) private: bool,
    pub(super) public: bool,
    pub(super) must_revalidate: bool,
    pub(super) proxy_revalidate: bool,
    pub(super) max_age: Option<Duration>,
    pub(super) s_maxage: Option<Duration>,
    /// RFC 5861 section 4.
    pub(super) stale_if_error: Option<Duration>,
    pub(super) min_fresh: bool,
}

impl Directives {
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let mut says = Self::default();
        for value in headers.get_all(CACHE_CONTROL) {
            for member in Members(value.as_bytes()) {
                match member {
                    Some(member) => says.note(member),
                    // Nobody knows what it would have said.
                    None => says.no_store = true,
                }
            }
        }
        says
    }

    fn note(&mut self, member: &[u8]) {
        let at = member.iter().position(|byte| *byte == b'=');
        let (name, argument) = match at {
            Some(at) => (&member[..at], Some(&member[at + 1..])),
            None => (member, None),
        };
        // One that has an argument which it must not have allows nothing.
        let alone = argument.is_none();
        // No space belongs around `=`; who reads it as none must not miss what forbids.
        match name.trim_ascii().to_ascii_lowercase().as_slice() {
            b"no-store" => self.no_store = true,
            // With or without names of headers: all of it is left alone.
            b"no-cache" => self.no_cache = true,
            b"private" => self.private = true,
            b"public" => self.public |= alone,
            // Forbids as well.
            b"must-revalidate" if alone => self.must_revalidate = true,
            b"must-revalidate" | b"proxy-revalidate" => self.proxy_revalidate = true,
            b"max-age" => note_time(&mut self.max_age, argument),
            b"s-maxage" => note_time(&mut self.s_maxage, argument),
            b"stale-if-error" => note_time(&mut self.stale_if_error, argument),
            b"min-fresh" => self.min_fresh = true,
            _ => {}
        }
    }
}

/// A time that does not parse is over, and so are two that differ (section 4.2.1).
fn note_time(time: &mut Option<Duration>, argument: Option<&[u8]>) {
    let text = argument.unwrap_or_default();
    // Both forms are the same (section 5.2).
    let text = text.strip_prefix(b"\"").and_then(|text| text.strip_suffix(b"\"")).unwrap_or(text);
    let said = seconds(text).unwrap_or_default();
    *time = Some(match *time {
        Some(before) if before != said => Duration::ZERO,
        _ => said,
    });
}

/// The members of a list, in which quoted strings may hold commas (RFC 9110 section 5.6). None: a string
/// does not end, or it is no text.
struct Members<'a>(&'a [u8]);

impl<'a> Iterator for Members<'a> {
    type Item = Option<&'a [u8]>;

    fn next(&mut self) -> Option<Self::Item> {
        while !self.0.is_empty() {
            let (mut quoted, mut escaped) = (false, false);
            let end = self.0.iter().position(|byte| {
                if escaped {
                    escaped = false;
                } else {
                    match byte {
                        b'\\' if quoted => escaped = true,
                        b'"' => quoted = !quoted,
                        b',' => return !quoted,
                        _ => {}
                    }
                }
                false
            });
            let (member, rest) = match end {
                Some(end) => (&self.0[..end], &self.0[end + 1..]),
                None => (self.0, &[][..]),
            };
            self.0 = rest;
            let member = member.trim_ascii();
            if quoted || !member.is_ascii() {
                return Some(None);
            }
            if !member.is_empty() {
                return Some(Some(member));
            }
        }
        None
    }
}
