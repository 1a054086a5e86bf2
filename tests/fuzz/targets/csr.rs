//! A certificate request, which anybody may send: only a P-256 key comes out.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_control_plane::ca::csr;

fuzz_target!(|der: &[u8]| {
    if let Err(error) = csr::parse(der) {
        assert!(error.to_string().len() < 100);
    }
});
