//! What operators ask of calls, one file per policy: its type, its decision or state machine taking
//! `now` and randomness as arguments, its constants with their reasons, its tests.

pub mod access;
