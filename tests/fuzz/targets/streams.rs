//! What an app answers on HTTP/2: frames, in any order and of any content, to a request with a body
//! (`proxy/src/wire/streams.rs`, `pool/stream.rs`, the head of the answer).
#![no_main]

mod support;

use libfuzzer_sys::fuzz_target;
use outrigger_core::config::Protocol;

const SETTINGS: &[u8] = b"\0\0\0\x04\0\0\0\0\0";

fuzz_target!(|frames: &[u8]| {
    let body = "x".repeat(70_000);
    let request = format!(
        "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    );
    support::exchange(request.into_bytes(), [SETTINGS, frames].concat(), (Protocol::Http1, "h2"));
});
