//! The hosts that requests name, checked and made ready to be written: most requests name one of a few.

use std::array;
use std::cell::RefCell;

use bytes::Bytes;
use http::header::HeaderValue;
use http::uri::Authority;
use outrigger_core::name::is_authority;

/// A power of two.
const HELD: usize = 64;

/// Hosts that came last, each in the one place that its text leads to. A host has at most 260 bytes ([`is_authority`]).
pub struct Hosts(RefCell<[Option<Box<Host>>; HELD]>);

struct Host {
    authority: Authority,
    header: HeaderValue,
}

impl Default for Hosts {
    fn default() -> Self {
        Self(RefCell::new(array::from_fn(|_| None)))
    }
}

impl Hosts {
    /// Whether the text is one ([`is_authority`]).
    pub fn is_valid(&self, text: &[u8]) -> bool {
        self.find(text, |_| ()).is_some() || is_authority(text)
    }

    /// A Host header as a target on HTTP/2. None: it is not valid.
    pub fn authority(&self, header: &HeaderValue) -> Option<Authority> {
        self.find(header.as_bytes(), |host| host.authority.clone()).or_else(|| {
            self.hold(header.as_bytes());
            Authority::try_from(header.as_bytes()).ok()
        })
    }

    /// A target as the Host header on HTTP/1.1. None: it is not valid.
    pub fn header(&self, authority: &Authority) -> Option<HeaderValue> {
        let text = authority.as_str().as_bytes();
        self.find(text, |host| host.header.clone()).or_else(|| {
            self.hold(text);
            HeaderValue::from_bytes(text).ok()
        })
    }

    fn find<T>(&self, text: &[u8], take: impl FnOnce(&Host) -> T) -> Option<T> {
        let held = self.0.borrow();
        let host = held[place(text)].as_deref()?;
        (host.header.as_bytes() == text).then(|| take(host))
    }

    /// Only what is valid: others come here that were never checked, such as targets of rules. In memory of its own: what
    /// came is a part of all that was read with it.
    fn hold(&self, text: &[u8]) {
        if !is_authority(text) {
            return;
        }
        let own = Bytes::copy_from_slice(text);
        if let (Ok(authority), Ok(header)) =
            (Authority::from_maybe_shared(own.clone()), HeaderValue::from_maybe_shared(own))
        {
            self.0.borrow_mut()[place(text)] = Some(Box::new(Host { authority, header }));
        }
    }
}

/// By its length and its last bytes, port and domain as a rule, and by its first ones.
fn place(text: &[u8]) -> usize {
    let word = |bytes: Option<&[u8; 8]>| bytes.map_or(0, |bytes| u64::from_ne_bytes(*bytes));
    let (first, last) = (word(text.first_chunk()), word(text.last_chunk()));
    let mixed =
        (first ^ last.rotate_left(29) ^ text.len() as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed >> 32) as usize % HELD
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_is_what_it_was_when_it_came_first() {
        let hosts = Hosts::default();
        // More than are held, with the same ends, in two rounds.
        for _ in 0..2 {
            for n in 0..1_000 {
                let text = format!("first-{n}.of-many.bank:8080");
                assert!(hosts.is_valid(text.as_bytes()));
                let header = HeaderValue::from_str(&text).unwrap();
                let authority = hosts.authority(&header).unwrap();
                assert_eq!(authority.as_str(), text);
                assert!(hosts.is_valid(text.as_bytes()));
                assert_eq!(hosts.header(&authority).unwrap(), header);
                let other = text.replace("bank:", "BANK:");
                assert_eq!(hosts.header(&other.parse().unwrap()).unwrap(), other);
            }
        }
    }

    #[test]
    fn what_is_no_host_stays_none_however_often_it_is_asked_for() {
        let hosts = Hosts::default();
        for text in ["a@b.bank", "a.bank:", "a.bank:0", "a.bank:99999", "a..bank", ""] {
            let valid = is_authority(text.as_bytes());
            for _ in 0..3 {
                assert_eq!(hosts.is_valid(text.as_bytes()), valid, "{text:?}");
                if let Ok(authority) = text.parse() {
                    hosts.header(&authority);
                }
                hosts.authority(&HeaderValue::from_static(text));
            }
        }
        assert!(!hosts.is_valid(b"a@b.bank"));
    }
}
