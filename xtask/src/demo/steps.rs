//! What is done to the running mesh, and what must hold. Each step reports what it did; the
//! verdicts are made when the load has stopped, from what it says about every request.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use super::edges::gauge;
use super::fleet::Arrivals;
use super::load::{Failure, by_reason, unix_ms};
use super::{Demo, Halt, http};

/// The canary's share, in percent.
const CANARY: u32 = 30;
/// How soon an edited manifest must show in the traffic, and how long after a death a new request
/// may still meet it.
const SOON: Duration = Duration::from_secs(1);
/// How long a replica may take to stop or to get its first request; a busy machine is slow.
const REPLICA_LIMIT: Duration = Duration::from_secs(20);
/// How long a control plane may take to be back and everybody connected to it.
const RECONNECT_LIMIT: Duration = Duration::from_secs(20);
/// Makes some requests be in flight when a replica stops or is killed.
const SLOW_MS: u64 = 150;
/// Failures told in full for each step.
const TOLD: usize = 5;

/// Its name, what it does, and what is run.
pub(super) type Step =
    (&'static str, &'static str, fn(&mut Demo, &mut Report, Instant) -> Result<(), Halt>);

pub(super) const STEPS: &[Step] = &[
    ("normal traffic", "every edge of the bank carries requests", normal),
    ("canary", "30 % of market-data moves to v2 by editing a manifest", canary),
    ("rolling", "SIGTERM to a gateway, a holdings and an orders; each is replaced", rolling),
    ("kill -9", "an orders and its sidecar die in the middle of their work", crash),
    ("control plane", "it is killed, stays away, and comes back", restart),
];

/// What happened in a step.
#[derive(Debug, Default)]
pub(crate) struct Report {
    name: &'static str,
    from_ms: u64,
    to_ms: u64,
    pub(super) notes: Vec<String>,
    pub(super) problems: Vec<String>,
    /// Why it shows nothing on this machine.
    pub(super) skipped: Option<String>,
    killed: Option<Killed>,
}

/// Whose requests in flight may fail.
#[derive(Debug)]
struct Killed {
    at_ms: u64,
    role: &'static str,
    name: String,
}

/// Plays every step in its share of `total`.
pub(crate) fn play(demo: &mut Demo, steps: &[Step], total: Duration) -> Result<Vec<Report>, Halt> {
    let count = u32::try_from(steps.len()).unwrap_or(1);
    let share = total / count;
    let mut reports = Vec::new();
    next_second(demo)?;
    for (number, (name, what, run)) in (1..).zip(steps) {
        let end = Instant::now() + share;
        demo.title(format!("step {number} of {count}, {name}: {what}"));
        let mut report = Report { name, from_ms: last_second(demo)?, ..Report::default() };
        run(demo, &mut report, end)?;
        demo.pause(end.saturating_duration_since(Instant::now()))?;
        next_second(demo)?;
        report.to_ms = last_second(demo)?;
        demo.keep_table();
        for note in &report.notes {
            demo.screen.say(&format!("  {note}"));
        }
        reports.push(report);
    }
    Ok(reports)
}

/// Waits for the load's next line, so that a step begins and ends with whole seconds.
fn next_second(demo: &mut Demo) -> Result<(), Halt> {
    let before = demo.load()?.heard.seconds.len();
    let heard = demo.until(Duration::from_secs(30), |demo| {
        demo.load().is_ok_and(|load| load.heard.seconds.len() > before)
    })?;
    if heard { Ok(()) } else { Err(Halt::Failed("the load is silent".to_owned())) }
}

fn last_second(demo: &mut Demo) -> Result<u64, Halt> {
    Ok(demo.load()?.heard.seconds.last().map_or(0, |second| second.at_ms))
}

/// Traffic as it is, and the two calls that a person would make from a shell.
fn normal(demo: &mut Demo, report: &mut Report, _end: Instant) -> Result<(), Halt> {
    let proxy = demo.fleet.callers_proxy.outbound;
    let right = http::get_through(proxy, "market-data.bank:8000", "/prices")?;
    if right.status != 200 {
        report.problems.push(format!("GET /prices: {} {}", right.status, right.body));
    }
    let wrong = http::get_through(proxy, "no-such-service.bank:8000", "/")?;
    let explained = wrong.header("proxy-status").unwrap_or_default();
    if wrong.status != 502 || !explained.contains("no_such_service") || wrong.body.len() < 20 {
        report.problems.push(format!("a wrong name: {} {explained:?}", wrong.status));
    }
    report.notes.push(format!("a wrong name is answered: {}", wrong.body.trim()));
    Ok(())
}

