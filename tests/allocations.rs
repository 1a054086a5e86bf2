//! What one request costs in allocations, on the threads of a proxy that runs inside of this test, so
//! that a policy does not make every request pay.

#![allow(clippy::unwrap_used, reason = "a broken test may panic")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use clap::Parser;
use outrigger_logging::Log;
use outrigger_proxy::base::settings::Settings;
use outrigger_tests::process::{ControlPlane, free_port, listens, local};
use outrigger_tests::{eventually, within};
use tracing_subscriber::{EnvFilter, reload};

/// Requests of one measurement; what the proxy does once a second is little beside them.
const REQUESTS: u64 = 2_000;
/// Most allocations of a request without a policy. Raise it only with a reason. Eleven of them keep the case of
/// header names from HTTP/1.1 to HTTP/1.1 (hyper's maps of request and response, and what carries them) and
/// pass informational responses on.
const MOST: u64 = 21;
/// What a deadline, retries, a breaker and a limit may add: a timer, and the two headers and the text
/// that tell the deadline.
const MOST_FOR_POLICIES: u64 = 5;

static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    /// The threads of the test itself: the caller and the app.
    static EXEMPT: Cell<bool> = const { Cell::new(false) };
}

struct Counting;

#[expect(unsafe_code, reason = "an allocator that counts can't be written without")]
// SAFETY: passes everything on to the system's allocator; counting allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if !EXEMPT.try_with(Cell::get).unwrap_or(true) {
            COUNT.fetch_add(1, Relaxed);
        }
        // SAFETY: the caller keeps the contract of `alloc`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: `at` came from `alloc` above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

const POLICY: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\n\
    metadata: {name: all, namespace: bank}\nspec:\n  \
    targetRefs: [{kind: Service, group: \"\", name: guarded}]\n  deadline: 5s\n  \
    retries: {maxAttempts: 3, when: {statuses: [503], reset: true}, backoff: {base: 5ms, max: 50ms}}\n  \
    breaker: {consecutiveFailures: 5, failureRate: {percent: 50, window: 10s, minRequests: 20}}\n  \
    outlierEjection: {consecutiveFailures: 5, baseEjection: 5s, maxEjection: 60s, maxEjectedPercent: 50}\n  \
    limits: {maxInFlight: 100, maxPending: 10}\n";

#[test]
fn a_policy_adds_few_allocations_to_a_request() {
    EXEMPT.set(true);
    let app = app();
    let manifest = |name: &str| {
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: bank}}\n\
             spec: {{ports: [{{name: main, port: 80, appProtocol: http}}]}}\n---\n\
             apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
             metadata: {{name: {name}, namespace: bank, labels: {{kubernetes.io/service-name: {name}}}}}\n\
             addressType: IPv4\nports: [{{name: main, port: {app}}}]\n\
             endpoints: [{{addresses: [\"127.0.0.1\"], conditions: {{ready: true}}}}]\n"
        )
    };
    let (plain, guarded) = (manifest("plain"), manifest("guarded"));
    let plane = ControlPlane::start(&[
        ("plain.yaml", &plain),
        ("guarded.yaml", &guarded),
        ("policy.yaml", POLICY),
    ]);
    let outbound = proxy(plane.listen);
    let without = measure(outbound, "plain");
    let with = measure(outbound, "guarded");
    println!("allocations of a request: {without} without policies, {with} with");
    assert!(without > 0 && without <= MOST, "{without}");
    assert!(with <= without + MOST_FOR_POLICIES, "{with} with policies, {without} without");
}

/// A proxy in threads of this process, which end with it.
fn proxy(control_plane: u16) -> u16 {
    let [outbound, inbound, admin] = [free_port(), free_port(), free_port()];
    let settings = Settings::parse_from([
        "outrigger-proxy",
        "--control-plane",
        &format!("http://{}", local(control_plane)),
        "--namespace",
        "bank",
        "--workers",
        "1",
        "--outbound",
        &local(outbound).to_string(),
        "--inbound",
        &local(inbound).to_string(),
        "--admin",
        &local(admin).to_string(),
    ]);
    std::thread::spawn(move || {
        let (_, filter) = reload::Layer::new(EnvFilter::new("off"));
        outrigger_proxy::run::run(settings, Log::unread(), filter).unwrap();
    });
    within(Duration::from_secs(20), "the proxy listens", || listens(outbound));
    outbound
}

/// Allocations of one request, one after the other on one connection.
fn measure(outbound: u16, service: &str) -> u64 {
    let request = format!(
        "GET http://{service}.bank/ HTTP/1.1\r\nHost: {service}.bank\r\nAccept: */*\r\n\r\n"
    );
    let mut stream = TcpStream::connect(("127.0.0.1", outbound)).unwrap();
    let mut answer = [0; 1024];
    let mut ask = || {
        stream.write_all(request.as_bytes()).unwrap();
        let mut got = 0;
        while !answer[..got].ends_with(b"\r\n\r\nok") {
            let n = stream.read(&mut answer[got..]).unwrap();
            assert!(n > 0, "{}", String::from_utf8_lossy(&answer[..got]));
            got += n;
        }
        assert!(answer.starts_with(b"HTTP/1.1 200"), "{}", String::from_utf8_lossy(&answer[..got]));
    };
    for _ in 0..100 {
        ask();
    }
    let before = COUNT.load(Relaxed);
    for _ in 0..REQUESTS {
        ask();
    }
    (COUNT.load(Relaxed) - before) / REQUESTS
}

/// Answers every request with the same bytes.
fn app() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        EXEMPT.set(true);
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                EXEMPT.set(true);
                let mut buffer = [0; 4096];
                while let Ok(n) = stream.read(&mut buffer) {
                    let ends = buffer[..n].ends_with(b"\r\n\r\n");
                    let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
                    if n == 0 || (ends && stream.write_all(answer).is_err()) {
                        return;
                    }
                }
            });
        }
    });
    eventually("the app listens", || listens(port));
    port
}
