//! Taps for people: somebody who may see requests ([`authorize`]) opens one at the admin server ([`page`]).

pub mod authorize;
pub mod page;
