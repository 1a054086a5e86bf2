//! Writes the status of objects to the API server: one replica does, the one that holds the lease, and only what
//! differs from what is there.
//!
//! A change is written once; an object that changes often is written once a second, with the newest state. Nobody waits
//! for a write, and one that fails is tried again.

mod wanted;

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, Patch, PatchParams};
use kube::core::{ApiResource, DynamicObject};
use kube::runtime::events::{Event, EventType, Recorder, Reporter};
use kube::{Client, Resource as _};
use serde_json::{Value, json};
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};

use crate::object::ObjectId;
use crate::replica::Replica;
use crate::source::kubernetes::Generations;
use crate::status::ObjectStatus;
use crate::status::conditions::ObjectCondition;
use crate::status::reader::{StatusWatcher, Statuses};
use crate::store::StoreError;
use wanted::{Wanted, parents, same, stamped, wanted};

/// Whose entries in the status of a route are ours.
pub const CONTROLLER: &str = "outrigger.dev/control-plane";
/// Whose fields in the status of our own kinds are ours.
const MANAGER: &str = "outrigger-control-plane";
/// Of the replica that does.
pub const LEASE: &str = "status";
/// Between two writes of one object.
const REST: Duration = Duration::from_secs(1);
/// After a write that failed.
const AGAIN: Duration = Duration::from_secs(3);
/// How long the API server may take for one: a connection that hangs must not hold up all others.
const LIMIT: Duration = Duration::from_secs(10);
/// Between any two writes that begin: 50 a second.
const PACE: Duration = Duration::from_millis(20);
/// Writes under way.
const AT_ONCE: usize = 8;

#[derive(Clone)]
pub struct StatusWriter {
    client: Client,
    statuses: Arc<Statuses>,
    generations: Arc<Generations>,
    replica: Arc<Replica>,
    recorder: Recorder,
}

impl std::fmt::Debug for StatusWriter {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Writer")
    }
}

/// A write that has ended.
struct StatusWrite {
    id: ObjectId,
    generation: i64,
    conditions: Vec<Vec<ObjectCondition>>,
    result: Result<StatusOutcome, kube::Error>,
}

/// What a write has come to.
enum StatusOutcome {
    /// It is there, or nobody wants it any more.
    Done,
    /// What was known of the object is older than what the API server has: news will come.
    Overtaken,
    /// The API server took too long; whether it was written is not known.
    Unanswered,
}

/// What is to be written, and when.
#[derive(Default)]
struct Due {
    objects: BTreeMap<ObjectId, Instant>,
    /// Those that are being written: what comes later must not be overtaken by what was before.
    writing: HashSet<ObjectId>,
    /// When each was written last.
    rested: HashMap<ObjectId, Instant>,
    /// What was written last, to be compared without asking the API server.
    written: HashMap<ObjectId, (i64, Vec<Vec<ObjectCondition>>)>,
}

impl StatusWriter {
    pub fn new(
        client: Client,
        statuses: Arc<Statuses>,
        generations: Arc<Generations>,
        replica: Arc<Replica>,
    ) -> Self {
        let instance = Some(replica.name.as_str().to_owned());
        let reporter = Reporter { controller: CONTROLLER.to_owned(), instance };
        let recorder = Recorder::new(client.clone(), reporter);
        Self { client, statuses, generations, replica, recorder }
    }

