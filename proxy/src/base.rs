//! What everything else stands on: settings, the disk, memory, this host.

pub mod clock;
pub mod direction;
pub mod disk;
pub(crate) mod local;
pub mod memory;
pub mod peer;
pub mod refusal;
pub mod settings;
pub mod sync;
