//! The path that access rules see: one form, which has no second reading.
#![no_main]

use libfuzzer_sys::fuzz_target;
use outrigger_core::path::canonical;

fuzz_target!(|path: &str| {
    let Ok(once) = canonical(path) else { return };
    assert!(once.starts_with('/') && once.is_ascii());
    assert!(!once.contains("//") && !once.contains('\\') && !once.contains("%2F"));
    assert!(!once.split('/').any(|segment| matches!(segment, "." | "..")));
    assert_eq!(canonical(&once).as_deref(), Ok(&*once), "the canonical form of {path:?}");
});
