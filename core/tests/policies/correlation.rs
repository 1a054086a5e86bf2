//! `Index`: what is inherited never ends a request early, and nothing is left behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use outrigger_core::policy::correlation::{Certainty, Index, Inflight, Inherited};
use outrigger_core::policy::priority::Priority;

use crate::support::{Random, for_each_seed};

#[test]
fn what_is_inherited_is_never_less_than_any_match_has() {
    for_each_seed(3_000, |random| {
        let mut index: Index = Index::default();
        // The same, naively.
        let mut list: Vec<(u128, u64, Arc<Inflight>)> = Vec::new();
        let start = Instant::now();
        for _ in 0..300 {
            // Few keys and tags, so that many are shared.
            let (key, tag) = (u128::from(random.below(8)), random.below(4));
            if random.chance(55) {
                let value = Arc::new(inflight(random, start));
                index.insert(key, tag, Arc::clone(&value));
                list.push((key, tag, value));
            } else if !list.is_empty() {
                let at = random.below(list.len() as u64) as usize;
                let (key, _, value) = list.swap_remove(at);
                index.remove(key, &value);
                // Twice does no harm.
                index.remove(key, &value);
            }
            let (key, tag) = (u128::from(random.below(8)), random.below(4));
            let by_key = |of: &&(u128, u64, _)| of.0 == key;
            check(index.find(key).any(), &list.iter().filter(by_key).collect::<Vec<_>>());
            let by_both = |of: &&(u128, u64, _)| of.0 == key && of.1 == tag;
            check(index.find(key).tagged(tag), &list.iter().filter(by_both).collect::<Vec<_>>());
        }
        for (key, _, value) in list {
            index.remove(key, &value);
            assert_eq!(Arc::strong_count(&value), 1, "nobody holds it any more");
        }
        assert!(index.is_empty(), "{} keys are left behind", index.len());
    });
}

fn inflight(random: &mut Random, start: Instant) -> Inflight {
    let deadline = start + Duration::from_millis(random.below(10_000));
    let via = "a".repeat(random.below(20) as usize);
    Inflight {
        deadline: random.chance(80).then_some(deadline),
        told_millis: random.chance(50).then(|| random.below(1_000)),
        priority: random.pick(&[Priority::Sheddable, Priority::Default, Priority::Critical]),
        via: random.chance(50).then(|| HeaderValue::try_from(via).unwrap()),
        ..Inflight::default()
    }
}

fn check(found: Option<Inherited>, matches: &[&(u128, u64, Arc<Inflight>)]) {
    let Some(found) = found else {
        assert!(matches.is_empty(), "one of {} would do", matches.len());
        return;
    };
    let length = |via: &Option<HeaderValue>| via.as_ref().map_or(0, HeaderValue::len);
    for (.., value) in matches {
        // No deadline is later than any.
        let as_late = match (found.deadline, value.deadline) {
            (None, _) => true,
            (Some(found), Some(of)) => found >= of,
            (Some(_), None) => false,
        };
        assert!(as_late && found.priority >= value.priority);
        assert!(length(&found.via) >= length(&value.via));
    }
    let is_one_of_them = |found: Option<Instant>| matches.iter().any(|of| of.2.deadline == found);
    assert!(is_one_of_them(found.deadline), "nothing is made up");
    match found.certainty() {
        Certainty::Unique => assert_eq!(matches.len(), 1),
        Certainty::Ambiguous => assert!(matches.len() > 1 && found.told_millis.is_none()),
    }
    if let Some(from) = &found.from {
        from.note_exhausted();
    }
    let noted = matches.iter().filter(|of| of.2.is_exhausted()).count();
    assert!(matches.len() > 1 || noted == 1, "noted where it is certain");
}
