//! What the daemon counts, in Prometheus' text format, and whether it is ready.

use std::sync::atomic::AtomicU64;
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

use crate::wire::{Answer, Command};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct CallLabel {
    pub command: &'static str,
    pub result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub struct ResultLabel {
    pub result: &'static str,
}

#[derive(Debug)]
pub struct Metrics {
    calls: Family<CallLabel, Counter>,
    /// Pods that the plugin had missed.
    pub repairs: Family<ResultLabel, Counter>,
    /// Pods that asked and are not redirected, at the last look.
    pub not_redirected: Gauge<i64>,
    pub config_changes: Counter<u64, AtomicU64>,
    pub installed: Gauge<i64>,
    registry: Registry,
    /// Why it is not ready.
    waits_for: Mutex<Vec<(Part, String)>>,
}

/// What has to be there before pods can be redirected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Pods,
    Socket,
    Configuration,
}

impl Metrics {
    pub fn new() -> Self {
        let not_yet = |part, why: &str| (part, why.to_owned());
        let mut metrics = Self {
            calls: Family::default(),
            repairs: Family::default(),
            not_redirected: Gauge::default(),
            config_changes: Counter::default(),
            installed: Gauge::default(),
            registry: Registry::with_prefix("outrigger_cni"),
            waits_for: Mutex::new(vec![
                not_yet(Part::Pods, "the API server has not told the pods of this node yet"),
                not_yet(Part::Socket, "the plugin cannot ask yet"),
                not_yet(Part::Configuration, "the plugin is not in the node's configuration yet"),
            ]),
        };
        let registry = &mut metrics.registry;
        registry.register(
            "calls",
            "Questions of the plugin, by command and result",
            metrics.calls.clone(),
        );
        registry.register(
            "repairs",
            "Pods that the plugin had missed, by what became of them",
            metrics.repairs.clone(),
        );
        registry.register(
            "not_redirected_pods",
            "Pods of the mode cni on this node that are not redirected",
            metrics.not_redirected.clone(),
        );
        registry.register(
            "config_changes",
            "Times that the plugin was put into the node's network configuration",
            metrics.config_changes.clone(),
        );
        registry.register(
            "installed",
            "Whether the plugin is in the node's network configuration",
            metrics.installed.clone(),
        );
        metrics
    }

    pub fn count(&self, command: Command, answer: &Answer) {
        let command = match command {
            Command::Add => "add",
            Command::Check => "check",
            Command::Del => "del",
        };
        let result = match answer {
            Answer::Redirected => "redirected",
            Answer::NotAsked => "not_asked",
            Answer::Unknown(_) => "unknown",
            Answer::Failed(_) => "failed",
            Answer::Removed => "removed",
        };
        self.calls.get_or_create(&CallLabel { command, result }).inc();
    }

    /// Says that a part is there, or why not.
    pub fn set(&self, part: Part, state: Result<(), String>) {
        let mut waits_for = self.waits_for.lock().unwrap_or_else(PoisonError::into_inner);
        waits_for.retain(|(of, _)| *of != part);
        if let Err(why) = state {
            waits_for.push((part, why));
        }
    }

    /// # Errors
    /// Everything that is missing.
    pub fn ready(&self) -> Result<(), String> {
        let waits_for = self.waits_for.lock().unwrap_or_else(PoisonError::into_inner);
        let why: Vec<&str> = waits_for.iter().map(|(_, why)| why.as_str()).collect();
        if why.is_empty() { Ok(()) } else { Err(why.join("; ")) }
    }

    pub fn text(&self) -> String {
        let mut text = String::new();
        // Writing to a String cannot fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}
