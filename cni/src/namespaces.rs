//! Network namespaces of pods: working in one, and finding that of a pod that the plugin has missed.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use outrigger_redirect::{Backend, RedirectError, Redirection, apply, enter, is_applied, remove};

/// Why a namespace is not as it should be.
#[derive(Debug, thiserror::Error)]
pub enum NamespaceError {
    #[error("its network namespace could not be entered: {0}")]
    Enter(io::Error),
    #[error("that is the network namespace of the node itself")]
    Node,
    #[error(transparent)]
    Redirect(#[from] RedirectError),
}

/// Puts the rules of a pod in force in its namespace, instead of what was there of ours before.
///
/// # Errors
/// If they are not in force then.
pub fn redirect(
    namespace: &OwnedFd,
    redirection: &Redirection,
    backend: Backend,
) -> Result<(), NamespaceError> {
    work_in(namespace, || apply(&redirection.ruleset(), backend).map(drop))
}

/// Whether there are rules.
///
/// # Errors
/// If that cannot be seen.
pub fn is_redirected(namespace: &OwnedFd) -> Result<bool, NamespaceError> {
    work_in(namespace, is_applied)
}

/// Takes the rules away, if there are any.
///
/// # Errors
/// If they are still there.
pub fn restore(namespace: &OwnedFd, backend: Backend) -> Result<(), NamespaceError> {
    work_in(namespace, || match is_applied()? {
        true => remove(backend),
        false => Ok(()),
    })
}

/// Does it in a thread of its own, which ends with it: no other work ever finds itself in a pod's namespace.
fn work_in<T: Send>(
    namespace: &OwnedFd,
    work: impl FnOnce() -> Result<T, RedirectError> + Send,
) -> Result<T, NamespaceError> {
    let enter_and_work = || {
        enter(namespace.as_fd()).map_err(NamespaceError::Enter)?;
        Ok(work()?)
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned());
        let thread = thread.spawn_scoped(scope, enter_and_work).map_err(NamespaceError::Enter)?;
        let panicked = || NamespaceError::Enter(io::Error::other("the thread panicked"));
        thread.join().unwrap_or_else(|_| Err(panicked()))
    })
}

/// The oldest process of each pod by the pod's uid: when it began, and its folder in `/proc`.
pub type Oldest = HashMap<String, (u64, PathBuf)>;

/// Looks through the processes of the node once, for all pods: `proc` is the node's `/proc`.
///
/// # Errors
/// If the processes cannot be read.
pub fn oldest(proc: &Path) -> Result<Oldest, NamespaceError> {
    let mut oldest = Oldest::new();
    for entry in fs::read_dir(proc).map_err(NamespaceError::Enter)? {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let process = entry.path();
        let Some(pod) = pod_of_process(&process) else { continue };
        let Some(start) = started(&process) else { continue };
        if oldest.get(&pod).is_none_or(|(before, _)| start < *before) {
            oldest.insert(pod, (start, process));
        }
    }
    Ok(oldest)
}

/// The namespace of a pod: that of its oldest process, the sandbox's own, so that nothing which the pod does later
/// counts. None: it has no process.
///
/// # Errors
/// If it cannot be opened, or the pod is on the node's network.
pub fn find(proc: &Path, oldest: &Oldest, uid: &str) -> Result<Option<OwnedFd>, NamespaceError> {
    let Some((start, process)) = oldest.get(uid) else { return Ok(None) };
    let Some(namespace) = namespace_of(process, *start, uid)? else { return Ok(None) };
    check(proc, &namespace)?;
    Ok(Some(namespace))
}

/// The namespace of a process of a pod. None: it has ended, and another one may have its number.
fn namespace_of(process: &Path, start: u64, uid: &str) -> Result<Option<OwnedFd>, NamespaceError> {
    let file = match File::open(process.join("ns/net")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(NamespaceError::Enter)?,
    };
    let is_same =
        started(process) == Some(start) && pod_of_process(process).as_deref() == Some(uid);
    Ok(is_same.then(|| file.into()))
}

/// # Errors
/// If a namespace is the node's own. Pods on the node's network are not asked for in the first place; where the node's first
/// process is out of sight, as on nodes that are containers themselves, that has to do.
pub fn check(proc: &Path, namespace: &OwnedFd) -> Result<(), NamespaceError> {
    let found =
        rustix::fs::fstat(namespace).map_err(|error| NamespaceError::Enter(error.into()))?;
    let node = fs::metadata(proc.join("1/ns/net")).map(|node| (node.dev(), node.ino()));
    match node.is_ok_and(|node| node == (found.st_dev, found.st_ino)) {
        true => Err(NamespaceError::Node),
        false => Ok(()),
    }
}

fn pod_of_process(process: &Path) -> Option<String> {
    // It may have ended meanwhile.
    let groups = fs::read_to_string(process.join("cgroup")).ok()?;
    groups.lines().find_map(pod_of)
}

/// The uid of the pod in whose control group a line of `/proc/PID/cgroup` is: the outermost, which only the kubelet
/// can have made: users of the node have groups of their own, which they may call anything. Both drivers' names:
/// `.../pod1234-5/...` and `...kubepods-...pod1234_5.slice/...`.
fn pod_of(line: &str) -> Option<String> {
    let path = line.splitn(3, ':').nth(2)?;
    let groups = path.split('/').take_while(|group| *group != "user.slice");
    groups.into_iter().find_map(|group| {
        let group = group.strip_suffix(".slice").unwrap_or(group);
        let uid = match group.rsplit_once("-pod") {
            // With whatever the kubelet's own root is called before it.
            Some((before, uid)) if before.contains("kubepods") => uid,
            _ => group.strip_prefix("pod")?,
        };
        let uid = uid.replace('_', "-");
        let is_uid = uid.len() >= 8 && uid.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
        is_uid.then_some(uid)
    })
}

