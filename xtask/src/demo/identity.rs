//! `cargo xtask demo --story identity`: who is refused, and how the mesh's root is replaced under
//! load.

use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::process::Process;
use super::steps::{Report, Step};
use super::{Demo, Halt, http};

/// How long something that is on its way may take to be seen; a busy machine is slow.
const SEEN: Duration = Duration::from_secs(20);
/// How long the mesh may take to need the old root no more: everybody renews within seconds.
const ROTATED: Duration = Duration::from_secs(60);
/// How long openssl may take to hear that it is refused.
const OPENSSL: Duration = Duration::from_secs(10);
/// How often an unsafe step is asked for again.
const AGAIN: Duration = Duration::from_millis(250);

pub(super) const STEPS: &[Step] = &[
    ("plaintext", "a caller without a proxy asks an inbound port", plaintext),
    ("no certificate", "openssl speaks TLS to an inbound port and shows none", no_certificate),
    ("no permission", "an AccessPolicy refuses one identity and permits others", no_permission),
    ("new root", "the root of all certificates is replaced", new_root),
];

/// Saved among the manifests in the third step.
const POLICY: &str = "\
apiVersion: outrigger.dev/v1alpha1
kind: AccessPolicy
metadata:
  name: prices
  namespace: bank
spec:
  selector:
    matchLabels:
      app: market-data
  rules:
    - name: no-auditors
      action: Deny
      from:
        - serviceAccounts: [auditor]
    - name: bank-reads-prices
      action: Allow
      from:
        - serviceAccounts: [holdings, load]
      to:
        - methods: [GET]
          paths:
            - prefix: /prices
";
/// An account of the namespace, and of no service of the bank.
const GUEST: &str = "auditor";

/// Where the first gateway's sidecar takes calls.
fn gateway(demo: &Demo) -> Result<(String, std::net::SocketAddr), Halt> {
    let member = demo.fleet.first("gateway").map(|index| &demo.fleet.members[index]);
    member
        .and_then(|member| Some((member.name.clone(), member.sidecar.as_ref()?.inbound)))
        .ok_or_else(|| Halt::Failed("no gateway runs".to_owned()))
}

fn plaintext(demo: &mut Demo, report: &mut Report, _end: Instant) -> Result<(), Halt> {
    let (name, inbound) = gateway(demo)?;
    let answer = http::get(inbound, "/holdings/1")?;
    let status = answer.header("proxy-status").unwrap_or_default();
    let told = format!("{} {}", answer.status, first_line(&answer.body));
    if answer.status != 403 || !status.contains("mtls_required") {
        report.problems.push(format!("plaintext to {name} was answered {told} ({status})"));
    }
    report.notes.push(format!("a GET in plaintext to {name}'s sidecar is answered: {told}"));
    Ok(())
}

fn no_certificate(demo: &mut Demo, report: &mut Report, _end: Instant) -> Result<(), Halt> {
    let (name, inbound) = gateway(demo)?;
    let mut command = Command::new("openssl");
    let to = inbound.to_string();
    command.args(["s_client", "-connect", &to, "-alpn", "outrigger/1"]);
    let mut client = match Process::start("openssl", command, &demo.fleet.stage.logs) {
        Ok(client) => client,
        Err(error) => {
            report.skipped = Some(format!("openssl cannot be run: {error}"));
            return Ok(());
        }
    };
    let ended = client.wait(Instant::now() + OPENSSL);
    if ended.is_none() || !client.text().contains("certificate required") {
        report.problems.push(format!("openssl was not refused\n{}", client.tail()));
    }
    let logged = demo.until(SEEN, |demo| refusal(demo, &name).is_some())?;
    match refusal(demo, &name) {
        Some(why) if logged => report.notes.push(format!("{name}'s sidecar logged: {why}")),
        _ => report.problems.push(format!("{name}'s sidecar did not log why")),
    }
    Ok(())
}

/// The reason that a sidecar has logged for a handshake.
fn refusal(demo: &Demo, name: &str) -> Option<String> {
    let member = demo.fleet.members.iter().find(|member| member.name == name)?;
    let log = member.sidecar.as_ref()?.process.text();
    let line = log.lines().rfind(|line| {
        line.contains("tls_handshake_failed") && line.contains("no client certificate")
    })?;
    let line: Value = serde_json::from_str(line).ok()?;
    Some(format!("{}: {}", line["reason"].as_str()?, line["detail"].as_str()?))
}

