//! What goes back to the caller.

pub mod body;
pub mod respond;
