//! The standalone source: a folder of manifests.
//!
//! [`Folder`] knows what each file defines and turns changed files into one commit to the index;
//! [`mod@watch`] notices the changes. What was good stays in force: an object whose document is wrong
//! keeps its last good version, and a file that cannot be read, is empty or is still being written takes
//! nothing away. Only deleting the file, or the document from what remains, does.

mod listing;
mod locate;
mod parse;
mod spelling;
mod summary;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use listing::{Listing, ManifestStamp};
pub use parse::lines_of;
pub use watch::{Watching, watch};

use outrigger_core::address::LocalEndpoints;

use super::closed;
use super::event::{self, Event};
use crate::metrics::{KindLabel, Metrics};
use crate::object::{Kind, Object, ObjectId, Policy};
use crate::problems::{Problem, Problems, Severity};
use crate::publish::Publisher;

/// Bytes of one file; a file of ten thousand services has about five million.
const MAX_FILE: u64 = 256 * 1024 * 1024;
/// Why what a file defined stays although the file no longer says so.
const EMPTY: &str =
    "is empty: its earlier objects stay in force until the file is removed or has content again";
const DANGLING: &str =
    "is a dangling link: its earlier objects stay in force until the link is removed";
const OPEN: &str = "is still being written: its earlier objects stay in force until it is closed";

/// The folder as last read.
#[derive(Debug)]
pub struct Folder {
    root: PathBuf,
    local: LocalEndpoints,
    files: BTreeMap<PathBuf, ManifestFile>,
    /// Links to nothing.
    dangling: BTreeSet<PathBuf>,
    /// Files that define an object, in name order: the first one is in force.
    claims: BTreeMap<ObjectId, BTreeSet<PathBuf>>,
    /// Objects of each kind, and the kinds whose number has changed.
    counts: BTreeMap<Kind, i64>,
    recounted: BTreeSet<Kind>,
    /// Stand-ins that are in force.
    stand_ins: BTreeMap<ObjectId, Policy>,
    /// Kinds reported as ignored, and how often they were read.
    ignored: BTreeMap<String, usize>,
    problems: Arc<Problems>,
    metrics: Arc<Metrics>,
}

#[derive(Debug, Default)]
struct ManifestFile {
    stamp: Option<ManifestStamp>,
    /// Hash of the text last read; none: to be read again whatever it is.
    content: Option<u64>,
    /// It has nothing in it.
    empty: bool,
    /// It was read while somebody wrote it.
    open: bool,
    /// Objects that it defines.
    objects: BTreeSet<ObjectId>,
    /// Of these, those that do not say their namespace.
    without_namespace: BTreeSet<ObjectId>,
    /// What stands in for AccessPolicies in it that are wrong, unless a good version is in force.
    closed: Vec<Policy>,
}

/// What one round of reading changes, to be committed at once.
#[derive(Debug, Default)]
struct Changes(BTreeMap<ObjectId, Option<Object>>);

