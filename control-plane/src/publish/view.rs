//! What a reader sees: one state of the index, and resources of that state or a newer one.

use std::collections::BTreeMap;
use std::ops::Deref;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use outrigger_core::name::DestinationName;
use outrigger_proto::{convert, wire};
use prost::Message;

use super::collection::{Cut, Effort};
use super::topics::Value;
use super::{
    Collection, Encoded, EncodedDestination, EncodedInbound, Handle, LeftOut, Programmed,
    Publisher, Snapshot, encode,
};
use crate::index::{Dep, PortId};
use crate::object::ServiceId;

/// The state that a reader has before it; nothing is locked. What a stream that depends on something is given
/// is kept for others, too.
#[derive(Debug)]
pub struct View<'a> {
    publisher: &'a Publisher,
    snapshot: Arc<Snapshot>,
    handle: Option<&'a Arc<Handle>>,
    /// The generation up to which the stream was told of everything.
    pub told: u64,
    /// Of what was put together here and not kept, since no stream needs it: by the Service.
    left_out: BTreeMap<Dep, Vec<(DestinationName, LeftOut)>>,
    /// By the workload.
    left_out_inbound: BTreeMap<String, Vec<LeftOut>>,
}

impl Deref for View<'_> {
    type Target = Snapshot;

    fn deref(&self) -> &Snapshot {
        &self.snapshot
    }
}

impl<'a> View<'a> {
    pub(super) fn new(
        publisher: &'a Publisher,
        handle: Option<&'a Arc<Handle>>,
        told: u64,
    ) -> Self {
        let snapshot = publisher.snapshot.load_full();
        let (left_out, left_out_inbound) = Default::default();
        Self { publisher, snapshot, handle, told, left_out, left_out_inbound }
    }

    /// The stream depends on something from now on. Gives the key that all who do share.
    pub fn subscribe(&self, dep: &Dep) -> Arc<Dep> {
        let Some(handle) = self.handle else { return Arc::new(dep.clone()) };
        let newest = || self.publisher.snapshot.load().commit.generation;
        let shared = self.publisher.topics.subscribe(dep, handle, newest);
        // What has happened since this state was taken may have missed the stream.
        let newest = self.publisher.snapshot.load().commit;
        if newest.generation != self.commit.generation {
            handle.tell(shared.clone(), newest);
            handle.wake.notify_one();
        }
        shared
    }

    /// `None` when there is no such Service or port, or nothing of it can be sent.
    pub fn destination(&mut self, name: &DestinationName) -> Option<Arc<EncodedDestination>> {
        let dep = Dep::Service(PortId::from(name).service);
        let known = self.publisher.topics.with(&dep, |topic| match &topic.value {
            Value::Destinations(known) => known.get(name).cloned(),
            _ => None,
        });
        if let Some(known) = known.flatten() {
            return Some(known);
        }
        let new = EncodedDestination::new(&self.index, name);
        self.encoded(1);
        if self.handle.is_none() {
            let left_out = new.as_ref().map_or_else(|left_out| left_out, |new| &new.left_out);
            let left_out = left_out.iter().map(|what| (name.clone(), what.clone()));
            self.left_out.entry(dep.clone()).or_default().extend(left_out);
        }
        let new = Arc::new(new.ok()?);
        let made = self.commit.generation;
        let old = self.publisher.topics.with(&dep, |topic| {
            if !topic.is_current(made) {
                return None;
            }
            if let Value::None = topic.value {
                topic.value = Value::Destinations(Default::default());
            }
            match &mut topic.value {
                Value::Destinations(known) => known.insert(new.name.clone(), new.clone()),
                _ => None,
            }
        });
        let old_left_out = old.flatten().is_some_and(|old| !old.left_out.is_empty());
        if old_left_out || !new.left_out.is_empty() {
            self.publisher.note_left_out(&dep);
        }
        Some(new)
    }

    /// `None` when there is no such Service or port.
    pub fn collection(&self, port: &PortId) -> Option<Arc<Collection>> {
        let dep = Dep::Endpoints(port.clone());
        let old = self.publisher.topics.with(&dep, |topic| match &topic.value {
            Value::Collection(known) if known.is_fresh() => Some(Ok(known.collection.clone())),
            Value::Collection(known) => Some(Err(known.clone())),
            _ => None,
        });
        let old = match old.flatten() {
            Some(Ok(fresh)) => return Some(fresh),
            Some(Err(old)) => Some(old),
            None => None,
        };
        let before = old.as_ref().map(|known| &*known.collection);
        let touched = old.iter().flat_map(|known| known.pending());
        let mut effort = Effort::default();
        let new = Collection::update(&self.index, port, before, touched, &mut effort);
        self.encoded(effort.examined);
        let made = self.commit.generation;
        let Some(new) = new.map(Arc::new) else {
            self.publisher.topics.with(&dep, |topic| std::mem::take(&mut topic.value));
            return None;
        };
        self.publisher.topics.with(&dep, |topic| topic.keep_collection(made, &new));
        Some(new)
    }

    /// Notes where the stream's share of a collection ends; `None` where everything of it concerns the stream.
    pub fn set_cut(&self, port: &PortId, share_of: &Arc<Collection>, cut: Option<Cut>) {
        let Some(handle) = self.handle else { return };
        let dep = Dep::Endpoints(port.clone());
        let missed = self.publisher.topics.with(&dep, |topic| {
            match cut {
                Some(cut) => drop(topic.cuts.insert(handle.id, cut)),
                None => drop(topic.cuts.remove(&handle.id)),
            }
            // A change since then was compared with where the share ended before.
            !matches!(&topic.value, Value::Collection(known)
                if known.is_fresh() && Arc::ptr_eq(&known.collection, share_of))
        });
        if missed == Some(true) {
            handle.tell(Arc::new(dep), self.publisher.snapshot.load().commit);
            handle.wake.notify_one();
        }
    }

