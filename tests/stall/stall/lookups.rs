//! A name server that says nothing: requests for its names wait, and no others.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use outrigger_tests::app::Echo;
use outrigger_tests::client::{Curl, http_get};
use outrigger_tests::manifests::unmeshed;
use outrigger_tests::process::{ControlPlane, Proxy, local};
use outrigger_tests::{skip, within};

/// Of the loopback interface, and nobody else's.
const SERVER: &str = "127.83.72.104";
/// Callers that wait, each for a name of its own.
const WAITING: usize = 200;

#[test]
fn a_silent_name_server_holds_up_its_own_requests_only_and_not_for_ever() {
    if !rustix::process::geteuid().is_root() {
        let test = "a_silent_name_server_holds_up_its_own_requests_only_and_not_for_ever";
        return skip(test, "an /etc/resolv.conf of its own takes root");
    }
    // Both take every question, and answer none.
    let udp = UdpSocket::bind((SERVER, 53)).expect("a name server's port");
    let _tcp = TcpListener::bind((SERVER, 53)).expect("a name server's port");
    let app = Echo::start("app");
    let plane = ControlPlane::start(&[("app.yaml", &unmeshed("app", "http", app.port))]);
    let resolv = format!("nameserver {SERVER}\n");
    let caller = Proxy::start_with_file(&plane, "caller", "/etc/resolv.conf", &resolv);
    assert_eq!(Curl::through(&caller).get("http://app.bank/").status, 200);
    let mut waiting: Vec<TcpStream> = (0..WAITING)
        .map(|n| {
            let mut stream = TcpStream::connect(local(caller.outbound)).expect("a connection");
            let host = format!("silent-{n}.example.com");
            let head =
                format!("GET http://{host}/ HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n\r\n");
            stream.write_all(head.as_bytes()).expect("a write");
            stream
        })
        .collect();
    udp.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
    udp.recv(&mut [0; 512]).expect("a question");
    for _ in 0..20 {
        let began = Instant::now();
        assert_eq!(Curl::through(&caller).get("http://app.bank/").status, 200);
        assert_eq!(http_get(caller.admin, "/live").map(|answer| answer.0), Some(200));
        assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    }
    for stream in &mut waiting {
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
        let mut answer = String::new();
        stream.read_to_string(&mut answer).expect("an answer");
        assert!(answer.contains("dns_error"), "{answer}");
    }
    let open = || caller.count("outrigger_connections_open", &[]);
    within(Duration::from_secs(10), "no connection is left", || open() == 0.0);
}
