//! Each workload that has registered at this replica as an ExternalWorkload object in the cluster, by which
//! other replicas, and people, see it.
//!
//! Level by level: what is registered is compared with the objects that the index has seen, now and then and when
//! something changes, and what differs is written. A name is claimed by creating an object, which succeeds for
//! one alone; from then on it is applied as [`MANAGER`] over the version that was read, so that an object of
//! somebody else is never touched. What a replica that has died leaves behind goes once its lease has been over
//! for the grace period; the replica that writes status sees to it. While the API server is away registrations
//! hold all the same, and are written when it is back.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use kube::core::{ApiResource, DynamicObject, ObjectMeta};
use serde_json::Value;
use tokio::task::JoinSet;
use tokio::time::Instant;

use super::{RegistrationRefused, Registrations};
use crate::cluster::writer;
use crate::kinds::ExternalWorkload;
use crate::object::Workload;
use crate::object::registered::{self, Registered};
use crate::replica::{Replica, ReplicaName};
use crate::translate::external_workload;

/// Whose fields in these objects are ours.
const MANAGER: &str = "outrigger-registrations";
/// How long the API server may take for one of them.
const LIMIT: Duration = Duration::from_secs(10);
/// Requests under way.
const AT_ONCE: usize = 8;
/// After a write that came to nothing, and until one is made again that the index has not seen.
const AGAIN: Duration = Duration::from_secs(3);

/// Keeps the objects of this replica's registrations.
pub struct Objects {
    client: Client,
    registrations: Arc<Registrations>,
    replica: Arc<Replica>,
    last: HashMap<String, LastWrite>,
    /// Since when replicas have been dead that have left nothing but objects.
    unknown: HashMap<String, Instant>,
}

/// What was last begun for a name.
struct LastWrite {
    /// None: its object was to go.
    wanted: Option<Workload>,
    /// It is under way, or not to be tried again before this.
    busy: bool,
    again: Instant,
    /// The error that was said last.
    said: Option<String>,
}

/// What has been done about a name.
struct WorkloadWrite {
    uid: String,
    result: Result<WorkloadOutcome, String>,
}

enum WorkloadOutcome {
    /// It is as it should be, or will be looked at again.
    Done,
    /// The name is that of somebody's object.
    Taken(u64),
}

impl std::fmt::Debug for Objects {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Objects")
    }
}

impl Objects {
    pub fn new(client: Client, registrations: Arc<Registrations>, replica: Arc<Replica>) -> Self {
        let (last, unknown) = (HashMap::new(), HashMap::new());
        Self { client, registrations, replica, last, unknown }
    }

    /// Writes until dropped.
    pub async fn run(mut self) {
        let mut changed = self.registrations.changed.subscribe();
        let mut tick = tokio::time::interval(self.replica.timing.poll);
        let mut running = JoinSet::new();
        loop {
            self.begin(&mut running);
            tokio::select! {
                _ = changed.changed() => {}
                _ = tick.tick() => {
                    for (uid, object) in self.left_behind().await {
                        self.remove(uid, object, &mut running);
                    }
                }
                Some(done) = running.join_next(), if !running.is_empty() => {
                    if let Ok(done) = done {
                        self.done(done);
                    }
                }
            }
        }
    }

    /// Begins to write whatever differs.
    fn begin(&mut self, running: &mut JoinSet<WorkloadWrite>) {
        let index = self.registrations.publisher.view().index.clone();
        let objects: HashMap<&str, &Workload> = index.objects_of_replicas().collect();
        let wanted = self.registrations.wanted(self.replica.name.as_str());
        self.last.retain(|uid, last| {
            last.busy || wanted.contains_key(uid) || objects.contains_key(uid.as_str())
        });
        for (uid, object) in &objects {
            let is_own = object.registered.as_ref().is_some_and(|r| self.is_own(r));
            // One that is registered elsewhere by now is taken over there.
            if is_own && !wanted.contains_key(*uid) && !self.registrations.is_elsewhere(uid) {
                self.remove((*uid).to_owned(), (*object).clone(), running);
            }
        }
        for (uid, workload) in wanted {
            if objects.get(uid.as_str()) != Some(&&workload)
                && self.may_begin(&uid, Some(&workload), running)
            {
                let (client, own) = (self.client.clone(), self.replica.name.clone());
                running.spawn(async move {
                    let result = limited(put(client, own, workload)).await;
                    WorkloadWrite { uid, result }
                });
            }
        }
    }

    fn remove(&mut self, uid: String, object: Workload, running: &mut JoinSet<WorkloadWrite>) {
        if self.may_begin(&uid, None, running) {
            let client = self.client.clone();
            running.spawn(async move {
                let result = limited(delete(client, object)).await;
                WorkloadWrite { uid, result }
            });
        }
    }

    fn is_own(&self, registered: &Registered) -> bool {
        registered.by == self.replica.name.as_str()
    }

