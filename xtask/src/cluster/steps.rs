//! What is done to the bank in a cluster while load flows, and what must hold. Each step reports what it did; the
//! verdicts are made when the load has stopped, from what it says about every request.

mod load;

use std::io;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::Mode;
use super::bank::{BANK, Bank, SYSTEM};
use crate::demo;
use crate::demo::load::{Failure, by_reason};
use load::{Load, lines, pod};

/// The canary's share, in percent.
const CANARY: u32 = 30;
/// How long a step takes at least, so that there is load to judge it by.
const SHARE: Duration = Duration::from_secs(6);
/// How soon callers must avoid a pod whose end nobody announced, the kubelet's time to kill it included.
const SOON: Duration = Duration::from_secs(4);
const LIMIT: &str = "--timeout=120s";
/// Failures told in full for each step.
const TOLD: usize = 5;

type Step = (&'static str, fn(&Show<'_>, &mut Report) -> io::Result<()>);

const STEPS: &[Step] = &[
    ("normal traffic", normal),
    ("external client", external_client),
    ("job", job),
    ("canary", canary),
    ("rolling", rolling),
    ("kill", kill),
    ("control plane", control_plane),
];

struct Show<'a> {
    bank: &'a Bank<'a>,
    rate: u32,
}

/// What happened in a step.
#[derive(Debug, Default)]
struct Report {
    name: &'static str,
    from_ms: u64,
    to_ms: u64,
    /// Sales that were in flight on what was killed may fail until then.
    forgiven_ms: Option<u64>,
    notes: Vec<String>,
    problems: Vec<String>,
}

/// Whether every step held.
pub(super) fn play(bank: &Bank<'_>, rate: u32, stop: &demo::Stop) -> io::Result<bool> {
    let mut load = Load::start(bank, rate, stop)?;
    let show = Show { bank, rate };
    let mut reports = Vec::new();
    let count = STEPS.len();
    for (number, (name, run)) in (1..).zip(STEPS) {
        eprintln!("step {number} of {count}: {name}");
        let from_ms = load.next_second()?;
        let mut report = Report { name, from_ms, ..Report::default() };
        let end = Instant::now() + SHARE;
        run(&show, &mut report)?;
        load.pause(end.saturating_duration_since(Instant::now()))?;
        report.to_ms = load.next_second()?;
        for note in &report.notes {
            eprintln!("  {note}");
        }
        reports.push(report);
    }
    let heard = load.finish()?;
    eprintln!("\nVERDICT            SENT  FAILED");
    let mut held = true;
    for mut report in reports {
        let (from, to) = (report.from_ms, report.to_ms);
        let (sent, failures) = (heard.sent(from, to), heard.failures(from, to));
        let wrong = failures.iter().filter(|failure| !report.forgives(failure));
        let wrong: Vec<String> = wrong.map(|failure| failure.describe()).collect();
        report.problems.extend(wrong);
        let ok = report.problems.is_empty() && sent > 0;
        held &= ok;
        let word = if ok { "ok" } else { "FAILED" };
        let reasons = if failures.is_empty() { String::new() } else { by_reason(&failures) };
        let (name, failed) = (report.name, failures.len());
        eprintln!("{name:<16} {sent:>6} {failed:>7}  {word} {reasons}");
        for problem in report.problems.iter().take(TOLD) {
            eprintln!("    {problem}");
        }
    }
    if heard.untold() > 0 {
        eprintln!("{} requests were never sent", heard.untold());
    }
    Ok(held && heard.untold() == 0)
}

impl Report {
    fn forgives(&self, failure: &Failure) -> bool {
        let in_time = self.forgiven_ms.is_some_and(|until| failure.started_ms <= until);
        in_time && failure.operation.is_some() && failure.reason.is_some()
    }

    fn expect(&mut self, holds: bool, what: &str) {
        if !holds {
            self.problems.push(what.to_owned());
        }
    }
}

