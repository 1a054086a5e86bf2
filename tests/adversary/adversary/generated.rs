//! Random policies and random requests: what the app reads is never what the policy, asked about just that,
//! would refuse.

use http::{HeaderMap, HeaderName, HeaderValue, Method};
use outrigger_core::config::Protocol;
use outrigger_core::path::{canonical, without_parameters};
use outrigger_core::policy::access::{CompiledAccess, Facts, RequestFacts};

use outrigger_tests::random::Random;

use super::app::Seen;
use super::bed::{Bed, Seat, run};
use super::requests::{access, http1, http2};

/// In every run; `OUTRIGGER_CASES` sets another number, `OUTRIGGER_SEED` another seed.
const CASES: u64 = 20_000;
const SEED: u64 = 15;
/// Requests for each policy.
const PER_POLICY: u64 = 16;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().expect("a number"))
}

#[test]
fn the_app_reads_nothing_that_its_policy_would_refuse() {
    let (cases, seed) = (number("OUTRIGGER_CASES", CASES), number("OUTRIGGER_SEED", SEED));
    let reached = run(async {
        let bed = Bed::new(&[]);
        let mut reached = 0_u64;
        for policy in 0..cases.div_ceil(PER_POLICY) {
            let mut random = Random(seed.wrapping_mul(1_000_003).wrapping_add(policy));
            let access = access(&mut random);
            let protocol = if random.once_in(4) { Protocol::Detect } else { Protocol::Http1 };
            bed.configure(protocol, access.clone(), None);
            let compiled = CompiledAccess::new(&access).expect("valid rules");
            for _ in 0..PER_POLICY {
                let seat = if random.once_in(3) { Seat::Mesh } else { Seat::Outside };
                let bytes = match seat {
                    Seat::Mesh => http2(&mut random, !is_bare(policy)),
                    Seat::Outside if random.once_in(3) => http2(&mut random, false),
                    Seat::Outside => http1(&mut random),
                };
                let (answer, seen) = bed.send(seat, &[&bytes]).await;
                reached += u64::from(!seen.is_empty());
                for request in &seen {
                    if let Some(why) = violation(seat, &compiled, request) {
                        panic!(
                            "policy {policy} of seed {seed}, from {seat:?}: {why}\n{access:#?}\nsent: {:?}\n\
                             app read: {request:?}\nanswer: {:?}",
                            String::from_utf8_lossy(&bytes),
                            String::from_utf8_lossy(&answer),
                        );
                    }
                }
            }
        }
        reached
    });
    println!("{cases} cases of seed {seed}, {reached} reached the app");
    // Rules that let nothing through would prove nothing.
    assert!(reached > cases / 50, "only {reached} of {cases} reached the app");
}

/// Some come to the hop's port without a word about where they want to go.
fn is_bare(policy: u64) -> bool {
    policy.is_multiple_of(16)
}

/// Why the app should not have read this.
fn violation(seat: Seat, compiled: &CompiledAccess, seen: &Seen) -> Option<String> {
    for (name, _) in &seen.headers {
        let dashed = name.replace('_', "-");
        let meshs_own = dashed.starts_with("x-outrigger-") && seat == Seat::Outside;
        if meshs_own || dashed == "x-forwarded-client-cert" {
            return Some(format!("a header that only a proxy may set: {name}"));
        }
    }
    if seen.all("host").count() != 1 {
        return Some("not exactly one Host".to_owned());
    }
    let mut headers = HeaderMap::new();
    for (name, value) in &seen.headers {
        // As CGI passes headers on.
        let name = HeaderName::from_bytes(name.replace('_', "-").as_bytes());
        let (Ok(name), Ok(value)) = (name, HeaderValue::from_str(value)) else {
            return Some(format!("a malformed header: {seen:?}"));
        };
        headers.append(name, value);
    }
    let Ok(method) = Method::from_bytes(seen.method.as_bytes()) else {
        return Some("a malformed method".to_owned());
    };
    let (authority, target) = split(seen);
    let mut hosts: Vec<&str> = seen.all("host").collect();
    hosts.extend(authority);
    for authority in hosts {
        let host = host_of(authority);
        for path in readings(target) {
            let request = RequestFacts {
                authority,
                host: &host,
                method: &method,
                path: &path,
                bare_path: None,
                headers: &headers,
                claims: None,
            };
            let facts =
                Facts { identity: None, address: [10, 0, 0, 9].into(), request: Some(request) };
            if let Some(denied) = compiled.decide(&facts).denied {
                return Some(format!("read as {method} {path:?} of {host:?}: {denied:?}"));
            }
        }
    }
    None
}

/// Authority and path of a target.
fn split(seen: &Seen) -> (Option<&str>, &str) {
    if seen.method == "CONNECT" {
        return (Some(&seen.target), "/");
    }
    let path = seen.target.split(['?', '#']).next().unwrap_or_default();
    match path.split_once("://") {
        Some((_, rest)) => {
            let at = rest.find('/').unwrap_or(rest.len());
            (Some(&rest[..at]), if at == rest.len() { "/" } else { &rest[at..] })
        }
        None => (None, path),
    }
}

/// The ways in which servers read a path.
fn readings(path: &str) -> Vec<String> {
    let mut all = vec![path.to_owned()];
    if let Ok(canonical) = canonical(path) {
        all.extend(without_parameters(&canonical));
        all.push(canonical.into_owned());
    }
    all
}

fn host_of(authority: &str) -> String {
    let host = authority.rsplit('@').next().unwrap_or_default();
    let host = match host.split_once(':') {
        Some((host, _)) if !host.starts_with('[') => host,
        _ => host,
    };
    host.trim_end_matches('.').to_ascii_lowercase()
}
