//! Starts and stops the watches of kinds that come with a definition, as the definitions come and go.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::api::Api;
use kube::core::{ApiResource, Object};
use kube::runtime::watcher::Event;
use serde::Deserialize;
use tokio::task::JoinHandle;

use super::resources::{RESOURCES, Resource};
use super::watch::{Failures, Observation, WatchContext, events};
use crate::object::Kind;

/// What is read of a CustomResourceDefinition.
#[derive(Clone, Debug, Deserialize)]
pub(super) struct CrdSpec {
    #[serde(default)]
    versions: Vec<CrdVersion>,
}

#[derive(Clone, Debug, Deserialize)]
struct CrdVersion {
    name: String,
    #[serde(default)]
    served: bool,
}

#[derive(Clone, Debug, Default, Deserialize)]
pub(super) struct CrdStatus {
    #[serde(default)]
    conditions: Vec<Condition>,
}

type Definition = Object<CrdSpec, CrdStatus>;

/// The watches that run.
struct Running {
    watcher: WatchContext,
    builtin: Vec<JoinHandle<()>>,
    defined: BTreeMap<Kind, (ApiResource, JoinHandle<()>)>,
    /// Kinds whose definition this listing has shown.
    listed: BTreeSet<Kind>,
}

/// Watches everything until dropped.
pub(super) async fn run(watcher: WatchContext) {
    let definitions = ApiResource {
        group: "apiextensions.k8s.io".to_owned(),
        version: "v1".to_owned(),
        api_version: "apiextensions.k8s.io/v1".to_owned(),
        kind: "CustomResourceDefinition".to_owned(),
        plural: "customresourcedefinitions".to_owned(),
    };
    let api = Api::<Definition>::all_with(watcher.client.clone(), &definitions);
    let builtin = RESOURCES.iter().filter(|resource| resource.is_builtin);
    let builtin = builtin.map(|r| tokio::spawn(watcher.clone().run(r.kind, r.preferred())));
    let mut running = Running {
        builtin: builtin.collect(),
        watcher,
        defined: BTreeMap::new(),
        listed: BTreeSet::new(),
    };
    let mut events = std::pin::pin!(events(api));
    let mut failures = Failures::default();
    while let Some(event) = events.next().await {
        match event {
            Ok(event) => {
                failures.ended(&definitions.plural);
                running.take(event).await;
            }
            Err(error) => failures.happened(&definitions.plural, &error),
        }
    }
}

impl Running {
    async fn take(&mut self, event: Event<Definition>) {
        match event {
            Event::Init => self.listed.clear(),
            Event::InitApply(definition) => {
                if let Some(resource) = resource_of(&definition) {
                    self.listed.insert(resource.kind);
                    self.defined(resource, &definition).await;
                }
            }
            Event::InitDone => {
                let gone = self.defined.keys().filter(|kind| !self.listed.contains(*kind));
                for kind in gone.copied().collect::<Vec<_>>() {
                    self.undefined(kind).await;
                }
                let kinds = self.defined.keys().copied().collect();
                self.tell(Observation::Defined(kinds)).await;
            }
            Event::Apply(definition) => {
                if let Some(resource) = resource_of(&definition) {
                    self.defined(resource, &definition).await;
                }
            }
            Event::Delete(definition) => {
                if let Some(resource) = resource_of(&definition) {
                    self.undefined(resource.kind).await;
                }
            }
        }
    }

    /// Begins to watch a kind, or to watch it in a better version.
    async fn defined(&mut self, resource: &Resource, definition: &Definition) {
        if !is_established(definition) {
            return;
        }
        let served = definition.spec.versions.iter().filter(|version| version.served);
        let served: Vec<&str> = served.map(|version| version.name.as_str()).collect();
        let Some(best) = resource.in_best_of(&served) else {
            let name = resource.definition();
            tracing::warn!(name, "the cluster serves no supported version of this kind");
            return;
        };
        let running = self.defined.get(&resource.kind);
        if running.is_some_and(|(watched, task)| *watched == best && !task.is_finished()) {
            return;
        }
        if let Some((_, old)) = self.defined.remove(&resource.kind) {
            stop(old).await;
        }
        tracing::info!(resource = resource.definition(), version = best.version, "watching");
        self.watcher.generations.set_resource(resource.kind, Some(best.clone()));
        let task = tokio::spawn(self.watcher.clone().run(resource.kind, best.clone()));
        self.defined.insert(resource.kind, (best, task));
    }

    async fn undefined(&mut self, kind: Kind) {
        let Some((resource, task)) = self.defined.remove(&kind) else { return };
        stop(task).await;
        self.watcher.generations.set_resource(kind, None);
        tracing::warn!(
            resource = resource.plural,
            "the definition of this kind was removed, with all its objects"
        );
        self.tell(Observation::Undefined(kind)).await;
    }

    async fn tell(&self, observation: Observation) {
        // Nobody listens any more: the process ends.
        let _ = self.watcher.observations.send(observation).await;
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        for task in self.builtin.iter().chain(self.defined.values().map(|(_, task)| task)) {
            task.abort();
        }
    }
}

/// After this it says nothing more.
async fn stop(task: JoinHandle<()>) {
    task.abort();
    let _ = task.await;
}

fn resource_of(definition: &Definition) -> Option<&'static Resource> {
    let name = definition.metadata.name.as_deref()?;
    RESOURCES.iter().find(|resource| !resource.is_builtin && resource.definition() == name)
}

fn is_established(definition: &Definition) -> bool {
    let conditions = definition.status.iter().flat_map(|status| &status.conditions);
    conditions.into_iter().any(|c| c.type_ == "Established" && c.status == "True")
}
