//! `timeouts` and `retry` of an HTTPRoute's rule: what it says itself about its calls.

use std::time::Duration;

use gateway_api::experimental::httproutes as api;
use outrigger_core::policy::bounds;
use outrigger_core::policy::retry::{Backoff, Jitter, RetryConfig, RetryOn};

use super::{Report, duration};
use crate::object::policy::RuleCall;

/// Retries where `attempts` says nothing: what the Gateway API leaves to us.
const RETRIES: u32 = 1;

pub(super) fn rule_call(path: &str, raw: &api::HttpRouteRules, report: &mut Report) -> RuleCall {
    let timeouts = raw.timeouts.as_ref();
    let mut timeout = |name: &str, text: Option<&String>| {
        let time = duration::parse(text?).and_then(|time| match time {
            // The Gateway API's way to say that there is none.
            Duration::ZERO => Ok(time),
            time => bounds::duration(time, &bounds::TIMEOUT),
        });
        report.check(&format!("{path}.timeouts.{name}"), time)
    };
    let deadline = timeout("request", timeouts.and_then(|raw| raw.request.as_ref()));
    let attempt = timeout("backendRequest", timeouts.and_then(|raw| raw.backend_request.as_ref()));
    if let (Some(deadline), Some(attempt)) = (deadline, attempt)
        && !deadline.is_zero()
        && attempt > deadline
    {
        let problem = format!("{attempt:?} is more than request, which is {deadline:?}");
        report.error(format!("{path}.timeouts.backendRequest"), problem);
    }
    let retries = raw.retry.as_ref().map(|raw| retries(&format!("{path}.retry"), raw, report));
    RuleCall { deadline, attempt, retries }
}

/// With `retry` set, a connection that ends and a timeout of the attempt are tried again too, as the
/// Gateway API wants. What is not idempotent is not: only a TrafficPolicy can say that.
fn retries(path: &str, raw: &api::HttpRouteRulesRetry, report: &mut Report) -> RetryConfig {
    let plain = RetryConfig::default();
    let most = bounds::ATTEMPTS.end() - 1;
    let retries = raw.attempts.map_or(Some(RETRIES), |attempts| {
        report.check(&format!("{path}.attempts"), bounds::number(attempts, &(0..=most)))
    });
    let attempts = retries.and_then(|retries| u8::try_from(retries + 1).ok());
    let codes = raw.codes.as_deref().unwrap_or_default();
    let too_many = bounds::at_most(codes.len(), bounds::MAX_STATUSES);
    report.check(&format!("{path}.codes"), too_many);
    let statuses = codes
        .iter()
        .enumerate()
        .filter_map(|(i, code)| report.check(&format!("{path}.codes[{i}]"), bounds::status(*code)));
    let on = RetryOn { statuses: statuses.collect(), reset: true, timeout: true, ..plain.on };
    let backoff = raw.backoff.as_ref().and_then(|text| {
        let base = duration::parse(text).and_then(|time| bounds::duration(time, &bounds::BACKOFF));
        let base = report.check(&format!("{path}.backoff"), base)?;
        // A minimum, says the Gateway API: jitter only adds.
        let max = (base * 10).min(*bounds::BACKOFF.end());
        Some(Backoff { base, max, jitter: Jitter::Additive })
    });
    let max_attempts = attempts.unwrap_or(plain.max_attempts);
    RetryConfig { max_attempts, on, backoff, ..plain }
}
