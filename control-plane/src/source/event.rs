//! What sources tell the index, and the one way by which it gets there.

use crate::object::{Object, ObjectId};
use crate::publish::{Commit, Publisher};

/// What a source says of one object.
#[derive(Debug)]
pub enum Event {
    /// It is there, in this version.
    Apply(Box<Object>),
    /// It is no more. One that was never there is no error.
    Remove(ObjectId),
}

/// Puts events in force in their order, together: nobody sees some of them without the others.
pub fn commit(publisher: &Publisher, events: impl IntoIterator<Item = Event>) -> Commit {
    let ((), commit) = publisher.commit(|index| {
        for event in events {
            match event {
                Event::Apply(object) => index.apply(*object),
                Event::Remove(id) => index.remove(&id),
            }
        }
    });
    commit
}
