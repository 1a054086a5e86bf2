//! Network namespaces of pods: working in one, and finding that of a pod that the plugin has missed.

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

/// Finds the namespace of a pod by its processes: `proc` is the node's `/proc`. None: it has no process.
///
/// It is that of the oldest one, the sandbox's own, so that nothing which the pod does later counts.
///
/// # Errors
/// If the processes cannot be read, or the pod is on the node's network.
pub fn find(proc: &Path, uid: &str) -> Result<Option<OwnedFd>, NamespaceError> {
    let mut oldest: Option<(u64, PathBuf)> = None;
    for entry in fs::read_dir(proc).map_err(NamespaceError::Enter)? {
        let Ok(entry) = entry else { continue };
        let name = entry.file_name();
        if !name.as_encoded_bytes().iter().all(u8::is_ascii_digit) {
            continue;
        }
        let process = entry.path();
        // It may have ended meanwhile.
        let Ok(groups) = fs::read_to_string(process.join("cgroup")) else { continue };
        if !groups.lines().any(|line| pod_of(line).is_some_and(|pod| pod == uid)) {
            continue;
        }
        let Some(start) = started(&process) else { continue };
        if oldest.as_ref().is_none_or(|(before, _)| start < *before) {
            oldest = Some((start, process));
        }
    }
    let Some((_, process)) = oldest else { return Ok(None) };
    let file = match File::open(process.join("ns/net")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        other => other.map_err(NamespaceError::Enter)?,
    };
    let found = file.metadata().map_err(NamespaceError::Enter)?;
    // Pods on the node's network are not asked for in the first place; where the first process is out of sight, as on
    // nodes that are containers themselves, that has to do.
    let node = fs::metadata(proc.join("1/ns/net")).map(|node| (node.dev(), node.ino()));
    if node.is_ok_and(|node| node == (found.dev(), found.ino())) {
        return Err(NamespaceError::Node);
    }
    Ok(Some(file.into()))
}

/// The uid of the pod in whose control group a line of `/proc/PID/cgroup` is: the outermost, which only the kubelet
/// can have made. Both drivers' names: `.../pod1234-5/...` and `...-pod1234_5.slice/...`.
fn pod_of(line: &str) -> Option<String> {
    let path = line.splitn(3, ':').nth(2)?;
    path.split('/').find_map(|group| {
        let group = group.strip_suffix(".slice").unwrap_or(group);
        let uid = match group.rsplit_once("-pod") {
            Some((_, uid)) if group.starts_with("kubepods") => uid,
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
            // What a pod makes inside of its own group is no other's.
            format!("0::/kubepods/pod{uid}/x/podffffffff-0000-4000-8000-0123456789ab/y"),
        ] {
            assert_eq!(pod_of(&line).as_deref(), Some(uid), "{line}");
        }
        for line in ["0::/", "", "0::/system.slice/podman.service", "0::/user.slice/pods"] {
            assert_eq!(pod_of(line), None, "{line}");
        }
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
        let found = File::from(find(proc.path(), uid).unwrap().unwrap());
        let want = fs::metadata(proc.path().join("pod")).unwrap().ino();
        assert_eq!(found.metadata().unwrap().ino(), want);
        assert!(find(proc.path(), "cccccccc-0000-4000-8000-0123456789ab").unwrap().is_none());
        let node = find(proc.path(), "bbbbbbbb-0000-4000-8000-0123456789ab");
        assert!(matches!(node, Err(NamespaceError::Node)));
    }
}
