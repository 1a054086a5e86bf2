//! Market data that fails or is slow because the feed behind it does, without anything to fall back on
//! and with each kind of fallback in turn.

use std::time::{Duration, Instant};

use super::super::{Demo, Halt, http};
use super::verdicts::Verdicts;
use super::{fault, in_force, millis, withdraw};

const KINDS: [&str; 4] = ["static", "backend", "route", "cached"];
const FAILING: usize = 20;
const SLOW: usize = 5;
/// How long the feed takes when it is slow.
const DELAY: Duration = Duration::from_secs(1);
/// After the policies' 200 ms for an attempt something else has to be there soon.
const SOON: Duration = Duration::from_millis(500);

/// What became of some requests.
struct Seen {
    good: usize,
    /// Those that say that they stand for another answer, and of which kind.
    marked: usize,
    slowest: Duration,
}

pub(super) fn play(demo: &mut Demo, verdicts: &mut Verdicts) -> Result<(), Halt> {
    demo.title("market data: the feed behind it fails, then takes a second".to_owned());
    let (failing, slow) = measure(demo, "")?;
    let off = format!("{} of {FAILING}; {:.0} ms", failing.good, millis(slow.slowest));
    let off_is_bad = failing.good == 0 && slow.slowest >= DELAY;
    for kind in KINDS {
        let policy = format!("fallback-{kind}");
        in_force(demo, &[&policy])?;
        // A healthy answer, which the one that keeps answers keeps.
        ask(demo, 1, kind)?;
        let (failing, slow) = measure(demo, kind)?;
        withdraw(demo, &[&policy])?;
        verdicts.add(
            &format!("prices while the feed fails; while it is slow ({kind})"),
            off.clone(),
            format!(
                "{} of {FAILING}, {} marked; {:.0} ms",
                failing.good,
                failing.marked,
                millis(slow.slowest)
            ),
            format!("all, marked; at most {:.0} ms", millis(SOON)),
            off_is_bad
                && failing.good == FAILING
                && failing.marked == FAILING
                && slow.good == SLOW
                && slow.marked == SLOW
                && slow.slowest <= SOON,
        );
    }
    Ok(())
}

/// Requests while the feed fails, and while it is slow.
fn measure(demo: &Demo, kind: &str) -> Result<(Seen, Seen), Halt> {
    fault(demo, "feed", "fail_ratio", 1.0)?;
    let failing = ask(demo, FAILING, kind)?;
    fault(demo, "feed", "fail_ratio", 0.0)?;
    fault(demo, "feed", "delay_ms", DELAY.as_millis() as u64)?;
    let slow = ask(demo, SLOW, kind)?;
    fault(demo, "feed", "delay_ms", 0)?;
    Ok((failing, slow))
}

fn ask(demo: &Demo, count: usize, kind: &str) -> Result<Seen, Halt> {
    let proxy = demo.fleet.callers_proxy.outbound;
    let mut seen = Seen { good: 0, marked: 0, slowest: Duration::ZERO };
    for _ in 0..count {
        let sent = Instant::now();
        let answer = http::get_through(proxy, "market-data.bank:8000", "/prices")?;
        seen.good += usize::from(answer.status == 200);
        seen.marked += usize::from(answer.header("x-outrigger-degraded") == Some(kind));
        seen.slowest = seen.slowest.max(sent.elapsed());
    }
    Ok(seen)
}
