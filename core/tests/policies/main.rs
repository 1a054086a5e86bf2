//! Seeded simulations of the state machines in `core/src/policy/`: thousands of random schedules each,
//! against what their documentation guarantees.
//!
//! Time is virtual. A failing schedule prints its seed; `OUTRIGGER_SEED=<seed>` replays it.

#![allow(clippy::unwrap_used, reason = "a broken test may panic, with its seed")]

mod breaker;
mod budget;
mod concurrency;
mod correlation;
mod health;
mod outlier;
mod pace;
mod preference;
mod rate_limit;
mod retry;
mod stop;
mod support;
mod window;
