//! What a proxy that registers sends: whatever its bytes are, nothing comes of them but a workload within
//! its bounds, at an address where others may be sent, and the same one again from the copy on disk.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_control_plane::grant::Grant;
use outrigger_control_plane::translate::workload;
use outrigger_core::address::LocalEndpoints;
use outrigger_core::bounds;
use outrigger_proto::mesh::RegisterRequest;
use outrigger_proto::mesh::register_request::Message as Incoming;
use prost::Message;

fuzz_target!(|bytes: &[u8]| {
    // A grant is read from a certificate, and says what it says.
    if let Some(grant) = Grant::from_extension(bytes)
        && let Some(content) = grant.to_extension()
    {
        assert_eq!(Grant::from_extension(&content), Some(grant));
    }
    let Ok(RegisterRequest { message: Some(Incoming::Registration(raw)), .. }) =
        RegisterRequest::decode(bytes)
    else {
        return;
    };
    for local in [LocalEndpoints::Refuse, LocalEndpoints::Loopback, LocalEndpoints::Allow] {
        let registered = match workload::translate(&raw, local) {
            Ok(registered) => registered,
            Err(error) => {
                assert!(!error.path.is_empty() && error.to_string().len() < 1024);
                continue;
            }
        };
        let mesh = registered.mesh.as_ref().map(|mesh| mesh.address.ip());
        for ip in [registered.address].into_iter().chain(mesh) {
            assert!(local.check(ip).is_ok(), "{ip}");
        }
        assert!(registered.labels.len() <= bounds::LABELS);
        assert!(registered.ports.len() <= bounds::WORKLOAD_PORTS);
        assert!(registered.ports.iter().all(|port| port.port != 0));
        // No part can hold a dot.
        assert_eq!(registered.uid().matches('.').count(), 1);
        let again = workload::translate(&workload::to_wire(&registered), local);
        assert_eq!(again.as_ref(), Ok(&registered));
    }
});
