//! An attempt that brought no answer: why, and whether somebody may have acted on it.

use outrigger_core::policy::retry::{Failure, Skip};
use outrigger_core::reason::{Reason, Side};

use crate::base::refusal::{Injected, Refusal};
use crate::upstream::pool::connect::ConnectError;
use crate::upstream::pool::stream::SendError;
use crate::upstream::target::AttemptTarget;
use crate::wire::error::BodyError;
use crate::wire::streams::first::NOT_HTTP2;

/// An attempt that brought no answer.
pub struct FailedAttempt {
    pub reason: Reason,
    pub detail: String,
    /// Somebody may have acted on the request.
    pub processed: bool,
    /// The connection was an idle one that ended, which says nothing about the upstream.
    pub stale: bool,
    /// A fault injection did it.
    pub injected: Option<Box<Injected>>,
}

/// What an attempt that ran out of time waited for.
#[derive(Clone, Copy)]
pub(crate) enum Waited {
    Connection,
    FirstByte,
    Attempt,
}

impl FailedAttempt {
    pub fn unprocessed(reason: Reason, detail: String) -> Self {
        Self { reason, detail, processed: false, stale: false, injected: None }
    }

    pub fn injected(detail: String, injected: Injected) -> Self {
        let processed = injected.answer.failure != Some(Failure::Unprocessed);
        let (reason, injected) = (Reason::FaultInjected, Some(Box::new(injected)));
        Self { reason, detail, processed, stale: false, injected }
    }

    /// What stands for an answer of the service's.
    pub fn is_answer(&self) -> bool {
        let broken = |failure| matches!(failure, Some(Failure::Unprocessed | Failure::Reset));
        self.injected.as_ref().is_some_and(|injected| !broken(injected.answer.failure))
    }

    /// Whether the upstream or the way to it is at fault.
    pub fn blames_upstream(&self) -> bool {
        self.reason.side() == Side::Upstream && !self.stale
    }

    /// None: it is the caller's own fault.
    pub fn kind(&self) -> Option<Failure> {
        if let Some(injected) = &self.injected {
            return injected.answer.failure;
        }
        match self.reason {
            reason if reason.side() == Side::Downstream => None,
            _ if !self.processed => Some(Failure::Unprocessed),
            Reason::AttemptTimeout | Reason::FirstByteTimeout => Some(Failure::Timeout),
            _ => Some(Failure::Reset),
        }
    }

    /// Says why it was not tried again, where somebody might have expected it.
    pub fn because(mut self, skip: Skip) -> Self {
        if skip != Skip::NotConfigured {
            self.detail = format!("{}; not tried again: {}", self.detail, skip.as_str());
        }
        self
    }
}

impl From<ConnectError> for FailedAttempt {
    fn from(error: ConnectError) -> Self {
        Self::unprocessed(error.reason, error.detail.to_string())
    }
}

/// A request that can't be written was refused before anything was sent.
impl From<Refusal> for FailedAttempt {
    fn from(refusal: Refusal) -> Self {
        Self::unprocessed(refusal.reason, refusal.detail.into_owned())
    }
}

impl From<FailedAttempt> for Refusal {
    fn from(failed: FailedAttempt) -> Self {
        Self {
            injected: failed.injected,
            processed: failed.processed,
            ..Self::new(failed.reason, failed.detail)
        }
    }
}

pub(crate) fn timed_out(target: &AttemptTarget, waited: Waited) -> FailedAttempt {
    let (reason, what) = match waited {
        Waited::Connection => (Reason::ConnectTimeout, "no connection"),
        Waited::FirstByte => (Reason::FirstByteTimeout, "no response"),
        Waited::Attempt => (Reason::AttemptTimeout, "no response in this attempt"),
    };
    let processed = !matches!(waited, Waited::Connection);
    FailedAttempt {
        reason,
        detail: format!("{}: {what} within the policy's timeout", target.address),
        processed,
        stale: false,
        injected: None,
    }
}

/// What an error says about whether the request was processed.
pub(crate) fn failure(target: &AttemptTarget, failed: SendError) -> FailedAttempt {
    let SendError { error, unsent, reused } = failed;
    let (h2, why) = match &error {
        BodyError::Http2(error) => (Some(error), chain(error)),
        BodyError::Hyper(error) => {
            let source = std::error::Error::source(error);
            (source.and_then(|source| source.downcast_ref::<::h2::Error>()), chain(error))
        }
        other => (None, other.to_string()),
    };
    let refused = h2.is_some_and(|e| {
        // Refused by name, or beyond the last id of a graceful GOAWAY (RFC 9113 section 8.7).
        (e.is_reset() && e.reason() == Some(::h2::Reason::REFUSED_STREAM))
            || (e.is_go_away() && e.is_remote() && e.reason() == Some(::h2::Reason::NO_ERROR))
    });
    let detail = format!("{}: {why}", target.address);
    if unsent || refused {
        return FailedAttempt::unprocessed(Reason::UpstreamReset, detail);
    }
    if h2.is_some_and(is_other_protocol) {
        // It has seen no request in what it was sent.
        return FailedAttempt::unprocessed(Reason::UpstreamProtocolError, detail);
    }
    let reason = match &error {
        BodyError::Hyper(error) if error.is_parse() => Reason::UpstreamProtocolError,
        BodyError::TransferCoding | BodyError::EarlySwitch => Reason::UpstreamProtocolError,
        _ => Reason::UpstreamResetAmbiguous,
    };
    let stale = reused && reason == Reason::UpstreamResetAmbiguous;
    FailedAttempt { reason, detail, processed: true, stale, injected: None }
}

/// Whether the first words of the connection were not those of HTTP/2.
fn is_other_protocol(error: &::h2::Error) -> bool {
    error.get_io().is_some_and(|error| error.kind() == NOT_HTTP2)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_lack_is_not_the_upstreams_fault() {
        let blames = |reason| FailedAttempt::unprocessed(reason, String::new()).blames_upstream();
        for reason in [Reason::TooManyInFlight, Reason::Overloaded, Reason::Draining] {
            assert!(!blames(reason), "{reason}");
        }
        for reason in [Reason::ConnectFailed, Reason::UpstreamReset, Reason::AttemptTimeout] {
            assert!(blames(reason), "{reason}");
        }
        let stale = FailedAttempt {
            stale: true,
            ..FailedAttempt::unprocessed(Reason::UpstreamResetAmbiguous, String::new())
        };
        assert!(!stale.blames_upstream());
    }
}
