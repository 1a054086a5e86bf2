//! Writes the roots under which the webhook's certificate is into the webhook configurations of the cluster.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration, WebhookClientConfig,
};
use kube::api::PostParams;
use kube::{Api, Client};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::ca::{Authority, InForce};

/// How often it is looked at whether the configurations are still right.
const LOOK: Duration = Duration::from_secs(30);
/// After a write that failed.
const AGAIN: Duration = Duration::from_secs(2);
/// How long the API server may take for one request.
const LIMIT: Duration = Duration::from_secs(10);

/// Keeps the webhook configurations of one name.
pub struct WebhookBundle {
    pub client: Client,
    pub authority: Arc<Authority>,
    /// What both configurations are called.
    pub name: String,
}

/// Why a configuration could not be written.
type BundleError = Box<dyn std::error::Error + Send + Sync>;

impl std::fmt::Debug for WebhookBundle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bundle({})", self.name)
    }
}

impl WebhookBundle {
    /// Follows the roots until dropped.
    pub async fn run(self) {
        let mut changes = self.authority.changes();
        let mut said = BTreeMap::new();
        loop {
            let roots = pem(&changes.borrow_and_update().clone());
            let mut pause = LOOK;
            let validating = self.write::<ValidatingWebhookConfiguration>(&roots);
            let validating = ("ValidatingWebhookConfiguration", validating.await);
            let mutating = self.write::<MutatingWebhookConfiguration>(&roots);
            for (kind, written) in [validating, ("MutatingWebhookConfiguration", mutating.await)] {
                match written {
                    Ok(written) => {
                        said.remove(kind);
                        if written {
                            tracing::info!(kind, name = self.name, "has the roots of the mesh");
                        }
                    }
                    Err(problem) => {
                        pause = AGAIN;
                        let problem = problem.to_string();
                        if said.insert(kind, problem.clone()).as_ref() != Some(&problem) {
                            tracing::warn!(
                                kind,
                                name = self.name,
                                problem,
                                "could not be given the roots of the mesh: the API server cannot \
                                 call the webhook until it has them"
                            );
                        }
                    }
                }
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Whether there was something to write; there may be no such configuration.
    async fn write<C: Configuration>(&self, roots: &ByteString) -> Result<bool, BundleError> {
        let api = Api::<C>::all(self.client.clone());
        let written = async {
            let Some(mut configuration) = api.get_opt(&self.name).await? else { return Ok(false) };
            let mut is_new = false;
            for client in configuration.clients() {
                // One that is called by an address is somebody else's.
                if client.service.is_some() && client.ca_bundle.as_ref() != Some(roots) {
                    client.ca_bundle = Some(roots.clone());
                    is_new = true;
                }
            }
            if is_new {
                // It carries the version that was read: what is written in between is not lost.
                api.replace(&self.name, &PostParams::default(), &configuration).await?;
            }
            Ok(is_new)
        };
        match tokio::time::timeout(LIMIT, written).await {
            Ok(written) => written,
            Err(_) => Err(format!("no answer for {LIMIT:?}").into()),
        }
    }
}

/// Every root, so that a certificate under any of them is taken.
fn pem(in_force: &InForce) -> ByteString {
    ByteString(in_force.roots.iter().map(|root| root.pem()).collect::<String>().into_bytes())
}

/// A webhook configuration of either kind.
trait Configuration:
    kube::Resource<DynamicType = (), Scope = kube::core::ClusterResourceScope>
    + Clone
    + std::fmt::Debug
    + Serialize
    + DeserializeOwned
{
    fn clients(&mut self) -> impl Iterator<Item = &mut WebhookClientConfig>;
}

impl Configuration for ValidatingWebhookConfiguration {
    fn clients(&mut self) -> impl Iterator<Item = &mut WebhookClientConfig> {
        self.webhooks.iter_mut().flatten().map(|webhook| &mut webhook.client_config)
    }
}

impl Configuration for MutatingWebhookConfiguration {
    fn clients(&mut self) -> impl Iterator<Item = &mut WebhookClientConfig> {
        self.webhooks.iter_mut().flatten().map(|webhook| &mut webhook.client_config)
    }
}
