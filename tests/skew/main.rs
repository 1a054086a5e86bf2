//! The suite of [`skew`].

mod skew;