impl Show<'_> {
    fn kubectl(&self, args: &[&str]) -> io::Result<String> {
        self.bank.kubectl.run(args)
    }

    /// Runs the bank's program in a pod until it ends; the lines that it printed.
    fn one_off(&self, name: &str, inject: &str, args: &[&str]) -> io::Result<Vec<Value>> {
        let manifest = pod(name, inject, args);
        self.bank.kubectl.apply(&self.bank.with_images(&manifest))?;
        let done = "--for=jsonpath={.status.phase}=Succeeded";
        self.kubectl(&["--namespace", BANK, "wait", done, &format!("pod/{name}"), LIMIT])?;
        let said = self.kubectl(&["--namespace", BANK, "logs", name, "--container=app"])?;
        self.kubectl(&["--namespace", BANK, "delete", "pod", name])?;
        Ok(lines(&said))
    }
}

/// Traffic as it is.
fn normal(_show: &Show<'_>, _report: &mut Report) -> io::Result<()> {
    Ok(())
}

/// A client without identity is refused, and is told why.
fn external_client(show: &Show<'_>, report: &mut Report) -> io::Result<()> {
    let call = ["calls", "--call=gateway=gateway.bank:8000/holdings/account-1@10", "--for=1s"];
    let said = show.one_off("external-client", "disabled", &call)?;
    let (sent, succeeded, forbidden) = calls(&said, "gateway");
    report.notes.push(format!("{forbidden} of {sent} requests without a proxy were refused"));
    // Where nothing is redirected, the app's own port is open beside its proxy's.
    let may_come = show.bank.mode == Mode::Env;
    let refused = sent > 0 && succeeded == 0 && forbidden == sent;
    report.expect(may_come || refused, "a client without a proxy came through");
    Ok(())
}

/// What ends by itself ends with its proxy, and its first request is one like all others.
fn job(show: &Show<'_>, report: &mut Report) -> io::Result<()> {
    let call = ["calls", "--call=gateway=gateway.bank:8000/holdings/account-1@20", "--for=1s"];
    let indented = pod("one-off", "enabled", &call);
    let spec = indented.split_once("spec:\n").map(|(_, spec)| spec).unwrap_or_default();
    let spec: String = spec.lines().map(|line| format!("    {line}\n")).collect();
    let job = format!(
        "apiVersion: batch/v1\nkind: Job\nmetadata: {{name: one-off, namespace: {BANK}}}\n\
         spec:\n  backoffLimit: 0\n  template:\n    spec:\n{spec}"
    );
    show.bank.kubectl.apply(&show.bank.with_images(&job))?;
    show.kubectl(&["--namespace", BANK, "wait", "--for=condition=Complete", "job/one-off", LIMIT])?;
    let said = show.kubectl(&["--namespace", BANK, "logs", "job/one-off", "--container=app"])?;
    let (sent, succeeded, _) = calls(&lines(&said), "gateway");
    report.notes.push(format!("the Job is complete; {succeeded} of its {sent} requests succeeded"));
    report.expect(sent > 0 && succeeded == sent, "a request of the Job failed");
    Ok(())
}

/// The share of v2 follows the weights of the route.
fn canary(show: &Show<'_>, report: &mut Report) -> io::Result<()> {
    let weight = |index, value| {
        let path = format!("/spec/rules/0/backendRefs/{index}/weight");
        serde_json::json!({"op": "replace", "path": path, "value": value})
    };
    let patch = serde_json::json!([weight(0, 100 - CANARY), weight(1, CANARY)]).to_string();
    let route = ["patch", "httproute", "market-data", "--type=json", "--patch", &patch];
    show.kubectl(&[&["--namespace", BANK][..], &route].concat())?;
    let rate = format!("--rate={}", show.rate.max(50));
    let said = show.one_off("canary", "enabled", &["load", "--sells=0", &rate, "--for=8s"])?;
    let versions = said.iter().rev().find_map(|line| line["summary"]["versions"].as_object());
    let of = |name: &str| versions.and_then(|all| all.get(name)?.as_u64()).unwrap_or(0);
    let (v1, v2) = (of("v1"), of("v2"));
    let all = (v1 + v2).max(1) as f64;
    let (share, want) = (v2 as f64 / all, f64::from(CANARY) / 100.0);
    report.notes.push(format!("v2 served {v2} of {} requests, {:.1} %", v1 + v2, share * 100.0));
    // Chance alone stays within four standard deviations, but for one run in 15,000.
    let tolerance = 4.0 * (want * (1.0 - want) / all).sqrt();
    report.expect((share - want).abs() <= tolerance, "the share of v2 is not that of the route");
    Ok(())
}

