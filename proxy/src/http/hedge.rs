//! A second try at another endpoint while the first one waits, where a policy asks for it. The first good
//! head wins; the other try is cancelled.
//!
//! It is made only of what does no harm twice and has been read whole, takes one of the service's retry
//! budget, and counts as a try. Boxed by [`super::attempts`]: requests without it pay nothing.

use std::future::poll_fn;
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use http::{Response, StatusCode};
use outrigger_core::config::Protocol;
use outrigger_core::outcome::Outcome;
use outrigger_core::policy::CallPolicy;
use outrigger_core::policy::hedge::{HedgeConfig, Hedged};

use super::attempt::{self, Way, earlier};
use super::attempts::is_idempotent;
use super::body::RequestBody;
use super::context;
use super::deadline::{Clock, DEADLINE, poll_within, tell};
use super::exchange::{Exchange, Lease};
use super::failed::{Failed, Waited, failure, timed_out};
use super::fault;
use super::head::Head;
use super::headers::GRPC_STATUS;
use super::hop::{Hop, Mark};
use super::request::lost;
use super::verdict::Verdict;
use crate::guard::Attempt;
use crate::metrics::add;
use crate::pool::Wire;
use crate::pool::h1::Reuse;
use crate::streams::WireBody;
use crate::worker::Worker;

/// How long the first try has for itself. None: there is no second one.
pub(super) fn delay(
    call: &CallPolicy,
    way: &Way<'_>,
    head: &Head,
    attempts: u8,
) -> Option<Duration> {
    let hedge = call.hedge?;
    let harmless = is_idempotent(head) || call.retries.non_idempotent;
    if !harmless || attempts > 1 || call.retries.max_attempts < 2 || head.upgrade.is_some() {
        return None;
    }
    let endpoints = way.endpoints()?;
    match hedge {
        HedgeConfig::After(time) => Some(time),
        // Until it is known nothing is late. The wait is for ever then, so that latencies are learnt.
        HedgeConfig::AfterP95 { min } => {
            let p95 = endpoints.guard.latencies().p95();
            Some(p95.map_or(Duration::MAX, |p95| p95.max(min)))
        }
    }
}

/// Everything that one hedged try needs.
pub(super) struct Hedging<'a> {
    pub worker: &'a Rc<Worker>,
    pub way: &'a Way<'a>,
    pub call: &'a CallPolicy,
    pub body: &'a RequestBody,
    pub reuse: Reuse,
    pub delay: Duration,
}

/// A second try and what became of it.
struct Second {
    hop: Hop,
    lease: Option<Lease>,
    attempt: Option<Attempt>,
    sent: Result<Response<WireBody>, Failed>,
}

