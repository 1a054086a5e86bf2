//! The bank as processes: calling each other directly, and through a forward proxy.

#![allow(clippy::unwrap_used, reason = "a broken test may panic")]

mod direct;
mod proxied;
mod support;
