//! Streams, as the admin server asks them, and what they say of their proxies.

use std::fmt::Debug;

/// What a proxy has made of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Acknowledgement<'a> {
    Pending,
    Acknowledged,
    Refused(&'a str),
}

/// A proxy that is told of changes.
pub trait Subscriber: Debug + Send + Sync {
    /// What the admin server shows.
    fn describe(&self) -> serde_json::Value;
}
