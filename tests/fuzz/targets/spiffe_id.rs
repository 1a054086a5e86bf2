//! An identity: what is read is what is written, and nothing is read in two ways.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_core::identity::{SpiffeId, TrustDomain};

fuzz_target!(|text: &str| {
    let Ok(id) = text.parse::<SpiffeId>() else { return };
    assert_eq!(id.as_str(), text);
    let domain: TrustDomain = id.trust_domain().parse().expect("invariant: a part of an identity");
    let again = SpiffeId::new(&domain, id.namespace(), id.service_account());
    assert_eq!(again.as_ref(), Ok(&id));
    for part in [id.trust_domain(), id.namespace(), id.service_account()] {
        assert!(!part.is_empty() && !part.contains('/'), "{part:?} of {text:?}");
    }
});
