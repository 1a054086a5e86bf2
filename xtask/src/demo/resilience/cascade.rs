//! The cascade: a service at its limit loses one of two replicas, and its caller tries again.
//!
//! 1,000 requests a second ask for prices, which two replicas carry, each 500; 200 a second ask for the
//! rest of the bank. All of them pass one portal with a fixed number of workers, which tries three times
//! at once. When one replica dies, the other gets twice what it can do, everybody waits for it, and no
//! worker is left for the rest. Rates are scaled down together where the machine has no room for them.

use std::time::Duration;

use super::verdicts::Verdicts;
use super::{Calls, Count, Demo, Halt, Second, fault, in_flight, in_force, members, withdraw};

/// Requests a second, at the scale of 1.
const PRICES: f64 = 1_000.0;
const BOOKS: f64 = 200.0;
/// A replica carries half of the prices, and a tenth more before it is full.
const CAPACITY: f64 = PRICES / 2.0 * 1.1;
/// Of the portal: far more than good weather needs, and few enough that calls which wait for three
/// timeouts of half a second hold them all.
const WORKERS: f64 = 400.0;
/// Of the machine, while the storm rages at its worst.
const MOST_CPU: f64 = 0.7;
/// What a storm costs more than the same load in good weather: three attempts of what failed.
const STORM: f64 = 2.0;
/// Shares of the load that may be chosen; less would be too few requests to count.
const SCALES: [f64; 5] = [1.0, 0.5, 0.25, 0.2, 0.1];

/// Seconds of good weather, of which the first belongs to nobody; then a replica dies.
const BEFORE: u64 = 4;
/// After the death, before the collapse counts: lines fill, and those that wait give up.
const SETTLING: u64 = 2;
const AFTER: u64 = 12;
const COLLAPSE: f64 = 0.5;
const SURVIVAL: f64 = 0.99;
/// How long a replica may take to be there; a busy machine is slow.
const REPLACED: Duration = Duration::from_secs(30);

pub(super) fn play(demo: &mut Demo, verdicts: &mut Verdicts) -> Result<(), Halt> {
    let scale = scale(demo)?;
    let rates = (PRICES * scale, BOOKS * scale);
    demo.title(format!(
        "cascade: {:.0} prices and {:.0} others a second; two replicas carry {:.0} each, one dies",
        rates.0,
        rates.1,
        rates.0 / 2.0
    ));
    let off = storm(demo, scale)?;
    demo.screen.say("  the same with policies");
    in_force(demo, &["cascade"])?;
    let on = storm(demo, scale)?;
    withdraw(demo, &["cascade"])?;
    let percent = |share: f64| format!("{:.1} %", share * 100.0);
    verdicts.add(
        "rest of the bank, success after a replica of quotes died",
        percent(off.books),
        percent(on.books),
        "at least 99 %".to_owned(),
        on.books >= SURVIVAL,
    );
    verdicts.add(
        "the same, in the best of the 10 s after that",
        percent(off.best_second),
        percent(on.best_second),
        "below 50 % off (collapse)".to_owned(),
        off.best_second < COLLAPSE,
    );
    verdicts.note(
        "prices, success (one replica can carry half)",
        percent(off.prices),
        percent(on.prices),
    );
    verdicts.note("before: everything, success", percent(off.before), percent(on.before));
    let busy = |(all, own): (f64, f64)| {
        let note = if all > MOST_CPU { ", over 70 %" } else { "" };
        format!("{:.0} %{note} ({:.0} %)", all * 100.0, own * 100.0)
    };
    let what = format!("CPU of the machine (of the mesh and the bank) at {scale} of the load");
    verdicts.note(&what, busy(off.cpu), busy(on.cpu));
    Ok(())
}

#[derive(Debug)]
struct Outcome {
    before: f64,
    prices: f64,
    books: f64,
    best_second: f64,
    /// Of the machine: all, and the story's.
    cpu: (f64, f64),
}

