//! Counting what happened lately: requests, as a running total that is looked at now and then, and
//! what is noted one by one, such as failures or retries.
//!
//! A healthy request must cost nothing here, so nobody reports it: the caller keeps one counter of all
//! requests and shows it with each event and about once a second.

use std::time::{Duration, Instant};

/// One slot is one second.
const SLOT: Duration = Duration::from_secs(1);
/// Slots of the longest window, 5 min, so that no configuration makes one too large.
const MOST_SLOTS: usize = 301;

/// What happened in the last `length`.
///
/// It covers the running second and the `length` whole seconds before it. What was noted in this time
/// is counted exactly. A request counts as made when the total was last looked at before it was counted
/// there, so none older than `length` and one second is ever counted, whatever the caller does; and with
/// one look a second none of the last `length` minus one second is missed. A request and what is noted
/// about it later leave the window together or the request first.
#[derive(Clone, Debug)]
pub struct Window {
    start: Instant,
    /// The running second has the number `current` since `start` and the place `current % len`.
    slots: Box<[WindowSlot]>,
    current: u64,
    /// The highest total seen.
    total: u64,
    requests: u64,
    noted: u64,
}

#[derive(Clone, Copy, Debug, Default)]
struct WindowSlot {
    requests: u64,
    noted: u64,
}

impl Window {
    /// An empty one. `length` counts in whole seconds, from 0 (the running second alone) to 300.
    pub fn new(length: Duration, now: Instant, total: u64) -> Self {
        Self {
            start: now,
            slots: vec![WindowSlot::default(); slots_of(length)].into(),
            current: 0,
            total,
            requests: 0,
            noted: 0,
        }
    }

    /// Takes the time and the total of requests so far. Both may be a little older than those seen
    /// before, as other threads read them: then they change nothing.
    pub fn tick(&mut self, now: Instant, total: u64) {
        let fresh = total.saturating_sub(self.total);
        self.total += fresh;
        self.requests += fresh;
        self.slot().requests += fresh;
        let number = now.saturating_duration_since(self.start).as_secs() / SLOT.as_secs();
        // After a long silence every slot is emptied once, not once for each second of it.
        let passed = number.saturating_sub(self.current).min(self.slots.len() as u64);
        for _ in 0..passed {
            self.current += 1;
            let left = std::mem::take(self.slot());
            self.requests -= left.requests;
            self.noted -= left.noted;
        }
        self.current = self.current.max(number);
    }

    /// Notes `n` failures, retries or whatever is counted here.
    pub fn note(&mut self, now: Instant, total: u64, n: u64) {
        self.tick(now, total);
        self.slot().noted += n;
        self.noted += n;
    }

    /// Requests in the window, as of the last look.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// What was noted in the window, as of the last look.
    pub fn noted(&self) -> u64 {
        self.noted
    }

    /// Makes it longer or shorter and keeps what fits.
    pub fn resize(&mut self, length: Duration) {
        let new = slots_of(length);
        if new == self.slots.len() {
            return;
        }
        let mut slots = vec![WindowSlot::default(); new].into_boxed_slice();
        (self.requests, self.noted) = (0, 0);
        let kept = slots.len().min(self.slots.len()) as u64;
        for number in (self.current + 1).saturating_sub(kept)..=self.current {
            let slot = self.slots[place(number, self.slots.len())];
            self.requests += slot.requests;
            self.noted += slot.noted;
            slots[place(number, new)] = slot;
        }
        self.slots = slots;
    }

    fn slot(&mut self) -> &mut WindowSlot {
        let place = place(self.current, self.slots.len());
        &mut self.slots[place]
    }
}

fn slots_of(length: Duration) -> usize {
    let seconds = usize::try_from(length.as_secs()).unwrap_or(MOST_SLOTS);
    seconds.saturating_add(1).min(MOST_SLOTS)
}

fn place(number: u64, slots: usize) -> usize {
    (number % slots as u64) as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(start: Instant, millis: u64) -> Instant {
        start + Duration::from_millis(millis)
    }

    #[test]
    fn what_is_older_than_the_window_is_forgotten() {
        let start = Instant::now();
        let mut window = Window::new(Duration::from_secs(2), start, 100);
        window.tick(at(start, 900), 110);
        window.note(at(start, 1_500), 115, 3);
        assert_eq!((window.requests(), window.noted()), (15, 3), "what came before does not count");
        window.tick(at(start, 2_999), 115);
        assert_eq!((window.requests(), window.noted()), (15, 3));
        // The first second is gone, and with it the five that came before the look at 1.5 s.
        window.tick(at(start, 3_000), 115);
        assert_eq!((window.requests(), window.noted()), (0, 3));
        window.tick(at(start, 4_000), 120);
        assert_eq!((window.requests(), window.noted()), (5, 0));
        window.tick(at(start, 3_600_000), 1_000);
        assert_eq!((window.requests(), window.noted()), (0, 0), "nobody looked for an hour");
        window.tick(at(start, 3_600_500), 1_001);
        assert_eq!(window.requests(), 1);
    }

    #[test]
    fn a_late_reader_changes_nothing() {
        let start = Instant::now();
        let mut window = Window::new(Duration::from_secs(5), start, 0);
        window.note(at(start, 3_000), 10, 1);
        window.note(at(start, 1_000), 7, 1);
        window.tick(start, 0);
        assert_eq!((window.requests(), window.noted()), (10, 2));
        window.tick(at(start, 6_000), 10);
        assert_eq!((window.requests(), window.noted()), (0, 2), "both were noted at 3 s");
    }

    #[test]
    fn a_new_length_keeps_what_fits() {
        let start = Instant::now();
        let mut window = Window::new(Duration::from_secs(3), start, 0);
        for second in 0..6u64 {
            window.note(at(start, second * 1_000), second * 10, 1);
        }
        assert_eq!((window.requests(), window.noted()), (30, 4));
        window.resize(Duration::from_secs(1));
        assert_eq!((window.requests(), window.noted()), (10, 2));
        window.resize(Duration::from_secs(3));
        window.note(at(start, 6_000), 60, 1);
        assert_eq!((window.requests(), window.noted()), (20, 3));
    }
}