/// The share of v2 follows the weights of the route.
fn canary(demo: &mut Demo, report: &mut Report, end: Instant) -> Result<(), Halt> {
    let before = count_versions(demo);
    let file = demo.fleet.stage.manifests().join("market-data.yaml");
    let text = std::fs::read_to_string(&file)?;
    let new = text
        .replace("weight: 100\n", &format!("weight: {}\n", 100 - CANARY))
        .replace("weight: 0\n", &format!("weight: {CANARY}\n"));
    if new == text {
        return Err(Halt::Failed(format!("{}: no weights to edit", file.display())));
    }
    // As editors save: a new file under the old name.
    let draft = file.with_extension("draft");
    std::fs::write(&draft, new)?;
    let edited = Instant::now();
    std::fs::rename(&draft, &file)?;
    demo.until(REPLICA_LIMIT, |demo| count_versions(demo).1 > before.1)?;
    let first = edited.elapsed();
    report.notes.push(format!(
        "the first request met v2 {} ms after the manifest was saved",
        first.as_millis()
    ));
    if first > SOON {
        report.problems.push(format!("the split did not follow within {} ms", SOON.as_millis()));
    }
    demo.pause(SOON.saturating_sub(edited.elapsed()))?;
    let from = count_versions(demo);
    demo.pause(end.saturating_duration_since(Instant::now()).max(SOON))?;
    let to = count_versions(demo);
    let (v1, v2) = (to.0 - from.0, to.1 - from.1);
    let all = (v1 + v2).max(1) as f64;
    let (share, want) = (v2 as f64 / all, f64::from(CANARY) / 100.0);
    // Chance alone stays within four standard deviations, but for one run in 15,000.
    let tolerance = 4.0 * (want * (1.0 - want) / all).sqrt();
    report.notes.push(format!(
        "a second after it and later v2 served {v2} of {} requests, {:.1} %",
        v1 + v2,
        share * 100.0
    ));
    if (share - want).abs() > tolerance {
        report.problems.push(format!(
            "the share of v2 should be {CANARY} % within {:.1}, and is {:.1} %",
            tolerance * 100.0,
            share * 100.0
        ));
    }
    Ok(())
}

/// Requests that v1 and v2 of market-data have had.
fn count_versions(demo: &Demo) -> (u64, u64) {
    let of = |stem: &str| {
        let members = demo.fleet.of_role("market-data").filter(|m| m.part.stem() == stem);
        members.map(super::bank::Member::requests).sum()
    };
    (of("market-data-v1"), of("market-data-v2"))
}

/// Replicas leave as pods do, and new ones take their place.
fn rolling(demo: &mut Demo, report: &mut Report, _end: Instant) -> Result<(), Halt> {
    // Anyone who leaves has requests in flight then, whose work is not done yet.
    slow_down(demo, &["transactions", "fees"], SLOW_MS)?;
    demo.pause(SOON / 2)?;
    let mut gone = Vec::new();
    for role in ["gateway", "holdings", "orders"] {
        if let Some(index) = demo.fleet.first(role) {
            gone.push(demo.fleet.terminate(index));
        }
    }
    let began = Instant::now();
    let mut problems = Vec::new();
    let left = demo.until(REPLICA_LIMIT, |demo| demo.fleet.still_leaving(&mut problems) == 0)?;
    report.problems.append(&mut problems);
    if !left {
        report.problems.push("not every replica stopped in time".to_owned());
    }
    slow_down(demo, &["transactions", "fees"], 0)?;
    let stopped = began.elapsed();
    let began = Instant::now();
    for part in gone {
        let index = demo.fleet.replace(part)?;
        let name = demo.fleet.members[index].name.clone();
        serves(demo, report, &name)?;
    }
    report.notes.push(format!(
        "3 replicas stopped within {:.1} s, 3 new ones served {:.1} s later",
        stopped.as_secs_f64(),
        began.elapsed().as_secs_f64()
    ));
    Ok(())
}

fn slow_down(demo: &Demo, roles: &[&str], delay_ms: u64) -> Result<(), Halt> {
    for role in roles {
        for member in demo.fleet.of_role(role) {
            member.slow_down(delay_ms)?;
        }
    }
    Ok(())
}

/// Waits until a new replica has had a request.
fn serves(demo: &mut Demo, report: &mut Report, name: &str) -> Result<(), Halt> {
    let served = demo.until(REPLICA_LIMIT, |demo| {
        demo.fleet.members.iter().any(|member| member.name == name && member.requests() > 0)
    })?;
    if !served {
        report.problems.push(format!("{name} got no request"));
    }
    Ok(())
}

