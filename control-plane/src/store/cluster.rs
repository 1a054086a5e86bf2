//! A store in a namespace of a Kubernetes cluster: a document is a Secret, one for everybody a ConfigMap, and a
//! lease is a Lease.
//!
//! A version is the object's uid and resourceVersion, by which the API server itself refuses a write that has
//! been overtaken (optimistic concurrency). Calls block and give up after [`LIMIT`]: they must not be made on a
//! thread that serves others.

use std::collections::BTreeMap;
use std::fmt;
use std::future::Future;
use std::io;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, SystemTime};

use k8s_openapi::ByteString;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Api, DeleteParams, ListParams, PostParams, Preconditions};
use kube::{Client, ResourceExt};
use tokio::runtime::Handle;

use super::{Document, HeldLease, Store, StoreError, Stored, Version};

/// How long the API server may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Bytes of a document: what one object may have, less its metadata.
const MAX_DOCUMENT: usize = 1_000_000;
/// On everything that is kept here.
const LABEL: &str = "app.kubernetes.io/managed-by";
const LABELLED: &str = "outrigger-control-plane";
/// Selects what is kept here.
pub const MANAGED_BY_US: &str = "app.kubernetes.io/managed-by=outrigger-control-plane";
/// Which document an object is.
const ANNOTATION: &str = "outrigger.dev/document";
/// The key of an object's data.
const KEY: &str = "document";
const PREFIX: &str = "outrigger-";
/// Attempts to take a lease that others take at the same time.
const MAX_ATTEMPTS: usize = 5;

/// The implementation of [`Store`].
pub struct ClusterStore {
    namespace: String,
    runtime: Handle,
    secrets: Api<Secret>,
    public: Api<ConfigMap>,
    leases: Api<Lease>,
}

impl fmt::Debug for ClusterStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Cluster({})", self.namespace)
    }
}

impl ClusterStore {
    /// In a namespace that exists. To be called inside a runtime, which goes on for as long as the store is used.
    pub fn new(client: &Client, namespace: &str) -> Self {
        Self {
            namespace: namespace.to_owned(),
            runtime: Handle::current(),
            secrets: Api::namespaced(client.clone(), namespace),
            public: Api::namespaced(client.clone(), namespace),
            leases: Api::namespaced(client.clone(), namespace),
        }
    }