fn no_permission(demo: &mut Demo, report: &mut Report, _end: Instant) -> Result<(), Halt> {
    invite(demo)?;
    let (host, path) = ("market-data.bank:8000", "/prices");
    let [guest, own] = [demo.fleet.guests[0].outbound, demo.fleet.callers_proxy.outbound];
    let before = http::get_through(guest, host, path)?;
    if before.status != 200 {
        report.problems.push(format!("before the policy: {} {}", before.status, before.body));
    }
    // As editors save: a new file under its name at once.
    let file = demo.fleet.stage.manifests().join("prices.yaml");
    let draft = file.with_extension("draft");
    std::fs::write(&draft, POLICY)?;
    let saved = Instant::now();
    std::fs::rename(&draft, &file)?;
    let mut refused = None;
    demo.until(SEEN, |_| {
        refused = http::get_through(guest, host, path).ok().filter(|answer| answer.status == 403);
        refused.is_some()
    })?;
    let Some(refused) = refused else {
        report.problems.push(format!("{GUEST} was not refused"));
        return Ok(());
    };
    let told = format!("{} {}", refused.status, first_line(&refused.body));
    let status = refused.header("proxy-status").unwrap_or_default();
    for word in ["access_denied", "no-auditors", "bank/prices"] {
        if !refused.body.contains(word) && !status.contains(word) {
            report.problems.push(format!("the refusal does not say {word}: {told} ({status})"));
        }
    }
    let ms = saved.elapsed().as_millis();
    report.notes.push(format!("{GUEST} is answered, {ms} ms after the policy was saved: {told}"));
    let permitted = http::get_through(own, host, path)?;
    if permitted.status != 200 {
        report.problems.push(format!("a permitted one: {} {}", permitted.status, permitted.body));
    }
    report.notes.push(format!("a permitted identity is answered {}", permitted.status));
    Ok(())
}

/// Starts the guest's sidecar.
fn invite(demo: &mut Demo) -> Result<(), Halt> {
    demo.fleet.invite(GUEST)?;
    let ready = demo.until(SEEN, |demo| demo.fleet.guests.iter().all(|guest| guest.is_ready()))?;
    if ready { Ok(()) } else { Err(Halt::Failed(format!("{GUEST}'s sidecar is not ready"))) }
}

/// All steps of a rotation, each tried too early where there is a too early.
fn new_root(demo: &mut Demo, report: &mut Report, _end: Instant) -> Result<(), Halt> {
    let processes = demo.fleet.ids();
    let old = issuing_root(demo)?;
    // The guest carries nothing, so nothing fails while it stands still. It hears of no new root, either.
    freeze(demo, true);
    let new = demo.fleet.stage.trust(&["add-root"])?.map_err(Halt::Failed)?;
    report.notes.push(format!("add-root: {}", short(&new)));
    refused(demo, report, &["issue-from", &new], GUEST)?;
    freeze(demo, false);
    done_in_time(demo, report, &["issue-from", &new])?;
    refused(demo, report, &["remove-root", &old], "spiffe://")?;
    done_in_time(demo, report, &["remove-root", &old])?;
    let alone = demo.until(SEEN, |demo| {
        demo.fleet.sidecars().iter().all(|(_, _, admin)| trusts_only(*admin, &new))
    })?;
    if alone {
        report.notes.push("every sidecar has a certificate under the new root alone".to_owned());
    } else {
        report.problems.push("not every sidecar has left the old root".to_owned());
    }
    let same = processes.iter().all(|process| demo.fleet.ids().contains(process));
    if same {
        report.notes.push(format!("{} processes, none restarted", processes.len()));
    } else {
        report.problems.push("a process was restarted".to_owned());
    }
    Ok(())
}

fn issuing_root(demo: &Demo) -> Result<String, Halt> {
    let shown = http::get_json(demo.fleet.stage.index, "/identity")?;
    let root = shown["issuing_root"].as_str().map(str::to_owned);
    root.ok_or_else(|| Halt::Failed(format!("no issuing root: {shown}")))
}

fn freeze(demo: &Demo, still: bool) {
    for guest in &demo.fleet.guests {
        guest.process.freeze(still);
    }
}

/// A step that is not safe yet has to be refused, naming somebody.
fn refused(demo: &Demo, report: &mut Report, step: &[&str; 2], names: &str) -> Result<(), Halt> {
    match demo.fleet.stage.trust(step)? {
        Err(why) if why.contains(names) => {
            let count = why.lines().count().saturating_sub(1);
            let first = why.lines().find(|line| line.contains(names)).unwrap_or_default();
            let more = if count > 1 { format!(" and {} more", count - 1) } else { String::new() };
            report.notes.push(format!("{} is refused: {}{more}", step[0], first.trim()));
        }
        Err(why) => report.problems.push(format!("{}: does not name {names}: {why}", step[0])),
        Ok(_) => report.problems.push(format!("{} was unsafe and was done", step[0])),
    }
    Ok(())
}

/// Asks for a step until it is safe.
fn done_in_time(demo: &mut Demo, report: &mut Report, step: &[&str; 2]) -> Result<(), Halt> {
    let began = Instant::now();
    loop {
        match demo.fleet.stage.trust(step)? {
            Ok(_) => {
                let seconds = began.elapsed().as_secs_f64();
                report.notes.push(format!("{}: done after {seconds:.1} s", step[0]));
                return Ok(());
            }
            Err(why) if began.elapsed() > ROTATED => {
                return Err(Halt::Failed(format!("{} is still refused: {why}", step[0])));
            }
            Err(_) => demo.pause(AGAIN)?,
        }
    }
}

fn trusts_only(sidecar: std::net::SocketAddr, root: &str) -> bool {
    let shown = http::get_json(sidecar, "/identity").unwrap_or_default();
    let under = shown["root"].as_str().is_some_and(|id| id.starts_with(root));
    under && shown["roots"].as_array().is_some_and(|roots| roots.len() == 1)
}

/// What is wrong; the lines after it say what to do.
fn first_line(body: &str) -> &str {
    body.lines().next().unwrap_or_default()
}

/// As much of a root's name as a person compares.
fn short(root: &str) -> &str {
    root.get(..12).unwrap_or(root)
}
