//! Retries: what may have been processed and does harm twice is never sent twice, and layers of retries
//! do not multiply.

use std::time::{Duration, Instant};

use http::StatusCode;
use outrigger_core::policy::budget::{Budget, BudgetConfig};
use outrigger_core::policy::retry::{
    Backoff, Failure, Jitter, Replay, RetryConfig, RetryOn, Skip, judge, pause,
};

use crate::support::{Random, for_each_seed};

const SECOND: Duration = Duration::from_secs(1);

#[test]
fn a_request_is_sent_as_often_as_is_allowed_and_does_no_harm() {
    for_each_seed(20_000, |random| {
        let config = config(random);
        let idempotent = random.chance(50);
        // The body is thrown away at some attempt, or never.
        let kept_until = random.between(1, 12);
        let (mut sent, mut processed, mut last) = (0u8, 0, Duration::ZERO);
        loop {
            sent += 1;
            let failure = failure(random);
            // Only what is certainly not processed is not; of everything else one never knows.
            processed += u32::from(failure != Failure::Unprocessed);
            let replay = Replay { idempotent, kept: u64::from(sent) < kept_until };
            let exhausted = random.chance(5);
            let judged = judge(&config, failure, sent, replay, exhausted);
            let Err(skip) = judged else {
                assert!(sent < config.max_attempts && replay.kept && !exhausted);
                assert!(failure == Failure::Unprocessed || config_names(&config, failure));
                last = check_pause(&config, sent, last, random);
                continue;
            };
            let only_budget_and_time_missing = failure == Failure::Unprocessed
                && sent < config.max_attempts
                && replay.kept
                && !exhausted;
            assert!(!only_budget_and_time_missing, "{skip:?}: nobody has processed it");
            break;
        }
        assert!(sent <= config.max_attempts);
        if !idempotent && !config.non_idempotent {
            assert!(processed <= 1, "sent again though it may have been processed");
        }
    });
}

/// Three proxies in a row, each of which would try three times, before a server that always fails.
#[test]
fn three_layers_of_three_attempts_do_not_multiply() {
    for_each_seed(50, |random| {
        let start = Instant::now();
        let budget = BudgetConfig::default();
        let mut layers: Vec<Layer> =
            (0..3).map(|_| Layer { budget: Budget::new(budget, start, 0), requests: 0 }).collect();
        let statuses = vec![StatusCode::SERVICE_UNAVAILABLE];
        let on = RetryOn { statuses, ..RetryOn::default() };
        let config = RetryConfig { max_attempts: 3, on, ..RetryConfig::default() };
        let rate = random.between(200, 1_000);
        let seconds = 20;
        let mut calls = 0;
        for tick in 0..rate * seconds {
            let now = start + SECOND * tick as u32 / rate as u32;
            calls += call(&mut layers, &config, now).0;
        }
        let share = calls as f64 / (rate * seconds) as f64;
        let least = f64::from(budget.min_per_second) / rate as f64;
        let saved = f64::from(budget.saved()) / (rate * seconds) as f64;
        assert!(
            share <= 1.21 + least * 1.1 + saved,
            "{share:.3} calls for each of {rate} per second"
        );
        assert!(share >= 1.15, "{share:.3}: the budget is there to be used");
    });
}

struct Layer {
    budget: Budget,
    requests: u64,
}

/// Calls that arrive at the server, and whether anyone who failed says that nobody need try again.
fn call(layers: &mut [Layer], config: &RetryConfig, now: Instant) -> (u64, bool) {
    if layers.is_empty() {
        return (1, false);
    }
    layers[0].requests += 1;
    let replay = Replay { idempotent: true, kept: true };
    let failure = Failure::Status(StatusCode::SERVICE_UNAVAILABLE);
    let mut calls = 0;
    for attempt in 1.. {
        let (below, exhausted) = call(&mut layers[1..], config, now);
        calls += below;
        let Layer { budget, requests } = &mut layers[0];
        let judged = judge(config, failure, attempt, replay, exhausted);
        let skip = match judged {
            Err(skip) => skip,
            Ok(()) if budget.try_take(now, *requests) => continue,
            Ok(()) => Skip::NoBudget,
        };
        return (calls, skip.exhausts());
    }
    unreachable!()
}

fn check_pause(config: &RetryConfig, attempt: u8, last: Duration, random: &mut Random) -> Duration {
    let pause = pause(config, attempt, last, random.next());
    match config.backoff {
        None => assert!(pause.is_zero()),
        Some(Backoff { base, max, jitter }) => {
            let whole = base.saturating_mul(1 << (attempt - 1)).min(max);
            let (least, most) = match jitter {
                Jitter::Full => (Duration::ZERO, whole),
                Jitter::Additive => (whole, whole * 3 / 2),
                Jitter::Decorrelated => (base, max),
            };
            assert!((least..=most).contains(&pause), "{pause:?} after {last:?}: {config:?}");
        }
    }
    pause
}

fn config(random: &mut Random) -> RetryConfig {
    let statuses = [500, 502, 503].into_iter().filter(|_| random.chance(50));
    let statuses = statuses.map(|status| StatusCode::from_u16(status).unwrap()).collect();
    let grpc = (1..=16).filter(|_| random.chance(30)).collect();
    let on = RetryOn { statuses, grpc, reset: random.chance(50), timeout: random.chance(50) };
    let base = Duration::from_millis(random.between(1, 1_000));
    let max = base * random.between(1, 20) as u32;
    let jitter = random.pick(&[Jitter::Full, Jitter::Additive, Jitter::Decorrelated]);
    RetryConfig {
        max_attempts: random.between(1, 10) as u8,
        on,
        non_idempotent: random.chance(30),
        backoff: random.chance(70).then_some(Backoff { base, max, jitter }),
        max_replay_bytes: 65_536,
    }
}

fn failure(random: &mut Random) -> Failure {
    match random.below(5) {
        0 => Failure::Unprocessed,
        1 => Failure::Reset,
        2 => Failure::Timeout,
        3 => Failure::Status(StatusCode::from_u16(random.between(500, 504) as u16).unwrap()),
        _ => Failure::Grpc(random.between(1, 20) as i32),
    }
}

fn config_names(config: &RetryConfig, failure: Failure) -> bool {
    match failure {
        Failure::Unprocessed => true,
        Failure::Reset => config.on.reset,
        Failure::Timeout => config.on.timeout,
        Failure::Status(status) => config.on.statuses.contains(&status),
        Failure::Grpc(code) => config.on.grpc.iter().any(|on| i32::from(*on) == code),
    }
}