/// A replica dies without a word.
fn crash(demo: &mut Demo, report: &mut Report, _end: Instant) -> Result<(), Halt> {
    let role = "orders";
    slow_down(demo, &[role], SLOW_MS)?;
    demo.pause(SOON)?;
    let Some(index) = demo.fleet.first(role) else {
        return Err(Halt::Failed(format!("no replica of {role} runs")));
    };
    let at_ms = unix_ms();
    let (part, name) = demo.fleet.kill(index)?;
    report.notes.push(format!("{name} and its sidecar were killed"));
    report.killed = Some(Killed { at_ms, role: part.role, name });
    demo.pause(SOON * 2)?;
    slow_down(demo, &[role], 0)?;
    let index = demo.fleet.replace(part)?;
    let name = demo.fleet.members[index].name.clone();
    serves(demo, report, &name)
}

/// The mesh goes on without its control plane, and forgets nobody when it returns.
fn restart(demo: &mut Demo, report: &mut Report, end: Instant) -> Result<(), Halt> {
    let before = demo.fleet.known_endpoints();
    let length = end.saturating_duration_since(Instant::now());
    let opened = reconnects(demo);
    demo.fleet.kill_control_plane();
    demo.pause(length / 3)?;
    demo.fleet.restart_control_plane()?;
    let back = Instant::now();
    let mut missing = BTreeSet::new();
    let mut looks = 0_u32;
    let connected = demo.until(RECONNECT_LIMIT, |demo| {
        lost(&before, &demo.fleet.known_endpoints(), &mut missing);
        looks += 1;
        let now = reconnects(demo);
        opened.iter().all(|(name, times)| now.get(name).is_some_and(|new| new > times))
    })?;
    if connected {
        let ms = back.elapsed().as_millis();
        report.notes.push(format!("every sidecar was connected again {ms} ms after the restart"));
    } else {
        report.problems.push("not every sidecar connected again".to_owned());
    }
    // What a forgetful control plane would remove, it would remove about now.
    while Instant::now() + SOON < end {
        demo.pause(SOON / 5)?;
        lost(&before, &demo.fleet.known_endpoints(), &mut missing);
        looks += 1;
    }
    let known: usize = before.values().map(BTreeSet::len).sum();
    report.notes.push(format!("{known} endpoints known to the sidecars, looked at {looks} times"));
    report.problems.extend(missing);
    Ok(())
}

/// How often each sidecar has connected to the control plane.
fn reconnects(demo: &Demo) -> BTreeMap<String, u64> {
    let all = demo.fleet.sidecars().into_iter().filter_map(|(name, _, admin)| {
        let text = http::get(admin, "/metrics").ok()?.body;
        let times = gauge(&text, "outrigger_discovery_reconnects_total")?;
        Some((name, times as u64))
    });
    all.collect()
}

fn lost(
    before: &BTreeMap<String, BTreeSet<String>>,
    now: &BTreeMap<String, BTreeSet<String>>,
    missing: &mut BTreeSet<String>,
) {
    for (sidecar, known) in before {
        // A sidecar that did not answer in time says nothing about endpoints.
        let Some(still) = now.get(sidecar) else { continue };
        let gone = known.difference(still);
        missing.extend(gone.map(|uid| format!("{uid} was removed from {sidecar}'s endpoints")));
    }
}

/// Prints a verdict per step; whether all of them held.
pub(crate) fn judge(demo: &mut Demo, mut reports: Vec<Report>) -> Result<bool, Halt> {
    let operations = demo.fleet.operations();
    let mut twice = arrived_twice(&operations);
    let heard = std::mem::take(&mut demo.load()?.heard);
    // A request belongs to the step in which it began, and the last step has none after it.
    for at in 1..reports.len() {
        reports[at].from_ms = reports[at - 1].to_ms;
    }
    if let Some(last) = reports.last_mut() {
        last.to_ms = u64::MAX;
        if heard.untold() > 0 {
            last.problems.push(format!("{} requests were never sent", heard.untold()));
        }
    }
    demo.screen.freeze();
    demo.screen.say("\nVERDICT            SENT  FAILED");
    let mut held = true;
    let last = reports.len();
    for (number, mut report) in (1..).zip(reports) {
        let failures = heard.failures(report.from_ms, report.to_ms);
        let sent = heard.sent(report.from_ms, report.to_ms);
        match &report.killed {
            Some(killed) => {
                let new = judge_killed(killed, &failures, &operations);
                report.problems.extend(new);
                report.problems.append(&mut twice);
            }
            None => report.problems.extend(failures.iter().map(|failure| failure.describe())),
        }
        if number == last {
            report.problems.append(&mut twice);
        }
        let ok = report.problems.is_empty() && sent > 0;
        held &= ok;
        let word = match &report.skipped {
            _ if !ok => "FAILED",
            Some(_) => "skipped",
            None => "ok",
        };
        let mut line = format!("{:<16} {sent:>6} {:>7}  {word}", report.name, failures.len());
        if !failures.is_empty() {
            line.push_str(&format!(" ({})", by_reason(&failures)));
        }
        if let Some(why) = &report.skipped {
            line.push_str(&format!(" ({why})"));
        }
        demo.screen.say(&line);
        for problem in report.problems.iter().take(TOLD) {
            demo.screen.say(&format!("    {problem}"));
        }
        if let Some(more) = report.problems.len().checked_sub(TOLD).filter(|more| *more > 0) {
            demo.screen.say(&format!("    and {more} more"));
        }
    }
    Ok(held)
}