    /// Writes whenever this replica is the one that does, until dropped.
    pub async fn run(self) {
        let mut said = None;
        loop {
            match self.acquire().await {
                Ok(()) => {
                    tracing::info!("this replica writes the status of objects");
                    self.lead().await;
                    tracing::warn!("this replica no longer writes the status of objects");
                }
                Err(StoreError::Leased { holder, .. }) => {
                    if said.as_ref() != Some(&holder) {
                        tracing::info!(holder, "another replica writes the status of objects");
                        said = Some(holder);
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot find out who writes the status of objects");
                }
            }
            tokio::time::sleep(self.replica.timing.renew).await;
        }
    }

    async fn acquire(&self) -> Result<(), StoreError> {
        let replica = self.replica.clone();
        let acquired = tokio::task::spawn_blocking(move || {
            replica.store.acquire(LEASE, replica.name.as_str(), replica.timing.expiry)
        });
        match acquired.await {
            Ok(acquired) => acquired,
            Err(error) => Err(StoreError::Io {
                place: LEASE.to_owned(),
                error: std::io::Error::other(error.to_string()),
            }),
        }
    }

    /// Writes while the lease can be renewed in time.
    async fn lead(&self) {
        let changes = self.statuses.watch();
        let mut due = Due::default();
        self.generations.take_changed();
        due.add(self.generations.all(), Instant::now());
        let mut pace = tokio::time::interval(PACE);
        pace.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut renew = tokio::time::interval(self.replica.timing.renew);
        let mut renewed = Instant::now();
        let mut writes = JoinSet::new();
        loop {
            // Others may begin when it has run out: this one stops before.
            if renewed.elapsed() > self.replica.timing.expiry * 2 / 3 {
                return;
            }
            tokio::select! {
                _ = renew.tick() => match self.acquire().await {
                    Ok(()) => renewed = Instant::now(),
                    Err(StoreError::Leased { .. }) => return,
                    Err(error) => tracing::warn!(%error, "cannot renew the lease for writing status"),
                },
                changed = news(&changes, &self.generations) => due.add(changed, Instant::now()),
                Some(done) = writes.join_next() => {
                    if let Ok(done) = done {
                        due.written(done);
                    }
                }
                _ = pace.tick(), if due.is_ready() && writes.len() < AT_ONCE => {
                    if let Some(id) = due.next() && let Some(write) = self.begin(&id, &mut due).await {
                        due.writing.insert(id);
                        writes.spawn(write);
                    }
                }
            }
        }
    }

    /// What has to be done to have an object's status there; none: nothing.
    async fn begin(
        &self,
        id: &ObjectId,
        due: &mut Due,
    ) -> Option<impl Future<Output = StatusWrite> + use<>> {
        // In this order: the status is of this generation or of a later one.
        let Some(generation) = self.generations.of(id) else {
            due.written.remove(id);
            return None;
        };
        let resource = self.generations.resource(id.kind)?;
        let status = self.statuses.up_to_date().await.get(id).cloned();
        let status = status.unwrap_or_else(|| Arc::new(ObjectStatus::of_nothing(id)));
        let wanted = wanted(id, &status);
        if due
            .written
            .get(id)
            .is_some_and(|(of, known)| *of == generation && *known == wanted.all())
        {
            return None;
        }
        let (writer, id) = (self.clone(), id.clone());
        Some(async move {
            let write = writer.write(&id, &resource, generation, &wanted);
            let result = tokio::time::timeout(LIMIT, write).await;
            let result = result.unwrap_or(Ok(StatusOutcome::Unanswered));
            StatusWrite { id, generation, conditions: wanted.all(), result }
        })
    }

    async fn write(
        &self,
        id: &ObjectId,
        resource: &ApiResource,
        generation: i64,
        wanted: &Wanted,
    ) -> Result<StatusOutcome, kube::Error> {
        let api =
            Api::<DynamicObject>::namespaced_with(self.client.clone(), &id.namespace, resource);
        let Some(object) = api.get_opt(&id.name).await? else { return Ok(StatusOutcome::Done) };
        if object.metadata.generation.unwrap_or_default() != generation {
            return Ok(StatusOutcome::Overtaken);
        }
        let now = Timestamp::now();
        let stamped = |new: &[ObjectCondition], old: &Value| stamped(new, old, generation, now);
        let (before, patch) = match wanted {
            Wanted::Own(conditions) => {
                let before = &object.data["status"]["conditions"];
                let new = stamped(conditions, before);
                if same(&new, before) {
                    return Ok(StatusOutcome::Done);
                }
                let body = json!({
                    "apiVersion": resource.api_version,
                    "kind": resource.kind,
                    "metadata": {"name": id.name, "namespace": id.namespace},
                    "status": {"conditions": new},
                });
                (before.clone(), Patch::Apply(body))
            }
            Wanted::Route(status) => {
                let before = &object.data["status"]["parents"];
                let new = parents(status, &object.data["spec"]["parentRefs"], before, stamped);
                if new == *before || (before.is_null() && new == json!([])) {
                    return Ok(StatusOutcome::Done);
                }
                // The list belongs to all controllers together: nobody else may have changed it meanwhile.
                let body = json!({
                    "metadata": {"resourceVersion": object.metadata.resource_version},
                    "status": {"parents": new},
                });
                (before.clone(), Patch::Merge(body))
            }
        };
        let mut params =
            PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        params.force = matches!(patch, Patch::Apply(_));
        api.patch_status(&id.name, &params, &patch).await?;
        self.tell(&object, resource, wanted, &before).await;
        Ok(StatusOutcome::Done)
    }

    /// An Event for what somebody should see: it is not accepted any more, or a fault injection was stopped.
    async fn tell(
        &self,
        object: &DynamicObject,
        resource: &ApiResource,
        wanted: &Wanted,
        before: &Value,
    ) {
        let before = before.to_string();
        for condition in wanted.all().iter().flatten() {
            let is_bad = (condition.kind == "Accepted" && condition.status == "False")
                || condition.kind == "Stopped";
            let (kind, reason) = (condition.kind, condition.reason);
            // The same as before need not be said again.
            if !is_bad || before.contains(&format!("{:?}", condition.message)) {
                continue;
            }
            let event = Event {
                type_: EventType::Warning,
                reason: reason.to_owned(),
                // The API's own bound.
                note: Some(condition.message.chars().take(1000).collect()),
                action: kind.to_owned(),
                secondary: None,
            };
            let reference: ObjectReference = object.object_ref(resource);
            if let Err(error) = self.recorder.publish(&event, &reference).await {
                tracing::warn!(%error, object = reference.name, "could not write an Event");
            }
        }
    }
}

/// Objects whose status or generation is another one.
async fn news(changes: &StatusWatcher, generations: &Generations) -> Vec<ObjectId> {
    loop {
        let mut news: Vec<ObjectId> = generations.take_changed().into_iter().collect();
        news.extend(changes.take());
        if !news.is_empty() {
            return news;
        }
        tokio::select! {
            changed = changes.changed() => news.extend(changed),
            () = generations.wake.notified() => {}
        }
        if !news.is_empty() {
            return news;
        }
    }
}

impl Due {
    fn add(&mut self, ids: impl IntoIterator<Item = ObjectId>, now: Instant) {
        for id in ids {
            let rested = self.rested.get(&id).map_or(now, |at| (*at + REST).max(now));
            let at = self.objects.entry(id).or_insert(rested);
            *at = (*at).min(rested);
        }
    }