/// Which try the answer is from.
enum Raced {
    First(Result<Response<WireBody>, Failed>),
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
        hop: &mut Hop,
        head: &mut Option<Head>,
    ) -> Result<Response<WireBody>, Failed> {
        let began = Instant::now();
        let sending = self.body.again().ok_or_else(lost)?;
        let spare = self.spare(exchange, hop, head);
        let (grpc, callers) = (exchange.is_grpc(), exchange.protocol);
        let deadline = exchange.deadline.map(|deadline| deadline.at);
        let mut tries = 1;
        let raced = {
            let mark = hop.mark();
            let Hedging { worker, way, call, reuse, .. } = self;
            let mut first =
                pin!(
                    attempt::send(worker, exchange, way, hop, call, (head, true), sending, reuse,)
                );
            let mut clock = Clock::at(began.checked_add(self.delay));
            match poll_fn(|cx| poll_within(first.as_mut(), &mut clock, cx)).await {
                Some(sent) => Raced::First(sent),
                None => match self.beside(spare, mark, callers) {
                    None => Raced::First(first.as_mut().await),
                    Some((hop, head, body)) => {
                        tries = 2;
                        let mut second = pin!(self.second(hop, head, body, deadline, grpc));
                        race(first.as_mut(), second.as_mut(), grpc).await
                    }
                },
            }
        };
        if let Some(endpoints) = self.way.endpoints()
            && matches!(self.call.hedge, Some(HedgeConfig::AfterP95 { .. }))
            && !matches!(raced, Raced::First(Err(_)))
        {
            // Of a first try that lost it is the least that it would have taken.
            endpoints.guard.latencies().observe(began.elapsed());
        }
        exchange.attempts += tries - 1;
        match raced {
            Raced::First(sent) => {
                if tries > 1 {
                    self.count(Hedged::Lost);
                }
                sent
            }
            Raced::Second { second, failed } => {
                self.count(Hedged::Won);
                let Second { hop: other, lease, attempt, sent } = *second;
                exchange.detail = Some(format!("a second try won over {}", hop.address).into());
                exchange.end_attempt(failed);
                (exchange.lease, exchange.attempt) = (lease, attempt);
                if let Some(endpoint) = other.endpoint() {
                    exchange.peer = endpoint.peer;
                    exchange.endpoint = Some(endpoint.endpoint.address);
                }
                *hop = other;
                sent
            }
        }
    }

    /// The head for a second try, told what the next hop has to know. None: an experiment may want to have
    /// its say about each try.
    fn spare(&self, exchange: &Exchange, hop: &Hop, head: &Option<Head>) -> Option<Head> {
        let Way::Service { live, .. } = self.way else { return None };
        if self.delay == Duration::MAX || fault::is_possible(self.way, self.call) {
            return None;
        }
        let mut spare = head.clone()?;
        let streams = (self.call, false);
        context::send_along(exchange, live, hop, &mut spare, streams, None, Instant::now());
        Some(spare)
    }

    /// Where the second try goes, if one may be made now.
    fn beside(
        &self,
        spare: Option<Head>,
        first: Option<Mark>,
        callers: Protocol,
    ) -> Option<(Hop, Head, RequestBody)> {
        let head = spare?;
        let guard = &self.way.endpoints()?.guard;
        if !self.body.is_read_and_kept() {
            return None;
        }
        let body = self.body.again()?;
        let hop = Hop::beside(&first?, self.worker, self.way, callers)?;
        if !guard.may_retry() {
            hop.unused(self.way);
            self.count(Hedged::NoBudget);
            return None;
        }
        Some((hop, head, body))
    }

    async fn second(
        &self,
        mut hop: Hop,
        mut head: Head,
        body: RequestBody,
        deadline: Option<Instant>,
        grpc: bool,
    ) -> Box<Second> {
        let began = Instant::now();
        if let Some(deadline) = deadline.filter(|_| head.headers.contains_key(DEADLINE)) {
            let left = deadline.saturating_duration_since(began).max(Duration::from_millis(1));
            tell(&mut head.headers, left, grpc);
        }
        let mut attempt = hop.begin(self.way, began);
        let mut lease = None;
        let sent = self.exchange(&hop, head, body, began, &mut lease).await;
        if let Ok(response) = &sent {
            hop.learn(grpc, self.way, attempt.as_mut(), began, response);
        }
        if let Some(attempt) = attempt.as_mut().filter(|_| !is_good(&sent, grpc)) {
            // It may lose against a first one that fails as well, and is told of by nobody then.
            let blamed = match &sent {
                Ok(response) => Verdict::of(response, grpc, hop.wire.is_hop()) == Verdict::Failed,
                Err(failed) => failed.blames_upstream(),
            };
            let outcome = if blamed { Outcome::Failure } else { Outcome::Refused };
            attempt.judge(outcome, || self.worker.random());
        }
        Box::new(Second { hop, lease, attempt, sent })
    }

    async fn exchange(
        &self,
        hop: &Hop,
        head: Head,
        body: RequestBody,
        began: Instant,
        held: &mut Option<Lease>,
    ) -> Result<Response<WireBody>, Failed> {
        let (pools, limits) = (&self.worker.pools, &self.call.timeouts);
        let end = limits.attempt.and_then(|limit| began.checked_add(limit));
        let mut clock = Clock::at(earlier(end, began, limits.connect));
        let connecting = || timed_out(hop, Waited::Connection);
        let request = head.into_request(hop, body)?;
        let sent = if hop.wire == Wire::Http1 {
            let mut leasing = pin!(pools.lease_h1(hop.key(), Reuse::Safe, false, began));
            let leased = poll_fn(|cx| poll_within(leasing.as_mut(), &mut clock, cx)).await;
            let mut lease = leased.ok_or_else(connecting)??;
            let mut sending = pin!(lease.send(request, None));
            *held = Some(Lease::H1(lease));
            clock.set(earlier(end, Instant::now(), limits.first_byte));
            poll_fn(|cx| poll_within(sending.as_mut(), &mut clock, cx)).await
        } else {
            let mut leasing = pin!(pools.lease_h2(hop.key(), began));
            let leased = poll_fn(|cx| poll_within(leasing.as_mut(), &mut clock, cx)).await;
            let lease = leased.ok_or_else(connecting)??;
            let mut sending = pin!(lease.send(request, false, None));
            *held = Some(Lease::H2(lease));
            clock.set(earlier(end, Instant::now(), limits.first_byte));
            poll_fn(|cx| poll_within(sending.as_mut(), &mut clock, cx)).await
        };
        let sent = sent.ok_or_else(|| timed_out(hop, Waited::FirstByte))?;
        sent.map_err(|error| failure(hop, error))
    }

    fn count(&self, hedged: Hedged) {
        add(&self.worker.proxy.metrics.gauges.hedges[hedged as usize], 1);
    }
}

/// The first good answer; the first try's own if both fail.
async fn race<A, B>(
    mut first: std::pin::Pin<&mut A>,
    mut second: std::pin::Pin<&mut B>,
    grpc: bool,
) -> Raced
where
    A: Future<Output = Result<Response<WireBody>, Failed>>,
    B: Future<Output = Box<Second>>,
{
    let (mut failed, mut lost) = (None, false);
    poll_fn(|cx| {
        if failed.is_none()
            && let Poll::Ready(sent) = first.as_mut().poll(cx)
        {
            if lost || is_good(&sent, grpc) {
                return Poll::Ready(Raced::First(sent));
            }
            failed = Some(sent);
        }
        if !lost && let Poll::Ready(second) = second.as_mut().poll(cx) {
            if is_good(&second.sent, grpc) {
                return Poll::Ready(Raced::Second { second, failed: failed.is_some() });
            }
            lost = true;
        }
        match failed.take_if(|_| lost) {
            Some(sent) => Poll::Ready(Raced::First(sent)),
            None => Poll::Pending,
        }
    })
    .await
}

fn is_good(sent: &Result<Response<WireBody>, Failed>, grpc: bool) -> bool {
    let Ok(response) = sent else { return false };
    let status = response.status();
    let refused = grpc && response.headers().get(GRPC_STATUS).is_some_and(|code| code != "0");
    !status.is_server_error() && status != StatusCode::TOO_MANY_REQUESTS && !refused
}
