//! The attempts of one request: which failed ones are made again, when, and why the others are not.
//!
//! The decision is [`retry::judge`]; the budget of the service and the time that is left have the last
//! word. What is not tried again although a policy wanted it is counted and said.

use std::time::{Duration, Instant, SystemTime};

use http::{Response, header};
use outrigger_core::policy::retry::{self, Failure, Replay, Skip};
use outrigger_core::reason::{Cause, Reason, Side};

use crate::base::refusal::Refusal;
use crate::call::attempt;
use crate::call::failed::FailedAttempt;
use crate::call::hedge::{self, Hedging};
use crate::call::pace::pace;
use crate::call::target::{self, answered, said};
use crate::call::upstream::Call;
use crate::call::verdict::Verdict;
use crate::observe::metrics::add;
use crate::observe::record::AttemptEnd;
use crate::request::exchange::Exchange;
use crate::request::head::{Head, head_already_sent, is_idempotent};
use crate::upstream::endpoint::guard::acquire_in_flight;
use crate::upstream::pool::h1::Reuse;
use crate::upstream::target::AttemptTarget;
use crate::wire::headers::EXHAUSTED;
use crate::wire::streams::WireBody;

/// A `Retry-After` that asks for longer is not waited for, even without a deadline: the caller can wait
/// as well.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// Makes attempts until there is an answer worth giving.
pub async fn run(
    call: &Call<'_>,
    exchange: &mut Exchange,
    head: &mut Option<Head>,
) -> Result<Response<WireBody>, Refusal> {
    let Call { upstream, body, .. } = *call;
    let policy = &call.policy.retries;
    if let Some(endpoints) = upstream.endpoints() {
        pace(endpoints, exchange).await?;
        exchange.in_flight = acquire_in_flight(endpoints, &mut exchange.phases.queue).await?;
        endpoints.guard.request();
    }
    let may_repeat = policy.max_attempts > 1 || call.policy.sends_elsewhere();
    body.keep_at_most(if may_repeat { policy.max_replay_bytes } else { 0 });
    let (tried, pause) = (Vec::new(), Duration::ZERO);
    let mut attempts = AttemptLoop { call, tried, pause, refresh: false };
    loop {
        let current = head.as_ref().ok_or_else(head_already_sent)?;
        exchange.attempts += 1;
        let mut target =
            attempt::choose(call, exchange, current.upgrade.is_some(), &attempts.tried)?;
        let reuse = match attempts.refresh {
            true => Reuse::Never,
            false if is_idempotent(current) => Reuse::Any,
            false => Reuse::Safe,
        };
        let keep = attempts.made(exchange) < policy.max_attempts || reuse == Reuse::Any;
        let sent = match hedge::delay(call, current, exchange.attempts) {
            None => {
                let (sending, kept) =
                    (body.again().ok_or_else(head_already_sent)?, (&mut *head, keep));
                attempt::send(call, exchange, &mut target, kept, sending, reuse).await
            }
            Some(delay) => {
                let hedging = Hedging { call, reuse, delay };
                Box::pin(hedging.send(exchange, &mut target, head)).await
            }
        };
        let wait = match attempts.next(exchange, &target, head, sent) {
            NextStep::Again(wait) => wait,
            NextStep::Done(sent) => return sent,
        };
        if !wait.is_zero() {
            // Boxed: rare, and the future of every request would carry its size.
            Box::pin(tokio::time::sleep(wait)).await;
        }
    }
}

/// What becomes of a request after an attempt.
enum NextStep {
    Again(Duration),
    Done(Result<Response<WireBody>, Refusal>),
}

/// What all attempts of a request have in common.
struct AttemptLoop<'a> {
    call: &'a Call<'a>,
    /// The endpoints that have failed.
    tried: Vec<u64>,
    /// The last one.
    pause: Duration,
    /// An attempt has met a connection that was just ending, and the next one has to open its own.
    refresh: bool,
}

