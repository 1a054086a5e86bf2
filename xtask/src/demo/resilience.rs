//! `cargo xtask demo --story resilience`: trouble without policies and with them, side by side, in the
//! same processes. examples/simplebank/resilience holds the services, and in `policies` all that
//! differs. [`cascade`] is the part that takes time; the others are here.

mod cascade;
mod fallbacks;
mod verdicts;

use std::time::{Duration, Instant};

use serde_json::Value;

use self::verdicts::Verdicts;
use super::bank::{Member, Part, tier};
use super::load::unix_ms;
use super::process::Process;
use super::{Demo, Halt, http};

/// Who takes part: a portal before two replicas that can be overloaded and the rest of the bank; a way of
/// three hops; two that send to each other; and market data with a feed behind it and a backup beside it. Everybody is a `simplebank tier`.
pub(super) const CAST: &[Part] = &[
    tier(
        "portal",
        &["--route=/prices=quotes.bank:8000", "--route=/books=books.bank:8000", "--timeout=500ms"],
        1,
    ),
    tier("quotes", &[], 2),
    tier("books", &[], 1),
    tier("teller", &["--route=/chain=clerk.bank:8000"], 1),
    tier("clerk", &["--route=/chain=desk.bank:8000"], 1),
    tier("desk", &["--route=/chain=vault.bank:8000"], 1),
    tier("vault", &[], 1),
    tier("left", &["--route=/loop=right.bank:8000"], 1),
    tier("right", &["--route=/loop=left.bank:8000"], 1),
    tier("market-data", &["--route=/prices=feed.bank:8000"], 1),
    tier("market-backup", &[], 1),
    tier("feed", &[], 1),
];

/// How long a policy may take to be in force everywhere; a busy machine is slow.
const PROGRAMMED: Duration = Duration::from_secs(20);
/// Of the deadline's policy.
const DEADLINE: Duration = Duration::from_millis(200);
/// How long the last hop takes while the deadline is shown.
const SLOW: Duration = Duration::from_secs(1);
/// How soon after its deadline a request has to be answered.
const LATE_MEDIAN: Duration = Duration::from_millis(20);
const LATE_P99: Duration = Duration::from_millis(100);
/// And how much too early it may be: each of seven proxies may tell the next a millisecond less than is
/// left, because it tells whole ones.
const ROUNDING: Duration = Duration::from_millis(7);
const DEADLINES: usize = 500;
/// Requests at a time while the deadline is shown.
const AT_A_TIME: usize = 5;
/// What three attempts at each of three hops make of one request.
const THREE_CUBED: f64 = 27.0;
/// How soon after the first request around it a cycle is named.
const NAMED: Duration = Duration::from_secs(10);
const AMPLIFICATION: f64 = 1.3;

pub(super) fn play(demo: &mut Demo) -> Result<bool, Halt> {
    let mut verdicts = Verdicts::default();
    cascade::play(demo, &mut verdicts)?;
    fallbacks::play(demo, &mut verdicts)?;
    amplification(demo, &mut verdicts)?;
    a_loop(demo, &mut verdicts)?;
    deadline(demo, &mut verdicts)?;
    Ok(verdicts.show(&mut demo.screen))
}

/// Three hops, each with three attempts, before a vault that always fails.
fn amplification(demo: &mut Demo, verdicts: &mut Verdicts) -> Result<(), Halt> {
    demo.title("retries: three attempts at each of three hops, and the last one fails".to_owned());
    fault(demo, "vault", "fail_ratio", 1.0)?;
    let measure = |demo: &mut Demo| {
        let before = requests(demo, "vault");
        let calls = Calls::start(demo, &[("chain", "teller.bank:8000/chain", 30.0)], 5)?;
        let seconds = calls.finish(demo)?;
        let sent: u64 = seconds.iter().map(|second| second.of("chain").sent).sum();
        Ok::<f64, Halt>((requests(demo, "vault") - before) as f64 / sent.max(1) as f64)
    };
    let hops = ["teller", "clerk", "desk"];
    // First with policies: the budget of retries follows the requests of the last seconds, and what the
    // apps make of one request would pay for ten times as many.
    in_force(demo, &["amplification"])?;
    let on = measure(demo)?;
    withdraw(demo, &["amplification"])?;
    for hop in hops {
        fault(demo, hop, "retries", 2)?;
    }
    let off = measure(demo)?;
    for hop in hops {
        fault(demo, hop, "retries", 0)?;
    }
    fault(demo, "vault", "fail_ratio", 0.0)?;
    verdicts.add(
        "requests at the vault for one (attempts by the apps, by the mesh)",
        format!("{off:.1}"),
        format!("{on:.2}"),
        format!("27; at most {AMPLIFICATION}"),
        off > THREE_CUBED - 1.0 && on <= AMPLIFICATION,
    );
    Ok(())
}

