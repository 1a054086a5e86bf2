//! Policies, one file each: the configuration type, the machine that takes `now` and randomness as
//! arguments, its constants with unit and reason, its tests.
//!
//! [`CallPolicy`] says how a request is called, [`BackendPolicy`] the client-side protection of a service, and
//! [`ServerPolicy`] what a workload lets in. The first two come from `TrafficPolicy` objects, the last
//! one from `ServerPolicy` objects.

pub mod access;
pub mod bounds;
pub mod breaker;
mod bucket;
pub mod budget;
pub mod cache;
pub mod concurrency;
pub mod correlation;
pub mod cors;
pub mod deadline;
pub mod fallback;
pub mod fault;
pub mod health;
pub mod hedge;
pub mod limits;
mod lru;
pub mod outlier;
pub mod pace;
pub mod preference;
pub mod priority;
pub mod rate_limit;
pub mod retry;
pub mod section;
pub mod session;
pub mod stop;
pub mod tally;
pub mod timeouts;
pub mod visits;
pub mod window;

use std::time::Duration;

use breaker::BreakerConfig;
use budget::BudgetConfig;
use cache::CacheConfig;
use concurrency::ConcurrencyConfig;
use fallback::Fallback;
use fault::Fault;
use health::HealthConfig;
use hedge::HedgeConfig;
use limits::LimitsConfig;
use outlier::OutlierConfig;
use preference::PreferenceConfig;
use priority::Priority;
use rate_limit::RateLimitConfig;
use retry::RetryConfig;
use session::SessionConfig;
use stop::StopRule;
use timeouts::Timeouts;

/// How requests of one rule, or of a service without routes, are called. The default is what holds
/// without any policy.
#[derive(Clone, Debug, PartialEq)]
pub struct CallPolicy {
    /// The deadline of a request that brings none, from its arrival. None: it has none. At least 1 ms.
    pub deadline: Option<Duration>,
    /// A deadline that this policy started ends when the head of the response arrives; for responses
    /// that stream.
    pub streaming: bool,
    pub timeouts: Timeouts,
    pub retries: RetryConfig,
    /// Of a request that brings none.
    pub priority: Option<Priority>,
    /// How often a service may see the same request on its way ([`visits`]). At least 1.
    pub max_visits: u8,
    /// None: no second attempt is made while one waits.
    pub hedge: Option<HedgeConfig>,
    /// None: no answer is kept.
    pub cache: Option<CacheConfig>,
    /// What a caller gets instead of a failure, the first one that can be given. At most 8.
    pub fallbacks: Vec<Fallback>,
    /// Fault injections that target the route, in their order.
    pub faults: Vec<Fault>,
}

impl Default for CallPolicy {
    fn default() -> Self {
        Self {
            deadline: None,
            streaming: false,
            timeouts: Timeouts::default(),
            retries: RetryConfig::default(),
            priority: None,
            max_visits: 1,
            hedge: None,
            cache: None,
            fallbacks: Vec::new(),
            faults: Vec::new(),
        }
    }
}

impl CallPolicy {
    /// Whether a failed request may be sent to somebody else, so that it has to be kept.
    pub fn sends_elsewhere(&self) -> bool {
        self.fallbacks.iter().any(|fallback| fallback.give.sends())
    }
}

/// Client-side protection of one service port, whatever route leads there.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct BackendPolicy {
    pub budget: BudgetConfig,
    /// None: calls are not broken off as a whole.
    pub breaker: Option<BreakerConfig>,
    /// None: no endpoint is ejected.
    pub outlier: Option<OutlierConfig>,
    pub limits: LimitsConfig,
    /// None: endpoints are not checked.
    pub health: Option<HealthConfig>,
    pub preference: PreferenceConfig,
    /// None: requests of one client go to any endpoint.
    pub session: Option<SessionConfig>,
    /// Fault injections that target the service, in their order.
    pub faults: Vec<Fault>,
    /// Experiments, of this or other services, that stop when calls to it suffer.
    pub stop_rules: Vec<StopRule>,
}

/// What one port of a workload lets in.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct ServerPolicy {
    /// All that match a request must let it in.
    pub rate_limits: Vec<RateLimitConfig>,
    pub concurrency: Option<ConcurrencyConfig>,
}