/// Pods leave, and new ones take their place.
fn rolling(show: &Show<'_>, report: &mut Report) -> io::Result<()> {
    let all = ["deployment/gateway", "deployment/holdings", "deployment/orders"];
    let began = Instant::now();
    show.kubectl(&[&["--namespace", BANK, "rollout", "restart"][..], &all].concat())?;
    for deployment in all {
        show.kubectl(&["--namespace", BANK, "rollout", "status", deployment, LIMIT])?;
    }
    let seconds = began.elapsed().as_secs_f64();
    report.notes.push(format!("three services have new pods after {seconds:.0} s"));
    Ok(())
}

/// A pod ends without a word.
fn kill(show: &Show<'_>, report: &mut Report) -> io::Result<()> {
    let pods = ["get", "pods", "--selector=app=orders", "--output=name"];
    let pods = show.kubectl(&[&["--namespace", BANK][..], &pods].concat())?;
    let victim = pods.lines().next().unwrap_or_default();
    let soon = u64::try_from(SOON.as_millis()).unwrap_or(u64::MAX);
    // By the load's clock, which may be another one than ours.
    report.forgiven_ms = Some(report.from_ms + soon);
    show.kubectl(&["--namespace", BANK, "delete", victim, "--force", "--grace-period=0"])?;
    show.kubectl(&["--namespace", BANK, "rollout", "status", "deployment/orders", LIMIT])?;
    report.notes.push(format!("{victim} was killed"));
    Ok(())
}

/// The mesh goes on without its control plane.
fn control_plane(show: &Show<'_>, report: &mut Report) -> io::Result<()> {
    let pods = ["delete", "pods", "--all", "--force", "--grace-period=0"];
    show.kubectl(&[&["--namespace", SYSTEM][..], &pods].concat())?;
    let began = Instant::now();
    let deployment = "deployment/outrigger-control-plane";
    show.kubectl(&["--namespace", SYSTEM, "rollout", "status", deployment, LIMIT])?;
    let seconds = began.elapsed().as_secs_f64();
    report.notes.push(format!("the control plane was away for {seconds:.0} s"));
    Ok(())
}

/// What `simplebank calls` says of one name: sent, succeeded, answered by 403.
fn calls(lines: &[Value], name: &str) -> (u64, u64, u64) {
    let mut sum = (0, 0, 0);
    for line in lines {
        let counts = &line["calls"][name];
        sum.0 += counts["sent"].as_u64().unwrap_or(0);
        sum.1 += counts["succeeded"].as_u64().unwrap_or(0);
        sum.2 += counts["failed"]["403"].as_u64().unwrap_or(0);
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_summed_over_the_seconds() {
        let said = lines(concat!(
            "{\"second\":0,\"calls\":{\"a\":{\"sent\":10,\"succeeded\":7,\"failed\":{\"403\":3}}}}\n",
            "no JSON\n",
            "{\"second\":1,\"calls\":{\"a\":{\"sent\":2,\"succeeded\":2,\"failed\":{}}}}\n",
        ));
        assert_eq!(calls(&said, "a"), (12, 9, 3));
        assert_eq!(calls(&said, "b"), (0, 0, 0));
    }

    #[test]
    fn only_what_was_in_flight_on_the_dead_is_forgiven() {
        let report = Report { forgiven_ms: Some(100), ..Report::default() };
        let failure = |operation: Option<&str>, started_ms| Failure {
            operation: operation.map(str::to_owned),
            status: Some(502),
            reason: Some("upstream_reset".to_owned()),
            error: String::new(),
            started_ms,
        };
        assert!(report.forgives(&failure(Some("a"), 100)));
        assert!(!report.forgives(&failure(Some("a"), 101)));
        assert!(!report.forgives(&failure(None, 100)));
        assert!(!Report::default().forgives(&failure(Some("a"), 100)));
    }
}
