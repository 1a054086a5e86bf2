//! The way that a request says to have come: what is trusted is bounded, and one visit more is valid again or
//! the end.
#![no_main]

use http::HeaderValue;
use libfuzzer_sys::fuzz_target;
use outrigger_core::policy::visits::{HOP_LIMIT, VisitStop, is_valid, visit};

fuzz_target!(|bytes: &[u8]| {
    let Ok(via) = HeaderValue::from_bytes(bytes) else { return };
    let next = visit(Some(&via), "bank/orders:80", 1, 1);
    if !is_valid(&via) {
        return;
    }
    let text = via.to_str().expect("invariant: what is valid is text");
    let count = text.split(',').count();
    assert!(count <= HOP_LIMIT && text.len() <= HOP_LIMIT * 1_000);
    match next {
        Ok(next) => assert!(count < HOP_LIMIT && is_valid(&next)),
        Err(VisitStop::Loop(_)) => assert!(text.contains("bank/orders:80;00000001")),
        Err(VisitStop::TooFar(_)) => assert_eq!(count, HOP_LIMIT),
    }
});