    /// Whether something may be done about a name now; then it is noted as begun.
    fn may_begin(
        &mut self,
        uid: &str,
        wanted: Option<&Workload>,
        running: &JoinSet<WorkloadWrite>,
    ) -> bool {
        let now = Instant::now();
        let last = self.last.get(uid);
        // What is new need not wait.
        let rests = last.is_some_and(|l| l.busy || (l.wanted.as_ref() == wanted && now < l.again));
        if rests || running.len() >= AT_ONCE {
            return false;
        }
        let said = last.and_then(|last| last.said.clone());
        let last = LastWrite { wanted: wanted.cloned(), busy: true, again: now, said };
        self.last.insert(uid.to_owned(), last);
        true
    }

    fn done(&mut self, done: WorkloadWrite) {
        let WorkloadWrite { uid, result } = done;
        let Some(last) = self.last.get_mut(&uid) else { return };
        last.busy = false;
        last.again = Instant::now() + AGAIN;
        match result {
            Ok(WorkloadOutcome::Done) => last.said = None,
            Ok(WorkloadOutcome::Taken(since)) => self.registrations.refuse(&uid, since),
            Err(error) if last.said.as_ref() != Some(&error) => {
                tracing::warn!(
                    uid,
                    error,
                    "could not write or remove the ExternalWorkload of a registration; retrying"
                );
                last.said = Some(error);
            }
            Err(_) => {}
        }
    }

    /// How long a replica has to be dead. When the API server comes back every lease has run out, until its holder
    /// has renewed it.
    fn patience(&self) -> Duration {
        self.registrations.grace.max(self.replica.timing.renew * 2)
    }

    /// Objects of replicas that are no more, for the one that writes status.
    async fn left_behind(&mut self) -> Vec<(String, Workload)> {
        let index = self.registrations.publisher.view().index.clone();
        let mut candidates = Vec::new();
        let mut unknown = BTreeSet::new();
        for (uid, object) in index.objects_of_replicas() {
            let Some(registered) = object.registered.as_ref().filter(|r| !self.is_own(r)) else {
                continue;
            };
            match self.registrations.gone(&registered.by) {
                Some(gone) if gone < self.patience() => continue,
                Some(_) => {}
                None => drop(unknown.insert(registered.by.clone())),
            }
            if !index.is_registered(uid) && !self.registrations.is_elsewhere(uid) {
                candidates.push((uid.to_owned(), object.clone()));
            }
        }
        if candidates.is_empty() {
            self.unknown.clear();
            return candidates;
        }
        let replica = self.replica.clone();
        let names = unknown.clone();
        let asked = tokio::task::spawn_blocking(move || {
            let mut alive = BTreeSet::new();
            for name in names {
                // What is no name of a replica is nobody's.
                if let Ok(parsed) = name.parse::<ReplicaName>()
                    && replica.is_alive(&parsed)?
                {
                    alive.insert(name);
                }
            }
            let leader = replica.store.holder(writer::LEASE)?;
            let leads = leader.is_some_and(|held| held.holder == replica.name.as_str());
            Ok::<_, crate::store::StoreError>((alive, leads))
        });
        // While the store is away nobody is known to be dead.
        let Ok(Ok((alive, leads))) = asked.await else {
            self.unknown.clear();
            return Vec::new();
        };
        let now = Instant::now();
        self.unknown.retain(|name, _| unknown.contains(name) && !alive.contains(name));
        for name in unknown.iter().filter(|name| !alive.contains(*name)) {
            self.unknown.entry(name.clone()).or_insert(now);
        }
        let is_over = |name: &String| {
            let since = self.unknown.get(name);
            since.is_some_and(|since| now.duration_since(*since) >= self.patience())
        };
        candidates.retain(|(_, object)| {
            let by = object.registered.as_ref().map(|registered| &registered.by);
            leads && by.is_some_and(|by| !unknown.contains(by) || is_over(by))
        });
        candidates
    }
}

impl Registrations {
    /// What is registered here as its object is to be.
    fn wanted(&self, by: &str) -> HashMap<String, Workload> {
        let entries = self.entries();
        let wanted = entries.iter().map(|(uid, entry)| {
            let registered = Some(Registered { by: by.to_owned(), since: entry.since });
            let mut workload = Workload { registered, ..entry.published() };
            workload.labels.retain(|key, _| !registered::LABELS.contains(&key.as_str()));
            (uid.clone(), workload)
        });
        wanted.collect()
    }

    /// Whether another replica has it, or had it a moment ago.
    fn is_elsewhere(&self, uid: &str) -> bool {
        self.others().find(uid, std::time::Instant::now()).is_some()
    }

    /// How long a replica has been dead; zero: it is alive, and `None`: nothing is known of it.
    fn gone(&self, replica: &str) -> Option<Duration> {
        let replica: ReplicaName = replica.parse().ok()?;
        self.others().gone(&replica, std::time::Instant::now())
    }

