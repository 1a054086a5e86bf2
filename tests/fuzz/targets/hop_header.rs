//! The header by which a proxy says where a request goes: one reading, and the same when it is written again.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_core::config::Protocol;
use outrigger_proxy::wire::hop::{To, parse_hop};

fuzz_target!(|text: &str| {
    let Some(to) = parse_hop(text.as_bytes()) else { return };
    let To { port, protocol, by_policy, trace_by_id, absolute, service } = to.clone();
    let name = match protocol {
        Protocol::Http1 => "h1",
        Protocol::Http2 => "h2",
        Protocol::Grpc => "grpc",
        other => panic!("{other:?} is no protocol of a hop"),
    };
    let deadline = if by_policy { ";deadline=policy" } else { "" };
    let trace = if trace_by_id { ";trace=id" } else { "" };
    let form = if absolute { ";form=absolute" } else { "" };
    let service = service.map(|name| format!(";service={}", String::from_utf8_lossy(&name)));
    let called = service.as_deref().unwrap_or_default();
    let again = format!("1;port={port};proto={name}{deadline}{trace}{form}{called}");
    assert_eq!(parse_hop(again.as_bytes()).as_ref(), Some(&to));
    assert!(text.contains(&format!("proto={name}")) && by_policy <= text.contains("policy"));
    // Whatever is added, nothing of it changes; said twice, it says nothing.
    assert_eq!(parse_hop(format!("{text};new=1").as_bytes()), Some(to));
    for more in ["port=1", "proto=h1"].into_iter().chain(service.map(|_| "service=x")) {
        assert_eq!(parse_hop(format!("{text};{more}").as_bytes()), None);
    }
});
