//! The suite of [`stall`].

mod stall;
