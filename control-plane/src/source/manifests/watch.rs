//! Notices changes in the folder of manifests, soon but not in the middle of a write.
//!
//! A file is read a moment after it was closed or renamed into place: while somebody has it open and
//! writes, what it said before is in force.
//! Kubernetes mounts a ConfigMap as links through a folder `..data` that is replaced whole, so any
//! change that is not plainly one file's makes for a look at everything, and so does the clock.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{fs, io};

use notify::event::{AccessKind, AccessMode, EventKind, ModifyKind};
use notify::{RecommendedWatcher, RecursiveMode, Watcher};

use super::Folder;
use super::listing::{Listing, is_manifest};
use crate::publish::Publisher;

/// After a file was closed or renamed: other files of the same edit come along.
const SETTLED: Duration = Duration::from_millis(5);
/// After other changes that no close follows, such as a new link.
const CHANGED: Duration = Duration::from_millis(50);
/// After a write that no close has followed: a writer that keeps its file open is not waited for longer.
/// Slower than any program that writes in pieces, and still soon for somebody who edits by hand.
const UNCLOSED: Duration = Duration::from_secs(10);
/// A file that was changed in place without an event is read once it has been quiet for so long.
const QUIET: Duration = Duration::from_secs(2);
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

/// A file to be read.
#[derive(Clone, Copy)]
struct Pending {
    due: Instant,
    /// Somebody has written to it and not closed it yet.
    open: bool,
}

struct Watch {
    folder: Folder,
    publisher: Arc<Publisher>,
    watcher: RecommendedWatcher,
    /// Watched folders and the path by which their files are known.
    folders: BTreeMap<PathBuf, Option<PathBuf>>,
    /// Files to be read.
    pending: BTreeMap<PathBuf, Pending>,
    /// When to look at everything.
    rescan: Option<Instant>,
    unreadable: bool,
}

/// What has happened to a file.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Change {
    /// It was closed after a write, put in place, or taken away.
    Done,
    Write,
    Other,
}

impl Watch {
    fn run(mut self, receiver: &Receiver<Message>) {
        let mut look_again = Instant::now() + LOOK_AGAIN;
        loop {
            let due = self.pending.values().map(|pending| pending.due);
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
            let due = self.pending.extract_if(.., |_, pending| pending.due <= now);
            let (mut whole, mut open) = (BTreeSet::new(), BTreeSet::new());
            for (path, pending) in due {
                if pending.open {
                    open.insert(path)
                } else {
                    whole.insert(path)
                };
            }
            if !whole.is_empty() || !open.is_empty() {
                self.folder.load(whole, &open, &self.publisher);
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
        let change = match event.kind {
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Remove(_)
            | EventKind::Modify(ModifyKind::Name(_)) => Change::Done,
            // Reading is none of our business, least of all our own.
            EventKind::Access(_) => return,
            EventKind::Modify(ModifyKind::Data(_) | ModifyKind::Any) => Change::Write,
            _ => Change::Other,
        };
        for path in event.paths {
            if self.is_gone_for_good(&path) {
                continue;
            }
            if change == Change::Done {
                // A folder that went away takes its watch along, also when another comes in its
                // place.
                self.folders.remove(&path);
            }
            self.note_path(&path, change);
        }
    }

    /// Whether a file went away that nothing was read from, such as an editor's temporary one.
    fn is_gone_for_good(&self, path: &Path) -> bool {
        let beside = path.parent().is_some_and(|parent| self.folders.contains_key(parent));
        let folder = self.folders.contains_key(path)
            || self.folders.values().flatten().any(|known_as| known_as == path);
        beside && !folder && !is_manifest(path) && fs::symlink_metadata(path).is_err()
    }

    fn note_path(&mut self, path: &Path, change: Change) {
        let delay = match change {
            Change::Done => SETTLED,
            Change::Write | Change::Other => CHANGED,
        };
        let known_as = path.parent().and_then(|parent| self.folders.get(parent));
        match (known_as, path.file_name()) {
            (Some(Some(folder)), Some(name)) if is_manifest(path) => {
                let path = folder.join(name);
                let before = self.pending.get(&path).is_some_and(|pending| pending.open);
                let open = change == Change::Write || (change == Change::Other && before);
                let due = Instant::now() + if open { UNCLOSED } else { delay };
                self.pending.insert(path, Pending { due, open });
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
                tracing::warn!(folder = %new.display(), %error, "cannot watch this folder; changes are noticed late");
            }
        }
        self.folders = listing.folders;
        let open = self.pending.iter().filter(|(_, pending)| pending.open);
        let open: BTreeSet<PathBuf> = open.map(|(path, _)| path.clone()).collect();
        match self.folder.look(&open, QUIET, &self.publisher) {
            Ok(true) => {}
            Ok(false) => self.rescan_in(QUIET),
            Err(error) => tracing::warn!(%error, "the folder could not be read again"),
        }
    }
}