impl AttemptLoop<'_> {
    /// Attempts so far, as policies count them.
    fn made(&self, exchange: &Exchange) -> u8 {
        exchange.attempts.saturating_sub(u8::from(self.refresh))
    }

    /// Whether the attempt met a connection that the upstream was just closing, and the request can be sent
    /// once more on a fresh one, as RFC 9110 section 9.2.2 lets every client do. It is no retry: no policy
    /// applies to it and no budget pays for it, since the connection was this proxy's choice.
    fn may_refresh(
        &self,
        sent: &Result<Response<WireBody>, FailedAttempt>,
        replay: Replay,
    ) -> bool {
        let stale = sent.as_ref().is_err_and(|failed| failed.stale);
        stale && replay.idempotent && replay.kept && !self.refresh
    }

    /// Whether there is a further attempt, and after which pause. Takes what came of this one: the future of
    /// every request would carry its size.
    fn next(
        &mut self,
        exchange: &mut Exchange,
        target: &AttemptTarget,
        head: &mut Option<Head>,
        sent: Result<Response<WireBody>, FailedAttempt>,
    ) -> NextStep {
        let (policy, body) = (&self.call.policy.retries, self.call.body);
        let failure = match &sent {
            Ok(response) => answered(exchange, target, policy, response),
            Err(_) if body.is_broken() => {
                // The upstream failed only because there was no more to send to it.
                let why = "the request broke off before its end";
                return NextStep::Done(Err(Refusal::new(Reason::DownstreamReset, why)));
            }
            Err(failed) => failed.kind(),
        };
        let Some(failure) = failure else {
            return NextStep::Done(end(exchange, target, self.call, sent, false));
        };
        if let Some(head) = head {
            head.restore();
        }
        // The last attempt has taken the head, and is not made again whatever it was.
        let idempotent = head.as_ref().is_some_and(is_idempotent);
        let replay = Replay { idempotent, kept: body.is_whole() };
        if self.may_refresh(&sent, replay) {
            self.refresh = true;
            note_again(self.call, exchange, target, failure, &sent);
            return NextStep::Again(Duration::ZERO);
        }
        let made = self.made(exchange);
        let again = retry::judge(policy, failure, made, replay, exhausted(target, &sent))
            .map_err(|skip| match skip {
                Skip::BodyTooLarge if body.found_no_memory() => Skip::NoMemory,
                skip => skip,
            })
            .and_then(|()| {
                let random = self.call.worker().random();
                self.pause = retry::pause(policy, made, self.pause, random);
                wait(exchange, self.pause, sent.as_ref().ok())
            })
            .and_then(|wait| match self.call.upstream.endpoints() {
                Some(endpoints) if !endpoints.guard.may_retry() => Err(Skip::NoBudget),
                _ => Ok(wait),
            });
        match again {
            Ok(wait) => {
                target.note_failure(&mut self.tried, is_unreachable(exchange, target, &sent));
                note_again(self.call, exchange, target, failure, &sent);
                NextStep::Again(wait)
            }
            Err(skip) => {
                if is_unreachable(exchange, target, &sent) {
                    // Or it would stay as popular as it was: refusing is quick.
                    target.note_failure(&mut self.tried, true);
                }
                give_up(exchange, skip);
                let sent = sent.map_err(|failed| failed.because(skip));
                NextStep::Done(end(exchange, target, self.call, sent, true))
            }
        }
    }
}

/// The endpoint, or the proxy before it, did not even take the request.
fn is_unreachable(
    exchange: &Exchange,
    target: &AttemptTarget,
    sent: &Result<Response<WireBody>, FailedAttempt>,
) -> bool {
    match sent {
        Ok(response) => target::unprocessed(exchange, target, response).is_some(),
        Err(failed) => !failed.is_answer() && failed.blames_upstream(),
    }
}

