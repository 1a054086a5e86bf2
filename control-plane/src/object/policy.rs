//! TrafficPolicies, ServerPolicies and FaultInjections: what they are for, and what each says.

use std::fmt;
use std::time::Duration;

use outrigger_core::policy::breaker::BreakerConfig;
use outrigger_core::policy::budget::BudgetConfig;
use outrigger_core::policy::cache::CacheConfig;
use outrigger_core::policy::concurrency::ConcurrencyConfig;
use outrigger_core::policy::fallback::Fallback;
use outrigger_core::policy::fault::Fault;
use outrigger_core::policy::health::HealthConfig;
use outrigger_core::policy::hedge::HedgeConfig;
use outrigger_core::policy::limits::LimitsConfig;
use outrigger_core::policy::outlier::OutlierConfig;
use outrigger_core::policy::priority::Priority;
use outrigger_core::policy::rate_limit::RateLimitConfig;
use outrigger_core::policy::retry::RetryConfig;
use outrigger_core::policy::section::{self, Scope, Section};
use outrigger_core::policy::session::SessionConfig;
use outrigger_core::policy::stop::StopRule;
use outrigger_core::policy::timeouts::Timeouts;

use super::{Kind, ObjectId, ServiceId, ServicePort};

/// A policy that is attached by `targetRefs`, as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct Attached<S> {
    pub id: ObjectId,
    /// Seconds since the Unix epoch, 0 when the manifest says nothing.
    pub created: i64,
    pub targets: Vec<PolicyTarget>,
    pub sections: S,
}

/// A TrafficPolicy.
pub type TrafficPolicy = Attached<TrafficSections>;

/// A FaultInjection.
pub type FaultInjection = Attached<Experiment>;

/// What a FaultInjection says.
#[derive(Clone, Debug, PartialEq)]
pub struct Experiment {
    pub fault: Fault,
    pub guard: Option<Guard>,
}

/// What stops a fault injection: calls to a port of a Service of its namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct Guard {
    pub service: String,
    pub port: u16,
    pub rule: StopRule,
}

/// A ServerPolicy.
pub type ServerPolicy = Attached<ServerSections>;

/// What a policy says about calls; a section that it does not have is left to less specific ones.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct TrafficSections {
    /// Zero: none.
    pub deadline: Option<Duration>,
    pub streaming: Option<bool>,
    pub timeouts: Option<Timeouts>,
    pub retries: Option<RetryConfig>,
    pub budget: Option<BudgetConfig>,
    pub breaker: Option<BreakerConfig>,
    pub outlier: Option<OutlierConfig>,
    pub limits: Option<LimitsConfig>,
    pub health: Option<HealthConfig>,
    pub slow_start: Option<Duration>,
    pub panic_threshold: Option<u8>,
    /// Percent of the zone's endpoints that must be fit.
    pub zones: Option<u8>,
    pub session: Option<SessionConfig>,
    pub priority: Option<Priority>,
    pub max_visits: Option<u8>,
    pub hedge: Option<HedgeConfig>,
    pub cache: Option<CacheConfig>,
    pub fallbacks: Option<Vec<Fallback>>,
}

#[derive(Clone, Debug, Default, PartialEq)]
pub struct ServerSections {
    pub rate_limits: Option<Vec<RateLimitConfig>>,
    pub concurrency: Option<ConcurrencyConfig>,
}

/// What a rule of an HTTPRoute itself says about its calls: more specific than every policy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RuleCall {
    /// `timeouts.request`. Zero: none.
    pub deadline: Option<Duration>,
    /// `timeouts.backendRequest`. Zero: none.
    pub attempt: Option<Duration>,
    pub retries: Option<RetryConfig>,
}

/// Something that a policy is for, in the policy's namespace.
#[derive(Clone, Debug, PartialEq)]
pub enum PolicyTarget {
    Namespace,
    /// Or an ExternalService, by the name of its [`ServiceId`].
    Service {
        name: String,
        port: Option<PortRef>,
    },
    Route {
        kind: Kind,
        name: String,
        rule: Option<String>,
    },
}

/// One port of a Service.
#[derive(Clone, Debug, PartialEq)]
pub enum PortRef {
    Name(String),
    Number(u16),
}

impl PortRef {
    pub fn is(&self, port: &ServicePort) -> bool {
        match self {
            Self::Name(name) => *name == port.name,
            Self::Number(number) => *number == port.port,
        }
    }
}

/// From the most specific to the least.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Rank {
    Rule,
    Route,
    Port,
    Service,
    Namespace,
}

impl<S> Attached<S> {
    pub fn namespace(&self) -> &str {
        &self.id.namespace
    }

    /// The Services that it names.
    pub fn services(&self) -> impl Iterator<Item = ServiceId> {
        self.targets.iter().filter_map(|target| match target {
            PolicyTarget::Service { name, .. } => {
                Some(ServiceId::new(self.namespace(), name.clone()))
            }
            PolicyTarget::Namespace | PolicyTarget::Route { .. } => None,
        })
    }