    /// Runs a call of the API to its end.
    fn call<T: Send + 'static>(
        &self,
        place: &str,
        call: impl Future<Output = Result<T, kube::Error>> + Send + 'static,
    ) -> Result<T, Failure> {
        let (answer, answered) = sync_channel(1);
        self.runtime.spawn(async move {
            let done = tokio::time::timeout(LIMIT, call).await;
            // Nobody waits any more: the process ends.
            let _ = answer.send(done);
        });
        let failed =
            |error: io::Error| Failure::Other(StoreError::Io { place: place.to_owned(), error });
        match answered.recv() {
            Ok(Ok(Ok(done))) => Ok(done),
            Ok(Ok(Err(kube::Error::Api(status)))) if status.code == 404 => Err(Failure::Missing),
            Ok(Ok(Err(kube::Error::Api(status)))) if status.code == 409 => Err(Failure::Conflict),
            Ok(Ok(Err(error))) => Err(failed(io::Error::other(error))),
            Ok(Err(_)) => Err(failed(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the API server has not answered for {LIMIT:?}"),
            ))),
            Err(_) => Err(failed(io::Error::other("the process ends"))),
        }
    }

    /// What a Secret of the namespace holds that is no document of the store; none: it is not there.
    pub fn secret(&self, name: &str) -> Result<Option<BTreeMap<String, Vec<u8>>>, StoreError> {
        let (api, place, name) = (self.secrets.clone(), self.secret_place(name), name.to_owned());
        match self.call(&place, async move { api.get(&name).await }) {
            Ok(secret) => {
                let data = secret.data.unwrap_or_default();
                Ok(Some(data.into_iter().map(|(key, bytes)| (key, bytes.0)).collect()))
            }
            Err(Failure::Missing) => Ok(None),
            Err(failure) => Err(failure.error(place)),
        }
    }

    /// Where that is, for people.
    pub fn secret_place(&self, name: &str) -> String {
        format!("Secret {}/{name}", self.namespace)
    }

    fn get(&self, document: &Document) -> Result<Option<(ObjectMeta, Vec<u8>)>, StoreError> {
        let (name, place) = (object_name(document.name()), self.place(document));
        let found = if document.is_secret() {
            let api = self.secrets.clone();
            let found = self.call(&place, async move { api.get(&name).await });
            found.map(|secret| {
                let data = secret.data.and_then(|mut data| data.remove(KEY));
                (secret.metadata, data.unwrap_or_default().0)
            })
        } else {
            let api = self.public.clone();
            let found = self.call(&place, async move { api.get(&name).await });
            found.map(|map| {
                let data = map.data.and_then(|mut data| data.remove(KEY));
                (map.metadata, data.unwrap_or_default().into_bytes())
            })
        };
        match found {
            Ok(found) => Ok(Some(found)),
            Err(Failure::Missing) => Ok(None),
            Err(failure) => Err(failure.error(place)),
        }
    }

    /// Puts the object there, in the place of the one of that version.
    fn put(
        &self,
        document: &Document,
        bytes: &[u8],
        expected: Option<&Version>,
    ) -> Result<ObjectMeta, Failure> {
        let place = self.place(document);
        let name = object_name(document.name());
        let mut metadata = ObjectMeta {
            name: Some(name.clone()),
            labels: Some(BTreeMap::from([(LABEL.to_owned(), LABELLED.to_owned())])),
            annotations: Some(BTreeMap::from([(
                ANNOTATION.to_owned(),
                document.name().to_owned(),
            )])),
            ..ObjectMeta::default()
        };
        let create = expected.is_none();
        if let Some((uid, version)) = expected.and_then(|version| version.as_str().split_once('/'))
        {
            metadata.uid = Some(uid.to_owned());
            metadata.resource_version = Some(version.to_owned());
        }
        let params = PostParams::default();
        if document.is_secret() {
            let api = self.secrets.clone();
            let data = Some(BTreeMap::from([(KEY.to_owned(), ByteString(bytes.to_vec()))]));
            let object = Secret { metadata, data, ..Secret::default() };
            let put = self.call(&place, async move {
                match create {
                    true => api.create(&params, &object).await,
                    false => api.replace(&name, &params, &object).await,
                }
            });
            return put.map(|object| object.metadata);
        }
        let text = String::from_utf8(bytes.to_vec()).map_err(|_| {
            let error = io::Error::new(io::ErrorKind::InvalidData, "is not text");
            Failure::Other(StoreError::Io { place: place.clone(), error })
        })?;
        let api = self.public.clone();
        let data = Some(BTreeMap::from([(KEY.to_owned(), text)]));
        let object = ConfigMap { metadata, data, ..ConfigMap::default() };
        let put = self.call(&place, async move {
            match create {
                true => api.create(&params, &object).await,
                false => api.replace(&name, &params, &object).await,
            }
        });
        put.map(|object| object.metadata)
    }

    fn lease(&self, name: &str) -> Result<Option<Lease>, StoreError> {
        let (api, object) = (self.leases.clone(), object_name(name));
        let place = self.lease_place(name);
        match self.call(&place, async move { api.get(&object).await }) {
            Ok(lease) => Ok(Some(lease)),
            Err(Failure::Missing) => Ok(None),
            Err(failure) => Err(failure.error(place)),
        }
    }

    fn lease_place(&self, name: &str) -> String {
        format!("Lease {}/{}", self.namespace, object_name(name))
    }
}

impl Store for ClusterStore {
    fn read(&self, document: &Document) -> Result<Option<Stored>, StoreError> {
        let found = self.get(document)?;
        Ok(found.map(|(meta, bytes)| Stored { bytes, version: version_of(&meta) }))
    }

