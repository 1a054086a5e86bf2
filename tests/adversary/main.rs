//! The suite of [`adversary`].

mod adversary;
