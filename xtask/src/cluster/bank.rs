//! The mesh and the bank, into a cluster and out of it.

use std::fs;
use std::io;

use super::Mode;
use super::images::Images;
use super::kubectl::{Kubectl, output};
use crate::workspace;

/// The namespaces of the control plane and of the bank.
pub(super) const SYSTEM: &str = "outrigger-system";
pub(super) const BANK: &str = "bank";
const RELEASE: &str = "outrigger";
/// As bank.yaml names the bank's image.
const IMAGE: &str = "outrigger.dev/simplebank:0.1.0";
/// Nobody talks to the bank in plaintext.
const STRICT: &str = "
---
apiVersion: outrigger.dev/v1alpha1
kind: AccessPolicy
metadata: {name: strict, namespace: bank}
spec: {mtls: Strict}
";
/// How long the pods of the bank may take to become ready, and what is removed to go.
const LIMIT: &str = "--timeout=180s";

pub(super) struct Bank<'a> {
    pub(super) kubectl: &'a Kubectl,
    pub(super) images: &'a Images,
    /// The mesh was in the cluster before, and stays.
    pub(super) installed: bool,
    pub(super) mode: Mode,
}

/// Whether the mesh is in the cluster already. Refuses one in which the bank would be in somebody's way.
pub(super) fn check(kubectl: &Kubectl) -> io::Result<bool> {
    let routes = "customresourcedefinitions/httproutes.gateway.networking.k8s.io";
    kubectl.run(&["get", routes]).map_err(|error| {
        let how = "install the Gateway API's standard channel, as gateway-api.sigs.k8s.io says";
        io::Error::other(format!("{error}; {how}"))
    })?;
    let found = kubectl.run(&["get", "namespace", BANK, "--ignore-not-found"])?;
    if !found.is_empty() {
        let why = format!("the namespace {BANK} exists: this would remove it in the end");
        return Err(io::Error::other(why));
    }
    let releases = output("helm", &["list", "--namespace", SYSTEM, "--short"], "")?;
    let installed = releases.lines().any(|release| release == RELEASE);
    let found = kubectl.run(&["get", "namespace", SYSTEM, "--ignore-not-found"])?;
    if !installed && !found.is_empty() {
        let why = format!(
            "the namespace {SYSTEM} exists without the mesh: this would remove it in the end, whatever is in it"
        );
        return Err(io::Error::other(why));
    }
    Ok(installed)
}

/// What asks for proxies, in the bank's own manifest.
const ASKS: &str = "labels: {outrigger.dev/inject: enabled}";

/// The namespace asks for that mode, and where nothing in a pod needs rights lets none have any.
fn in_mode(manifests: &str, mode: Mode) -> String {
    let more = match mode {
        Mode::Init => "",
        Mode::Cni | Mode::Env => ", pod-security.kubernetes.io/enforce: restricted",
    };
    let mode = mode.as_str();
    let asks = format!(
        "labels: {{outrigger.dev/inject: enabled{more}}}\n  annotations: {{outrigger.dev/mode: {mode}}}"
    );
    manifests.replacen(ASKS, &asks, 1)
}