    fn version(&self, document: &Document) -> Result<Option<Version>, StoreError> {
        let (name, place) = (object_name(document.name()), self.place(document));
        let found = if document.is_secret() {
            let api = self.secrets.clone();
            self.call(&place, async move { api.get_metadata(&name).await.map(|o| o.metadata) })
        } else {
            let api = self.public.clone();
            self.call(&place, async move { api.get_metadata(&name).await.map(|o| o.metadata) })
        };
        match found {
            Ok(meta) => Ok(Some(version_of(&meta))),
            Err(Failure::Missing) => Ok(None),
            Err(failure) => Err(failure.error(place)),
        }
    }

    fn write(
        &self,
        document: &Document,
        bytes: &[u8],
        expected: Option<&Version>,
    ) -> Result<Version, StoreError> {
        let place = self.place(document);
        if bytes.len() > MAX_DOCUMENT {
            let problem = format!("has {} bytes, at most {MAX_DOCUMENT} can be kept", bytes.len());
            let error = io::Error::new(io::ErrorKind::FileTooLarge, problem);
            return Err(StoreError::Io { place, error });
        }
        match self.put(document, bytes, expected) {
            Ok(meta) => Ok(version_of(&meta)),
            // One that was removed meanwhile is another version, too.
            Err(Failure::Missing) if expected.is_some() => Err(StoreError::Conflict(place)),
            Err(failure) => Err(failure.error(place)),
        }
    }

    fn remove(&self, document: &Document, expected: &Version) -> Result<(), StoreError> {
        let (name, place) = (object_name(document.name()), self.place(document));
        let (uid, version) = expected.as_str().split_once('/').unwrap_or_default();
        let preconditions =
            Preconditions { uid: Some(uid.to_owned()), resource_version: Some(version.to_owned()) };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        let removed = if document.is_secret() {
            let api = self.secrets.clone();
            self.call(&place, async move { api.delete(&name, &params).await.map(drop) })
        } else {
            let api = self.public.clone();
            self.call(&place, async move { api.delete(&name, &params).await.map(drop) })
        };
        match removed {
            Ok(()) | Err(Failure::Missing) => Ok(()),
            Err(failure) => Err(failure.error(place)),
        }
    }

    fn list(&self, folder: &str) -> Result<Vec<String>, StoreError> {
        let params = ListParams::default().labels(MANAGED_BY_US);
        let place = format!("Secrets of {}", self.namespace);
        let api = self.secrets.clone();
        let all = self.call(&place, async move { api.list_metadata(&params).await });
        let all = all.map_err(|failure| failure.error(place))?;
        let names = all.items.iter().filter_map(|object| object.annotations().get(ANNOTATION));
        let mut names: Vec<_> = names.filter(|name| name.starts_with(folder)).cloned().collect();
        names.sort();
        Ok(names)
    }

    fn acquire(&self, name: &str, holder: &str, lifetime: Duration) -> Result<(), StoreError> {
        let place = self.lease_place(name);
        let mut attempts = 0;
        loop {
            attempts += 1;
            let before = self.lease(name)?;
            let held = before.as_ref().and_then(held);
            if let Some(held) = held.as_ref().filter(|held| held.holder != holder)
                && held.until > SystemTime::now()
            {
                let (lease, holder) = (name.to_owned(), held.holder.clone());
                return Err(StoreError::Leased { lease, holder });
            }
            let is_new = held.is_none_or(|held| held.holder != holder);
            let object = taken(name, before.as_ref(), holder, lifetime, is_new);
            let (api, object_name) = (self.leases.clone(), object_name(name));
            let create = before.is_none();
            let put = self.call(&place, async move {
                let params = PostParams::default();
                match create {
                    true => api.create(&params, &object).await,
                    false => api.replace(&object_name, &params, &object).await,
                }
            });
            match put {
                Ok(_) => return Ok(()),
                Err(Failure::Conflict | Failure::Missing) if attempts < MAX_ATTEMPTS => {}
                Err(failure) => return Err(failure.error(place)),
            }
        }
    }

