//! Follows the publisher and keeps the status of every object, for the admin API and for writers of status.
//!
//! [`Rounds`] computes: a round takes everything that has happened since the one before, as a set, and looks at
//! the objects that it concerns and at no other. No lock is held meanwhile, and nobody waits for a round but who
//! asks for the newest state ([`Statuses::up_to_date`]). A [`StatusWatcher`] learns which statuses are other ones.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use arc_swap::ArcSwap;
use imbl::OrdMap;
use prometheus_client::metrics::counter::Counter;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;

use super::concerned::Concerned;
use super::{ObjectStatus, objects, of};
use crate::metrics::Metrics;
use crate::object::ObjectId;
use crate::problems::Problems;
use crate::publish::{Follower, Publisher, View};
use crate::sync::lock;

/// Between two rounds, unless somebody asks: a burst of changes is one round or two.
pub const PERIOD: Duration = Duration::from_millis(100);

/// Every object that has a status. Copies cost nothing and never change.
pub type StatusTable = OrdMap<ObjectId, Arc<ObjectStatus>>;

/// What the rounds have cost so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RoundCounts {
    /// In which there was something to look at.
    pub rounds: u64,
    /// Statuses that were computed.
    pub computed: u64,
    /// Statuses of which nothing was looked at but how far proxies have come.
    pub progress: u64,
}

/// The status of every object, as of the last round.
#[derive(Debug)]
pub struct Statuses {
    publisher: Arc<Publisher>,
    table: ArcSwap<StatusTable>,
    /// How often somebody has asked for the newest state.
    asked: watch::Sender<u64>,
    /// How many of those who asked have got it.
    answered: watch::Receiver<u64>,
    watchers: Mutex<Vec<Weak<StatusWatcher>>>,
    /// Statuses that became other ones.
    changed: Counter,
    rounds: AtomicU64,
    computed: AtomicU64,
    progress: AtomicU64,
}

impl Statuses {
    /// The table is empty until the first round.
    pub fn new(
        publisher: Arc<Publisher>,
        problems: Arc<Problems>,
        metrics: &Metrics,
    ) -> (Arc<Self>, Rounds) {
        let (answers, answered) = watch::channel(0);
        let follower = publisher.follow();
        let statuses = Arc::new(Self {
            publisher,
            table: ArcSwap::default(),
            asked: watch::Sender::new(0),
            answered,
            watchers: Mutex::default(),
            changed: metrics.status_changes.clone(),
            rounds: AtomicU64::new(0),
            computed: AtomicU64::new(0),
            progress: AtomicU64::new(0),
        });
        let rounds =
            Rounds { statuses: statuses.clone(), follower, problems, answers, is_first: true };
        (statuses, rounds)
    }

    /// As of the last round.
    pub fn table(&self) -> Arc<StatusTable> {
        self.table.load_full()
    }

    /// With everything that has happened until now.
    pub async fn up_to_date(&self) -> Arc<StatusTable> {
        self.publisher.all_told().await;
        let mut number = 0;
        self.asked.send_modify(|asked| {
            *asked += 1;
            number = *asked;
        });
        // An error means that there are no rounds any more: then this is the newest there is.
        let _ = self.answered.clone().wait_for(|answered| *answered >= number).await;
        self.table()
    }

    /// Is told of statuses that become other ones. It has seen none so far, so it begins with all.
    pub fn watch(&self) -> Arc<StatusWatcher> {
        let mut watchers = lock(&self.watchers);
        watchers.retain(|known| known.strong_count() > 0);
        let watcher = Arc::new(StatusWatcher::default());
        watchers.push(Arc::downgrade(&watcher));
        drop(watchers);
        // What a round changes meanwhile is in the table or will be told.
        watcher.tell(self.table().keys());
        watcher
    }

    pub fn counts(&self) -> RoundCounts {
        let of = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        RoundCounts {
            rounds: of(&self.rounds),
            computed: of(&self.computed),
            progress: of(&self.progress),
        }
    }
}

/// Learns which statuses have changed: a set and not a queue, so that who is slow sees the newest only.
#[derive(Debug, Default)]
pub struct StatusWatcher {
    changed: Mutex<BTreeSet<ObjectId>>,
    wake: Notify,
}

