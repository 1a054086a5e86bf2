//! Notices changes in the folder of manifests, soon but not in the middle of a write.
//!
//! A file is read a moment after it was closed or renamed into place, or when writing has paused.
//! Kubernetes mounts a ConfigMap as links through a folder `..data` that is replaced whole, so any
//! change that is not plainly one file's makes for a look at everything, and so does the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::{Folder, Listing, is_manifest};
use crate::publish::Publisher;

/// After a file was closed or renamed: other files of the same edit come along.
const SETTLED: Duration = Duration::from_millis(5);
/// After a write: the writer may not be done.
const WRITING: Duration = Duration::from_millis(50);
/// However busy a writer is, its file is read this long after the first change.
const AT_LAST: Duration = Duration::from_millis(500);
/// Some file systems tell of no change at all.
const LOOK_AGAIN: Duration = Duration::from_secs(10);

/// The folder's watch; dropping it ends the watch.
#[derive(Debug)]
pub struct Watching {
    sender: Sender<Message>,
    thread: Option<JoinHandle<()>>,
}

enum Message {
    Event(notify::Result<notify::Event>),
    Stop,
}

impl Drop for Watching {
    fn drop(&mut self) {
        let _ = self.sender.send(Message::Stop);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// Watches a folder that has been loaded from now on.
pub fn watch(folder: Folder, publisher: Arc<Publisher>) -> io::Result<Watching> {
    // A folder that cannot be read at the start is a mistake; later it may come back.
    Listing::of(&folder.root)?;
    let (sender, receiver) = channel();
    let events = sender.clone();
    let watcher = notify::recommended_watcher(move |event| {
        // The receiver is gone only when the watch has ended.
        let _ = events.send(Message::Event(event));
    });
    let watcher = watcher.map_err(io::Error::other)?;
    let mut watch = Watch {
        folder,
        publisher,
        watcher,
        folders: BTreeMap::new(),
        pending: BTreeMap::new(),
        rescan: Some(Instant::now()),
        unreadable: false,
    };
    // Whatever changes from here on is an event; whatever changed before is found by looking.
    watch.scan();
    let thread = std::thread::Builder::new().name("manifests".to_owned());
    let thread = thread.spawn(move || watch.run(&receiver))?;
    Ok(Watching { sender, thread: Some(thread) })
}

struct Watch {
    folder: Folder,
    publisher: Arc<Publisher>,
    watcher: RecommendedWatcher,
    /// Watched folders and the path by which their files are known.
    folders: BTreeMap<PathBuf, Option<PathBuf>>,
    /// Files to be read, when, and when at last.
    pending: BTreeMap<PathBuf, (Instant, Instant)>,
    /// When to look at everything.
    rescan: Option<Instant>,
    unreadable: bool,
}

impl Watch {
    fn run(mut self, receiver: &Receiver<Message>) {
        let mut look_again = Instant::now() + LOOK_AGAIN;
        loop {
            let due = self.pending.values().map(|(due, last)| *due.min(last));
            let due = due.chain(self.rescan).chain([look_again]).min().unwrap_or(look_again);
            match receiver.recv_timeout(due.saturating_duration_since(Instant::now())) {
                Ok(Message::Event(event)) => self.note(event),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Err(RecvTimeoutError::Timeout) => {}
            }
            let now = Instant::now();
            if self.rescan.is_some_and(|due| due <= now) || look_again <= now {
                self.scan();
                look_again = Instant::now() + LOOK_AGAIN;
            }
            let due: BTreeSet<PathBuf> = self
                .pending
                .extract_if(.., |_, (due, last)| *due <= now || *last <= now)
                .map(|(path, _)| path)
                .collect();
            if !due.is_empty() {
                self.folder.load(due, &self.publisher);
            }
        }
    }

    fn note(&mut self, event: notify::Result<notify::Event>) {
        let Ok(event) = event else {
            self.rescan_in(SETTLED);
            return;
        };
        if event.need_rescan() {
            self.rescan_in(SETTLED);
        }
        let delay = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(_)) => SETTLED,
            // Reading is none of our business, least of all our own.
            EventKind::Access(_) => return,
            _ => WRITING,
        };
        for path in event.paths {
            if delay == SETTLED {
                // A folder that went away takes its watch along, also when another comes in its
                // place.
                self.folders.remove(&path);
            }
            self.note_path(&path, delay);
        }
    }

    fn note_path(&mut self, path: &Path, delay: Duration) {
        let known_as = path.parent().and_then(|parent| self.folders.get(parent));
        match (known_as, path.file_name()) {
            (Some(Some(folder)), Some(name)) if is_manifest(path) => {
                let path = folder.join(name);
                let now = Instant::now();
                let last = self.pending.get(&path).map_or(now + AT_LAST, |(_, last)| *last);
                self.pending.insert(path, (now + delay, last));
            }
            // A folder, a link, or the target of one; not an editor's temporary file.
            _ if !path.is_file() || known_as == Some(&None) => self.rescan_in(delay),
            _ => {}
        }
    }

    fn rescan_in(&mut self, delay: Duration) {
        let due = Instant::now() + delay;
        self.rescan = Some(self.rescan.map_or(due, |earlier| earlier.min(due)));
    }

    fn scan(&mut self) {
        self.rescan = None;
        let listing = match Listing::of(&self.folder.root) {
            Ok(listing) => listing,
            Err(error) => {
                if !std::mem::replace(&mut self.unreadable, true) {
                    let root = self.folder.root.display();
                    tracing::error!(folder = %root, %error, "the folder cannot be read; what it \
                                    said last stays in force");
                }
                return;
            }
        };
        self.unreadable = false;
        // First the watches, then the files: nothing falls between.
        for gone in self.folders.keys().filter(|path| !listing.folders.contains_key(*path)) {
            // It may be gone altogether.
            let _ = self.watcher.unwatch(gone);
        }
        for new in listing.folders.keys().filter(|path| !self.folders.contains_key(*path)) {
            if let Err(error) = self.watcher.watch(new, RecursiveMode::NonRecursive) {
                tracing::warn!(folder = %new.display(), %error, "changes here are noticed late");
            }
        }
        self.folders = listing.folders;
        if let Err(error) = self.folder.scan(&self.publisher) {
            tracing::warn!(%error, "the folder could not be read again");
        }
    }
}