    /// A workload's own ports, by its uid; none: there is no such workload.
    pub fn inbound(&mut self, uid: &str) -> Option<Arc<Encoded>> {
        let dep = Dep::Inbound(uid.to_owned());
        let known = self.publisher.topics.with(&dep, |topic| match &topic.value {
            Value::Inbound(known) => Some(known.resource.clone()),
            _ => None,
        });
        if let Some(known) = known.flatten() {
            return Some(known);
        }
        let new = EncodedInbound::new(&self.index, uid);
        self.encoded(1);
        if self.handle.is_none() {
            let left_out = new.as_ref().map_or_else(|left_out| left_out, |new| &new.left_out);
            self.left_out_inbound.insert(uid.to_owned(), left_out.clone());
        }
        let new = Arc::new(new.ok()?);
        let resource = new.resource.clone();
        self.keep(&dep, Value::Inbound(new));
        Some(resource)
    }

    /// The mesh's settings, in parts of which the first one is the whole but for further namespaces.
    pub fn settings(&self) -> Arc<[Arc<Encoded>]> {
        let known = self.publisher.topics.with(&Dep::Settings, |topic| match &topic.value {
            Value::Settings(known) => Some(known.clone()),
            _ => None,
        });
        known.flatten().unwrap_or_else(|| {
            let new = encode::settings(&self.index);
            self.encoded(new.len() as u64);
            self.keep(&Dep::Settings, Value::Settings(new.clone()));
            new
        })
    }

    /// The roots that the mesh trusts; none in a mesh without identities.
    pub fn trust(&self) -> Option<Arc<Encoded>> {
        let known = self.publisher.topics.with(&Dep::Trust, |topic| match &topic.value {
            Value::Trust(known) => Some(known.clone()),
            _ => None,
        });
        if let Some(known) = known.flatten() {
            return Some(known);
        }
        let value = convert::trust::to_wire(self.index.trust()?).encode_to_vec();
        let new = Arc::new(Encoded::new(wire::TRUST_BUNDLE_NAME, value));
        self.encoded(1);
        self.keep(&Dep::Trust, Value::Trust(new.clone()));
        Some(new)
    }

    /// A resource that is alone of its kind for a proxy: its `Inbound`, the mesh's settings, the
    /// trust bundle.
    pub fn single(&mut self, type_url: &str, name: &str) -> Option<Arc<Encoded>> {
        match type_url {
            wire::INBOUND => self.inbound(name),
            wire::MESH_SETTINGS if name == wire::MESH_SETTINGS_NAME => {
                self.settings().first().cloned()
            }
            wire::TRUST_BUNDLE if name == wire::TRUST_BUNDLE_NAME => self.trust(),
            _ => None,
        }
    }

    /// What proxies would not take of the destinations that this view put together for nobody.
    pub fn left_out(&self) -> impl Iterator<Item = (DestinationName, LeftOut)> + use<> {
        let all: Vec<_> = self.left_out.values().flatten().cloned().collect();
        all.into_iter()
    }

    /// The same of workloads' own ports, by the workload's uid.
    pub fn left_out_inbound(&self) -> impl Iterator<Item = (String, LeftOut)> + use<> {
        let all = self.left_out_inbound.iter();
        let all = all.flat_map(|(uid, all)| all.iter().map(|what| (uid.clone(), what.clone())));
        all.collect::<Vec<_>>().into_iter()
    }

    /// What proxies would not take of the destinations of a Service that somebody has, or this view.
    pub fn left_out_of(&self, service: &ServiceId) -> Vec<(DestinationName, LeftOut)> {
        let dep = Dep::Service(service.clone());
        let mut all = self.left_out.get(&dep).cloned().unwrap_or_default();
        self.publisher.topics.with(&dep, |topic| {
            let Value::Destinations(known) = &topic.value else { return };
            for (name, encoded) in known {
                let left_out = encoded.left_out.iter().cloned();
                all.extend(left_out.map(|what| ((**name).clone(), what)));
            }
        });
        all
    }

    /// The same of a workload's own ports, by its uid.
    pub fn left_out_of_inbound(&self, uid: &str) -> Vec<LeftOut> {
        let mut all = self.left_out_inbound.get(uid).cloned().unwrap_or_default();
        self.publisher.topics.with(&Dep::Inbound(uid.to_owned()), |topic| {
            let Value::Inbound(known) = &topic.value else { return };
            all.extend(known.left_out.iter().cloned());
        });
        all
    }

    /// How many proxies have destinations of a Service, or a workload's own ports, and have acknowledged the
    /// current ones; none: nobody has any.
    pub fn programmed(&self, of: &Dep) -> Option<Programmed> {
        self.publisher.progress.of(of)
    }

    fn keep(&self, dep: &Dep, value: Value) {
        let made = self.commit.generation;
        let old = self.publisher.topics.with(dep, |topic| {
            let left_out = value.has_left_out();
            let old = topic.is_current(made).then(|| std::mem::replace(&mut topic.value, value))?;
            Some((left_out, old))
        });
        if old.flatten().is_some_and(|(left_out, old)| left_out || old.has_left_out()) {
            self.publisher.note_left_out(dep);
        }
    }

    fn encoded(&self, more: u64) {
        self.publisher.counters.encoded.fetch_add(more, Ordering::Relaxed);
    }
}
