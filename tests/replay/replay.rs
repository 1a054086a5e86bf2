//! What an upstream gets of a request body is whole, or reset: whatever is retried, hedged, mirrored, sent
//! elsewhere or answered early, on every pair of protocols, with and without a sidecar at the far side.
//!
//! Bodies and framings are drawn from a seed, which is printed; OUTRIGGER_REPLAY_SEED repeats a run.

mod caller;
mod upstream;

use std::fmt::Write as _;
use std::path::Path;
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_tests::client::Curl;
use outrigger_tests::manifests::{service, traffic_policy, unmeshed};
use outrigger_tests::process::{ControlPlane, Proxy, free_port, local};
use outrigger_tests::random::Random;
use outrigger_tests::within;

use upstream::{Arrivals, End, http1, http2};

/// What the upstream does, and with it the proxies.
const SCENARIOS: [&str; 8] = [
    // Reads all, then answers.
    "plain",
    // A 503 after all was read; the next attempt is answered at once and read late.
    "retry", // Reset in the middle; the next attempt as above.
    "reset", // The whole answer comes first.
    "early", // Reads a little at a time.
    "slow",
    // The first attempt waits; the one beside it is answered at once and read late.
    "hedge", // A copy goes to a second service, which reads late.
    "mirror",
    // The first service fails; the second answers at once and reads late.
    "fallback",
];
const ROUNDS: usize = 2;
/// Of all kept and sent again; a body of more is none of that.
const MAX_REPLAY: u64 = 1_048_576;

/// A caller's protocol, the app's, and whether the app has a sidecar.
struct Way {
    name: String,
    listener: u16,
    curl: &'static str,
}

