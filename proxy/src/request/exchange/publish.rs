//! What an exchange leaves behind for those who look at it: its record, with the attempts that it took.

use std::time::{Duration, Instant, SystemTime};

use http::StatusCode;
use outrigger_core::outcome::Outcome;
use outrigger_core::policy::fallback::Degraded;
use outrigger_core::reason::Cause;

use super::Exchange;
use crate::observe::bus::Wanted;
use crate::observe::metrics::Status;
use crate::observe::record::{AttemptEnd, Attempted, ChosenBy, Record, micros};
use crate::upstream::endpoint::EndpointState;
use crate::upstream::endpoint::guard::Attempt;
use crate::wire::Wire;

impl Exchange {
    /// Apart from [`Exchange::record`], so that requests of which nobody wants to know more pay for none of it.
    #[inline(never)]
    pub(super) fn publish(
        &mut self,
        wanted: Wanted,
        outcome: Outcome,
        status: Status,
        now: Instant,
    ) {
        let first_byte = self.first_byte_at.map(|at| at.saturating_duration_since(self.began));
        self.phases.first_byte = first_byte.map_or(0, micros);
        let (detail, injected) = (self.detail.take(), self.injected.take());
        let proxy = &self.connection.worker.proxy;
        let [service, route, peer] = proxy.metrics.texts([self.service, self.route, self.peer]);
        let record = Box::new(Record {
            direction: self.connection.listener.direction(),
            service,
            route,
            peer,
            protocol: self.protocol,
            outcome,
            status,
            cause: self.cause,
            detail,
            cache_hit: self.cache_hit,
            degraded: self.degraded.map(Degraded::as_str),
            method: Some(self.method.clone()),
            path: self.path.as_ref().map(|path| path.path().into()),
            request_id: self.request_id.as_ref().and_then(|id| id.to_str().ok()).map(Into::into),
            trace: self.trace,
            ended: SystemTime::now(),
            code: self.status,
            endpoint: self.endpoint,
            zone: self.zone(),
            chosen_by: self.chosen_by,
            upstream_protocol: self.wire.map(Wire::as_str),
            not_retried: self.not_retried,
            injected,
            attempts: self.attempts,
            attempt_began: Duration::from_micros(self.attempt_began.into()),
            rare: self.rare.take(),
            phases: self.phases,
            deadline_left_ms: self.deadline.map(|deadline| {
                let left = deadline.at.saturating_duration_since(now).as_millis() as i64;
                left - now.saturating_duration_since(deadline.at).as_millis() as i64
            }),
            duration: now.saturating_duration_since(self.began),
            bytes: self.bytes,
        });
        proxy.records.publish(wanted, record);
    }

    /// The attempt that is under way was not the last one. `status`: of its answer; `request_bytes`: what it has
    /// sent of the body.
    pub fn attempted(
        &mut self,
        status: Option<StatusCode>,
        cause: Option<Cause>,
        request_bytes: u64,
        end: AttemptEnd,
    ) {
        let began = Duration::from_micros(self.attempt_began.into());
        let attempted = Attempted {
            endpoint: self.endpoint,
            peer: self.peer,
            zone: self.zone(),
            chosen_by: self.chosen_by,
            upstream_protocol: self.wire.map(Wire::as_str),
            status,
            cause,
            request_bytes,
            began,
            duration: self.began.elapsed().saturating_sub(began),
            end,
        };
        self.rare.get_or_insert_default().earlier.push(attempted);
    }

    /// A second attempt, begun at `began` beside the one that is under way, did not answer first.
    pub fn outran(
        &mut self,
        endpoint: &EndpointState,
        wire: Wire,
        began: Instant,
        request_bytes: u64,
    ) {
        let outran = Attempted {
            endpoint: Some(endpoint.endpoint.address),
            peer: endpoint.peer.get(),
            zone: endpoint.endpoint.zone.as_deref().map(Into::into),
            chosen_by: Some(ChosenBy::Load),
            upstream_protocol: Some(wire.as_str()),
            status: None,
            cause: None,
            request_bytes,
            began: began.saturating_duration_since(self.began),
            duration: began.elapsed(),
            end: AttemptEnd::Outrun,
        };
        self.rare.get_or_insert_default().earlier.push(outran);
    }

    /// Of the endpoint of the attempt that is under way.
    fn zone(&self) -> Option<Box<str>> {
        self.attempt.as_ref().and_then(Attempt::zone).map(Into::into)
    }
}