/// What failed around a kill although it had no right to.
fn judge_killed(killed: &Killed, failures: &[&Failure], operations: &[Arrivals]) -> Vec<String> {
    let survivors = operations
        .iter()
        .filter(|(role, name, _)| *role == killed.role && *name != killed.name)
        .flat_map(|(_, _, ids)| ids.iter().map(|(id, _)| id.as_str()))
        .collect::<BTreeSet<_>>();
    let late = u64::try_from(SOON.as_millis()).unwrap_or(u64::MAX) + killed.at_ms;
    let wrong = failures.iter().filter_map(|failure| {
        let elsewhere = match failure.operation.as_deref() {
            Some(id) => survivors.contains(id),
            None => true,
        };
        let why = if failure.reason.is_none() {
            "it has no reason"
        } else if failure.started_ms > late {
            "it began a second after the kill or later"
        } else if elsewhere {
            "it was not in flight on the killed replica"
        } else {
            return None;
        };
        Some(format!("{why}: {}", failure.describe()))
    });
    wrong.collect()
}

/// Operations that a service saw more than once, all its replicas taken together.
fn arrived_twice(operations: &[Arrivals]) -> Vec<String> {
    let mut times: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (role, _, ids) in operations {
        for (id, count) in ids {
            *times.entry((role, id)).or_default() += count;
        }
    }
    let twice = times.into_iter().filter(|(_, count)| *count > 1);
    twice.map(|((role, id), count)| format!("{id} arrived {count} times at {role}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(operation: Option<&str>, reason: Option<&str>, started_ms: u64) -> Failure {
        Failure {
            operation: operation.map(str::to_owned),
            status: Some(502),
            reason: reason.map(str::to_owned),
            error: "gone".to_owned(),
            started_ms,
        }
    }

    #[test]
    fn only_what_was_in_flight_on_the_dead_may_fail() {
        let killed = Killed { at_ms: 10_000, role: "orders", name: "orders-1".to_owned() };
        let ids = |id: &str| vec![(id.to_owned(), 1)];
        let operations = [
            ("orders", "orders-1".to_owned(), ids("there")),
            ("orders", "orders-2".to_owned(), ids("elsewhere")),
            ("fees", "fees-1".to_owned(), ids("there")),
        ];
        let cases = [
            (failure(Some("there"), Some("upstream_reset_ambiguous"), 9_990), None),
            (failure(Some("on its way"), Some("upstream_reset_ambiguous"), 9_999), None),
            (failure(Some("there"), None, 9_990), Some("no reason")),
            (failure(Some("late"), Some("connect_failed"), 11_001), Some("a second after")),
            (failure(Some("elsewhere"), Some("connect_failed"), 9_990), Some("not in flight")),
            (failure(None, Some("connect_failed"), 9_990), Some("not in flight")),
        ];
        for (failure, want) in cases {
            let problems = judge_killed(&killed, &[&failure], &operations);
            match want {
                None => assert!(problems.is_empty(), "{problems:?}"),
                Some(text) => assert!(problems[0].contains(text), "{problems:?}"),
            }
        }
    }

    #[test]
    fn an_operation_on_two_replicas_arrived_twice() {
        let ids = |ids: &[&str]| ids.iter().map(|id| ((*id).to_owned(), 1)).collect();
        let operations = [
            ("orders", "orders-1".to_owned(), ids(&["a", "b"])),
            ("orders", "orders-2".to_owned(), ids(&["b", "c"])),
            ("fees", "fees-1".to_owned(), ids(&["a"])),
        ];
        assert_eq!(arrived_twice(&operations), ["b arrived 2 times at orders"]);
    }

    #[test]
    fn a_removed_endpoint_is_told() {
        let set = |uids: &[&str]| uids.iter().map(|u| (*u).to_owned()).collect::<BTreeSet<_>>();
        let before = BTreeMap::from([("load".to_owned(), set(&["bank.a-1", "bank.b-1"]))]);
        let mut missing = BTreeSet::new();
        lost(&before, &BTreeMap::new(), &mut missing);
        assert!(missing.is_empty());
        lost(&before, &BTreeMap::from([("load".to_owned(), set(&["bank.a-1"]))]), &mut missing);
        assert_eq!(missing.len(), 1);
    }
}
