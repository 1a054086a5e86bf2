//! A second attempt at another endpoint while the first one waits, where a policy asks for it. The first good
//! head wins; the other attempt is cancelled.
//!
//! It is made only of what does no harm twice and has been read whole, takes one of the service's retry
//! budget, and counts as an attempt. Boxed by [`crate::call::attempts`]: requests without it pay nothing.

use std::future::poll_fn;
use std::pin::pin;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::{Response, StatusCode};
use outrigger_core::config::Protocol;
use outrigger_core::outcome::Outcome;
use outrigger_core::policy::hedge::{HedgeConfig, Hedged};

use crate::call::attempt::{self, earlier};
use crate::call::failed::{FailedAttempt, Waited, failure, timed_out};
use crate::call::fault;
use crate::call::upstream::{Call, Upstream};
use crate::call::verdict::Verdict;
use crate::observe::metrics::add;
use crate::observe::record::{AttemptEnd, ChosenBy, micros};
use crate::request::context;
use crate::request::exchange::{Exchange, Lease};
use crate::request::head::{Head, head_already_sent, is_idempotent};
use crate::upstream::endpoint::guard::Attempt;
use crate::upstream::pool::h1::Reuse;
use crate::upstream::target::{AttemptTarget, HedgeOf};
use crate::wire::Wire;
use crate::wire::body::RequestBody;
use crate::wire::deadline::{Clock, DEADLINE, poll_within, tell};
use crate::wire::headers::GRPC_STATUS;
use crate::wire::streams::WireBody;
use crate::wire::trace;

/// How long the first attempt has for itself. None: there is no second one.
pub(crate) fn delay(call: &Call<'_>, head: &Head, attempts: u8) -> Option<Duration> {
    let hedge = call.policy.hedge?;
    let harmless = is_idempotent(head) || call.policy.retries.non_idempotent;
    if !harmless || attempts > 1 || call.policy.retries.max_attempts < 2 || head.upgrade.is_some() {
        return None;
    }
    let endpoints = call.upstream.endpoints()?;
    match hedge {
        HedgeConfig::After(time) => Some(time),
        // Until it is known nothing is late. The wait is for ever then, so that latencies are learnt.
        HedgeConfig::AfterP95 { min } => {
            let p95 = endpoints.guard.latencies().p95();
            Some(p95.map_or(Duration::MAX, |p95| p95.max(min)))
        }
    }
}

/// Everything that one hedged attempt needs.
pub(crate) struct Hedging<'a> {
    pub call: &'a Call<'a>,
    pub reuse: Reuse,
    pub delay: Duration,
}

/// A second attempt and what became of it.
struct Second {
    target: AttemptTarget,
    lease: Option<Lease>,
    attempt: Option<Attempt>,
    sent: Result<Response<WireBody>, FailedAttempt>,
}

/// Which attempt the answer is from.
enum HedgeResult {
    First(Result<Response<WireBody>, FailedAttempt>),
    /// `failed`: the first one had failed by then.
    Second {
        second: Box<Second>,
        failed: bool,
    },
}

