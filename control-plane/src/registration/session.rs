//! What tells one proxy process from another that claims the same name: a random value that the first one
//! made and nobody else has heard. Only its hash is kept.

use sha2::{Digest, Sha256};

const BYTES: usize = 32;

/// The hash of a process' value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SessionHash([u8; BYTES]);

impl SessionHash {
    /// Of what a registration holds; none of one that holds nothing.
    pub(super) fn of(value: &[u8]) -> Option<Self> {
        (!value.is_empty()).then(|| Self(Sha256::digest(value).into()))
    }

    /// As [`Self::hash`] gave it.
    pub(super) fn from_hash(hash: &[u8]) -> Option<Self> {
        hash.try_into().ok().map(Self)
    }

    pub(super) fn hash(&self) -> &[u8] {
        &self.0
    }
}
