//! A peer's certificate: the identity and the times that it names.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_core::identity::SpiffeId;
use outrigger_proxy::tls::verify::{spiffe_id, validity};

fuzz_target!(|der: &[u8]| {
    match spiffe_id(der) {
        Ok(id) => assert_eq!(id.as_str().parse::<SpiffeId>().as_ref(), Ok(&id)),
        // Clients choose these bytes, and the text goes to a log.
        Err(error) => assert!(error.to_string().len() < 1_000),
    }
    assert!(validity(der).is_ok() || spiffe_id(der).is_err());
});