fn manifests(app: &str, endpoint: &str, shadow: &str, reserve: &str) -> String {
    let policy = traffic_policy(
        app,
        &format!(
            "  retries: {{maxAttempts: 4, when: {{statuses: [503], reset: true}}, maxReplayBytes: {MAX_REPLAY}}}\n  \
             retryBudget: {{percent: 100, minPerSecond: 1000}}\n  \
             hedge: {{after: 150ms}}\n  \
             fallbacks: [{{backend: {{name: {reserve}, port: 80}}}}]\n"
        ),
    );
    let route = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {app}, namespace: bank}}\n\
         spec:\n  parentRefs: [{{kind: Service, group: \"\", name: {app}, port: 80}}]\n  rules:\n  \
         - matches: [{{path: {{type: PathPrefix, value: /mirror}}}}]\n    \
         filters: [{{type: RequestMirror, requestMirror: {{backendRef: {{name: {shadow}, port: 80}}}}}}]\n    \
         backendRefs: [{{name: {app}, port: 80}}]\n  \
         - backendRefs: [{{name: {app}, port: 80}}]\n"
    );
    format!("{endpoint}---\n{policy}---\n{route}")
}

#[test]
fn an_upstream_gets_the_whole_body_or_a_reset() {
    let clock = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let given = std::env::var("OUTRIGGER_REPLAY_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed = given.unwrap_or(clock.as_nanos() as u64);
    println!("OUTRIGGER_REPLAY_SEED={seed}");
    let arrivals = Arrivals::default();
    let h1 = http1(&arrivals, "app");
    let (h2, _app) = http2(&arrivals, "app");
    let (shadow1, reserve1) = (http1(&arrivals, "shadow"), http1(&arrivals, "reserve"));
    let (shadow2, _shadow) = http2(&arrivals, "shadow");
    let (reserve2, _reserve) = http2(&arrivals, "reserve");
    let mut files = Vec::new();
    for (wire, protocol, port, shadow, reserve) in
        [("h1", "http", h1, shadow1, reserve1), ("h2", "kubernetes.io/h2c", h2, shadow2, reserve2)]
    {
        let (shadows, reserves) = (format!("shadow-{wire}"), format!("reserve-{wire}"));
        files.push((format!("{shadows}.yaml"), unmeshed(&shadows, protocol, shadow)));
        files.push((format!("{reserves}.yaml"), unmeshed(&reserves, protocol, reserve)));
        let plain = format!("plain-{wire}");
        let endpoint = unmeshed(&plain, protocol, port);
        let text = manifests(&plain, &endpoint, &shadows, &reserves);
        files.push((format!("{plain}.yaml"), text));
        let meshed = format!("meshed-{wire}");
        let endpoint = service(&meshed, protocol);
        let text = manifests(&meshed, &endpoint, &shadows, &reserves);
        files.push((format!("{meshed}.yaml"), text));
    }
    let files: Vec<_> = files.iter().map(|(name, text)| (&**name, &**text)).collect();
    let plane = ControlPlane::start(&files);
    let _sidecars: Vec<_> = [("h1", h1), ("h2", h2)]
        .iter()
        .map(|(wire, port)| {
            let (name, app) = (format!("meshed-{wire}"), format!("{port}={wire}:main"));
            // A second endpoint, or nothing could be hedged.
            (
                Proxy::beside(&plane, &name, std::slice::from_ref(&app), &[]),
                Proxy::beside(&plane, &name, &[app], &["--workload", &format!("{name}-2")]),
            )
        })
        .collect();
    let mut ways = Vec::new();
    let mut listen = String::new();
    for app in ["plain-h1", "plain-h2", "meshed-h1", "meshed-h2"] {
        let listener = free_port();
        let comma = if listen.is_empty() { "" } else { "," };
        write!(listen, "{comma}{}={app}.bank:80", local(listener)).expect("a string");
        for curl in ["--http1.1", "--http2-prior-knowledge"] {
            ways.push(Way { name: format!("{app}{curl}"), listener, curl });
        }
    }
    let caller = Proxy::caller(&plane, &["--listen", &listen]);

    thread::scope(|scope| {
        for (n, way) in ways.iter().enumerate() {
            let (arrivals, dir) = (&arrivals, caller.dir.path().to_owned());
            scope.spawn(move || {
                let mut random = Random(seed ^ ((n as u64) << 32));
                for round in 0..ROUNDS {
                    for scenario in SCENARIOS {
                        let file = dir.join(format!("{}.body", way.name));
                        upload(way, scenario, round, &mut random, arrivals, &file);
                    }
                }
            });
        }
    });
}

/// Sends one body, and looks at what every upstream got of it.
fn upload(
    way: &Way,
    scenario: &str,
    round: usize,
    random: &mut Random,
    arrivals: &Arrivals,
    file: &Path,
) {
    // Below and beyond every window and buffer on the way.
    let most = [1, 5_000, 70_000, 400_000, 900_000][(random.number() % 5) as usize];
    let length = random.number() % most + 1;
    let mut byte = random.number() as u8;
    let body: Vec<u8> = (0..length)
        .map(|_| {
            byte = byte.wrapping_mul(5).wrapping_add(113);
            byte
        })
        .collect();
    std::fs::write(file, &body).expect("a body");
    let path = format!("/{scenario}/{}/{round}", way.name);
    let mut args = vec![way.curl, "-H", "Expect:", "-T"];
    let name = file.display().to_string();
    args.push(&name);
    if random.number().is_multiple_of(2) && way.curl == "--http1.1" {
        args.extend(["-H", "Transfer-Encoding: chunked"]);
    }
    let url = format!("http://{}{path}", local(way.listener));
    let (status, said) = match (scenario, way.curl) {
        ("early", "--http2-prior-knowledge") => match caller::put(way.listener, &path, &body) {
            Ok(status) => (status, String::new()),
            Err(error) => (0, error.to_string()),
        },
        _ => {
            let answer = Curl::direct().args(&args).get(&url);
            (answer.status, answer.body)
        }
    };
    let what = format!("{path} with {length} bytes: {status}");
    let (expected, attempts) = expected(scenario);
    within(Duration::from_secs(20), &format!("every attempt of {what} is over"), || {
        let all = arrivals.of(&path);
        all.len() >= attempts && all.iter().all(|arrival| arrival.end.is_some())
    });
    let all = arrivals.of(&path);
    let mut whole = 0;
    for arrival in &all {
        match arrival.end {
            Some(End::Whole) => {
                assert!(
                    arrival.body == body,
                    "{what}: {} got {} bytes as a whole body",
                    arrival.server,
                    arrival.body.len()
                );
                whole += 1;
            }
            Some(End::Cut) | None => {}
        }
    }
    assert!(status == 200, "{what}: {said}");
    assert!(whole >= expected, "{what}: {whole} whole of {}", all.len());
}

/// How many bodies come whole at least, and how many attempts arrive.
fn expected(scenario: &str) -> (usize, usize) {
    match scenario {
        "plain" | "slow" | "hedge" => (1, 1),
        // A body that is answered before it was sent may be given up.
        "early" => (0, 1),
        // A copy that falls behind is given up.
        "mirror" | "reset" => (1, 2),
        "retry" | "fallback" => (2, 2),
        other => unreachable!("{other}"),
    }
}