/// Good weather, a death, and what comes of it; then everybody is there again.
fn storm(demo: &mut Demo, scale: f64) -> Result<Outcome, Halt> {
    fault(demo, "quotes", "capacity", CAPACITY * scale)?;
    fault(demo, "portal", "retries", 2)?;
    fault(demo, "portal", "workers", (WORKERS * scale) as u64)?;
    let total = BEFORE + AFTER;
    let calls = start(demo, scale, total)?;
    let cpu = Cpu::now(demo);
    demo.pause(Duration::from_secs(BEFORE))?;
    let index = demo.fleet.first("quotes");
    let index = index.ok_or_else(|| Halt::Failed("no quotes run".to_owned()))?;
    let (part, name) = demo.fleet.kill_app(index);
    demo.screen.say(&format!("  kill -9 {name}"));
    demo.pause(Duration::from_secs(AFTER))?;
    let cpu = cpu.busy_since(demo);
    let seconds = calls.finish(demo)?;

    fault(demo, "portal", "retries", 0)?;
    fault(demo, "portal", "workers", 0)?;
    fault(demo, "quotes", "capacity", 0.0)?;
    demo.fleet.dismiss();
    demo.fleet.replace(part)?;
    let calm = demo.until(REPLACED, |demo| {
        in_flight(demo, "portal") + in_flight(demo, "quotes") == 0
            && demo.fleet.not_ready().is_empty()
            && demo.fleet.not_published().is_empty()
            && everybody_knows(demo)
    })?;
    if !calm {
        return Err(Halt::Failed("the replica that died was not replaced".to_owned()));
    }
    let within = |from: u64, to: u64| {
        let seconds: Vec<Second> = seconds
            .iter()
            .filter(|second| (from..to).contains(&second.number()))
            .cloned()
            .collect();
        seconds
    };
    let share = |seconds: &[Second], names: &[&str]| {
        let counts = seconds.iter().flat_map(|s| names.iter().map(|name| s.of(name)));
        counts.sum::<Count>().share()
    };
    let everything = ["prices", "books"];
    let worst = within(BEFORE + SETTLING, total);
    let best = worst.iter().map(|second| share(std::slice::from_ref(second), &["books"]));
    Ok(Outcome {
        before: share(&within(1, BEFORE), &everything),
        prices: share(&within(BEFORE, total), &["prices"]),
        books: share(&within(BEFORE, total), &["books"]),
        best_second: best.fold(0.0, f64::max),
        cpu,
    })
}

fn start(demo: &Demo, scale: f64, seconds: u64) -> Result<Calls, Halt> {
    let calls = [
        ("prices", "portal.bank:8000/prices", PRICES * scale),
        ("books", "portal.bank:8000/books", BOOKS * scale),
    ];
    Calls::start(demo, &calls, seconds)
}

/// Whether the portal's sidecar has every replica of quotes.
fn everybody_knows(demo: &Demo) -> bool {
    let known = demo.fleet.known_endpoints();
    let of_portal = known.iter().find(|(name, _)| name.starts_with("portal"));
    of_portal.is_some_and(|(_, known)| members(demo, "quotes").all(|m| known.contains(&m.uid())))
}

/// How much of the load the machine has room for: a short look at a quarter of it in good weather.
fn scale(demo: &mut Demo) -> Result<f64, Halt> {
    const LOOK: f64 = 0.25;
    let calls = start(demo, LOOK, 3)?;
    demo.pause(Duration::from_secs(1))?;
    let cpu = Cpu::now(demo);
    demo.pause(Duration::from_secs(2))?;
    let (all, own) = cpu.busy_since(demo);
    calls.finish(demo)?;
    // What others do on this machine is theirs.
    let room = MOST_CPU - (all - own).max(0.0);
    let fits = SCALES.iter().find(|scale| own / LOOK * STORM * **scale <= room);
    let scale = fits.copied().unwrap_or(SCALES[SCALES.len() - 1]);
    demo.screen.say(&format!(
        "CPU: {:.0} % at a quarter of the load, {:.0} % of it not ours; going on with {scale}",
        all * 100.0,
        (all - own) * 100.0
    ));
    Ok(scale)
}

/// Ticks of all processors: at work, at work for this story, and all.
#[derive(Clone, Copy, Debug)]
struct Cpu {
    busy: u64,
    all: u64,
    own: u64,
}

impl Cpu {
    fn now(demo: &mut Demo) -> Self {
        let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
        let (busy, all) = machine(&read("/proc/stat"));
        let own =
            demo.fleet.ids().into_iter().map(|id| process(&read(&format!("/proc/{id}/stat"))));
        Self { busy, all, own: own.sum() }
    }

    /// Shares of the machine's time since then: in which anybody worked, and the story did.
    fn busy_since(self, demo: &mut Demo) -> (f64, f64) {
        let now = Self::now(demo);
        let all = (now.all - self.all).max(1) as f64;
        // A process that died in between took its ticks along.
        (((now.busy - self.busy) as f64) / all, now.own.saturating_sub(self.own) as f64 / all)
    }
}

/// Of the first line of `/proc/stat`: user nice system idle iowait irq softirq steal.
fn machine(text: &str) -> (u64, u64) {
    let line = text.lines().next().unwrap_or_default();
    let ticks = line.split_whitespace().skip(1).take(8);
    let ticks: Vec<u64> = ticks.filter_map(|tick| tick.parse().ok()).collect();
    let all = ticks.iter().sum();
    let idle: u64 = ticks.iter().skip(3).take(2).sum();
    (all - idle, all)
}

/// Of `/proc/<pid>/stat`: user and system time are the 14th and 15th field, after a name with anything
/// in it.
fn process(text: &str) -> u64 {
    let fields = text.rsplit_once(')').map_or("", |(_, fields)| fields).split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waiting_is_no_work() {
        assert_eq!(machine("cpu  10 1 5 70 4 1 2 7 0 0\ncpu0 1 1 1 1\n"), (26, 100));
    }

    #[test]
    fn the_time_of_a_process_is_read_past_its_name() {
        let line = "7 (a ) b) S 1 2 3 4 5 6 7 8 9 10 25 5 0 0 20 0 1";
        assert_eq!(process(line), 30);
        assert_eq!(process(""), 0);
    }
}
