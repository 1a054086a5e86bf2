//! How a caller slows down before a service's rate limit refuses it: by what the service's proxies say is
//! left (`RateLimit`, draft-ietf-httpapi-ratelimit-headers-10).
//!
//! [`tight`] reads the headers of an answer. [`Pace`] gives each request a turn, one `gap` after the other;
//! refusals widen the gap and quota that is left narrows it, so that callers who share a limit find their
//! part of it, and none keeps to a rule that is no longer there.

use crate::time::{Later, Part};
use std::time::{Duration, Instant};

/// A request whose turn is further away is not sent: what it would wait for, others wait for already.
pub const LONGEST_WAIT: Duration = Duration::from_secs(1);
/// A slower limit is not kept to: what is known of it would be too old.
const SLOWEST: Duration = Duration::from_secs(1);
/// Refusals of what was under way together count as one.
const WIDEN_AFTER: Duration = Duration::from_millis(100);
/// How much narrower the gap gets with each answer that says that enough is left: one part of so many.
const NARROWED: u32 = 16;
/// A gap this much narrower than the limit's own holds nobody up.
const NARROWEST: u32 = 8;

/// A limit that is nearly used up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tight<'a> {
    pub name: &'a str,
    /// Between two requests that keep to it.
    pub gap: Duration,
    /// With fewer than this left it is tight.
    pub enough: u64,
}

/// The limit of an answer that is nearly used up and counts all of a caller's requests alike, if there is
/// one. `limit` and `policy` are the values of `RateLimit` and `RateLimit-Policy`.
pub fn tight<'a>(limit: &'a str, policy: &'a str) -> Option<Tight<'a>> {
    items(limit).find_map(|(name, params)| {
        let left = number(params, "r")?;
        let (_, rule) = items(policy).find(|(named, _)| *named == name)?;
        let (requests, seconds) = (number(rule, "q")?, number(rule, "w")?);
        let shared = !rule.split(';').any(|param| param.trim().starts_with("pk="));
        let gap = Duration::from_secs(seconds).checked_div(u32::try_from(requests).ok()?)?;
        let enough = requests.div_ceil(10);
        (shared && left < enough).then_some(Tight { name, gap, enough })
    })
}

/// What is left of the limit of that name.
pub fn left(limit: &str, name: &str) -> Option<u64> {
    let (_, params) = items(limit).find(|(named, _)| *named == name)?;
    number(params, "r")
}

/// `"name";params, "name";params`: names as they stand between their quotes.
fn items(text: &str) -> impl Iterator<Item = (&str, &str)> {
    let mut rest = text;
    std::iter::from_fn(move || {
        let quoted = rest.trim_start_matches([' ', ',']).strip_prefix('"')?;
        let mut escaped = false;
        let end = quoted.find(|c| {
            let ends = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        })?;
        let params = &quoted[end + 1..];
        let end_of_params = params.find(',').unwrap_or(params.len());
        rest = &params[end_of_params..];
        Some((&quoted[..end], &params[..end_of_params]))
    })
}

fn number(params: &str, name: &str) -> Option<u64> {
    let value = |param: &str| param.trim().strip_prefix(name)?.strip_prefix('=')?.parse().ok();
    params.split(';').find_map(value)
}

/// The turns of one caller's requests to one service.
#[derive(Clone, Debug)]
pub struct Pace {
    gap: Duration,
    /// That of the limit itself.
    own: Duration,
    enough: u64,
    /// The next free turn.
    next: Instant,
    widened: Instant,
}

/// When a request may go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PaceTurn {
    Now,
    At(Instant),
    /// Its turn would be too late; a request that comes after so long would find a better one.
    Never(Duration),
}

impl Pace {
    /// None: the limit is too slow to be kept to.
    pub fn new(limit: &Tight<'_>, now: Instant) -> Option<Self> {
        let Tight { gap, enough, .. } = *limit;
        (gap <= SLOWEST).then_some(Self {
            gap,
            own: gap,
            enough,
            next: now.later(gap),
            widened: now,
        })
    }

