//! From commits to the index to the streams that need to know; each resource is encoded once.
//!
//! [`Publisher::commit`] is the only way to change the index: one writer at a time, which computes nothing
//! but what its change touches, and leaves a [`Snapshot`] behind. Then the streams that depend on what was
//! touched are told ([`handle`]), each resource of it by [`topics`]; a woken stream comes back with a
//! [`View`] and takes the newest state. Readers hold no lock that a writer needs, and a writer none that
//! readers need for longer than a look-up takes. See [`crate::discovery`] for the streams.

mod collection;
mod encode;
mod fit;
mod follow;
mod handle;
mod progress;
mod subscriber;
mod topics;
mod view;

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::ops::Deref;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, TryLockError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use arc_swap::ArcSwap;
use tokio::sync::watch;

pub use collection::{Collection, Cut, Member, Share, ShareOwner};
pub use encode::{Encoded, EncodedDestination};
pub use fit::{LeftOut, MAX_RESOURCE, ResourcePart};
pub use follow::{Follower, News};
pub use handle::{Dirty, Handle};
pub use progress::{Answers, Programmed};
pub use subscriber::{Acknowledgement, Subscriber};
pub use view::View;

use encode::EncodedInbound;
use follow::Followers;
use progress::Progress;
use topics::{Topics, TouchedTopic};

use crate::index::{Dep, Index, PortId, Touched};
use crate::object::{ObjectId, ServiceId};
use crate::sync::lock;

/// One change of the index.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    /// Counts commits that changed something.
    pub generation: u64,
    /// Nanoseconds since the Unix epoch.
    pub nanos: u128,
    at: Instant,
}

/// The index as one commit left it.
#[derive(Debug)]
pub struct Snapshot {
    pub index: Index,
    pub commit: Commit,
}

/// What commits have cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CommitCounts {
    /// Things that commits have touched.
    pub touched: u64,
    /// Resources that were put together and encoded.
    pub encoded: u64,
    /// Shares of large services that a change was compared with.
    pub compared: u64,
    /// Times that a stream was woken by a commit.
    pub woken: u64,
}

#[derive(Debug, Default)]
struct Counters {
    touched: AtomicU64,
    encoded: AtomicU64,
    compared: AtomicU64,
    woken: AtomicU64,
}

#[derive(Debug)]
pub struct Publisher {
    writer: Mutex<IndexWriter>,
    snapshot: ArcSwap<Snapshot>,
    topics: Topics,
    /// Commits of which nobody has been told yet.
    queue: Mutex<VecDeque<ChangeSet>>,
    /// Anyone who holds it tells of what is in the queue; nobody waits for it.
    telling: Mutex<()>,
    /// The last generation that everybody concerned has been told of.
    told: watch::Sender<u64>,
    streams: Mutex<BTreeMap<u64, Arc<dyn Subscriber>>>,
    next_stream: AtomicU64,
    progress: Progress,
    followers: Followers,
    counters: Counters,
}

/// The only one who changes the index.
#[derive(Debug)]
struct IndexWriter {
    index: Index,
    commit: Commit,
}

/// What a commit has touched.
#[derive(Debug)]
struct ChangeSet {
    commit: Commit,
    deps: HashSet<Dep>,
    /// Of the Services whose endpoints it has touched, which.
    touched: HashMap<ServiceId, Touched>,
    objects: HashSet<ObjectId>,
}

impl Publisher {
    pub fn new(index: Index) -> Self {
        let commit = Commit { generation: 0, nanos: unix_nanos(), at: Instant::now() };
        let snapshot = Snapshot { index: index.clone(), commit };
        Self {
            writer: Mutex::new(IndexWriter { index, commit }),
            snapshot: ArcSwap::from_pointee(snapshot),
            topics: Topics::new(),
            queue: Mutex::default(),
            telling: Mutex::default(),
            told: watch::Sender::new(0),
            streams: Mutex::default(),
            next_stream: AtomicU64::new(0),
            progress: Progress::default(),
            followers: Followers::default(),
            counters: Counters::default(),
        }
    }

    /// Changes the index and wakes anyone who depends on what changed.
    pub fn commit<R>(&self, change: impl FnOnce(&mut Index) -> R) -> (R, Commit) {
        let mut writer = lock(&self.writer);
        let result = change(&mut writer.index);
        let (mut deps, touched) = (writer.index.take_dirty(), writer.index.take_touched());
        deps.extend(writer.index.take_moved().into_iter().map(Dep::Ip));
        let objects = writer.index.take_changed();
        let is_change = !deps.is_empty();
        if is_change {
            let generation = writer.commit.generation + 1;
            writer.commit = Commit { generation, nanos: unix_nanos(), at: Instant::now() };
        }
        let commit = writer.commit;
        // Also what nothing depends on yet is there to be seen.
        let old = self.snapshot.swap(Arc::new(Snapshot { index: writer.index.clone(), commit }));
        if is_change || !objects.is_empty() {
            lock(&self.queue).push_back(ChangeSet { commit, deps, touched, objects });
        }
        drop(writer);
        drop(old);
        self.tell_all();
        (result, commit)
    }

