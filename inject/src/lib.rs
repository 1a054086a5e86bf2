//! What is added to a pod so that it is part of the mesh, as a function from a pod to a pod.
//!
//! The webhook and `outrigger inject` are this function with I/O around it: [`inject()`] takes a pod (or the
//! template of one) as it was written, decides by its annotations and its namespace's whether it wants to be
//! injected, and returns the new pod, the reason why not, or every field that is wrong. Nothing here reads a
//! file, asks a cluster or looks at a clock, and no field that is unknown here is lost: pods are `Value`s.
//!
//! It is idempotent. A pod that was injected before, by whatever version, is first brought back to what it was
//! ([`strip()`]), so the API server may call the webhook twice, and other injectors may come in between. Start
//! reading at [`inject()`]; docs/injection.md is the page for users.

mod annotations;
mod containers;
mod environment;
mod lifecycle;
mod mark;
mod object;
mod opt_in;
mod patch;
mod pod;
mod ports;
mod probes;
mod quantity;
mod refuse;
mod service;
mod settings;
mod strip;

use outrigger_core::error::FieldError;
use serde_json::{Value, json};

pub use annotations::{ANNOTATIONS, Annotation, INJECT, INJECTED, network, quantity};
pub use mark::Mark;
pub use object::{Kind, inject_object};
pub use opt_in::{Namespace, NotInjected};
pub use patch::patch;
pub use service::{Service, ServicePort, Target};
pub use settings::{ConfigMapKey, Mode, PullPolicy, Resources, Settings, TrustBundle};
pub use strip::strip;

use annotations::Overrides;
use ports::AppPorts;

/// Where the proxy takes the app's own traffic.
pub const OUTBOUND_PORT: u16 = 4740;
/// Where it takes traffic for the app.
pub const INBOUND_PORT: u16 = 4743;
/// Where the kubelet's probes and Prometheus find it.
pub const ADMIN_PORT: u16 = 4791;

/// The container that redirects, or in the mode `cni` proves that something else has.
pub const INIT: &str = "outrigger-init";
/// The sidecar. The control plane knows a pod with a proxy by it.
pub const PROXY: &str = "outrigger-proxy";

/// What has become of a pod.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    Injected(Injected),
    /// It stays as it is.
    NotInjected(NotInjected),
}

/// A pod with its proxy.
#[derive(Clone, Debug, PartialEq)]
pub struct Injected {
    pub pod: Value,
    pub mode: Mode,
    /// What the user should know, with the field that it is about; for `warnings` of an AdmissionReview.
    pub warnings: Vec<FieldError>,
}

/// Why a pod cannot be injected as it is written: at least one field, each with what to do about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refused(pub Vec<FieldError>);

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (i, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if i == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for Refused {}

/// Whether a pod should have a proxy: it asked, and can have one. For a search of pods without.
pub fn should_have_proxy(pod: &Value, namespace: &Namespace) -> bool {
    matches!(opt_in::decide(pod, namespace), Ok(Ok(_))) && refuse::impossible(pod).is_none()
}

/// Injects a pod: `pod` is a `Pod` or a `PodTemplateSpec`, `namespace` the one that it is in, and `services`
/// those of that namespace, of which the ones that select the pod count.
///
/// # Errors
/// If the pod asks for injection and cannot have it, with the path of each field from the pod's root. A pod that
/// did not ask is never refused.
pub fn inject(
    pod: &Value,
    namespace: &Namespace,
    services: &[Service],
    settings: &Settings,
) -> Result<Outcome, Refused> {
    let by = match opt_in::decide(pod, namespace)? {
        Ok(by) => by,
        Err(why) => return Ok(Outcome::NotInjected(why)),
    };
    if let Some(why) = refuse::impossible(pod) {
        return match by {
            // Only who asked for this very pod is told that it cannot be.
            opt_in::AskedBy::Pod => Err(Refused(vec![why])),
            opt_in::AskedBy::Namespace => Ok(Outcome::NotInjected(NotInjected::Impossible(why))),
        };
    }
    let overrides = Overrides::read(pod, namespace, settings).map_err(Refused)?;
    let mut new = strip(pod);
    let ports = AppPorts::of(&new, services);
    let errors = refuse::check(pod, &new, namespace, &overrides);
    if !errors.is_empty() {
        return Err(Refused(errors));
    }
    let mut warnings = refuse::warnings(&new, &overrides);
    let probes = match overrides.mode {
        // Nothing is redirected: probes reach the app.
        Mode::Env => probes::Probes::default(),
        Mode::Init | Mode::Cni => probes::rewrite(&mut new, &overrides, &mut warnings),
    };
    if overrides.pre_stop {
        lifecycle::add(&mut new);
    }
    if overrides.mode == Mode::Env {
        environment::add(&mut new, &overrides, settings);
    }
    containers::add(
        &mut new,
        &containers::Parts { settings, overrides: &overrides, ports, probes },
    );
    let mark = Mark { version: settings.version.clone(), mode: overrides.mode };
    pod::annotate(&mut new, INJECTED, &json!(mark.to_string()));
    if let TrustBundle::Roots(roots) = &settings.trust_bundle {
        pod::annotate(&mut new, annotations::TRUST_BUNDLE, &json!(roots));
    }
    Ok(Outcome::Injected(Injected { pod: new, mode: overrides.mode, warnings }))
}