    /// Takes a turn, unless it would be after `until` or too late.
    pub fn turn(&mut self, now: Instant, until: Option<Instant>) -> PaceTurn {
        let turn = self.next.max(now);
        let wait = turn.saturating_duration_since(now);
        if wait > LONGEST_WAIT || until.is_some_and(|until| turn >= until) {
            return PaceTurn::Never(wait);
        }
        self.next = turn.later(self.gap);
        if wait.is_zero() { PaceTurn::Now } else { PaceTurn::At(turn) }
    }

    /// A request was refused although it kept to the pace: others share the limit.
    pub fn refused(&mut self, now: Instant) {
        if now >= self.widened.later(WIDEN_AFTER.max(self.gap.saturating_mul(2))) {
            self.gap = self.gap.saturating_mul(2).min(SLOWEST);
            self.widened = now;
        }
    }

    /// An answer says what is left. False: there is so much that nobody need be held up.
    #[must_use]
    pub fn left(&mut self, left: u64) -> bool {
        if left >= self.enough {
            self.gap = self.gap.saturating_sub(self.gap.part(NARROWED));
        }
        self.gap >= self.own.part(NARROWEST)
    }

    /// Nobody had to wait for as long as anybody may.
    pub fn is_idle(&self, now: Instant) -> bool {
        now > self.next.later(LONGEST_WAIT)
    }

    pub fn gap(&self) -> Duration {
        self.gap
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limit(gap: Duration) -> Tight<'static> {
        Tight { name: "all", gap, enough: 10 }
    }

    #[test]
    fn only_a_limit_that_is_nearly_used_up_and_counts_everything_is_tight() {
        let gap = Duration::from_millis(10);
        for (limit, policy, want) in [
            (r#""all";r=9;t=1"#, r#""all";q=100;w=1"#, Some(("all", gap))),
            (r#""all";r=10;t=1"#, r#""all";q=100;w=1"#, None),
            (r#""all";r=0;t=1"#, r#""all";q=3;w=3600"#, Some(("all", gap * 120_000))),
            (r#""a";r=50;t=1, "b";r=0;t=1"#, r#""a";q=100;w=1, "b";q=100;w=1"#, Some(("b", gap))),
            (r#""a,\"";r=0"#, r#""a,\"";w=1;q=100"#, Some((r#"a,\""#, gap))),
            (r#""all";r=0;t=1"#, r#""all";q=100;w=1;pk=:cGF0aA==:"#, None),
            (r#""all";r=0;t=1"#, r#""other";q=100;w=1"#, None),
            (r#""all";r=0;t=1"#, r#""all";q=0;w=1"#, None),
            (r#""all";r=-1"#, r#""all";q=100;w=1"#, None),
            ("", "", None),
            (r#""all"#, r#""all";q=1;w=1"#, None),
        ] {
            let got = tight(limit, policy).map(|tight| (tight.name, tight.gap));
            assert_eq!(got, want, "{limit} {policy}");
        }
        assert_eq!(left(r#""a";r=5, "b";r=7;t=1"#, "b"), Some(7));
        assert_eq!(left(r#""a";r=5"#, "b"), None);
    }

    #[test]
    fn turns_are_a_gap_apart_and_none_is_too_late() {
        let now = Instant::now();
        let gap = Duration::from_millis(400);
        let mut pace = Pace::new(&limit(gap), now).unwrap();
        assert_eq!(pace.turn(now, None), PaceTurn::At(now + gap));
        assert_eq!(pace.turn(now, Some(now + gap)), PaceTurn::Never(gap * 2));
        assert_eq!(pace.turn(now, None), PaceTurn::At(now + gap * 2));
        assert_eq!(pace.turn(now, None), PaceTurn::Never(gap * 3));
        assert_eq!(pace.turn(now + gap * 3, None), PaceTurn::Now);
        assert!(!pace.is_idle(now + gap * 4 + LONGEST_WAIT));
        assert!(pace.is_idle(now + gap * 5 + LONGEST_WAIT));
        assert!(Pace::new(&limit(Duration::from_secs(2)), now).is_none());
    }

    #[test]
    fn what_is_left_ends_it_soon() {
        let now = Instant::now();
        let mut pace = Pace::new(&limit(Duration::from_millis(10)), now).unwrap();
        assert!((0..1_000).all(|_| pace.left(9)));
        let answers = (0..1_000).take_while(|_| pace.left(10)).count();
        assert!(answers < 80, "{answers}");
    }
}
