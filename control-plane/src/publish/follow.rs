//! Readers that follow everything that happens, such as status: each is told of every change, as a set and
//! not as a queue, so that who is slow holds back nothing.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, Weak};

use tokio::sync::Notify;

use crate::index::Dep;
use crate::object::ObjectId;
use crate::sync::lock;

/// What has happened since a follower last looked.
#[derive(Debug, Default)]
pub struct News {
    /// What commits have touched; nothing of what all proxies have alike.
    pub deps: HashSet<Dep>,
    /// Objects that commits have changed, and those whose references resolve otherwise since.
    pub objects: HashSet<ObjectId>,
    /// Services and workloads with which proxies have come further.
    pub progress: HashSet<Dep>,
    /// Services and workloads of which other parts are left out than before.
    pub left_out: HashSet<Dep>,
}

/// The publisher's side of a reader of all changes; dropped, it is told no more.
#[derive(Debug, Default)]
pub struct Follower {
    pub wake: Notify,
    news: Mutex<News>,
}

impl Follower {
    pub fn take(&self) -> News {
        std::mem::take(&mut lock(&self.news))
    }
}

#[derive(Debug, Default)]
pub(super) struct Followers(Mutex<Vec<Weak<Follower>>>);

impl Followers {
    pub(super) fn add(&self) -> Arc<Follower> {
        let follower = Arc::new(Follower::default());
        let mut all = lock(&self.0);
        all.retain(|known| known.strong_count() > 0);
        all.push(Arc::downgrade(&follower));
        follower
    }

    pub(super) fn tell(&self, note: impl Fn(&mut News)) {
        for follower in lock(&self.0).iter().filter_map(Weak::upgrade) {
            note(&mut lock(&follower.news));
            follower.wake.notify_one();
        }
    }

    pub(super) fn tell_commit(&self, deps: &HashSet<Dep>, objects: &HashSet<ObjectId>) {
        self.tell(|news| {
            let deps = deps.iter().filter(|dep| !matches!(dep, Dep::Settings | Dep::Trust));
            news.deps.extend(deps.cloned());
            news.objects.extend(objects.iter().cloned());
        });
    }
}
