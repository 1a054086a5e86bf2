//! The suite of [`replay`].

mod replay;
