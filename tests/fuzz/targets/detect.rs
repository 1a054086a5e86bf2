//! The first bytes of a connection: a verdict, once given, stands whatever follows.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_core::detect::{Detected, MAX_DETECT, detect};

fuzz_target!(|bytes: &[u8]| {
    let whole = detect(bytes);
    if bytes.len() >= MAX_DETECT {
        assert_ne!(whole, Detected::NeedMore, "no more bytes are ever shown");
        return;
    }
    // Every beginning would cost hundreds of looks at a long one.
    for end in (0..bytes.len()).step_by(1 + bytes.len() / 16) {
        let early = detect(&bytes[..end]);
        assert!(
            early == Detected::NeedMore || early == whole,
            "{early:?} at {end}, then {whole:?}"
        );
    }
    if let Detected::Tls { server_name: Some(name) } = whole {
        assert!(!name.is_empty() && name.len() <= 253 && name.to_ascii_lowercase() == name);
    }
});