    fn release(&self, name: &str, holder: &str) -> Result<(), StoreError> {
        let Some(lease) = self.lease(name)? else { return Ok(()) };
        if held(&lease).is_none_or(|held| held.holder != holder) {
            return Ok(());
        }
        let (api, object, place) = (self.leases.clone(), object_name(name), self.lease_place(name));
        let preconditions = Preconditions {
            uid: lease.metadata.uid,
            resource_version: lease.metadata.resource_version,
        };
        let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
        match self.call(&place, async move { api.delete(&object, &params).await.map(drop) }) {
            // Somebody else has it by now.
            Ok(()) | Err(Failure::Missing | Failure::Conflict) => Ok(()),
            Err(failure) => Err(failure.error(place)),
        }
    }

    fn holder(&self, name: &str) -> Result<Option<HeldLease>, StoreError> {
        let held = self.lease(name)?.as_ref().and_then(held);
        Ok(held.filter(|held| held.until > SystemTime::now()))
    }

    fn place(&self, document: &Document) -> String {
        let kind = if document.is_secret() { "Secret" } else { "ConfigMap" };
        format!("{kind} {}/{}", self.namespace, object_name(document.name()))
    }
}

/// Why a call did not do what it was for.
enum Failure {
    Missing,
    Conflict,
    Other(StoreError),
}

impl Failure {
    fn error(self, place: String) -> StoreError {
        match self {
            Self::Missing => {
                let error = io::Error::new(io::ErrorKind::NotFound, "is not there");
                StoreError::Io { place, error }
            }
            Self::Conflict => StoreError::Conflict(place),
            Self::Other(error) => error,
        }
    }
}

/// What the object of a document or a lease is called: a DNS subdomain.
fn object_name(name: &str) -> String {
    format!("{PREFIX}{}", name.replace('/', "."))
}

fn version_of(meta: &ObjectMeta) -> Version {
    let uid = meta.uid.as_deref().unwrap_or_default();
    let version = meta.resource_version.as_deref().unwrap_or_default();
    Version::new(format!("{uid}/{version}"))
}

fn held(lease: &Lease) -> Option<HeldLease> {
    let spec = lease.spec.as_ref()?;
    let holder = spec.holder_identity.clone().filter(|holder| !holder.is_empty())?;
    let seconds = u64::try_from(spec.lease_duration_seconds?).ok()?;
    let renewed = SystemTime::from(spec.renew_time.as_ref()?.0);
    Some(HeldLease { holder, until: renewed + Duration::from_secs(seconds) })
}

/// The lease as it is once it is held.
fn taken(
    name: &str,
    before: Option<&Lease>,
    holder: &str,
    lifetime: Duration,
    is_new: bool,
) -> Lease {
    let spec = before.and_then(|lease| lease.spec.clone()).unwrap_or_default();
    let now = Some(MicroTime(Timestamp::now()));
    // Whole seconds, never less than asked for.
    let seconds = lifetime.as_secs() + u64::from(lifetime.subsec_nanos() > 0);
    let labels = BTreeMap::from([(LABEL.to_owned(), LABELLED.to_owned())]);
    Lease {
        metadata: ObjectMeta {
            name: Some(object_name(name)),
            labels: Some(labels),
            uid: before.and_then(|lease| lease.metadata.uid.clone()),
            resource_version: before.and_then(|lease| lease.metadata.resource_version.clone()),
            ..ObjectMeta::default()
        },
        spec: Some(LeaseSpec {
            acquire_time: if is_new { now.clone() } else { spec.acquire_time },
            holder_identity: Some(holder.to_owned()),
            lease_duration_seconds: Some(i32::try_from(seconds).unwrap_or(i32::MAX)),
            lease_transitions: Some(spec.lease_transitions.unwrap_or(0) + i32::from(is_new)),
            renew_time: now,
            ..LeaseSpec::default()
        }),
    }
}
