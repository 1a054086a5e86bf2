//! From the build to the nodes.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::kubectl::output;
use crate::{images, workspace};

const NAMES: [&str; 3] = ["proxy", "control-plane", "simplebank"];
const PREFIX: &str = "outrigger.dev";

/// Nodes that take an image from here.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Place {
    Kind(Option<String>),
    K3d(Option<String>),
    /// The socket of a containerd.
    Containerd(PathBuf),
}

/// How the images are named, and whether the nodes may ask a registry for them.
#[derive(Debug)]
pub(super) struct Images {
    pub(super) prefix: String,
    pub(super) tag: &'static str,
    pub(super) pull_policy: &'static str,
}

/// `kind`, `k3d=NAME`, `containerd=SOCKET`.
pub(super) fn place(text: &str) -> Result<Place, String> {
    let (what, which) = match text.split_once('=') {
        Some((what, which)) if !which.is_empty() => (what, Some(which.to_owned())),
        Some(_) => return Err(format!("{text:?} names nothing after its =")),
        None => (text, None),
    };
    match (what, which) {
        ("kind", which) => Ok(Place::Kind(which)),
        ("k3d", which) => Ok(Place::K3d(which)),
        ("containerd", Some(socket)) => Ok(Place::Containerd(socket.into())),
        _ => Err(format!("{text:?} is not kind[=CLUSTER], k3d[=CLUSTER] or containerd=SOCKET")),
    }
}

/// Builds the images unless they are `built`, and brings them to where the cluster finds them.
pub(super) fn provide(load: &[Place], push: Option<&str>, built: bool) -> io::Result<Images> {
    let prefix = push.unwrap_or(PREFIX).to_owned();
    // Neither way: the nodes have them.
    if !built && (push.is_some() || !load.is_empty()) {
        images::build(&images::Options { prefix: prefix.clone(), ..Default::default() })?;
    }
    for name in NAMES {
        let archive = workspace::target_dir().join("images").join(format!("{name}.tar"));
        for place in load {
            eprintln!("loading {name} into {place:?}");
            put(&archive, place)?;
        }
        if push.is_some() {
            let reference = format!("{prefix}/{name}:{}", env!("CARGO_PKG_VERSION"));
            eprintln!("pushing {reference}");
            let tool = if is_there("docker") { "docker" } else { "podman" };
            output(tool, &["load", "--input", &archive.to_string_lossy()], "")?;
            output(tool, &["push", &reference], "")?;
        }
    }
    let pull_policy = if push.is_some() { "Always" } else { "Never" };
    Ok(Images { prefix, tag: env!("CARGO_PKG_VERSION"), pull_policy })
}

fn put(archive: &Path, place: &Place) -> io::Result<()> {
    let archive = archive.to_string_lossy();
    let said = match place {
        Place::Kind(which) => {
            let name = which.as_deref().unwrap_or("kind");
            output("kind", &["load", "image-archive", &archive, "--name", name], "")
        }
        Place::K3d(which) => {
            let name = which.as_deref().unwrap_or("k3s-default");
            output("k3d", &["image", "import", &archive, "--cluster", name], "")
        }
        Place::Containerd(socket) => {
            let socket = socket.to_string_lossy();
            let of_kubelets = ["--address", &socket, "--namespace", "k8s.io"];
            output("ctr", &[&of_kubelets[..], &["images", "import", &archive]].concat(), "")
        }
    };
    said.map(drop)
}

fn is_there(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_says_what_it_is_and_which() {
        assert_eq!(place("kind"), Ok(Place::Kind(None)));
        assert_eq!(place("k3d=dev"), Ok(Place::K3d(Some("dev".to_owned()))));
        assert_eq!(place("containerd=/run/a.sock"), Ok(Place::Containerd("/run/a.sock".into())));
        for wrong in ["containerd", "kind=", "docker", ""] {
            assert!(place(wrong).is_err(), "{wrong}");
        }
    }
}
