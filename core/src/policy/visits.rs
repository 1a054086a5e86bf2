//! The way that a request has come: services it was sent to, so that a loop is seen and ended.
//!
//! It travels between proxies as `x-outrigger-via`, and through apps by correlation: one item per
//! service, `namespace/service:port` and, behind a `;`, a hash of the rule, method and path, so that a
//! service that is called back for something else is no loop.

use std::array;
use std::cell::RefCell;

use http::HeaderValue;

/// Services that one request may come through.
pub const HOP_LIMIT: usize = 32;
/// Characters of one service on the way: a namespace and a name of at most 253 each, with some room.
const MAX_NAME: usize = 600;
const HASH_DIGITS: usize = 8;
/// Ways that are kept.
const HELD: usize = 64;
const HEX: &[u8; 16] = b"0123456789abcdef";

/// A service on a way of which only the length is known.
const UNNAMED: &str = "?/?:?;00000000";

/// How many services a way names.
pub fn hops(via: Option<&HeaderValue>) -> usize {
    let items = |via: &HeaderValue| via.as_bytes().iter().filter(|byte| **byte == b',').count() + 1;
    via.filter(|via| !via.is_empty()).map_or(0, items)
}

/// A way of so many services, at most [`HOP_LIMIT`], of which none is known. None: of no service.
pub fn unnamed(hops: usize) -> Option<HeaderValue> {
    let items = vec![UNNAMED; hops.min(HOP_LIMIT)].join(",");
    HeaderValue::try_from(items).ok().filter(|via| !via.is_empty())
}

/// Why a request must not go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VisitStop {
    /// It was there before; the names on its way, in order, the repeated one last.
    Loop(String),
    TooFar(String),
}

/// Whether a way is one that a proxy can have written: at most [`HOP_LIMIT`] items of the form above. What is
/// not must not be trusted: it would end whatever inherits it.
pub fn is_valid(via: &HeaderValue) -> bool {
    let mut rest = via.as_bytes();
    for _ in 0..HOP_LIMIT {
        match item(rest) {
            Some([]) => return true,
            Some([b',', next @ ..]) => rest = next,
            Some(_) | None => return false,
        }
    }
    false
}

/// What comes behind `namespace/service:port;hash`, if that is what the text begins with. In one pass, since most requests
/// between proxies have one.
fn item(text: &[u8]) -> Option<&[u8]> {
    let (mut slash, mut colon) = (false, false);
    for (at, byte) in text.iter().enumerate() {
        match byte {
            b';' => {
                let (hash, rest) = text[at + 1..].split_first_chunk::<HASH_DIGITS>()?;
                let is_hash = hash.iter().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
                return (is_hash && colon && at <= MAX_NAME).then_some(rest);
            }
            b'/' if at == 0 => return None,
            b'/' => slash = true,
            b':' => colon |= slash,
            b',' => return None,
            byte if !byte.is_ascii_graphic() => return None,
            _ => {}
        }
    }
    None
}

/// The way with one more visit. `visits`: how often one service may see the same request (default 1).
///
/// A way of which a part is unnamed may be another request's. It ends a request only where a loop is allowed, and nothing
/// else would end that.
pub fn visit(
    via: Option<&HeaderValue>,
    service: &str,
    what: u32,
    visits: u8,
) -> Result<HeaderValue, VisitStop> {
    // What is not text is none of ours ([`is_valid`]).
    let so_far = via.and_then(|via| via.to_str().ok()).unwrap_or_default();
    let comma = usize::from(!so_far.is_empty());
    // Exactly as long as it gets: a value that is made of more memory than it fills costs another allocation.
    let mut text = String::with_capacity(so_far.len() + comma + service.len() + 1 + HASH_DIGITS);
    text.push_str(so_far);
    if !so_far.is_empty() {
        text.push(',');
    }
    let from = text.len();
    text.push_str(service);
    text.push(';');
    text.push_str(std::str::from_utf8(&hash_digits(what)).unwrap_or_default());
    let mut been = 0;
    let mut count = 0;
    if !so_far.is_empty() {
        let this = &text[from..];
        for item in so_far.split(',') {
            count += 1;
            been += u32::from(item == this);
        }
    }
    if been >= u32::from(visits) {
        return Err(VisitStop::Loop(names(&text)));
    }
    if count >= HOP_LIMIT {
        if let Some(via) = via.filter(|_| visits <= 1 && so_far.contains(UNNAMED)) {
            return Ok(via.clone());
        }
        return Err(VisitStop::TooFar(names(&text)));
    }
    HeaderValue::try_from(text).map_err(|_| VisitStop::TooFar(service.to_owned()))
}

/// Ways of one visit as they were written last, each in the one place that its hash leads to: most requests are like
/// one before.
pub struct FirstVisits(RefCell<[Option<(u32, HeaderValue)>; HELD]>);

impl Default for FirstVisits {
    fn default() -> Self {
        Self(RefCell::new(array::from_fn(|_| None)))
    }
}