/// When a process began, in ticks since the node did: field 22 of `/proc/PID/stat` (proc(5)).
fn started(process: &Path) -> Option<u64> {
    let stat = fs::read_to_string(process.join("stat")).ok()?;
    // The second field may hold anything, spaces and brackets included; what follows is field 3.
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_ascii_whitespace().nth(19)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_pod_of_a_process_is_read_in_every_way_in_which_it_is_written() {
        let uid = "0b1c2d3e-0000-4000-8000-0123456789ab";
        let under = "0b1c2d3e_0000_4000_8000_0123456789ab";
        for line in [
            format!("0::/kubepods/besteffort/pod{uid}/c0ffee"),
            format!("0::/kubepods/pod{uid}"),
            format!("11:memory:/kube-node1/kubepods/burstable/pod{uid}/x"),
            format!(
                "0::/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod{under}.slice/cri-containerd-1.scope"
            ),
            format!("0::/../../kubepods-pod{under}.slice/crio-1.scope"),
            // kind, whose kubelet has a root of its own.
            format!(
                "0::/kubelet.slice/kubelet-kubepods.slice/kubelet-kubepods-burstable.slice/kubelet-kubepods-burstable-pod{under}.slice/x"
            ),
            // As a container sees its neighbours that has a group of its own.
            format!("0::/../../../besteffort/pod{uid}/x"),
            // What a pod makes inside of its own group is no other's.
            format!("0::/kubepods/pod{uid}/x/podffffffff-0000-4000-8000-0123456789ab/y"),
        ] {
            assert_eq!(pod_of(&line).as_deref(), Some(uid), "{line}");
        }
        for line in ["0::/", "", "0::/system.slice/podman.service", "0::/user.slice/pods"] {
            assert_eq!(pod_of(line), None, "{line}");
        }
        // Users of the node may make groups of any name in their own.
        for line in [
            format!("0::/user.slice/user-1000.slice/user@1000.service/pod{uid}"),
            format!("0::/../../user.slice/user-1000.slice/kubepods-pod{under}.slice"),
        ] {
            assert_eq!(pod_of(&line), None, "{line}");
        }
    }

    #[test]
    fn a_process_that_has_ended_is_not_mixed_up_with_the_next_of_its_number() {
        let process = tempfile::tempdir().unwrap();
        let uid = "0b1c2d3e-0000-4000-8000-0123456789ab";
        fs::create_dir(process.path().join("ns")).unwrap();
        fs::write(process.path().join("ns/net"), "").unwrap();
        let fields = vec!["0"; 18].join(" ");
        fs::write(process.path().join("stat"), format!("7 (a) S {fields} 900 0\n")).unwrap();
        fs::write(process.path().join("cgroup"), format!("0::/kubepods/pod{uid}/x\n")).unwrap();
        let found = |start, uid| namespace_of(process.path(), start, uid).unwrap().is_some();
        assert!(found(900, uid));
        assert!(!found(800, uid), "it began at another time");
        assert!(!found(900, "cccccccc-0000-4000-8000-0123456789ab"), "another pod's");
    }

    #[test]
    fn the_oldest_process_of_a_pod_counts_and_never_the_nodes_own_namespace() {
        let proc = tempfile::tempdir().unwrap();
        let uid = "0b1c2d3e-0000-4000-8000-0123456789ab";
        let process = |pid: u32, group: &str, start: u32, namespace: &str| {
            let folder = proc.path().join(pid.to_string());
            fs::create_dir_all(folder.join("ns")).unwrap();
            fs::write(folder.join("cgroup"), format!("0::{group}\n")).unwrap();
            let fields = vec!["0"; 18].join(" ");
            fs::write(folder.join("stat"), format!("{pid} (a) b) S {fields} {start} 0 0\n"))
                .unwrap();
            let file = proc.path().join(namespace);
            if !file.exists() {
                fs::write(&file, namespace).unwrap();
            }
            fs::hard_link(file, folder.join("ns/net")).unwrap();
        };
        process(1, "/init.scope", 1, "node");
        process(70, &format!("/kubepods/pod{uid}/app"), 900, "inner");
        process(71, &format!("/kubepods/pod{uid}/pause"), 800, "pod");
        process(72, "/kubepods/podaaaaaaaa-0000-4000-8000-0123456789ab/x", 10, "other");
        process(73, "/kubepods/podbbbbbbbb-0000-4000-8000-0123456789ab/x", 10, "node");
        fs::write(proc.path().join("meminfo"), "").unwrap();
        let oldest = oldest(proc.path()).unwrap();
        let find = |uid: &str| find(proc.path(), &oldest, uid);
        let found = File::from(find(uid).unwrap().unwrap());
        let want = fs::metadata(proc.path().join("pod")).unwrap().ino();
        assert_eq!(found.metadata().unwrap().ino(), want);
        assert!(find("cccccccc-0000-4000-8000-0123456789ab").unwrap().is_none());
        let node = find("bbbbbbbb-0000-4000-8000-0123456789ab");
        assert!(matches!(node, Err(NamespaceError::Node)));
    }
}