/// Two services that send a request to each other for ever.
fn a_loop(demo: &mut Demo, verdicts: &mut Verdicts) -> Result<(), Halt> {
    demo.title("a loop: left asks right, right asks left".to_owned());
    let proxy = demo.fleet.callers_proxy.outbound;
    let measure = |demo: &Demo| {
        let visits = |demo: &Demo| requests(demo, "left") + requests(demo, "right");
        let before = visits(demo);
        let answer = http::get_through(proxy, "left.bank:8000", "/loop")?;
        Ok::<_, Halt>((visits(demo) - before, answer))
    };
    in_force(demo, &["loops-allowed"])?;
    let asked = Instant::now();
    let (off, _) = measure(demo)?;
    let mut cycle = None;
    demo.until(2 * NAMED, |demo| {
        cycle = cycle_of(demo, ["left", "right"]);
        cycle.is_some()
    })?;
    let named_after = asked.elapsed();
    withdraw(demo, &["loops-allowed"])?;
    let (on, answer) = measure(demo)?;
    let status = answer.header("proxy-status").unwrap_or_default();
    demo.screen.say(&format!("  answered: {} {}", answer.status, answer.body.trim()));
    let explained = status.contains("loop")
        && ["left", "right"].iter().all(|name| {
            answer.body.contains(&format!("bank/{name}:8000")) || status.contains(name)
        });
    verdicts.add(
        "calls of left and right for one request (without and with loop detection)",
        off.to_string(),
        format!("{on}, then {}", answer.status),
        "2, then 508 with the way".to_owned(),
        off > on && on == 2 && answer.status == 508 && explained,
    );
    verdicts.add(
        "the graph names the cycle",
        cycle.clone().unwrap_or_else(|| "no".to_owned()),
        format!("after {:.1} s", named_after.as_secs_f64()),
        format!("within {NAMED:?}"),
        cycle.is_some() && named_after <= NAMED,
    );
    Ok(())
}

/// A way around the cycle of these services, as the graph of the mesh names it.
fn cycle_of(demo: &Demo, names: [&str; 2]) -> Option<String> {
    let graph = http::get_json(demo.fleet.stage.index, "/graph").ok()?;
    let is_one_of =
        |text: &Value, name: &str| text.as_str().is_some_and(|text| text.ends_with(name));
    let cycle = graph["cycles"].as_array()?.iter().find(|cycle| {
        let members = cycle["members"].as_array();
        names
            .iter()
            .all(|name| members.is_some_and(|all| all.iter().any(|one| is_one_of(one, name))))
    })?;
    let path: Vec<_> = cycle["path"].as_array()?.iter().filter_map(Value::as_str).collect();
    Some(path.join(" > "))
}