impl FirstVisits {
    /// [`visit`] of a request that begins here.
    pub fn first(&self, service: &str, what: u32) -> Result<HeaderValue, VisitStop> {
        let held = &mut self.0.borrow_mut()[what as usize % HELD];
        if let Some((of, via)) = held
            && *of == what
            && via
                .as_bytes()
                .strip_prefix(service.as_bytes())
                .is_some_and(|rest| rest.len() == 1 + HASH_DIGITS)
        {
            return Ok(via.clone());
        }
        let via = visit(None, service, what, 1)?;
        *held = Some((what, via.clone()));
        Ok(via)
    }
}

/// The hash as a way has it. By hand, since every request of the mesh has one written and formatting takes longer.
fn hash_digits(what: u32) -> [u8; HASH_DIGITS] {
    std::array::from_fn(|at| HEX[(what >> (4 * (HASH_DIGITS - 1 - at))) as usize & 15])
}

/// The services on the way, without what tells their visits apart.
fn names(via: &str) -> String {
    let names = via.split(',').map(|item| item.split_once(';').map_or(item, |(name, _)| name));
    names.collect::<Vec<_>>().join(" -> ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_visit_for_the_same_is_a_loop_and_another_is_not() {
        let one = visit(None, "bank/a:80", 1, 1).unwrap();
        let two = visit(Some(&one), "bank/b:80", 1, 1).unwrap();
        assert_eq!(two, "bank/a:80;00000001,bank/b:80;00000001");
        let stop = visit(Some(&two), "bank/a:80", 1, 1);
        assert_eq!(stop, Err(VisitStop::Loop("bank/a:80 -> bank/b:80 -> bank/a:80".to_owned())));
        assert!(visit(Some(&two), "bank/a:80", 2, 1).is_ok(), "called back for something else");
        let back = visit(Some(&two), "bank/a:80", 1, 2).unwrap();
        assert!(visit(Some(&back), "bank/a:80", 1, 2).is_err());
    }

    #[test]
    fn a_first_visit_that_is_kept_is_as_one_that_is_written() {
        let kept = FirstVisits::default();
        for _ in 0..2 {
            for what in (0..300).chain([u32::MAX]) {
                for service in ["bank/a:80", "bank/a:8080", "bank/b:80", "bank/a:80;00000001", ""] {
                    assert_eq!(kept.first(service, what), visit(None, service, what, 1));
                }
            }
        }
    }

    #[test]
    fn a_way_without_names_is_valid_and_has_its_length() {
        assert_eq!((unnamed(0), hops(None)), (None, 0));
        for count in [1, 5, HOP_LIMIT] {
            let via = unnamed(count).unwrap();
            assert!(is_valid(&via));
            assert_eq!(hops(Some(&via)), count);
        }
        assert_eq!(hops(unnamed(99).as_ref()), HOP_LIMIT);
        let one = visit(unnamed(HOP_LIMIT - 1).as_ref(), "bank/a:80", 1, 9).unwrap();
        assert!(matches!(visit(Some(&one), "bank/b:80", 1, 9), Err(VisitStop::TooFar(_))));
        assert_eq!(visit(Some(&one), "bank/b:80", 1, 1), Ok(one.clone()), "another's, maybe");
        let again = visit(Some(&one), "bank/a:80", 1, 1);
        assert!(matches!(again, Err(VisitStop::Loop(_))), "a loop all the same");
    }

    #[test]
    fn only_ways_that_a_proxy_can_have_written_are_valid() {
        let way = |count: usize| vec!["bank/a:80;0000000a"; count].join(",");
        for (via, valid) in [
            (way(1), true),
            (way(HOP_LIMIT), true),
            (way(HOP_LIMIT + 1), false),
            (way(64), false),
            (String::new(), false),
            ("zzz".to_owned(), false),
            ("a".repeat(4_000), false),
            ("bank/a:80".to_owned(), false),
            ("bank/a:80;0000000A".to_owned(), false),
            ("bank/a:80;a".to_owned(), false),
            ("bank/a;0000000a".to_owned(), false),
            ("/a:80;0000000a".to_owned(), false),
            ("bank/a b:80;0000000a".to_owned(), false),
            (format!("bank/{}:80;0000000a", "a".repeat(700)), false),
            (format!("{},", way(1)), false),
            (format!("{}, {}", way(1), way(1)), false),
        ] {
            assert_eq!(is_valid(&HeaderValue::try_from(&via).unwrap()), valid, "{via}");
        }
        assert!(!is_valid(&HeaderValue::from_bytes(b"bank/\xe9:80;0000000a").unwrap()));
    }

    #[test]
    fn a_way_has_an_end_even_if_nothing_repeats() {
        let mut via = None;
        for n in 0..HOP_LIMIT as u32 {
            via = Some(visit(via.as_ref(), "bank/a:80", n, 1).unwrap());
            assert!(via.as_ref().is_some_and(is_valid));
        }
        let stop = visit(via.as_ref(), "bank/a:80", 1_000, 1);
        assert!(
            matches!(stop, Err(VisitStop::TooFar(way)) if way.matches("->").count() == HOP_LIMIT)
        );
    }
}