    /// The newest state.
    pub fn view(&self) -> View<'_> {
        View::new(self, None, self.told())
    }

    /// The newest state for a stream, that has been told of everything up to a generation.
    pub fn view_for<'a>(&'a self, handle: &'a Arc<Handle>, told: u64) -> View<'a> {
        View::new(self, Some(handle), told)
    }

    /// The last generation that everybody concerned has been told of.
    pub fn told(&self) -> u64 {
        *self.told.borrow()
    }

    pub fn counts(&self) -> CommitCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        CommitCounts {
            touched: of(&self.counters.touched),
            encoded: of(&self.counters.encoded),
            compared: of(&self.counters.compared),
            woken: of(&self.counters.woken),
        }
    }

    /// By which a new stream is told of changes.
    pub fn handle(&self) -> Arc<Handle> {
        Arc::new(Handle::new(self.next_stream.fetch_add(1, Ordering::Relaxed)))
    }

    pub fn connect(&self, handle: &Handle, stream: Arc<dyn Subscriber>) {
        lock(&self.streams).insert(handle.id, stream);
    }

    /// The stream is over, and depends on nothing any more.
    pub fn disconnect(&self, handle: &Handle) {
        lock(&self.streams).remove(&handle.id);
        // Anyone who waits for this stream waits in vain.
        handle.acknowledge(u64::MAX);
    }

    /// By which a reader is told of everything that happens from now on.
    pub fn follow(&self) -> Arc<Follower> {
        self.followers.add()
    }

    /// What the proxy of a stream has made of everything that it was sent of a Service or of its own ports;
    /// none: it has nothing of it.
    pub fn note_answers(&self, handle: &Handle, of: &Dep, answers: Option<Answers>) {
        if self.progress.set(of, handle.id, answers) {
            self.followers.tell(|news| news.progress.extend([of.clone()]));
        }
    }

    /// Proxies that have not acknowledged everything that they were sent.
    pub fn proxies_behind(&self) -> usize {
        self.progress.proxies_behind()
    }

    fn note_left_out(&self, of: &Dep) {
        self.followers.tell(|news| news.left_out.extend([of.clone()]));
    }

    /// Every stream, in the order in which they came.
    pub fn streams(&self) -> Vec<Arc<dyn Subscriber>> {
        lock(&self.streams).values().cloned().collect()
    }

    /// A stream no longer depends on something.
    pub fn unsubscribe<D: Deref<Target = Dep>>(&self, handle: &Handle, ended: &[D]) {
        for dep in ended {
            if self.topics.unsubscribe(dep, handle) {
                self.note_left_out(dep);
            }
        }
    }

    /// Completes when everybody concerned has been told of everything until now.
    pub async fn all_told(&self) {
        self.told_of(self.snapshot.load().commit).await;
    }

    async fn told_of(&self, commit: Commit) {
        // An error means that the publisher is gone, and it is here.
        let _ = self.told.subscribe().wait_for(|told| *told >= commit.generation).await;
    }

    /// Completes when every proxy that knows endpoints of `ports` has acknowledged `commit`.
    pub async fn settled(&self, commit: Commit, ports: &[PortId]) {
        self.told_of(commit).await;
        let mut waiting: HashMap<u64, Arc<Handle>> = HashMap::new();
        for port in ports {
            let subscribers = self.topics.subscribers(&Dep::Endpoints(port.clone()));
            waiting.extend(subscribers.into_iter().map(|handle| (handle.id, handle)));
        }
        for handle in waiting.into_values() {
            handle.settled(commit).await;
        }
    }

    /// Tells of everything in the queue. If somebody is at it already, that one goes on with what was added.
    fn tell_all(&self) {
        while !lock(&self.queue).is_empty() {
            let telling = match self.telling.try_lock() {
                Ok(telling) => telling,
                Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
                Err(TryLockError::WouldBlock) => return,
            };
            loop {
                let next = lock(&self.queue).pop_front();
                let Some(changes) = next else { break };
                self.tell(&changes);
                self.followers.tell_commit(&changes.deps, &changes.objects);
                self.told.send_replace(changes.commit.generation);
            }
            drop(telling);
        }
    }

    fn tell(&self, changes: &ChangeSet) {
        let generation = changes.commit.generation;
        let mut woken: HashMap<u64, Arc<Handle>> = HashMap::new();
        for dep in &changes.deps {
            // Most addresses of endpoints nobody has ever dialled.
            let is_address = matches!(dep, Dep::Ip(_));
            self.counters.touched.fetch_add(u64::from(!is_address), Ordering::Relaxed);
            let touched = match dep {
                Dep::Endpoints(port) => changes.touched.get(&port.service),
                _ => None,
            };
            let Some(mut topic) = self.topics.touch(dep, generation, touched) else { continue };
            self.counters.touched.fetch_add(u64::from(is_address), Ordering::Relaxed);
            if topic.had_left_out {
                self.note_left_out(dep);
            }
            if let Dep::Endpoints(port) = dep {
                self.leave_out_unconcerned(port, &mut topic);
            }
            for handle in topic.subscribers {
                handle.tell(topic.dep.clone(), changes.commit);
                woken.insert(handle.id, handle);
            }
        }
        self.counters.woken.fetch_add(woken.len() as u64, Ordering::Relaxed);
        for handle in woken.into_values() {
            handle.wake.notify_one();
        }
    }

    /// Of a service that is too large for everybody: a proxy whose share holds none of what has changed, and
    /// would not if it were chosen anew, need not look.
    fn leave_out_unconcerned(&self, port: &PortId, topic: &mut TouchedTopic) {
        let Some(before) = topic.before.take().filter(|_| !topic.cuts.is_empty()) else { return };
        let Some(after) = self.view().collection(port) else { return };
        let Some(changed) = before.collection.differences(&after, before.pending()) else { return };
        let compared = topic.cuts.len() as u64;
        self.counters.compared.fetch_add(compared, Ordering::Relaxed);
        topic.subscribers.retain(|handle| {
            let cut = topic.cuts.get(&handle.id);
            cut.is_none_or(|cut| changed.iter().any(|member| cut.reaches(member)))
        });
    }
}

impl Drop for Publisher {
    /// Anyone who waits for a commit waits in vain.
    fn drop(&mut self) {
        self.told.send_replace(u64::MAX);
    }
}

fn unix_nanos() -> u128 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_nanos())
}
