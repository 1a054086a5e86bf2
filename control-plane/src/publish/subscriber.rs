//! Streams, as status and the admin server ask them.

use std::fmt::Debug;

use outrigger_core::name::DestinationName;

/// What a proxy has made of a resource.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer<'a> {
    Pending,
    Acknowledged,
    Refused(&'a str),
}

/// A proxy that is told of changes.
pub trait Subscriber: Debug + Send + Sync {
    /// The destinations that it was sent, and what it made of what it was sent last.
    fn answers(&self, take: &mut dyn FnMut(&DestinationName, Answer<'_>));

    /// What it has made of its own ports, by workload.
    fn inbound_answers(&self, take: &mut dyn FnMut(&str, Answer<'_>));

    /// What the admin server shows.
    fn describe(&self) -> serde_json::Value;
}
