//! The directory as several processes and crashes see it. An instance of its own has a lock of its own, as a
//! process has.

use std::collections::BTreeSet;
use std::sync::Barrier;

use super::*;
use crate::store::{Lease, create, update};

fn document(name: &str) -> Document {
    Document::secret(name)
}

fn open(folder: &tempfile::TempDir) -> Directory {
    Directory::open(folder.path()).unwrap()
}

#[test]
fn a_write_needs_the_version_that_was_read() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (open(&folder), open(&folder));
    let name = document("ca/roots.json");
    assert_eq!(one.read(&name).unwrap(), None);
    let first = one.write(&name, b"first", None).unwrap();
    assert!(two.write(&name, b"other", None).unwrap_err().is_conflict());
    assert_eq!(two.version(&name).unwrap(), Some(first.clone()));
    let second = two.write(&name, b"second", Some(&first)).unwrap();
    let late = one.write(&name, b"late", Some(&first)).unwrap_err();
    assert!(late.is_conflict() && late.to_string().contains("ca/roots.json"), "{late}");
    let stored = Stored { bytes: b"second".to_vec(), version: second.clone() };
    assert_eq!(one.read(&name).unwrap(), Some(stored));
    // What people put there by hand is a version, too.
    fs::write(folder.path().join("ca/roots.json"), "by hand").unwrap();
    assert!(one.write(&name, b"third", Some(&second)).unwrap_err().is_conflict());
    assert!(one.remove(&name, &second).unwrap_err().is_conflict());
    let version = one.version(&name).unwrap().unwrap();
    two.remove(&name, &version).unwrap();
    two.remove(&name, &version).unwrap();
    assert_eq!(one.read(&name).unwrap(), None);
}

#[test]
fn only_the_owner_reads_secrets() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let mode =
        |name: &str| fs::metadata(folder.path().join(name)).unwrap().permissions().mode() & 0o777;
    fs::write(folder.path().join("secret.new"), "left over").unwrap();
    store.write(&document("secret"), b"x", None).unwrap();
    store.write(&document("replicas/a/secret"), b"x", None).unwrap();
    store.write(&Document::public("public"), b"x", None).unwrap();
    assert_eq!((mode("secret"), mode("replicas/a/secret"), mode("public")), (0o600, 0o600, 0o644));
    assert_eq!(mode("replicas/a"), 0o700);
    assert_eq!(store.list("replicas/").unwrap(), ["replicas/a/secret"]);
    assert!(store.list("nothing/").unwrap().is_empty());
}

#[test]
fn a_crash_before_the_rename_leaves_the_old_document() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(&folder);
    let name = document("replicas/a/registrations");
    let version = store.write(&name, b"old", None).unwrap();
    // As a process leaves it that dies between writing and renaming.
    fs::write(folder.path().join("replicas/a/registrations.new"), "half of the n").unwrap();
    let next = open(&folder);
    let stored = Stored { bytes: b"old".to_vec(), version: version.clone() };
    assert_eq!(next.read(&name).unwrap(), Some(stored));
    assert_eq!(next.list("replicas/").unwrap(), ["replicas/a/registrations"]);
    next.write(&name, b"new", Some(&version)).unwrap();
    assert_eq!(store.read(&name).unwrap().unwrap().bytes, b"new");
}

/// Where a process that a test has started finds the directory, and what it does there.
const FOLDER: &str = "OUTRIGGER_TEST_STORE";
const ROLE: &str = "OUTRIGGER_TEST_STORE_ROLE";

/// Starts this very test binary as another process.
fn other_process(folder: &tempfile::TempDir, role: &str) -> std::process::Child {
    std::process::Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "store::dir::tests::as_another_process", "--nocapture"])
        .env(FOLDER, folder.path())
        .env(ROLE, role)
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn as_another_process() {
    // Run by itself it has nothing to do.
    let (Some(folder), Ok(role)) = (std::env::var_os(FOLDER), std::env::var(ROLE)) else { return };
    let store = Directory::open(Path::new(&folder)).unwrap();
    if role == "hold" {
        let _held = store.locked().unwrap();
        println!("\nheld");
        loop {
            std::thread::park();
        }
    }
    add_names(&store, role.parse().unwrap());
}

