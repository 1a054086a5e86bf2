//! The time that a request has left: read from its headers, written for the next hop, and enforced.
//!
//! What bounds the way to the head of the response is [`Clock`]; what bounds its body is
//! [`Bounds`]. Neither costs a request without a deadline anything but a look.

use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::{HeaderMap, HeaderName, HeaderValue};
use outrigger_core::policy::deadline::{
    Deadline, DeadlineSource, HeaderTimeouts, millis, parse_grpc_timeout, parse_millis,
    write_grpc_timeout,
};
use outrigger_core::reason::Reason;
use tokio::time::Sleep;

use crate::base::refusal::Refusal;

pub const DEADLINE: HeaderName = HeaderName::from_static("x-deadline");
pub const GRPC_TIMEOUT: HeaderName = HeaderName::from_static("grpc-timeout");
/// What another side does so soon before a deadline, it does because of it: both know it, to the millisecond.
pub const AT_DEADLINE: Duration = Duration::from_millis(10);
pub const ENVOY: HeaderName = HeaderName::from_static("x-envoy-expected-rq-timeout-ms");

/// What the request says itself. A value that does not parse says nothing; of several, the nearest holds.
pub fn told(headers: &HeaderMap) -> HeaderTimeouts {
    let nearest = |name: &HeaderName, parse: fn(&[u8]) -> Option<Duration>| {
        headers.get_all(name).iter().filter_map(|value| parse(value.as_bytes())).min()
    };
    HeaderTimeouts {
        grpc: nearest(&GRPC_TIMEOUT, parse_grpc_timeout),
        deadline: nearest(&DEADLINE, parse_millis),
        envoy: nearest(&ENVOY, parse_millis),
    }
}

/// Tells the next hop what is left. Returns the milliseconds that it was told.
pub fn tell(headers: &mut HeaderMap, left: Duration, grpc: bool) -> u64 {
    let millis = millis(left);
    headers.insert(DEADLINE, HeaderValue::from(millis));
    if grpc {
        let mut text = String::with_capacity(9);
        write_grpc_timeout(left, &mut text);
        if let Ok(value) = HeaderValue::try_from(text) {
            headers.insert(GRPC_TIMEOUT, value);
        }
    }
    // It would say more than is left by now.
    if headers.contains_key(&ENVOY) {
        headers.insert(ENVOY, HeaderValue::from(millis));
    }
    millis
}

/// A timer that exists only once there is something to wait for.
#[derive(Default)]
pub struct Clock {
    at: Option<Instant>,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Clock {
    pub fn at(at: Option<Instant>) -> Self {
        Self { at, sleep: None }
    }

    /// The time that it waits for.
    pub fn until(&self) -> Option<Instant> {
        self.at
    }

    /// Moves the time; none: there is none.
    pub fn set(&mut self, at: Option<Instant>) {
        if self.at != at {
            self.at = at;
            if let (Some(sleep), Some(at)) = (&mut self.sleep, at) {
                sleep.as_mut().reset(at.into());
            }
        }
    }

    /// Ready once the time has come.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let Some(at) = self.at else { return Poll::Pending };
        let sleep = self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at.into())));
        sleep.as_mut().poll(cx)
    }
}

/// Polls `future` until it is ready or the clock's time has come: then none. Pinned by the caller, so
/// that no frame holds it twice.
pub fn poll_within<F: Future>(
    future: Pin<&mut F>,
    clock: &mut Clock,
    cx: &mut Context<'_>,
) -> Poll<Option<F::Output>> {
    match future.poll(cx) {
        Poll::Ready(output) => Poll::Ready(Some(output)),
        Poll::Pending => clock.poll(cx).map(|()| None),
    }
}

pub fn exceeded(deadline: &Deadline, now: Instant, what: &str) -> Refusal {
    let late = now.saturating_duration_since(deadline.at);
    let source = match deadline.origin {
        DeadlineSource::Explicit => "the request",
        DeadlineSource::Inherited => "the inbound request",
        DeadlineSource::Policy => "TrafficPolicy or HTTPRoute",
    };
    let detail = format!("{what}; exceeded by {} ms (source: {source})", late.as_millis());
    Refusal::new(Reason::DeadlineExceeded, detail)
}

