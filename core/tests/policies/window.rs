//! `Window` against a list of everything that happened.

use std::time::{Duration, Instant};

use outrigger_core::policy::window::Window;

use crate::support::{Random, for_each_seed};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn it_counts_what_it_says_and_nothing_else() {
    for_each_seed(3_000, |random| {
        // Later than any window is long.
        let start = Instant::now() + SECOND * 3_600;
        let seconds = random.between(0, 20);
        let length = SECOND * seconds as u32;
        let looks_each_second = random.chance(50);
        let mut window = Window::new(length, start, 0);
        let (mut now, mut total) = (start, 0);
        let mut requests: Vec<Instant> = Vec::new();
        let mut noted: Vec<Instant> = Vec::new();
        for _ in 0..300 {
            let step = random.step();
            pass(&mut window, &mut now, step, total, looks_each_second);
            let arrived = random.below(5);
            total += arrived;
            requests.extend((0..arrived).map(|_| now));
            match random.below(3) {
                0 => {}
                1 => window.tick(now, total),
                _ => {
                    window.note(now, total, 1);
                    noted.push(now);
                }
            }
            if random.chance(10) {
                // A thread that was late.
                window.tick(now - SECOND.min(now - start), total - random.below(total + 1));
            }
            window.tick(now, total);
            check(&window, start, now, length, &requests, &noted, looks_each_second);
        }
    });
}

fn pass(window: &mut Window, now: &mut Instant, step: Duration, total: u64, looks: bool) {
    let until = *now + step;
    while looks && *now + SECOND < until {
        *now += SECOND;
        window.tick(*now, total);
    }
    *now = until;
}

fn check(
    window: &Window,
    start: Instant,
    now: Instant,
    length: Duration,
    requests: &[Instant],
    noted: &[Instant],
    looks: bool,
) {
    let running = start + SECOND * (now - start).as_secs() as u32;
    let begin = running.checked_sub(length).unwrap();
    let since =
        |list: &[Instant], begin: Instant| list.iter().filter(|at| **at >= begin).count() as u64;
    assert_eq!(window.noted(), since(noted, begin), "noted ones are counted exactly");
    assert!(window.requests() <= since(requests, begin), "none is older");
    if looks && length >= SECOND {
        let whole = length.saturating_sub(SECOND);
        assert!(window.requests() >= since(requests, now.checked_sub(whole).unwrap()));
    }
}

#[test]
fn another_length_keeps_what_fits() {
    for_each_seed(2_000, |random: &mut Random| {
        let start = Instant::now();
        let mut length = random.below(30);
        let mut window = Window::new(SECOND * length as u32, start, 0);
        let (mut now, mut total) = (start, 0);
        // The second of each, and the one from which on nothing was thrown away.
        let mut noted = Vec::new();
        let mut kept_from = 0;
        for _ in 0..200 {
            if random.chance(5) {
                length = random.below(30);
                window.resize(SECOND * length as u32);
            } else {
                now += random.step();
                total += random.below(3);
                window.note(now, total, 1);
                noted.push((now - start).as_secs());
            }
            kept_from = (now - start).as_secs().saturating_sub(length).max(kept_from);
            let kept = noted.iter().filter(|second| **second >= kept_from).count() as u64;
            assert_eq!(window.noted(), kept);
            assert!(window.requests() <= total);
        }
    });
}
