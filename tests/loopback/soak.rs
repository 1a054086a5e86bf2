//! Short-lived certificates under steady load. The short form is a test like any other;
//! `cargo xtask test --soak 10m` sets `OUTRIGGER_SOAK` and makes it long, with memory watched.

use std::io::Write;
use std::time::{Duration, Instant};

use outrigger_tests::client::Load;
use outrigger_tests::process::{Proxy, free_port};
use outrigger_tests::within;

use crate::identity::{HANDSHAKES, Mesh, number};

/// Requests a second of the long form, over all callers.
const RATE: u32 = 500;
/// A certificate of a minute is renewed after 40 s, give or take a tenth: often enough that each
/// of these has one.
const RENEWED: Duration = Duration::from_secs(75);
/// How much memory may grow from the middle third to the last: a tenth, and this many KiB.
const SLACK: f64 = 1024.0;

/// How long the long form takes, in seconds; none: the short form.
fn length() -> Option<Duration> {
    let seconds = std::env::var("OUTRIGGER_SOAK").ok()?;
    Some(Duration::from_secs(seconds.parse().expect("OUTRIGGER_SOAK is a number of seconds")))
}

#[test]
fn short_lived_certificates_are_renewed_under_load_without_a_failure() {
    match length() {
        Some(length) => long(length),
        None => short(),
    }
}

fn short() {
    let mesh = Mesh::start("h1", &["--certificate-lifetime", "30s"], &[]);
    let load = Load::start(mesh.listen, 4, Duration::from_millis(5));
    within(Duration::from_secs(90), "both are renewed twice", || {
        number(&mesh.web, "renewals") >= 3 && number(&mesh.caller, "renewals") >= 3
    });
    // Past the end of what the first connections were made with.
    load.further(1_000);
    load.stop_unharmed();
    let handshakes = mesh.web.count(HANDSHAKES, &["inbound"]);
    assert!(handshakes >= 3.0, "connections were drained and made anew: {handshakes}");
    let log = mesh.plane.process().log();
    assert!(!log.contains("superseded by another stream of this proxy"), "{log}");
}

fn long(length: Duration) {
    let plane = ["--certificate-lifetime", "1m", "--mtls", "strict"];
    let mut mesh = Mesh::start("h1", &plane, &["--access-log", "errors"]);
    let listen = free_port();
    let listener = format!("127.0.0.1:{listen}=web.bank:80");
    let mut second =
        Proxy::start(&mesh.plane, "second", &["--listen", &listener, "--access-log", "errors"]);
    let loads = [mesh.listen, listen].map(|port| Load::at_rate(port, 4, RATE / 2));
    let began = Instant::now();
    let mut memory: Vec<[u64; 4]> = Vec::new();
    while began.elapsed() < length {
        let caller = mesh.caller.process();
        let all = [mesh.plane.process(), mesh.web.process(), caller, second.process()];
        memory.push(all.map(|process| process.own_memory()));
        let next = Duration::from_secs(memory.len() as u64);
        within(Duration::from_secs(5), "the next second begins", || began.elapsed() >= next);
    }
    let served: u64 = loads.map(|load| load.stop_unharmed().served).iter().sum();
    let took = began.elapsed().as_secs_f64();
    say(&format!(
        "{served} requests in {took:.1} s, {:.1} a second, none failed",
        served as f64 / took
    ));
    let least = length.as_secs() / RENEWED.as_secs();
    for (name, proxy) in [("web", &mesh.web), ("caller", &mesh.caller), ("second", &second)] {
        // The first certificate is not a renewal.
        let renewals = number(proxy, "renewals") - 1;
        say(&format!("{name}: renewed {renewals} times, of at least {least}"));
        assert!(renewals >= least, "{name} was renewed {renewals} times only");
        assert_eq!(number(proxy, "failedRenewals"), 0, "{name}");
    }
    say(&format!("handshakes at web: {}", mesh.web.count(HANDSHAKES, &["inbound"])));
    for (at, name) in ["control plane", "web", "caller", "second"].into_iter().enumerate() {
        let of = |from: usize, to: usize| {
            let values = &memory[memory.len() * from / 3..memory.len() * to / 3];
            values.iter().map(|all| all[at] as f64).sum::<f64>() / values.len().max(1) as f64
        };
        let [first, middle, last] = [of(0, 1), of(1, 2), of(2, 3)];
        say(&format!("{name}: {first:.0} KiB, then {middle:.0} KiB, then {last:.0} KiB"));
        assert!(last <= middle * 1.1 + SLACK, "{name} grows: {middle:.0} to {last:.0} KiB");
    }
}

/// The numbers are what the long form is for: shown whether it passes or not.
fn say(line: &str) {
    // Nobody may be reading; the verdict does not depend on it.
    let _ = writeln!(std::io::stdout(), "{line}");
}