#[test]
fn a_process_that_dies_with_the_lock_blocks_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let mut holder = other_process(&folder, "hold");
    let said = io::BufReader::new(holder.stdout.take().unwrap());
    assert!(io::BufRead::lines(said).any(|line| line.unwrap() == "held"));
    let store = open(&folder);
    let file = File::open(folder.path().join(LOCK)).unwrap();
    let held = flock(&file, FlockOperation::NonBlockingLockExclusive);
    assert_eq!(held, Err(Errno::WOULDBLOCK));
    let done = std::thread::scope(|scope| {
        let writer = scope.spawn(|| store.write(&document("a"), b"x", None));
        holder.kill().unwrap();
        holder.wait().unwrap();
        writer.join().unwrap()
    });
    done.unwrap();
}

const NAMES: &str = "names.json";
const WRITES: u64 = 25;

/// Adds names that no other writer adds, one at a time.
fn add_names(store: &dyn Store, writer: u64) {
    for write in 0..WRITES {
        update(store, &document(NAMES), |before| {
            let mut names: BTreeSet<u64> =
                before.map(|bytes| serde_json::from_slice(bytes).unwrap()).unwrap_or_default();
            names.insert(writer * WRITES + write);
            Some(serde_json::to_vec(&names).unwrap())
        })
        .unwrap();
    }
}

#[test]
fn nothing_is_lost_when_many_write_at_once() {
    const THREADS: u64 = 8;
    const PROCESSES: u64 = 3;
    let folder = tempfile::tempdir().unwrap();
    let shared = open(&folder);
    let start = Barrier::new(THREADS as usize);
    let processes = (0..PROCESSES).map(|i| other_process(&folder, &(THREADS + i).to_string()));
    let processes: Vec<_> = processes.collect();
    std::thread::scope(|scope| {
        for writer in 0..THREADS {
            let (start, shared, folder) = (&start, &shared, &folder);
            scope.spawn(move || {
                let own = open(folder);
                let store: &dyn Store = if writer % 2 == 0 { &own } else { shared };
                start.wait();
                add_names(store, writer);
            });
        }
    });
    for process in processes {
        assert!(process.wait_with_output().unwrap().status.success());
    }
    let bytes = shared.read(&document(NAMES)).unwrap().unwrap().bytes;
    let names: BTreeSet<u64> = serde_json::from_slice(&bytes).unwrap();
    assert_eq!(names, (0..(THREADS + PROCESSES) * WRITES).collect());
}

#[test]
fn the_first_to_create_wins_and_everybody_gets_the_same() {
    const MAKERS: u8 = 8;
    for _ in 0..10 {
        let folder = tempfile::tempdir().unwrap();
        let start = Barrier::new(usize::from(MAKERS));
        let made: BTreeSet<Vec<u8>> = std::thread::scope(|scope| {
            let makers = (0..MAKERS).map(|maker| {
                let (start, folder) = (&start, &folder);
                scope.spawn(move || {
                    let store = open(folder);
                    start.wait();
                    create(&store, &document("join-token.key"), || Ok(vec![maker; 32])).unwrap()
                })
            });
            let makers: Vec<_> = makers.collect();
            makers.into_iter().map(|maker| maker.join().unwrap()).collect()
        });
        assert_eq!(made.len(), 1);
    }
}

#[test]
fn a_change_is_seen_although_nothing_but_the_content_differs() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (open(&folder), open(&folder));
    let name = document("a");
    let mut version = one.write(&name, b"0", None).unwrap();
    // The same size, within one tick of the clock, and an inode that comes again every other time.
    for content in 1..200_u32 {
        let bytes = [b'0' + u8::try_from(content % 10).unwrap()];
        version = one.write(&name, &bytes, Some(&version)).unwrap();
        assert_eq!(two.version(&name).unwrap(), Some(version.clone()), "{content}");
    }
}

#[test]
fn a_lease_is_one_holders_until_it_is_given_back_or_has_run_out() {
    let folder = tempfile::tempdir().unwrap();
    let (one, two) = (open(&folder), open(&folder));
    let long = Duration::from_secs(60);
    let lease = Lease::acquire(&one, "rotation", "a", long).unwrap();
    assert!(lease.is_valid());
    one.acquire("rotation", "a", long).unwrap();
    let refused = two.acquire("rotation", "b", long).unwrap_err();
    assert_eq!(refused.to_string(), "the lease rotation is held by a");
    two.release("rotation", "b").unwrap();
    assert_eq!(two.holder("rotation").unwrap().unwrap().holder, "a");
    drop(lease);
    assert_eq!(two.holder("rotation").unwrap(), None);
    one.acquire("rotation", "a", Duration::ZERO).unwrap();
    assert_eq!(two.holder("rotation").unwrap(), None);
    two.acquire("rotation", "b", long).unwrap();
    fs::write(folder.path().join("leases/rotation.json"), "{").unwrap();
    one.acquire("rotation", "a", long).unwrap();
}
