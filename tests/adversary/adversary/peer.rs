//! From somebody who reaches the control plane's port: others go on being told, and memory is where it was.

use std::io::Write;
use std::net::TcpStream;
use std::time::Duration;

use outrigger_tests::app::Echo;
use outrigger_tests::client::{Curl, raw};
use outrigger_tests::manifests::{service, unmeshed};
use outrigger_tests::process::{ControlPlane, Proxy, local};

use super::requests::h2;

/// Most that a control plane may hold in a debug build, in KiB.
const MEMORY: u64 = 64 * 1024;
const SOON: Duration = Duration::from_secs(2);

/// Bytes that no proxy sends.
fn strange() -> Vec<Vec<u8>> {
    let call = |path: &str, body: &[u8]| {
        let fields = [
            (":method", "POST"),
            (":scheme", "http"),
            (":path", path),
            (":authority", "control-plane"),
            ("content-type", "application/grpc"),
            ("te", "trailers"),
        ];
        h2(&fields, Some(body))
    };
    let long = [&[0, 0xff, 0xff, 0xff, 0xff][..], &[0x0a; 64]].concat();
    vec![
        b"\x00\x01\x02\x03".to_vec(),
        b"GET / HTTP/1.1\r\nhost: a\r\n\r\n".to_vec(),
        b"\x16\x03\x01\x40\x00\x01\x00".to_vec(),
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff".to_vec(),
        call(
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
            b"\x00\x00\x00\x00\x03abc",
        ),
        call(
            "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources",
            &long,
        ),
        call("/outrigger.mesh.v1.Workload/Register", b"\x00\x00\x00\x00\x02\x0a\xff"),
        call("/outrigger.identity.v1.Identity/Certify", &long),
        call("/no/such", b""),
    ]
}

fn shrugs_off(plane: &mut ControlPlane, app: &Echo) {
    let caller = Proxy::caller(plane, &[]);
    let mut held = Vec::new();
    for bytes in strange() {
        for _ in 0..20 {
            let mut stream = TcpStream::connect(local(plane.listen)).expect("a connection");
            // It may be refused at once.
            let _ = stream.write_all(&bytes);
            held.push(stream);
        }
        raw(plane.listen, &bytes, SOON);
    }
    plane.write("late.yaml", &unmeshed("late", "http", app.port));
    outrigger_tests::eventually("others are told what is new", || {
        Curl::through(&caller).get("http://late.bank/").status == 200
    });
    drop(held);
    assert!(plane.process().pss() < MEMORY, "{} KiB", plane.process().pss());
    assert!(plane.admin("/ready").starts_with("ready"));
}

#[test]
fn strange_bytes_disturb_nobody_with_identities_and_without() {
    let app = Echo::start("app");
    let files = [("web.yaml", service("web", ""))];
    let files: Vec<_> = files.iter().map(|(name, text)| (*name, &**text)).collect();
    shrugs_off(&mut ControlPlane::start(&files), &app);
    shrugs_off(&mut ControlPlane::start_with_identity(&files, &[]), &app);
}