impl Hedging<'_> {
    /// Sends the request as [`attempt::send`] does, and once more beside if no head comes in time. `hop` is
    /// where the answer came from.
    pub async fn send(
        self,
        exchange: &mut Exchange,
        target: &mut AttemptTarget,
        head: &mut Option<Head>,
    ) -> Result<Response<WireBody>, FailedAttempt> {
        let began = Instant::now();
        let sending = self.call.body.again().ok_or_else(head_already_sent)?;
        let second_head = self.second_head(exchange, target, head);
        let (grpc, callers) = (exchange.is_grpc(), exchange.protocol);
        let deadline = exchange.deadline.map(|deadline| deadline.at);
        let mut beside = None;
        let raced = {
            let mark = target.hedge_of();
            let Hedging { call, reuse, .. } = self;
            let mut first =
                pin!(attempt::send(call, exchange, target, (head, true), sending, reuse,));
            let mut clock = Clock::at(began.checked_add(self.delay));
            match poll_fn(|cx| poll_within(first.as_mut(), &mut clock, cx)).await {
                Some(sent) => HedgeResult::First(sent),
                None => match self.beside(second_head, mark, callers) {
                    None => HedgeResult::First(first.as_mut().await),
                    Some((target, head, body)) => {
                        let endpoint = target.endpoint().cloned();
                        beside = Some((endpoint, target.wire, Instant::now(), body.slot()));
                        let mut second = pin!(self.second(target, head, body, deadline, grpc));
                        race(first.as_mut(), second.as_mut(), grpc).await
                    }
                },
            }
        };
        if let Some(endpoints) = self.call.upstream.endpoints()
            && matches!(self.call.policy.hedge, Some(HedgeConfig::AfterP95 { .. }))
            && !matches!(raced, HedgeResult::First(Err(_)))
        {
            // Of a first attempt that lost it is the least that it would have taken.
            endpoints.guard.latencies().observe(began.elapsed());
        }
        exchange.attempts += u8::from(beside.is_some());
        match raced {
            HedgeResult::First(sent) => {
                if let Some((Some(endpoint), wire, began, slot)) = beside {
                    self.count(Hedged::Lost);
                    exchange.outran(&endpoint, wire, began, self.call.body.given(slot));
                }
                sent
            }
            HedgeResult::Second { second, failed } => {
                self.count(Hedged::Won);
                let Second { target: other, lease, attempt, sent } = *second;
                exchange.detail =
                    Some(format!("a hedged attempt won over {}", target.address).into());
                let given = self.call.body.given(None);
                exchange.attempted(None, None, given, AttemptEnd::Outrun);
                exchange.end_attempt(failed);
                (exchange.lease, exchange.attempt) = (lease, attempt);
                if let Some(endpoint) = other.endpoint() {
                    exchange.peer = endpoint.peer.get();
                    exchange.endpoint = Some(endpoint.endpoint.address);
                    exchange.chosen_by = Some(ChosenBy::Load);
                }
                if let Some((_, _, began, _)) = beside {
                    exchange.attempt_began =
                        micros(began.saturating_duration_since(exchange.began));
                }
                exchange.note_first_byte(Instant::now());
                *target = other;
                sent
            }
        }
    }

    /// The head for a second attempt, told what the next hop has to know. None: a fault injection may want to have
    /// its say about each attempt.
    fn second_head(
        &self,
        exchange: &Exchange,
        target: &AttemptTarget,
        head: &Option<Head>,
    ) -> Option<Head> {
        let Upstream::Service { live, .. } = self.call.upstream else { return None };
        if self.delay == Duration::MAX || fault::is_possible(self.call) {
            return None;
        }
        let mut second_head = head.clone()?;
        let streams = (self.call.policy, false);
        context::send_along(
            exchange,
            live,
            target,
            &mut second_head,
            streams,
            None,
            Instant::now(),
        );
        if exchange.is_recorded() {
            trace::again(&mut second_head.headers, &exchange.trace, exchange.attempts + 1);
        }
        Some(second_head)
    }

    /// Where the second attempt goes, if one may be made now.
    fn beside(
        &self,
        second_head: Option<Head>,
        first: Option<HedgeOf>,
        callers: Protocol,
    ) -> Option<(AttemptTarget, Head, RequestBody)> {
        let head = second_head?;
        let guard = &self.call.upstream.endpoints()?.guard;
        let body = self.call.body.beside()?;
        let target =
            AttemptTarget::beside(&first?, self.call.worker(), self.call.upstream, callers)?;
        if !guard.may_retry() {
            target.unused(self.call.upstream);
            self.count(Hedged::NoBudget);
            return None;
        }
        Some((target, head, body))
    }

    /// Not an async function, which would hold its arguments twice.
    fn second(
        &self,
        mut target: AttemptTarget,
        mut head: Head,
        body: RequestBody,
        deadline: Option<Instant>,
        grpc: bool,
    ) -> impl Future<Output = Box<Second>> {
        let began = Instant::now();
        if let Some(deadline) = deadline.filter(|_| head.headers.contains_key(DEADLINE)) {
            let left = deadline.saturating_duration_since(began).max(Duration::from_millis(1));
            tell(&mut head.headers, left, grpc);
        }
        async move {
            let mut attempt = target.begin(self.call.upstream, began);
            let mut lease = None;
            let sent = self.exchange(&target, head, body, began, &mut lease).await;
            if let Ok(response) = &sent {
                let times = (began, Instant::now());
                target.learn(grpc, self.call.upstream, attempt.as_mut(), times, response);
            }
            if let Some(attempt) = attempt.as_mut().filter(|_| !is_good(&sent, grpc)) {
                // It may lose against a first one that fails as well, and is told of by nobody then.
                let blamed = match &sent {
                    Ok(response) => {
                        Verdict::of(response, grpc, target.wire.is_hop()) == Verdict::Failed
                    }
                    Err(failed) => failed.blames_upstream(),
                };
                let outcome = if blamed { Outcome::Failure } else { Outcome::Refused };
                attempt.judge(outcome, || self.call.worker().random());
            }
            Box::new(Second { target, lease, attempt, sent })
        }
    }

    async fn exchange(
        &self,
        target: &AttemptTarget,
        head: Head,
        body: RequestBody,
        began: Instant,
        held: &mut Option<Lease>,
    ) -> Result<Response<WireBody>, FailedAttempt> {
        let (pools, limits) = (&self.call.worker().pools, &self.call.policy.timeouts);
        let end = limits.attempt.and_then(|limit| began.checked_add(limit));
        let mut clock = Clock::at(earlier(end, began, limits.connect));
        let connecting = || timed_out(target, Waited::Connection);
        let request = head.into_request(target, body, &self.call.worker().hosts)?;
        let sent = if target.wire == Wire::Http1 {
            let mut leasing = pin!(pools.lease_h1(target.key(), Reuse::Safe, false, began));
            let leased = poll_fn(|cx| poll_within(leasing.as_mut(), &mut clock, cx)).await;
            let mut lease = leased.ok_or_else(connecting)??;
            let mut sending = pin!(lease.send(request, None));
            *held = Some(Lease::H1(lease));
            clock.set(earlier(end, Instant::now(), limits.first_byte));
            poll_fn(|cx| poll_within(sending.as_mut(), &mut clock, cx)).await
        } else {
            let mut leasing = pin!(pools.lease_h2(target.key(), began));
            let leased = poll_fn(|cx| poll_within(leasing.as_mut(), &mut clock, cx)).await;
            let lease = leased.ok_or_else(connecting)??;
            let mut sending = pin!(lease.send(request, false, None));
            *held = Some(Lease::H2(lease));
            clock.set(earlier(end, Instant::now(), limits.first_byte));
            poll_fn(|cx| poll_within(sending.as_mut(), &mut clock, cx)).await
        };
        let sent = sent.ok_or_else(|| timed_out(target, Waited::FirstByte))?;
        sent.map_err(|error| failure(target, error))
    }

    fn count(&self, hedged: Hedged) {
        add(&self.call.worker().proxy.metrics.gauges.hedges[hedged as usize], 1);
    }
}