impl StatusWatcher {
    fn tell<'a>(&self, ids: impl IntoIterator<Item = &'a ObjectId>) {
        let mut changed = lock(&self.changed);
        changed.extend(ids.into_iter().cloned());
        if !changed.is_empty() {
            self.wake.notify_one();
        }
    }

    /// Objects whose status is another one than when this was last asked; those that are no longer in the table
    /// have none any more.
    pub fn take(&self) -> BTreeSet<ObjectId> {
        std::mem::take(&mut lock(&self.changed))
    }

    /// Completes when there are some.
    pub async fn changed(&self) -> BTreeSet<ObjectId> {
        loop {
            let changed = self.take();
            if !changed.is_empty() {
                return changed;
            }
            self.wake.notified().await;
        }
    }
}

/// Computes statuses, one round after the other.
#[derive(Debug)]
pub struct Rounds {
    statuses: Arc<Statuses>,
    follower: Arc<Follower>,
    problems: Arc<Problems>,
    answers: watch::Sender<u64>,
    is_first: bool,
}

impl Rounds {
    /// Goes on for as long as the process does.
    pub async fn run(mut self) {
        let statuses = self.statuses.clone();
        let (follower, problems) = (self.follower.clone(), self.problems.clone());
        let mut asked = statuses.asked.subscribe();
        loop {
            let number = *asked.borrow_and_update();
            let round = move || {
                self.round();
                self.answers.send_replace(number);
                self
            };
            // A namespace with many objects takes a while: not on a thread that serves proxies.
            let Ok(next) = tokio::task::spawn_blocking(round).await else {
                tracing::error!("the status of objects is no longer followed");
                return;
            };
            self = next;
            let rested = Instant::now() + PERIOD;
            tokio::select! {
                () = follower.wake.notified() => {}
                () = problems.changed.notified() => {}
                _ = asked.changed() => continue,
            }
            tokio::select! {
                () = tokio::time::sleep_until(rested) => {}
                _ = asked.changed() => {}
            }
        }
    }

    /// Looks at what everything that has happened since the last round concerns.
    pub fn round(&mut self) {
        // What happens after this is seen by the next round, in a newer state.
        let written = self.problems.take_changed();
        let news = self.follower.take();
        let view = self.statuses.publisher.view();
        let old = self.statuses.table();
        let mut round = Round { old: &old, new: (*old).clone(), changed: BTreeSet::new() };
        let (computed, progress) = if std::mem::take(&mut self.is_first) {
            let all = objects(&view, &self.problems.all());
            let computed = all.len();
            all.into_iter().for_each(|status| round.put(status.object.clone(), Some(status)));
            (computed, 0)
        } else {
            let mut concerned = Concerned::new(&view.index, &news);
            concerned.status.extend(written);
            for id in &concerned.status {
                round.put(id.clone(), of(&view, id, self.problems.errors_of(id)));
            }
            let progress = concerned.progress.difference(&concerned.status);
            let progress = progress.map(|id| round.put_progress(&view, id)).count();
            (concerned.status.len(), progress)
        };
        let Round { new, changed, .. } = round;
        self.keep(new, &changed, (computed as u64, progress as u64));
    }

    fn keep(
        &self,
        new: StatusTable,
        changed: &BTreeSet<ObjectId>,
        (computed, progress): (u64, u64),
    ) {
        let statuses = &self.statuses;
        if computed + progress > 0 {
            statuses.rounds.fetch_add(1, Ordering::Relaxed);
            statuses.computed.fetch_add(computed, Ordering::Relaxed);
            statuses.progress.fetch_add(progress, Ordering::Relaxed);
        }
        if changed.is_empty() {
            return;
        }
        statuses.changed.inc_by(changed.len() as u64);
        statuses.table.store(Arc::new(new));
        let watchers: Vec<_> = lock(&statuses.watchers).iter().filter_map(Weak::upgrade).collect();
        for watcher in watchers {
            watcher.tell(changed);
        }
    }
}

struct Round<'a> {
    old: &'a StatusTable,
    new: StatusTable,
    changed: BTreeSet<ObjectId>,
}

impl Round<'_> {
    fn put(&mut self, id: ObjectId, status: Option<ObjectStatus>) {
        if self.old.get(&id).map(|known| &**known) == status.as_ref() {
            return;
        }
        match status {
            Some(status) => drop(self.new.insert(id.clone(), Arc::new(status))),
            None => drop(self.new.remove(&id)),
        }
        self.changed.insert(id);
    }

    fn put_progress(&mut self, view: &View<'_>, id: &ObjectId) {
        let Some(known) = self.old.get(id) else { return };
        let programmed = super::of::programmed(view, id).unwrap_or_default();
        self.put(id.clone(), Some(ObjectStatus { programmed, ..(**known).clone() }));
    }
}