impl Folder {
    /// `local`: which endpoints on the callers' own machines are taken.
    pub fn new(
        root: PathBuf,
        local: LocalEndpoints,
        problems: Arc<Problems>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            root,
            local,
            files: BTreeMap::new(),
            dangling: BTreeSet::new(),
            claims: BTreeMap::new(),
            counts: BTreeMap::new(),
            recounted: Kind::ALL.into(),
            stand_ins: BTreeMap::new(),
            ignored: BTreeMap::new(),
            problems,
            metrics,
        }
    }

    /// Looks at the whole folder and takes over whatever changed.
    pub fn scan(&mut self, publisher: &Publisher) -> io::Result<()> {
        self.look(&BTreeSet::new(), Duration::ZERO, publisher).map(drop)
    }

    /// The same without the files that are `open` for writing, and without those that were changed in
    /// place less than `quiet` ago. Gives whether none of the latter was left for later.
    pub fn look(
        &mut self,
        open: &BTreeSet<PathBuf>,
        quiet: Duration,
        publisher: &Publisher,
    ) -> io::Result<bool> {
        let listing = Listing::of(&self.root)?;
        let is_gone = |path: &&PathBuf| {
            !listing.files.contains_key(*path) && !listing.dangling.contains(*path)
        };
        let mut touched: BTreeSet<PathBuf> = self.files.keys().filter(is_gone).cloned().collect();
        self.note_dangling(&listing.dangling);
        let mut all = true;
        for (path, stamp) in &listing.files {
            let old = self.files.get(path).and_then(|file| file.stamp);
            if old == Some(*stamp) || open.contains(path) {
                continue;
            }
            // Another file in its place is whole: that is how careful programs write.
            if old.is_some_and(|old| old.inode == stamp.inode) && stamp.is_younger_than(quiet) {
                all = false;
            } else {
                touched.insert(path.clone());
            }
        }
        self.load(touched, &BTreeSet::new(), publisher);
        Ok(all)
    }

    /// Reads another folder beside those that were read before, and gives how many manifests are there.
    pub fn scan_root(&mut self, root: &Path, publisher: &Publisher) -> io::Result<usize> {
        let listing = Listing::of(root)?;
        let count = listing.files.len() + listing.dangling.len();
        let dangling = self.dangling.union(&listing.dangling).cloned().collect();
        self.note_dangling(&dangling);
        self.load(listing.files.into_keys().collect(), &BTreeSet::new(), publisher);
        Ok(count)
    }

    /// A link to nothing is no file that was deleted.
    fn note_dangling(&mut self, dangling: &BTreeSet<PathBuf>) {
        for path in
            self.dangling.difference(dangling).filter(|path| !self.files.contains_key(*path))
        {
            self.problems.set(path, Vec::new());
        }
        for path in dangling.difference(&self.dangling) {
            self.problems.set(path, vec![problem(path, 0, None, DANGLING.to_owned())]);
            if let Some(file) = self.files.get_mut(path) {
                (file.stamp, file.content) = (None, None);
            }
        }
        self.dangling.clone_from(dangling);
    }

    /// Reads files again (a missing one takes its objects away) and commits what that changes as a
    /// whole. Those that are `open` for writing take nothing away.
    pub fn load(
        &mut self,
        whole: BTreeSet<PathBuf>,
        open: &BTreeSet<PathBuf>,
        publisher: &Publisher,
    ) {
        let started = Instant::now();
        let mut changes = Changes::default();
        let mut queue: BTreeSet<PathBuf> = whole.into_iter().chain(open.iter().cloned()).collect();
        while let Some(path) = queue.pop_first() {
            self.read(&path, open.contains(&path), &mut changes, &mut queue);
        }
        self.commit(changes, started, publisher);
    }

    /// Takes over a text that is in no file, under a name for its problems.
    pub fn load_text(&mut self, name: &Path, text: &str, publisher: &Publisher) {
        let (started, mut changes) = (Instant::now(), Changes::default());
        self.take(name, None, text, false, &mut changes, &mut BTreeSet::new());
        self.commit(changes, started, publisher);
    }

    /// Puts in force what one round of reading has found.
    fn commit(&mut self, mut changes: Changes, started: Instant, publisher: &Publisher) {
        self.stand_in(&mut changes);
        let problems = i64::try_from(self.problems.count()).unwrap_or(i64::MAX);
        self.metrics.problems.set(problems);
        if changes.0.is_empty() {
            return;
        }
        let count = changes.0.len();
        let commit = event::commit(publisher, changes.events());
        self.count_objects();
        self.metrics.load_seconds.observe(started.elapsed().as_secs_f64());
        let (generation, elapsed) = (commit.generation, started.elapsed());
        tracing::info!(count, generation, ?elapsed, "manifests loaded");
    }

    /// Tells the metrics how many objects there are of the kinds that have changed.
    fn count_objects(&mut self) {
        for kind in std::mem::take(&mut self.recounted) {
            let label = KindLabel { kind: kind.as_str().to_owned() };
            let count = self.counts.get(&kind).copied().unwrap_or(0);
            self.metrics.objects.get_or_create(&label).set(count);
        }
    }

    fn count(&mut self, kind: Kind, more: i64) {
        *self.counts.entry(kind).or_default() += more;
        self.recounted.insert(kind);
    }

    /// Reads one file. Other files whose part in this changes are added to `queue`.
    fn read(
        &mut self,
        path: &Path,
        open: bool,
        changes: &mut Changes,
        queue: &mut BTreeSet<PathBuf>,
    ) {
        let (stamp, text) = match read_file(path) {
            Ok(found) => found,
            Err(error) if error.kind() == io::ErrorKind::NotFound && is_link(path) => return,
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.problems.set(path, Vec::new());
                let file = self.files.remove(path).unwrap_or_default();
                for id in &file.objects {
                    self.release(id, path, changes, queue);
                }
                return;
            }
            Err(error) => {
                let text =
                    format!("could not be read, so its earlier objects stay in force: {error}");
                self.problems.set(path, vec![problem(path, 0, None, text)]);
                let file = self.files.entry(path.to_owned()).or_default();
                file.closed = closed_of_unreadable(path, file);
                return;
            }
        };
        self.take(path, Some(stamp), &text, open, changes, queue);
    }

    /// Takes over what the text of a file says.
    fn take(
        &mut self,
        path: &Path,
        stamp: Option<ManifestStamp>,
        text: &str,
        open: bool,
        changes: &mut Changes,
        queue: &mut BTreeSet<PathBuf>,
    ) {
        let content = hash(text);
        let file = self.files.entry(path.to_owned()).or_default();
        file.stamp = stamp;
        // The same content says more once it is known to be all.
        if file.content == Some(content) && (open || !file.open) {
            return;
        }
        (file.content, file.open) = (Some(content), open);
        let old = std::mem::take(&mut file.objects);
        let parsed = parse::parse(path, text, self.local);
        let empty = parsed.is_empty();
        let mut problems = parsed.problems;
        for kind in parsed.ignored {
            let count = self.ignored.entry(kind).or_insert_with_key(|kind| {
                tracing::info!(kind, file = %path.display(), "this kind is ignored");
                0
            });
            *count += 1;
        }
        let mut objects = BTreeSet::new();
        for (object, line) in parsed.objects {
            let id = object.id();
            if !objects.insert(id.clone()) {
                let text =
                    "is defined twice in this file; the first definition stays in force".to_owned();
                problems.push(problem(path, line, Some(id), text));
            } else if let Some(first) = self.claim(&id, path, !old.contains(&id), queue) {
                let text =
                    format!("is already defined in {}, which stays in force", first.display());
                problems.push(problem(path, line, Some(id), text));
            } else {
                changes.0.insert(id, Some(object));
            }
        }
        let keep = (empty || open).then_some(if empty { EMPTY } else { OPEN });
        let mut kept = false;
        let mut kept_now = BTreeSet::new();
        for id in old {
            if objects.contains(&id) {
                continue;
            }
            if parsed.unreadable || parsed.wrong.contains(&id) {
                kept_now.insert(id.clone());
                objects.insert(id);
            } else if keep.is_some() {
                kept |= objects.insert(id);
            } else {
                self.release(&id, path, changes, queue);
            }
        }
        if let Some(why) = keep.filter(|_| kept) {
            problems.push(problem(path, 1, None, why.to_owned()));
        }
        if let Some(file) = self.files.get_mut(path) {
            let unread = parsed.unread.into_iter().filter(|unread| !unread.is_known(&kept_now));
            let stand_ins = unread.flat_map(|unread| unread.stand_ins);
            file.closed = parsed.closed.into_iter().chain(stand_ins).collect();
            file.objects = objects;
            file.without_namespace = parsed.without_namespace;
            file.empty = empty;
        }
        self.problems.set(path, problems);
    }

    /// Lets nobody in to what an AccessPolicy is for of which no version is right.
    fn stand_in(&mut self, changes: &mut Changes) {
        let closed = self.files.values().flat_map(|file| &file.closed);
        let closed =
            closed.map(|policy| (Object::AccessPolicy(policy.clone()).id(), policy.clone()));
        let wanted: BTreeMap<ObjectId, Policy> =
            closed.filter(|(id, _)| !self.claims.contains_key(id)).collect();
        for id in self.stand_ins.keys().filter(|id| !wanted.contains_key(*id)) {
            if !self.claims.contains_key(id) {
                changes.0.insert(id.clone(), None);
            }
        }
        for (id, policy) in wanted.iter().filter(|(id, new)| self.stand_ins.get(*id) != Some(*new))
        {
            tracing::error!(object = %id, "{}", policy.closed_because().unwrap_or_default());
            changes.0.insert(id.clone(), Some(Object::AccessPolicy(policy.clone())));
        }
        self.stand_ins = wanted;
    }

    /// Notes that a file defines an object; gives the other file that is in force, if one is.
    fn claim(
        &mut self,
        id: &ObjectId,
        path: &Path,
        new: bool,
        queue: &mut BTreeSet<PathBuf>,
    ) -> Option<PathBuf> {
        if !self.claims.contains_key(id) {
            self.count(id.kind, 1);
        }
        let claims = self.claims.entry(id.clone()).or_default();
        claims.insert(path.to_owned());
        let first = claims.first().filter(|first| *first != path).cloned();
        self.problems.set_place(id, claims.first().map(PathBuf::as_path));
        if new && first.is_none() {
            // Anyone who was in force until now has to report that it no longer is.
            for other in claims.iter().skip(1) {
                if let Some(file) = self.files.get_mut(other) {
                    file.content = None;
                    queue.insert(other.clone());
                }
            }
        }
        first
    }

    /// A file no longer defines an object: the next file that does takes over.
    fn release(
        &mut self,
        id: &ObjectId,
        path: &Path,
        changes: &mut Changes,
        queue: &mut BTreeSet<PathBuf>,
    ) {
        let Some(claims) = self.claims.get_mut(id) else { return };
        claims.remove(path);
        self.problems.set_place(id, claims.first().map(PathBuf::as_path));
        if let Some(next) = claims.first() {
            if let Some(file) = self.files.get_mut(next) {
                file.content = None;
                queue.insert(next.clone());
            }
        } else {
            self.claims.remove(id);
            self.count(id.kind, -1);
            changes.0.insert(id.clone(), None);
        }
    }
}

