//! Nobody reads what the processes say: a pipe that is full holds up nothing.

use std::io::Write;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use outrigger_tests::app::Echo;
use outrigger_tests::client::{Curl, gets, http_get};
use outrigger_tests::manifests::{service, unmeshed};
use outrigger_tests::process::{ControlPlane, Proxy, free_port, local};
use outrigger_tests::{eventually, within};

/// Longest that anybody may be kept waiting by something that has nothing to do with them.
const AT_ONCE: Duration = Duration::from_secs(1);
/// An HTTP/2 connection's first words, and a PING, about which a debugging process says two lines.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const PING: &[u8] = b"\0\0\x08\x06\0\0\0\0\0pingpong";

/// The status of a GET of the admin server, answered at once.
#[track_caller]
fn promptly(admin: u16, path: &str) -> u16 {
    let began = Instant::now();
    let status = http_get(admin, path).map_or(0, |answer| answer.0);
    assert!(began.elapsed() < AT_ONCE, "{path} took {:?}", began.elapsed());
    status
}

#[test]
fn a_proxy_whose_log_nobody_reads_serves_learns_and_ends() {
    let app = Echo::start("app");
    let plane = ControlPlane::start(&[("app.yaml", &unmeshed("app", "http", app.port))]);
    let port = free_port();
    let listen = format!("127.0.0.1:{port}=app.bank:80");
    let more = ["--listen", &listen, "--workers", "1", "--log", "debug"];
    let mut caller = Proxy::start_unread(&plane, "caller", &more);
    within(Duration::from_secs(60), "lines are dropped", || {
        gets(port, 500);
        assert_eq!(promptly(caller.admin, "/live"), 200);
        caller.count("outrigger_log_dropped_total", &[]) > 0.0
    });
    assert!(caller.count("outrigger_records_dropped_total", &["sink=\"access_log\""]) > 0.0);
    // The control thread goes on, too: what is new comes through.
    plane.write("more.yaml", &unmeshed("more", "http", app.port));
    eventually("the proxy learns of a new service", || {
        Curl::through(&caller).get("http://more.bank/").status == 200
    });
    caller.process().read("lines are missing");
    // Full again, and told to end.
    let before = caller.count("outrigger_log_dropped_total", &[]);
    within(Duration::from_secs(60), "lines are dropped again", || {
        gets(port, 500);
        caller.count("outrigger_log_dropped_total", &[]) > before
    });
    caller.process().terminate();
    assert!(caller.process().wait(Duration::from_secs(10)).success());
}

#[test]
fn a_control_plane_whose_log_nobody_reads_goes_on() {
    let mut plane = ControlPlane::start_unread(&[], &["--log", "debug"]);
    let mut chatter = TcpStream::connect(local(plane.listen)).expect("a connection");
    chatter.write_all(PREFACE).expect("written");
    within(Duration::from_secs(60), "lines are dropped", || {
        // It answers each; nobody reads that either, and the kernel's buffers hold thousands.
        chatter.write_all(&PING.repeat(100)).expect("written");
        assert_eq!(promptly(plane.admin, "/live"), 200);
        let metrics = http_get(plane.admin, "/metrics").map(|answer| answer.1).unwrap_or_default();
        let mut lines = metrics.lines();
        let count =
            lines.find_map(|l| l.strip_prefix("outrigger_control_plane_log_dropped_total "));
        count.is_some_and(|n| n != "0")
    });
    plane.write("web.yaml", &service("web", "http"));
    eventually("a new service is in the index", || plane.admin("/index").contains("bank/web"));
    let proxy = Proxy::caller(&plane, &[]);
    assert!(proxy.is_ready());
    plane.process_mut().read("lines are missing");
    plane.process().terminate();
    assert!(plane.process_mut().wait(Duration::from_secs(10)).success());
}
