//! Watches one kind, and reads what it sees.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::api::Api;
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::WatchStreamExt;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Event};
use kube::{Client, Resource as _};
use outrigger_core::address::LocalEndpoints;
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::Generations;
use super::pods::Pods;
use crate::metrics::{KindLabel, Metrics};
use crate::object::{Kind, ObjectId, Policy};
use crate::source::closed;
use crate::source::read::{Reading, read};

/// After a failure, and then twice as long each time up to the other: what changes after the API server is back is to be seen
/// soon.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// A failure that goes on is said again after this.
const SAY_AGAIN: Duration = Duration::from_secs(60);

/// What has been seen of the cluster.
#[derive(Debug)]
pub(super) enum Observation {
    /// Which definitions there are: these kinds are watched beside those that every cluster has.
    Defined(Vec<Kind>),
    /// The definition of a kind is gone, and its objects with it.
    Undefined(Kind),
    /// All objects of a kind follow, up to [`Self::Listed`].
    Listing(Kind),
    Seen(Box<SeenObject>),
    Gone(ObjectId),
    Listed(Kind),
}

/// An object in some version.
#[derive(Debug)]
pub(super) struct SeenObject {
    pub(super) id: ObjectId,
    pub(super) generation: Option<i64>,
    pub(super) reading: Reading,
    /// What stands in for an AccessPolicy that is wrong.
    pub(super) closed: Option<Policy>,
}

/// What every watch works with.
#[derive(Clone)]
pub(super) struct WatchContext {
    pub(super) client: Client,
    pub(super) generations: Arc<Generations>,
    pub(super) pods: Arc<Pods>,
    pub(super) observations: mpsc::Sender<Observation>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) local: LocalEndpoints,
}

impl WatchContext {
    /// Watches a kind until the process ends or the task is aborted.
    pub(super) async fn run(self, kind: Kind, resource: ApiResource) {
        let api = Api::<DynamicObject>::all_with(self.client.clone(), &resource);
        let mut events = std::pin::pin!(events(api));
        let mut failures = Failures::default();
        while let Some(event) = events.next().await {
            let observation = match event {
                Ok(event) => {
                    failures.ended(&resource.plural);
                    self.observe(kind, event)
                }
                Err(error) => {
                    let label = KindLabel { kind: resource.kind.clone() };
                    self.metrics.watch_errors.get_or_create(&label).inc();
                    failures.happened(&resource.plural, &error);
                    continue;
                }
            };
            if self.observations.send(observation).await.is_err() {
                return;
            }
        }
    }

    fn observe(&self, kind: Kind, event: Event<DynamicObject>) -> Observation {
        match event {
            Event::Init => {
                if kind == Kind::Pod {
                    self.pods.listing();
                }
                Observation::Listing(kind)
            }
            Event::InitDone => {
                if kind == Kind::Pod {
                    self.pods.listed();
                }
                Observation::Listed(kind)
            }
            Event::Apply(object) | Event::InitApply(object) => {
                Observation::Seen(Box::new(self.see(kind, object)))
            }
            Event::Delete(object) => {
                let id = id(kind, &object);
                self.pods.gone(&id);
                Observation::Gone(id)
            }
        }
    }

    fn see(&self, kind: Kind, mut object: DynamicObject) -> SeenObject {
        let (id, generation) = (id(kind, &object), object.metadata.generation);
        // The largest parts, and nothing here looks at them.
        object.metadata.managed_fields = None;
        if let Value::Object(fields) = &mut object.data
            && kind != Kind::Pod
        {
            fields.remove("status");
        }
        let value = serde_json::to_value(&object).unwrap_or_default();
        self.pods.see(&id, &value);
        let is_small = kind == Kind::Pod || kind == Kind::Namespace;
        let reading = read(kind, &value, is_small, self.local);
        let is_wrong = reading.object.is_none() && kind == Kind::AccessPolicy;
        let closed = is_wrong.then(|| closed::of_object(&id, &value));
        SeenObject { id, generation, reading, closed }
    }
}

/// Which object it is; the API server lets none through without a name.
fn id(kind: Kind, object: &DynamicObject) -> ObjectId {
    let meta = object.meta();
    let name = meta.name.clone().unwrap_or_default();
    let namespace = match kind {
        Kind::Namespace => name.clone(),
        _ => meta.namespace.clone().unwrap_or_default(),
    };
    ObjectId { kind, namespace, name }
}

/// Lists and watches for ever; after an error it goes on where it was, or lists anew where it has to.
pub(super) fn events<K>(
    api: Api<K>,
) -> impl futures::Stream<Item = Result<Event<K>, watcher::Error>> + Send
where
    K: kube::Resource + Clone + DeserializeOwned + std::fmt::Debug + Send + 'static,
{
    watcher::watcher(api, watcher::Config::default()).backoff(WatchBackoff { next: FIRST_PAUSE })
}

/// Pauses after failures, each up to twice the one before.
struct WatchBackoff {
    next: Duration,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST_PAUSE);
        // Not all watches, and not all replicas, at the same moment.
        let mut random = [0];
        let _ = getrandom::fill(&mut random);
        Some(pause / 2 + pause / 2 * u32::from(random[0]) / 255)
    }
}

impl Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.next = FIRST_PAUSE;
    }
}

/// Says that a watch fails and that it no longer does, each once.
#[derive(Debug, Default)]
pub(super) struct Failures {
    said: Option<Instant>,
}

impl Failures {
    pub(super) fn happened(&mut self, plural: &str, error: &watcher::Error) {
        if let watcher::Error::WatchError(status) = error
            && status.code == 410
        {
            // Too far behind: everything is listed anew, as it should be.
            tracing::debug!(resource = plural, "the watch expired and restarts");
            return;
        }
        if self.said.is_some_and(|said| said.elapsed() < SAY_AGAIN) {
            return;
        }
        self.said = Some(Instant::now());
        let hint = hint(error);
        tracing::warn!(
            resource = plural,
            %error,
            hint,
            "cannot watch the API server; the last known objects stay in force"
        );
    }

    pub(super) fn ended(&mut self, plural: &str) {
        if self.said.take().is_some() {
            tracing::info!(resource = plural, "the API server can be watched again");
        }
    }
}

/// What a person can do about an error.
fn hint(error: &watcher::Error) -> &'static str {
    let status = match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status)) => status,
        watcher::Error::WatchError(status) => status,
        _ => return "check the API server and the network to it",
    };
    match status.code {
        401 => "the credentials were rejected; have they expired?",
        403 => "the control plane's ClusterRole must allow get, list and watch of it",
        404 => "the kind does not exist; is its definition being removed?",
        _ => "retrying",
    }
}