/// What ends a response body early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEnd {
    Deadline,
    Idle,
}

/// The limits of one response body.
pub struct Bounds {
    deadline: Clock,
    idle: Option<(Duration, Clock)>,
    /// None: not gRPC.
    messages: Option<Messages>,
}

impl Bounds {
    /// `deadline`: with the time at which the body ends, if there is one.
    pub fn new(deadline: Clock, idle: Option<Duration>, grpc: bool) -> Option<Box<Self>> {
        if deadline.at.is_none() && idle.is_none() {
            return None;
        }
        let idle = idle.map(|limit| (limit, Clock::at(Instant::now().checked_add(limit))));
        Some(Box::new(Self { deadline, idle, messages: grpc.then(Messages::default) }))
    }

    /// A frame has come.
    pub fn frame(&mut self, data: Option<&Bytes>) {
        if let Some((limit, clock)) = &mut self.idle {
            clock.set(Instant::now().checked_add(*limit));
        }
        if let (Some(messages), Some(data)) = (&mut self.messages, data) {
            messages.take(data);
        }
    }

    /// Ready once the body has to end.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<BodyEnd> {
        if self.deadline.poll(cx).is_ready() {
            return Poll::Ready(BodyEnd::Deadline);
        }
        match &mut self.idle {
            Some((_, clock)) => clock.poll(cx).map(|()| BodyEnd::Idle),
            None => Poll::Pending,
        }
    }

    /// Whether the caller can be told by trailers: what it has got so far is whole gRPC messages.
    pub fn at_message_boundary(&self) -> bool {
        self.messages.as_ref().is_some_and(Messages::is_whole)
    }
}

/// Where one gRPC message ends: a prefix of one byte and a length of four, then the message.
#[derive(Default)]
struct Messages {
    prefix: [u8; 5],
    prefix_len: usize,
    /// Of the message that has begun.
    left: usize,
}

impl Messages {
    fn take(&mut self, mut data: &[u8]) {
        while !data.is_empty() {
            if self.left > 0 {
                let taken = self.left.min(data.len());
                self.left -= taken;
                data = &data[taken..];
                continue;
            }
            self.prefix[self.prefix_len] = data[0];
            self.prefix_len += 1;
            data = &data[1..];
            if self.prefix_len == self.prefix.len() {
                let [_, a, b, c, d] = self.prefix;
                self.left = u32::from_be_bytes([a, b, c, d]) as usize;
                self.prefix_len = 0;
            }
        }
    }

    fn is_whole(&self) -> bool {
        self.left == 0 && self.prefix_len == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_are_read_and_written_for_each_kind_of_request() {
        let mut headers = HeaderMap::new();
        assert_eq!(told(&headers).nearest(), None);
        headers.insert(ENVOY, HeaderValue::from_static("3000"));
        headers.insert(GRPC_TIMEOUT, HeaderValue::from_static("2S"));
        assert_eq!(told(&headers).nearest(), Some(Duration::from_secs(2)));
        assert_eq!(tell(&mut headers, Duration::from_micros(1_500_900), true), 1_500);
        let text = |name: &str| headers.get(name).unwrap().to_str().unwrap();
        assert_eq!(text("x-deadline"), "1500");
        assert_eq!(text("grpc-timeout"), "1500900u");
        assert_eq!(text("x-envoy-expected-rq-timeout-ms"), "1500");
        headers.insert(DEADLINE, HeaderValue::from_static("soon"));
        assert_eq!(told(&headers).deadline, None);
    }

    #[test]
    fn message_boundaries_are_found_wherever_frames_are_cut() {
        let stream = [&[0, 0, 0, 0, 3][..], b"abc", &[0, 0, 0, 0, 0], &[1, 0, 0, 1, 0], &[7; 256]];
        let stream = stream.concat();
        let ends = [0, 8, 13, stream.len()];
        for step in 1..=20 {
            let mut messages = Messages::default();
            let mut at = 0;
            for piece in stream.chunks(step) {
                messages.take(piece);
                at += piece.len();
                assert_eq!(messages.is_whole(), ends.contains(&at), "{at} by {step}");
            }
        }
    }
}
