//! Arithmetic on times that cannot overflow: times come from untrusted input and from clocks.

use std::time::{Duration, Instant, SystemTime};

/// What stands for "never": no process lives so long, and every clock can tell it.
const FAR: Duration = Duration::from_secs(30 * 365 * 24 * 60 * 60);

/// A moment that time can be added to.
pub trait Later: Sized {
    /// The moment so much later; where the clock cannot tell one so late, one that never comes.
    fn later(self, by: Duration) -> Self;
}

impl Later for Instant {
    fn later(self, by: Duration) -> Self {
        self.checked_add(by).or_else(|| self.checked_add(FAR)).unwrap_or(self)
    }
}

impl Later for SystemTime {
    fn later(self, by: Duration) -> Self {
        self.checked_add(by).or_else(|| self.checked_add(FAR)).unwrap_or(self)
    }
}

/// A length of time that can be divided.
pub trait Part {
    /// One of so many equal parts; of none, nothing.
    fn part(self, of: u32) -> Self;
}

impl Part for Duration {
    fn part(self, of: u32) -> Self {
        self.checked_div(of).unwrap_or_default()
    }
}

/// A duration for people, rounded: `1h`, `20m`, `1.5s`, `250ms`.
pub fn short(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (duration.subsec_nanos(), seconds) {
        (0, 3_600..) if seconds.is_multiple_of(3_600) => format!("{}h", seconds / 3_600),
        (_, 600..) => format!("{}m", seconds.div_ceil(60)),
        (0, 60..) if seconds.is_multiple_of(60) => format!("{}m", seconds / 60),
        (0, 1..) => format!("{seconds}s"),
        (_, 1..) => format!("{:.1}s", duration.as_secs_f64()),
        (_, 0) => format!("{}ms", duration.as_nanos().div_ceil(1_000_000)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_too_late_to_be_told_never_comes() {
        let now = Instant::now();
        assert_eq!(
            now.later(Duration::from_secs(3)),
            now.checked_add(Duration::from_secs(3)).unwrap()
        );
        assert_eq!(now.later(Duration::MAX), now.checked_add(FAR).unwrap());
        assert_eq!(now.later(Duration::MAX).later(Duration::MAX), now.later(FAR).later(FAR));
        assert!(SystemTime::now().later(Duration::MAX) > SystemTime::now());
    }
    #[test]
    fn durations_are_short_and_never_say_zero_of_what_is_left() {
        let text = |ms| short(Duration::from_millis(ms));
        assert_eq!(text(3_600_000), "1h");
        assert_eq!(text(1_200_000), "20m");
        assert_eq!(text(1_199_500), "20m");
        assert_eq!(text(60_000), "1m");
        assert_eq!(text(90_000), "90s");
        assert_eq!(text(1_500), "1.5s");
        assert_eq!(text(250), "250ms");
        assert_eq!(short(Duration::from_micros(10)), "1ms");
    }
}