impl Changes {
    fn events(self) -> impl Iterator<Item = Event> {
        self.0.into_iter().map(|(id, object)| match object {
            Some(object) => Event::Apply(Box::new(object)),
            None => Event::Remove(id),
        })
    }
}

/// Also to nothing.
fn is_link(path: &Path) -> bool {
    fs::symlink_metadata(path).is_ok_and(|meta| meta.is_symlink())
}

fn read_file(path: &Path) -> io::Result<(ManifestStamp, String)> {
    let meta = fs::metadata(path)?;
    if meta.len() > MAX_FILE {
        return Err(io::Error::other(format!("it has more than {MAX_FILE} bytes")));
    }
    Ok((ManifestStamp::from(&meta), fs::read_to_string(path)?))
}

/// What a file that cannot be read as text may hold, beside what it held when it could be.
fn closed_of_unreadable(path: &Path, before: &ManifestFile) -> Vec<Policy> {
    let small = fs::metadata(path).is_ok_and(|meta| meta.len() <= MAX_FILE);
    match small.then(|| fs::read(path).ok()).flatten() {
        Some(bytes) => {
            // UTF-16 has every second byte zero.
            let bytes: Vec<u8> = bytes.into_iter().filter(|byte| *byte != 0).collect();
            let unread = closed::of_text(&String::from_utf8_lossy(&bytes), path, 1);
            let unread = unread.filter(|unread| !unread.is_known(&before.objects));
            unread.into_iter().flat_map(|unread| unread.stand_ins).collect()
        }
        None if before.content.is_none() => vec![closed::of_file(path)],
        None => before.closed.clone(),
    }
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

fn problem(file: &Path, line: u64, object: Option<ObjectId>, problem: String) -> Problem {
    let (file, field) = (file.to_owned(), String::new());
    Problem { file, line, severity: Severity::Error, object, field, problem }
}