    fn is_ready(&self) -> bool {
        !self.objects.is_empty()
    }

    /// One whose time has come.
    fn next(&mut self) -> Option<ObjectId> {
        let now = Instant::now();
        let mut ready = self.objects.iter().filter(|(_, at)| **at <= now);
        let id = ready.find(|(id, _)| !self.writing.contains(*id)).map(|(id, _)| id.clone())?;
        self.objects.remove(&id);
        self.rested.insert(id.clone(), now);
        // Only those that still have to rest matter.
        if self.rested.len() > 2 * self.objects.len() + 1000 {
            self.rested.retain(|_, at| now.saturating_duration_since(*at) < REST);
        }
        Some(id)
    }

    fn written(&mut self, done: StatusWrite) {
        let StatusWrite { id, generation, conditions, result } = done;
        self.writing.remove(&id);
        match result {
            Ok(StatusOutcome::Done) => drop(self.written.insert(id, (generation, conditions))),
            Ok(StatusOutcome::Overtaken) => {}
            Ok(StatusOutcome::Unanswered) => {
                tracing::warn!(object = %id, "a status was not written in {LIMIT:?}; retrying");
                self.written.remove(&id);
                self.objects.entry(id).or_insert(Instant::now() + AGAIN);
            }
            Err(error) => {
                let is_race = matches!(&error, kube::Error::Api(status) if status.code == 409);
                if !is_race {
                    tracing::warn!(object = %id, %error, "could not write a status; retrying");
                }
                self.written.remove(&id);
                let pause = if is_race { Duration::ZERO } else { AGAIN };
                self.objects.entry(id).or_insert(Instant::now() + pause);
            }
        }
    }
}