    /// The routes that it names.
    pub fn routes(&self) -> impl Iterator<Item = ObjectId> {
        self.targets.iter().filter_map(|target| match target {
            PolicyTarget::Route { kind, name, .. } => {
                let (namespace, name) = (self.namespace().to_owned(), name.clone());
                Some(ObjectId { kind: *kind, namespace, name })
            }
            PolicyTarget::Namespace | PolicyTarget::Service { .. } => None,
        })
    }

    pub fn is_for_namespace(&self) -> bool {
        self.targets.contains(&PolicyTarget::Namespace)
    }

    /// How specifically it applies to a port of a Service, and through which target.
    pub fn for_port(
        &self,
        service: &ServiceId,
        port: &ServicePort,
    ) -> Option<(Rank, &PolicyTarget)> {
        if self.namespace() != service.namespace {
            return None;
        }
        let rank = |target: &PolicyTarget| match target {
            PolicyTarget::Service { name, .. } if *name != service.name => None,
            PolicyTarget::Service { port: None, .. } => Some(Rank::Service),
            PolicyTarget::Service { port: Some(of), .. } => of.is(port).then_some(Rank::Port),
            PolicyTarget::Namespace => Some(Rank::Namespace),
            PolicyTarget::Route { .. } => None,
        };
        self.best(rank)
    }

    /// How specifically it applies to a rule of a route, and through which target.
    pub fn for_rule(&self, route: &ObjectId, rule: Option<&str>) -> Option<(Rank, &PolicyTarget)> {
        if self.namespace() != route.namespace {
            return None;
        }
        let rank = |target: &PolicyTarget| match target {
            PolicyTarget::Route { kind, name, rule: of }
                if *kind == route.kind && *name == route.name =>
            {
                match of {
                    None => Some(Rank::Route),
                    Some(of) => (rule == Some(of)).then_some(Rank::Rule),
                }
            }
            _ => None,
        };
        self.best(rank)
    }

    fn best(&self, rank: impl Fn(&PolicyTarget) -> Option<Rank>) -> Option<(Rank, &PolicyTarget)> {
        let ranked = self.targets.iter().filter_map(|target| Some((rank(target)?, target)));
        ranked.min_by_key(|(rank, _)| *rank)
    }

    /// The target as people write it: `Service bank/orders port http`.
    pub fn describe(&self, target: &PolicyTarget) -> String {
        let namespace = self.namespace();
        match target {
            PolicyTarget::Namespace => format!("Namespace {namespace}"),
            PolicyTarget::Service { name, port } => {
                let service = ServiceId::new(namespace, name.clone()).describe();
                match port {
                    None => service,
                    Some(port) => format!("{service} port {port}"),
                }
            }
            PolicyTarget::Route { kind, name, rule: None } => {
                format!("{} {namespace}/{name}", kind.as_str())
            }
            PolicyTarget::Route { kind, name, rule: Some(rule) } => {
                format!("{} {namespace}/{name} rule {rule}", kind.as_str())
            }
        }
    }
}

impl fmt::Display for PortRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Name(name) => f.write_str(name),
            Self::Number(number) => write!(f, "{number}"),
        }
    }
}

/// The sections of a policy.
pub trait Sections {
    /// Those that are set.
    fn sections(&self) -> Vec<&'static Section>;

    /// Their names, as people write them.
    fn names(&self) -> Vec<&'static str> {
        self.sections().iter().map(|section| section.name).collect()
    }
}

impl TrafficSections {
    pub fn has_backend_section(&self) -> bool {
        self.sections().iter().any(|section| section.scope == Scope::Backend)
    }
}

impl Sections for TrafficSections {
    fn sections(&self) -> Vec<&'static Section> {
        set_ones([
            (&section::DEADLINE, self.deadline.is_some()),
            (&section::STREAMING, self.streaming.is_some()),
            (&section::TIMEOUTS, self.timeouts.is_some()),
            (&section::RETRIES, self.retries.is_some()),
            (&section::RETRY_BUDGET, self.budget.is_some()),
            (&section::BREAKER, self.breaker.is_some()),
            (&section::OUTLIER_EJECTION, self.outlier.is_some()),
            (&section::LIMITS, self.limits.is_some()),
            (&section::HEALTH_CHECK, self.health.is_some()),
            (&section::SLOW_START, self.slow_start.is_some()),
            (&section::PANIC_THRESHOLD, self.panic_threshold.is_some()),
            (&section::ZONE_PREFERENCE, self.zones.is_some()),
            (&section::SESSION_PERSISTENCE, self.session.is_some()),
            (&section::PRIORITY, self.priority.is_some()),
            (&section::MAX_VISITS, self.max_visits.is_some()),
            (&section::HEDGE, self.hedge.is_some()),
            (&section::CACHE, self.cache.is_some()),
            (&section::FALLBACKS, self.fallbacks.is_some()),
        ])
    }
}

impl Sections for ServerSections {
    fn sections(&self) -> Vec<&'static Section> {
        set_ones([
            (&section::RATE_LIMITS, self.rate_limits.is_some()),
            (&section::CONCURRENCY, self.concurrency.is_some()),
        ])
    }
}

fn set_ones<const N: usize>(sections: [(&'static Section, bool); N]) -> Vec<&'static Section> {
    sections.into_iter().filter(|(_, set)| *set).map(|(section, _)| section).collect()
}