/// Whether a proxy further on has tried as often as it may.
fn exhausted(target: &AttemptTarget, sent: &Result<Response<WireBody>, FailedAttempt>) -> bool {
    let response = sent.as_ref().ok().filter(|_| target.wire.is_hop());
    response.is_some_and(|response| response.headers().contains_key(EXHAUSTED))
}

/// How long to wait: the policy's pause, or what the answer asks for if that is longer.
fn wait(
    exchange: &Exchange,
    pause: Duration,
    response: Option<&Response<WireBody>>,
) -> Result<Duration, Skip> {
    let asked = response
        .and_then(|response| response.headers().get(header::RETRY_AFTER)?.to_str().ok())
        .and_then(|value| retry::retry_after(value, SystemTime::now()))
        .unwrap_or_default();
    let wait = pause.max(asked);
    let left = match &exchange.deadline {
        Some(deadline) => deadline.left(Instant::now()).unwrap_or_default(),
        None => LONGEST_WAIT,
    };
    if wait >= left { Err(Skip::NoTime) } else { Ok(wait) }
}

/// Counts why there is no further attempt, and tells those above where they need not try again either.
fn give_up(exchange: &mut Exchange, skip: Skip) {
    exchange.not_retried = Some(skip);
    let metrics = &exchange.connection.worker.proxy.metrics;
    if skip != Skip::NotConfigured {
        add(&metrics.gauges.retries_skipped[skip as usize], 1);
    }
    if matches!(skip, Skip::AttemptsUsed | Skip::Exhausted | Skip::NoBudget)
        && let Some(inbound) = &exchange.inherited
    {
        inbound.note_exhausted();
    }
}

fn note_again(
    call: &Call<'_>,
    exchange: &mut Exchange,
    target: &AttemptTarget,
    failure: Failure,
    sent: &Result<Response<WireBody>, FailedAttempt>,
) {
    let (detail, blame) = match sent {
        // A proxy that drains is not unhealthy.
        Ok(response) => match target::unprocessed(exchange, target, response) {
            Some(reason) => {
                (format!("{}: {reason}", target.address), reason.side() == Side::Upstream)
            }
            None => {
                let verdict = Verdict::of(response, exchange.is_grpc(), target.wire.is_hop());
                (
                    format!("{}: status {}", target.address, response.status()),
                    verdict == Verdict::Failed,
                )
            }
        },
        Err(failed) => (failed.detail.clone(), failed.blames_upstream()),
    };
    let (status, cause) = match sent {
        Ok(response) => {
            (Some(response.status()), target::refused(exchange, target, response).map(Cause::peer))
        }
        Err(failed) => (None, Some(Cause::local(failed.reason))),
    };
    exchange.attempted(status, cause, call.body.given(None), AttemptEnd::Retried);
    exchange.end_attempt(blame);
    let unprocessed = failure == Failure::Unprocessed;
    let reason = if unprocessed { Reason::RetriedUnprocessed } else { Reason::Retried };
    exchange.cause = Some(Cause::local(reason));
    exchange.detail = Some(detail.into());
    if let Some(endpoints) = call.upstream.endpoints() {
        add(&endpoints.guard.retries, 1);
    }
}

/// The last attempt's own words are the answer. `failed`: it says that the request has failed.
fn end(
    exchange: &mut Exchange,
    target: &AttemptTarget,
    call: &Call<'_>,
    sent: Result<Response<WireBody>, FailedAttempt>,
    failed: bool,
) -> Result<Response<WireBody>, Refusal> {
    // A fallback may still send it.
    if !call.policy.sends_elsewhere() {
        call.body.commit();
    }
    if let Ok(response) = &sent {
        if let Some(reason) = target::refused(exchange, target, response) {
            exchange.cause = Some(Cause::peer(reason));
            exchange.detail = said(response.headers());
        } else if failed {
            // The app's own failure, for which no proxy has a reason.
            exchange.cause = None;
        }
    }
    sent.map_err(Refusal::from)
}