impl Bank<'_> {
    /// Returns when every pod is ready.
    pub(super) fn install(&self) -> io::Result<()> {
        match self.installed {
            true => eprintln!("the mesh that is there is used as it is, and stays"),
            false => self.install_mesh()?,
        }
        eprintln!("starting the bank");
        let folder = workspace::root().join("examples/simplebank");
        let mut all = fs::read_to_string(folder.join("cluster/bank.yaml"))?;
        all = in_mode(&all, self.mode);
        all.push_str(STRICT);
        all.push_str("---\n");
        all.push_str(&fs::read_to_string(folder.join("manifests/market-data.yaml"))?);
        self.kubectl.apply(&self.with_images(&all))?;
        self.kubectl.run(&[
            "--namespace",
            BANK,
            "wait",
            "--for=condition=Available",
            "deployment",
            "--all",
            LIMIT,
        ])?;
        self.all_meshed()
    }

    fn install_mesh(&self) -> io::Result<()> {
        let Images { prefix, tag, pull_policy } = self.images;
        let chart = workspace::root().join("charts/outrigger");
        eprintln!("installing the chart");
        let cni = self.mode == Mode::Cni;
        let set = format!(
            "image.prefix={prefix},image.tag={tag},image.pullPolicy={pull_policy},cni.enabled={cni}"
        );
        let release = ["install", RELEASE, &chart.to_string_lossy(), "--namespace", SYSTEM];
        let how = ["--create-namespace", "--wait", LIMIT, "--set", &set];
        output("helm", &[&release[..], &how].concat(), "").map(drop)
    }

    /// Fails if a pod has no proxy though it should, or has one that is not ready.
    fn all_meshed(&self) -> io::Result<()> {
        let pods = self.kubectl.json(&["--namespace", BANK, "get", "pods"])?;
        for pod in pods["items"].as_array().into_iter().flatten() {
            let name = pod["metadata"]["name"].as_str().unwrap_or_default();
            let stays_out = pod["metadata"]["labels"]["outrigger.dev/inject"] == "disabled";
            let proxies = pod["status"]["initContainerStatuses"].as_array().into_iter().flatten();
            let mut proxies = proxies.filter(|status| status["name"] == "outrigger-proxy");
            let ready = proxies.next().is_some_and(|status| status["ready"] == true);
            if !stays_out && !ready {
                return Err(io::Error::other(format!("{name} has no proxy that is ready")));
            }
        }
        Ok(())
    }

    /// Manifests with the images that were provided, in place of those that the repository names.
    pub(super) fn with_images(&self, manifests: &str) -> String {
        let Images { prefix, tag, pull_policy } = self.images;
        let mut all = String::with_capacity(manifests.len());
        for line in manifests.lines() {
            match line.split_once("image: ").filter(|(_, image)| *image == IMAGE) {
                Some((indent, _)) => {
                    let indent = indent.replace('-', " ");
                    all.push_str(&line.replace(IMAGE, &format!("{prefix}/simplebank:{tag}")));
                    all.push_str(&format!("\n{indent}imagePullPolicy: {pull_policy}"));
                }
                None => all.push_str(line),
            }
            all.push('\n');
        }
        all
    }

    /// Everything that [`Bank::install`] has made; fails if something is left.
    pub(super) fn remove(&self) -> io::Result<()> {
        let gone = ["--ignore-not-found", LIMIT];
        self.kubectl.run(&[&["delete", "namespace", BANK][..], &gone].concat())?;
        if self.installed {
            return Ok(());
        }
        let uninstall = ["uninstall", RELEASE, "--namespace", SYSTEM, "--wait", LIMIT];
        output("helm", &[&uninstall[..], &["--ignore-not-found"]].concat(), "")?;
        self.kubectl.run(&[&["delete", "namespace", SYSTEM][..], &gone].concat())?;
        let kinds = "customresourcedefinitions,mutatingwebhookconfigurations,\
                     validatingwebhookconfigurations,clusterroles,clusterrolebindings";
        let left = self.kubectl.run(&["get", kinds, "--output=name"])?;
        let left: Vec<&str> = left.lines().filter(|name| name.contains("outrigger")).collect();
        if left.is_empty() {
            return Ok(());
        }
        Err(io::Error::other(format!("left in the cluster: {}", left.join(", "))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_image_of_the_bank_is_the_one_that_was_provided() {
        let images =
            Images { prefix: "registry/me".to_owned(), tag: "1.2.3", pull_policy: "Always" };
        let bank = Bank { kubectl: &Kubectl, images: &images, installed: false, mode: Mode::Init };
        let file = workspace::root().join("examples/simplebank/cluster/bank.yaml");
        let text = fs::read_to_string(file).unwrap();
        let count = text.matches("image: ").count();
        let all = bank.with_images(&text);
        assert!(count > 5);
        let image =
            "        image: registry/me/simplebank:1.2.3\n        imagePullPolicy: Always\n";
        assert_eq!(all.matches(image).count(), count);
        assert!(in_mode(&text, Mode::Env).contains("annotations: {outrigger.dev/mode: env}"));
        let listed = bank.with_images("  - image: outrigger.dev/simplebank:0.1.0");
        let policy = "  - image: registry/me/simplebank:1.2.3\n    imagePullPolicy: Always\n";
        assert_eq!(listed, policy);
    }
}
