//! What a caller sends on HTTP/2, behind its preface: frames, in any order and of any content
//! (`proxy/src/serve/http2.rs`, `streams.rs`, the head of each request).
#![no_main]

mod support;

use libfuzzer_sys::fuzz_target;
use outrigger_core::config::Protocol;

/// With an empty SETTINGS frame.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
const ANSWER: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\nconnection: close\r\n\r\nok";

fuzz_target!(|frames: &[u8]| {
    support::exchange([PREFACE, frames].concat(), ANSWER.to_vec(), (Protocol::Http2, "h1"));
});
