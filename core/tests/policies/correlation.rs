//! `Index`: nobody's request is harmed by another caller's, and nothing is left behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::HeaderValue;
use outrigger_core::policy::correlation::{Index, Inflight, Inherited};
use outrigger_core::policy::priority::Priority;

use crate::support::{Random, for_each_seed};

#[test]
fn what_is_inherited_takes_nothing_from_any_match_and_is_of_one_caller() {
    for_each_seed(3_000, |random| {
        let mut index: Index = Index::default();
        // The same, naively.
        let mut list: Vec<Held> = Vec::new();
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
            let by_key = |of: &&Held| of.0 == key && !of.2.is_external;
            check(index.any(key), &list.iter().filter(by_key).collect::<Vec<_>>());
            let by_both = |of: &&Held| of.0 == key && of.1 == tag;
            check(index.exact(key, tag), &list.iter().filter(by_both).collect::<Vec<_>>());
        }
        for (key, _, value) in list {
            index.remove(key, &value);
            assert_eq!(Arc::strong_count(&value), 1, "nobody holds it any more");
        }
        assert!(index.is_empty(), "{} keys are left behind", index.len());
    });
}

/// Key, tag and value.
type Held = (u128, u64, Arc<Inflight>);

fn inflight(random: &mut Random, start: Instant) -> Inflight {
    let deadline = start + Duration::from_millis(random.below(10_000));
    let via = "a".repeat(random.below(3) as usize);
    Inflight {
        // Mostly one caller, so that several of one are found, too.
        caller: u64::from(random.chance(10)),
        is_external: random.chance(10),
        deadline: random.chance(80).then_some(deadline),
        priority: random.pick(&[Priority::Sheddable, Priority::Default, Priority::Critical]),
        via: random.chance(50).then(|| HeaderValue::try_from(via).unwrap()),
        ..Inflight::default()
    }
}

fn check(found: Option<Inherited>, matches: &[&Held]) {
    let callers = matches.iter().map(|of| of.2.caller);
    let one_caller = callers.clone().min() == callers.max();
    let Some(found) = found else {
        assert!(matches.is_empty() || !one_caller || matches.len() > 16, "one of them would do");
        return;
    };
    assert!(one_caller, "an external client has a say in it");
    let length = |via: &Option<HeaderValue>| via.as_ref().map_or(0, HeaderValue::len);
    for (.., value) in matches {
        // No deadline is later than any.
        let as_late = match (found.deadline, value.deadline) {
            (None, _) => true,
            (Some(found), Some(of)) => found >= of,
            (Some(_), None) => false,
        };
        assert!(as_late);
        assert!(found.priority == value.priority || found.priority == Priority::Default);
        assert!(length(&found.via) >= length(&value.via));
    }
    let is_one_of_them = |found: Option<Instant>| matches.iter().any(|of| of.2.deadline == found);
    assert!(is_one_of_them(found.deadline), "nothing is made up");
    assert_eq!(found.from.is_some(), matches.len() == 1, "noted only where it is certain");
    if let Some(from) = &found.from {
        from.note_exhausted();
        assert!(matches[0].2.is_exhausted());
    }
}