/// A deadline that the first hop starts, through apps that forward nothing but `x-request-id`.
fn deadline(demo: &mut Demo, verdicts: &mut Verdicts) -> Result<(), Halt> {
    demo.title(format!("a deadline of {DEADLINE:?}, three hops, and the last one takes {SLOW:?}"));
    fault(demo, "vault", "delay_ms", SLOW.as_secs() * 1_000)?;
    let off = ask(demo, AT_A_TIME)?;
    in_force(demo, &["deadline"])?;
    let mut on = ask(demo, DEADLINES)?;
    let idle = Instant::now();
    let cancelled = demo.until(Duration::from_millis(500), |demo| in_flight(demo, "vault") == 0)?;
    let cancelled_after = idle.elapsed();
    fault(demo, "vault", "delay_ms", 0)?;
    let proxy = demo.fleet.callers_proxy.outbound;
    let deepest = http::get_through(proxy, "teller.bank:8000", "/chain")?.body;
    withdraw(demo, &["deadline"])?;

    let slow = off.iter().all(|(status, took)| *status == 200 && *took >= SLOW);
    let refused = on.iter().filter(|(status, _)| *status == 504).count();
    on.sort_by_key(|(_, took)| *took);
    let late = |share: usize| on[(on.len() * share / 100).min(on.len() - 1)].1;
    let late = |share| late(share).saturating_sub(DEADLINE);
    let early = on[0].1 + ROUNDING < DEADLINE;
    let off_took = off.iter().map(|(_, took)| *took).min().unwrap_or_default();
    verdicts.add(
        "answer after",
        format!("{:.0} ms", off_took.as_secs_f64() * 1e3),
        format!("{refused} of {} 504, first at {:.1} ms", on.len(), millis(on[0].1)),
        format!("1 s; all 504, at {DEADLINE:?}"),
        slow && refused == on.len() && !early,
    );
    verdicts.add(
        "after its deadline, median and p99",
        "-".to_owned(),
        format!("{:.1} / {:.1} ms", millis(late(50)), millis(late(99))),
        format!("at most {:.0} / {:.0} ms", millis(LATE_MEDIAN), millis(LATE_P99)),
        late(50) <= LATE_MEDIAN && late(99) <= LATE_P99,
    );
    let told: Option<u64> = serde_json::from_str::<Value>(&deepest)
        .ok()
        .and_then(|answer| answer["deadline_left_ms"].as_str()?.parse().ok());
    verdicts.add(
        "time left as the deepest app is told; its work ends",
        "none; no".to_owned(),
        format!(
            "{}; {}",
            told.map_or_else(|| "none".to_owned(), |ms| format!("{ms} ms")),
            if cancelled {
                format!("{:.0} ms later", millis(cancelled_after))
            } else {
                "no".to_owned()
            }
        ),
        "less than 200 ms; yes".to_owned(),
        told.is_some_and(|ms| u128::from(ms) <= DEADLINE.as_millis()) && cancelled,
    );
    Ok(())
}

/// `count` requests over the whole chain, a few at a time: status and time of each.
fn ask(demo: &mut Demo, count: usize) -> Result<Vec<(u16, Duration)>, Halt> {
    let proxy = demo.fleet.callers_proxy.outbound;
    let each = count / AT_A_TIME;
    let threads: Vec<_> = (0..AT_A_TIME)
        .map(|_| {
            std::thread::spawn(move || {
                let mut answers = Vec::with_capacity(each);
                for _ in 0..each {
                    let sent = Instant::now();
                    let answer = http::get_through(proxy, "teller.bank:8000", "/chain")?;
                    answers.push((answer.status, sent.elapsed()));
                }
                Ok::<_, std::io::Error>(answers)
            })
        })
        .collect();
    demo.until(SLOW * 60, |_| threads.iter().all(std::thread::JoinHandle::is_finished))?;
    let mut all = Vec::with_capacity(count);
    for thread in threads {
        let answers = thread.join().map_err(|_| Halt::Failed("a caller panicked".to_owned()))?;
        all.extend(answers?);
    }
    Ok(all)
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn members<'a>(demo: &'a Demo, role: &'a str) -> impl Iterator<Item = &'a Member> {
    demo.fleet.of_role(role)
}

/// Requests that have arrived at all replicas of a part.
fn requests(demo: &Demo, role: &str) -> u64 {
    members(demo, role).map(Member::requests).sum()
}

fn in_flight(demo: &Demo, role: &str) -> u64 {
    members(demo, role).map(|member| member.stat("in_flight")).sum()
}

/// Changes one field of the fault of every replica of a part.
fn fault(demo: &Demo, role: &str, field: &str, value: impl Into<Value>) -> Result<(), Halt> {
    let value = value.into();
    for member in members(demo, role) {
        member.change_fault(field, &value)?;
    }
    Ok(())
}

/// Puts policies among the manifests and waits until every proxy concerned has acknowledged them.
fn in_force(demo: &mut Demo, names: &[&str]) -> Result<(), Halt> {
    let from = crate::workspace::root().join("examples/simplebank/resilience/policies");
    for name in names {
        let text = std::fs::read_to_string(from.join(format!("{name}.yaml")))?;
        // As editors save: a new file under its name at once.
        let file = demo.fleet.stage.manifests().join(format!("{name}.yaml"));
        let draft = file.with_extension("draft");
        std::fs::write(&draft, text)?;
        std::fs::rename(&draft, &file)?;
    }
    let done = demo.until(PROGRAMMED, |demo| policies(demo).is_some_and(|count| count > 0))?;
    if done { Ok(()) } else { Err(Halt::Failed(format!("{names:?} did not come into force"))) }
}

fn withdraw(demo: &mut Demo, names: &[&str]) -> Result<(), Halt> {
    for name in names {
        std::fs::remove_file(demo.fleet.stage.manifests().join(format!("{name}.yaml")))?;
    }
    let done = demo.until(PROGRAMMED, |demo| policies(demo) == Some(0))?;
    if done { Ok(()) } else { Err(Halt::Failed(format!("{names:?} did not go"))) }
}

/// How many policies there are; none while one is not in force everywhere.
fn policies(demo: &Demo) -> Option<usize> {
    let index = http::get_json(demo.fleet.stage.index, "/index").ok()?;
    let mut count = 0;
    for status in index["status"].as_array()? {
        let object = status["object"].as_str()?;
        if !object.starts_with("TrafficPolicy") && !object.starts_with("ServerPolicy") {
            continue;
        }
        let programmed = &status["programmed"];
        if status["accepted"]["status"] != true
            || programmed["acknowledged"] != programmed["proxies"]
        {
            return None;
        }
        count += 1;
    }
    Some(count)
}

/// The generator of steady calls, running.
#[derive(Debug)]
struct Calls {
    process: Process,
    lines: std::sync::mpsc::Receiver<String>,
    ends: Instant,
}

/// What became of the calls that were sent in one second.
#[derive(Clone, Debug)]
struct Second(Value);

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    sent: u64,
    succeeded: u64,
}

