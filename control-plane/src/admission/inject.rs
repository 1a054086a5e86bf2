//! A pod with its proxy: what [`outrigger_inject`] makes of it, and where its settings come from.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Namespace;
use kube::{Api, Client};
use outrigger_inject::{
    Mode, Outcome, PullPolicy, Service, ServicePort, Settings, Target, TrustBundle, inject, patch,
};
use serde::Deserialize;

use super::review::{AdmissionVerdict, Request};
use crate::ca::Authority;
use crate::index::Index;
use crate::object::{self, TargetPort};

/// How long the API server may take to show a namespace.
const LIMIT: Duration = Duration::from_secs(3);

/// What pods are injected with.
pub struct Injector {
    client: Client,
    authority: Arc<Authority>,
    settings: Settings,
}

/// The file of `--inject`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct InjectFile {
    image: String,
    #[serde(default)]
    image_pull_policy: Option<String>,
    control_plane: String,
    #[serde(default)]
    cluster_domain: Option<String>,
    #[serde(default)]
    mode: Option<String>,
    #[serde(default)]
    log_level: Option<String>,
    #[serde(default)]
    resources: Resources,
    #[serde(default)]
    skip_inbound_ports: Vec<u16>,
    #[serde(default)]
    skip_outbound_ports: Vec<u16>,
    #[serde(default)]
    skip_outbound_networks: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Resources {
    requests: Quantities,
    limits: Quantities,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
struct Quantities {
    cpu: Option<String>,
    memory: Option<String>,
}

impl Injector {
    /// # Errors
    ///
    /// If the file cannot be read, or says something that no pod could be injected with.
    pub fn open(path: &Path, client: Client, authority: Arc<Authority>) -> Result<Self, String> {
        let settings = std::fs::read_to_string(path)
            .map_err(|error| error.to_string())
            .and_then(|text| serde_json::from_str::<InjectFile>(&text).map_err(|e| e.to_string()))
            .and_then(InjectFile::settings);
        let settings = settings.map_err(|error| format!("{}: {error}", path.display()))?;
        Ok(Self { client, authority, settings })
    }

    /// Of the proxies that new pods get.
    pub fn image(&self) -> &str {
        &self.settings.proxy_image
    }

    /// The namespace of a pod, as far as it decides about its pods.
    ///
    /// # Errors
    ///
    /// If the API server does not show it.
    pub(super) async fn namespace(
        &self,
        request: &Request,
    ) -> Result<outrigger_inject::Namespace, String> {
        let name = request.namespace.clone();
        let api = Api::<Namespace>::all(self.client.clone());
        let found = match tokio::time::timeout(LIMIT, api.get_metadata(&name)).await {
            Ok(Ok(found)) => found.metadata,
            Ok(Err(error)) => return Err(format!("namespace {name}: {error}")),
            Err(_) => return Err(format!("namespace {name}: no answer for {LIMIT:?}")),
        };
        let (labels, annotations) = (found.labels, found.annotations);
        let (labels, annotations) = (labels.unwrap_or_default(), annotations.unwrap_or_default());
        Ok(outrigger_inject::Namespace { name, labels, annotations })
    }

    /// What becomes of a pod that is about to be made.
    pub(super) fn review(
        &self,
        index: &Index,
        namespace: &outrigger_inject::Namespace,
        request: &Request,
    ) -> AdmissionVerdict {
        let ids = index.services_in(&namespace.name).filter_map(|id| index.service(id));
        let services: Vec<Service> = ids.map(service).collect();
        let in_force = self.authority.in_force();
        let roots: String = in_force.roots.iter().map(|root| root.pem()).collect();
        let settings =
            Settings { trust_bundle: TrustBundle::Roots(roots), ..self.settings.clone() };
        match inject(&request.object, namespace, &services, &settings) {
            Ok(Outcome::NotInjected(_)) => AdmissionVerdict::allowed(),
            Ok(Outcome::Injected(injected)) => AdmissionVerdict {
                patch: Some(patch(&request.object, &injected.pod)),
                warnings: injected.warnings.iter().map(ToString::to_string).collect(),
                ..AdmissionVerdict::allowed()
            },
            Err(refused) => AdmissionVerdict {
                message: format!("the pod cannot have a proxy: {refused}"),
                causes: refused.0.into_iter().map(|e| (e.path, e.problem)).collect(),
                ..AdmissionVerdict::default()
            },
        }
    }
}

impl InjectFile {
    fn settings(self) -> Result<Settings, String> {
        let default = Settings::default();
        let mode = match &self.mode {
            None => default.mode,
            Some(text) => {
                Mode::parse(text).ok_or(format!("mode: {text:?} must be init, cni or env"))?
            }
        };
        let pull = match &self.image_pull_policy {
            None => default.image_pull_policy,
            Some(text) => PullPolicy::parse(text).ok_or(format!(
                "imagePullPolicy: {text:?} must be Always, IfNotPresent or Never"
            ))?,
        };
        let Resources { requests, limits } = self.resources;
        let proxy = outrigger_inject::Resources {
            cpu_request: requests.cpu.unwrap_or(default.proxy.cpu_request),
            memory_request: requests.memory.unwrap_or(default.proxy.memory_request),
            cpu_limit: limits.cpu,
            memory_limit: limits.memory,
        };
        Ok(Settings {
            mode,
            proxy_image: self.image,
            image_pull_policy: pull,
            control_plane: self.control_plane,
            cluster_domain: self.cluster_domain.unwrap_or(default.cluster_domain),
            log: self.log_level.unwrap_or(default.log),
            skip_inbound_ports: self.skip_inbound_ports,
            skip_outbound_ports: self.skip_outbound_ports,
            skip_outbound_networks: self.skip_outbound_networks,
            proxy,
            ..Settings::default()
        })
    }
}

/// As the injector reads it.
fn service(service: &object::Service) -> Service {
    let port = |port: &object::ServicePort| ServicePort {
        protocol: port.protocol,
        target: match &port.target {
            TargetPort::Number(number) => Target::Number(*number),
            TargetPort::Name(name) => Target::Name(name.clone()),
        },
    };
    Service {
        name: service.id.name.clone(),
        selector: service.selector.clone(),
        ports: service.ports.iter().map(port).collect(),
    }
}