/// The first good answer; the first attempt's own if both fail.
async fn race<A, B>(
    mut first: std::pin::Pin<&mut A>,
    mut second: std::pin::Pin<&mut B>,
    grpc: bool,
) -> HedgeResult
where
    A: Future<Output = Result<Response<WireBody>, FailedAttempt>>,
    B: Future<Output = Box<Second>>,
{
    let (mut failed, mut lost) = (None, false);
    poll_fn(|cx| {
        if failed.is_none()
            && let Poll::Ready(sent) = first.as_mut().poll(cx)
        {
            if lost || is_good(&sent, grpc) {
                return Poll::Ready(HedgeResult::First(sent));
            }
            failed = Some(sent);
        }
        if !lost && let Poll::Ready(second) = second.as_mut().poll(cx) {
            if is_good(&second.sent, grpc) {
                return Poll::Ready(HedgeResult::Second { second, failed: failed.is_some() });
            }
            lost = true;
        }
        match failed.take_if(|_| lost) {
            Some(sent) => Poll::Ready(HedgeResult::First(sent)),
            None => Poll::Pending,
        }
    })
    .await
}

fn is_good(sent: &Result<Response<WireBody>, FailedAttempt>, grpc: bool) -> bool {
    let Ok(response) = sent else { return false };
    let status = response.status();
    let refused = grpc && response.headers().get(GRPC_STATUS).is_some_and(|code| code != "0");
    !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS && !refused
}
