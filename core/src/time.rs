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
}
