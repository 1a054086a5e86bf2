//! Why the rest of a body does not come.

/// A body could not be carried to its end.
#[derive(Debug, thiserror::Error)]
pub enum BodyError {
    #[error("{0}")]
    Hyper(#[from] hyper::Error),
    #[error("{0}")]
    Http2(#[from] h2::Error),
    #[error("the deadline passed")]
    DeadlineExceeded,
    #[error("nothing came for longer than the idle timeout")]
    Idle,
    #[error("the response has a transfer coding other than chunked")]
    TransferCoding,
    #[error("the upstream changed protocols before it had got the request")]
    EarlySwitch,
    /// The mirrored copy fell behind or its original broke off.
    #[error("the mirrored request was given up")]
    MirrorGone,
    /// The caller's body broke off before, or this part of it was not kept for a further reader.
    #[error("the rest of the request body is gone")]
    Gone,
}