    /// Ends the registration that was taken then: its name is that of somebody's object.
    fn refuse(&self, uid: &str, since: u64) {
        let taken = self.entries().get(uid).filter(|entry| entry.since == since).map(|e| e.stream);
        let Some(stream) = taken else { return };
        tracing::warn!(uid, "a registration was ended: an ExternalWorkload has its name");
        self.end(uid, stream, Some(RegistrationRefused::Taken(uid.to_owned())));
    }
}

async fn limited(
    call: impl Future<Output = Result<WorkloadOutcome, kube::Error>>,
) -> Result<WorkloadOutcome, String> {
    match tokio::time::timeout(LIMIT, call).await {
        Ok(Ok(outcome)) => Ok(outcome),
        // Somebody else was first: what there is now is looked at again.
        Ok(Err(kube::Error::Api(status))) if status.code == 409 => Ok(WorkloadOutcome::Done),
        Ok(Err(error)) => Err(error.to_string()),
        Err(_) => Err(format!("the API server has not answered for {LIMIT:?}")),
    }
}

fn api(client: Client, workload: &Workload) -> Api<ExternalWorkload> {
    Api::namespaced(client, &workload.namespace)
}

/// An object of that name, whatever it holds.
struct There {
    metadata: ObjectMeta,
    spec: Value,
}

async fn read(client: Client, workload: &Workload) -> Result<Option<There>, kube::Error> {
    let resource = ApiResource::erase::<ExternalWorkload>(&());
    let api = Api::<DynamicObject>::namespaced_with(client, &workload.namespace, &resource);
    let there = api.get_opt(&workload.name).await?;
    Ok(there.map(|mut there| There { spec: there.data["spec"].take(), metadata: there.metadata }))
}

/// Has the object of a workload there, unless its name is somebody's, or a later claim's.
async fn put(
    client: Client,
    own: ReplicaName,
    workload: Workload,
) -> Result<WorkloadOutcome, kube::Error> {
    let api = api(client.clone(), &workload);
    let Some(registered) = &workload.registered else { return Ok(WorkloadOutcome::Done) };
    let there = match read(client, &workload).await? {
        Some(there) => there,
        None => {
            let manager = Some(MANAGER.to_owned());
            let params = PostParams { field_manager: manager, ..PostParams::default() };
            let made = api.create(&params, &claim(&workload, registered)).await?;
            There { metadata: made.metadata, spec: Value::Null }
        }
    };
    match Registered::of(&there.metadata) {
        None => return Ok(WorkloadOutcome::Taken(registered.since)),
        Some(other) if other.by != own.as_str() && other.since > registered.since => {
            return Ok(WorkloadOutcome::Done);
        }
        Some(_) => {}
    }
    let mut object = object(&workload, registered);
    if serde_json::to_value(&object.spec).is_ok_and(|spec| spec == there.spec)
        && object.metadata.labels == there.metadata.labels
        && Registered::of(&there.metadata).as_ref() == Some(registered)
    {
        return Ok(WorkloadOutcome::Done);
    }
    // Of that object, in that version, and no other.
    object.metadata.uid = there.metadata.uid;
    object.metadata.resource_version = there.metadata.resource_version;
    let params = PatchParams::apply(MANAGER).force();
    api.patch(&workload.name, &params, &Patch::Apply(&object)).await?;
    Ok(WorkloadOutcome::Done)
}

/// Removes the object, if it is still the one of that claim.
async fn delete(client: Client, seen: Workload) -> Result<WorkloadOutcome, kube::Error> {
    let api = api(client.clone(), &seen);
    let Some(there) = read(client, &seen).await? else { return Ok(WorkloadOutcome::Done) };
    if Registered::of(&there.metadata) != seen.registered {
        return Ok(WorkloadOutcome::Done);
    }
    let preconditions = Preconditions {
        uid: there.metadata.uid,
        resource_version: there.metadata.resource_version,
    };
    let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
    match api.delete(&seen.name, &params).await {
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(WorkloadOutcome::Done),
        deleted => deleted.map(|_| WorkloadOutcome::Done),
    }
}

/// What holds the name until the rest is applied: no endpoint, and nothing that would not be applied, too, since
/// what was created stays where it is not.
fn claim(workload: &Workload, registered: &Registered) -> ExternalWorkload {
    let bare = Workload {
        labels: Default::default(),
        ports: Vec::new(),
        mesh: None,
        zone: None,
        ready: false,
        ..workload.clone()
    };
    object(&bare, registered)
}

fn object(workload: &Workload, registered: &Registered) -> ExternalWorkload {
    let (marks, annotations) = registered.marks();
    let mut labels = workload.labels.clone();
    labels.extend(marks);
    let metadata = ObjectMeta {
        name: Some(workload.name.clone()),
        namespace: Some(workload.namespace.clone()),
        labels: Some(labels),
        annotations: Some(annotations),
        ..ObjectMeta::default()
    };
    ExternalWorkload { metadata, spec: external_workload::to_spec(workload) }
}
