//! Time as policies count it.

use std::sync::OnceLock;
use std::time::Instant;

/// Milliseconds since the process began, as latency estimates count them.
pub fn coarse_ms(now: Instant) -> u32 {
    static START: OnceLock<Instant> = OnceLock::new();
    let start = *START.get_or_init(Instant::now);
    now.saturating_duration_since(start).as_millis() as u32
}