/// Longer than the longest call that the generator waits for.
const LAST_ANSWERS: Duration = Duration::from_secs(20);

impl Calls {
    /// `(name, host:port/path, per second)` of each, for some seconds.
    fn start(demo: &Demo, calls: &[(&str, &str, f64)], seconds: u64) -> Result<Self, Halt> {
        let stage = &demo.fleet.stage;
        let mut command = std::process::Command::new(&stage.simplebank);
        command.args(["--exit-with-parent", "calls", "--timeout=2s"]);
        command.arg("--proxy").arg(demo.fleet.callers_proxy.outbound.to_string());
        command.arg(format!("--for={seconds}s"));
        for (name, url, per_second) in calls {
            command.arg(format!("--call={name}={url}@{per_second}"));
        }
        let name = format!("calls-{}", unix_ms());
        let (process, lines) = Process::start_reading(&name, command, &stage.logs)?;
        let ends = Instant::now() + Duration::from_secs(seconds);
        Ok(Self { process, lines, ends })
    }

    /// Waits for its end and takes what it counted.
    fn finish(mut self, demo: &mut Demo) -> Result<Vec<Second>, Halt> {
        let limit = self.ends.saturating_duration_since(Instant::now()) + LAST_ANSWERS;
        let mut seconds = Vec::new();
        let lines = &self.lines;
        let ended = demo.until(limit, |_| {
            for line in
                lines.try_iter().filter_map(|line| serde_json::from_str::<Value>(&line).ok())
            {
                if line["end"] == true {
                    return true;
                }
                seconds.push(Second(line));
            }
            false
        })?;
        if !ended {
            return Err(Halt::Failed(format!("the calls have no end\n{}", self.process.tail())));
        }
        self.process.wait(Instant::now() + LAST_ANSWERS);
        Ok(seconds)
    }
}

impl Second {
    fn number(&self) -> u64 {
        self.0["second"].as_u64().unwrap_or(0)
    }

    fn of(&self, name: &str) -> Count {
        let count = &self.0["calls"][name];
        let number = |key: &str| count[key].as_u64().unwrap_or(0);
        Count { sent: number("sent"), succeeded: number("succeeded") }
    }
}

impl Count {
    fn share(self) -> f64 {
        self.succeeded as f64 / self.sent.max(1) as f64
    }
}

impl std::iter::Sum for Count {
    fn sum<I: Iterator<Item = Self>>(counts: I) -> Self {
        counts.fold(Self::default(), |sum, one| Self {
            sent: sum.sent + one.sent,
            succeeded: sum.succeeded + one.succeeded,
        })
    }
}
