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

/// Makes a type with a field for each section of a kind of policies, by the table of sections.
macro_rules! sections {
    (
        $(#[$doc:meta])*
        $name:ident { $($(#[$field_doc:meta])* $field:ident: $type:ty = $section:ident,)* }
    ) => {
        $(#[$doc])*
        #[derive(Clone, Debug, Default, PartialEq)]
        pub struct $name {
            $($(#[$field_doc])* pub $field: Option<$type>,)*
        }

        impl Sections for $name {
            const ALL: &[&Section] = &[$(&section::$section),*];

            fn sections(&self) -> impl Iterator<Item = &'static Section> {
                let set = [$(self.$field.is_some()),*];
                Self::ALL.iter().zip(set).filter(|(_, set)| *set).map(|(section, _)| *section)
            }
        }
    };
}

sections! {
    /// What a policy says about calls; a section that it does not have is left to less specific ones.
    TrafficSections {
        /// Zero: none.
        deadline: Duration = DEADLINE,
        streaming: bool = STREAMING,
        timeouts: Timeouts = TIMEOUTS,
        retries: RetryConfig = RETRIES,
        budget: BudgetConfig = RETRY_BUDGET,
        breaker: BreakerConfig = BREAKER,
        outlier: OutlierConfig = OUTLIER_EJECTION,
        limits: LimitsConfig = LIMITS,
        health: HealthConfig = HEALTH_CHECK,
        slow_start: Duration = SLOW_START,
        panic_threshold: u8 = PANIC_THRESHOLD,
        /// Percent of the zone's endpoints that must be fit.
        zones: u8 = ZONE_PREFERENCE,
        session: SessionConfig = SESSION_PERSISTENCE,
        priority: Priority = PRIORITY,
        max_visits: u8 = MAX_VISITS,
        hedge: HedgeConfig = HEDGE,
        cache: CacheConfig = CACHE,
        fallbacks: Vec<Fallback> = FALLBACKS,
    }
}

sections! {
    /// What a policy says about a port of workloads.
    ServerSections {
        rate_limits: Vec<RateLimitConfig> = RATE_LIMITS,
        concurrency: ConcurrencyConfig = CONCURRENCY,
    }
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
    /// Those that its kind has, in the order of the table.
    const ALL: &'static [&'static Section];

    /// Those that are set.
    fn sections(&self) -> impl Iterator<Item = &'static Section>;

    fn has(&self, section: &Section) -> bool {
        self.sections().any(|set| set == section)
    }
}

impl TrafficSections {
    pub fn has_backend_section(&self) -> bool {
        self.sections().any(|section| section.scope == Scope::Backend)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_have_the_sections_of_the_table() {
        assert_eq!([TrafficSections::ALL, ServerSections::ALL].concat(), section::ALL);
    }
}
