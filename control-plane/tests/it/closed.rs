//! An AccessPolicy of which no version is right lets nobody in, to as little as is certain to hold what it
//! was for.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use outrigger_control_plane::index::Index;
use outrigger_control_plane::metrics::Metrics;
use outrigger_control_plane::problems::Problems;
use outrigger_control_plane::publish::Publisher;
use outrigger_control_plane::source::manifests::Folder;
use outrigger_control_plane::status;
use outrigger_control_plane::translate::inbound;
use outrigger_core::config::MeshSettings;
use outrigger_core::identity::SpiffeId;
use outrigger_core::policy::access::{CompiledAccess, Facts};
use tempfile::TempDir;

use crate::support::LOOPBACK;

const WORKLOADS: &str = "
apiVersion: outrigger.dev/v1alpha1
kind: ExternalWorkload
metadata: {name: web, namespace: bank, labels: {app: web}}
spec: {address: 10.0.0.1, ports: [{port: 80}, {port: 81}]}
---
apiVersion: outrigger.dev/v1alpha1
kind: ExternalWorkload
metadata: {name: ledger, namespace: bank, labels: {app: ledger}}
spec: {address: 10.0.0.2, ports: [{port: 80}]}
---
apiVersion: outrigger.dev/v1alpha1
kind: ExternalWorkload
metadata: {name: shop, namespace: shop, labels: {app: web}}
spec: {address: 10.0.0.3, ports: [{port: 80}]}
---
apiVersion: outrigger.dev/v1alpha1
kind: ExternalWorkload
metadata: {name: other, labels: {app: web}}
spec: {address: 10.0.0.4, ports: [{port: 80}]}
";

const ALL: [&str; 5] =
    ["bank.ledger:80", "bank.web:80", "bank.web:81", "default.other:80", "shop.shop:80"];
const BANK: [&str; 3] = ["bank.ledger:80", "bank.web:80", "bank.web:81"];

/// A folder, read as the control plane does.
struct Reading {
    folder: TempDir,
    publisher: Publisher,
    problems: Arc<Problems>,
    reader: Folder,
}

impl Reading {
    fn of(policy: &str) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("workloads.yaml"), WORKLOADS).unwrap();
        fs::write(folder.path().join("policy.yaml"), policy).unwrap();
        let problems = Arc::new(Problems::default());
        let metrics = Arc::new(Metrics::new());
        let path = folder.path().to_owned();
        let reader = Folder::new(path, LOOPBACK, problems.clone(), metrics);
        let publisher = Publisher::new(Index::new(MeshSettings::default()));
        let mut reading = Self { folder, publisher, problems, reader };
        reading.scan();
        reading
    }

    fn scan(&mut self) {
        self.reader.scan(&self.publisher).unwrap();
    }

    fn write(&mut self, file: &str, text: &str) {
        fs::write(self.folder.path().join(file), text).unwrap();
        self.scan();
    }

    /// Ports that let nobody in.
    fn closed(&self) -> Vec<String> {
        let index = &self.publisher.view().index;
        let id: SpiffeId = "spiffe://outrigger.local/ns/bank/sa/anybody".parse().unwrap();
        let address = "10.9.9.9".parse().unwrap();
        let facts = Facts { identity: Some(&id), address, request: None };
        let mut closed = BTreeSet::new();
        for uid in index.workloads().map(|workload| workload.uid()).collect::<Vec<_>>() {
            for port in inbound::build(index, &uid).unwrap().ports {
                let compiled = CompiledAccess::new(&port.access.unwrap_or_default()).unwrap();
                if compiled.decide(&facts).denied.is_some() {
                    closed.insert(format!("{uid}:{}", port.port));
                }
            }
        }
        closed.into_iter().collect()
    }
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\n\
         metadata: {{name: p, namespace: bank}}\nspec: {spec}\n"
    )
}

#[test]
fn a_policy_that_never_was_right_lets_nobody_in_to_what_it_is_for() {
    let nonsense = "rules: [{action: Perhaps}]";
    let whole = policy(&format!("{{{nonsense}}}"));
    let selected = "selector: {matchLabels: {app: web}}";
    for (text, expected) in [
        (policy(&format!("{{{selected}, ports: [81], {nonsense}}}")), &["bank.web:81"][..]),
        (policy(&format!("{{{selected}, {nonsense}}}")), &["bank.web:80", "bank.web:81"]),
        (policy(&format!("{{ports: [81], {nonsense}}}")), &["bank.web:81"]),
        (whole.clone(), &BANK),
        // Whatever cannot be read for certain does not make it narrower.
        (policy(&format!("{{selector: {{matchLabels: {{app: 1}}}}, {nonsense}}}")), &BANK),
        (policy(&format!("{{selector: {{app: web}}, {nonsense}}}")), &BANK),
        (
            policy(&format!("{{{selected}, ports: [0], {nonsense}}}")),
            &["bank.web:80", "bank.web:81"],
        ),
        (policy("7"), &BANK),
        (policy("{rules: [{to: [{paths: [{regex: '('}]}]}]}"), &BANK),
        (policy(&format!("{{rules: [{{name: {}}}]}}", "x".repeat(5000))), &BANK),
        (whole.replace("spec:", "spce:"), &BANK),
        (whole.replace("name: p,", ""), &BANK),
        (whole.replace("name: p,", "name: P_,"), &BANK),
        (whole.replace("v1alpha1", "v1"), &BANK),
        (whole.replace("apiVersion: outrigger.dev/v1alpha1\n", ""), &BANK),
        (whole.replace("outrigger.dev/v1alpha1", "v1"), &BANK),
        (whole.replace("kind: AccessPolicy", "kind: accesspolicy"), &BANK),
        (whole.replace("kind: AccessPolicy", "kind: AccessPolicies"), &BANK),
        (
            format!(
                "kind: List\napiVersion: v1\nitems:\n- {}",
                whole.trim_end().replace('\n', "\n  ")
            ),
            &BANK,
        ),
        (whole.replace("spec: {", "spec: {{"), &BANK),
        (whole.replace("namespace: bank", "x: y"), &["default.other:80"]),
        (whole.replace("namespace: bank", "namespace: [bank]"), &ALL),
        (whole.replace("namespace: bank", "namespace: Bank"), &ALL),
        (format!("\u{0}{whole}"), &BANK),
    ] {
        let mut reading = Reading::of(&text);
        assert_eq!(reading.closed(), expected, "{text}");
        let problems = reading.problems.all();
        assert!(!problems.is_empty(), "{text}");
        let view = reading.publisher.view();
        let lines = crate::support::unresolved_lines(&view.index).join("\n");
        assert!(lines.contains("no version of this policy has been valid yet"), "{text}: {lines}");
        let statuses = status::objects(&view, &problems);
        let said = statuses.iter().filter(|status| !status.accepted.status);
        let said: Vec<_> = said.flat_map(|status| &status.accepted.problems).collect();
        assert!(said.iter().any(|problem| problem.contains("all calls to")), "{text}: {said:?}");
        drop(view);
        // A good version, or none at all, and it is over.
        reading.write("policy.yaml", &policy("{}"));
        assert!(reading.closed().is_empty(), "{text}");
        fs::remove_file(reading.folder.path().join("policy.yaml")).unwrap();
        reading.write("workloads.yaml", WORKLOADS);
        assert!(reading.closed().is_empty(), "{text}");
    }
}

#[test]
fn what_is_no_access_policy_closes_nothing() {
    for text in [
        "apiVersion: v1\nkind: Service\nmetadata: {name: a, namespace: bank}\nspec: 7\n",
        "apiVersion: v1\nkind: Service\nmetadata: {\n",
        "apiVersion: example.com/v1\nkind: AccessPolicy\nmetadata: {name: a, namespace: bank}\n",
        "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {name: a, namespace: bank}\n",
        "# AccessPolicy\nkind: {",
    ] {
        assert!(Reading::of(text).closed().is_empty(), "{text}");
    }
}

#[test]
fn the_last_good_version_stays_and_a_new_broken_one_is_closed() {
    let good = policy("{selector: {matchLabels: {app: ledger}}, default: Deny}");
    let mut reading = Reading::of(&good);
    let ledger = ["bank.ledger:80"];
    assert_eq!(reading.closed(), ledger);
    for broken in [
        policy("{rules: [{action: Perhaps}]}"),
        policy("{rules: ["),
        policy("{rules: [{action: Perhaps}]}").replace("name: p", "name: P_"),
        policy("{rules: [{action: Perhaps}]}").replace("namespace: bank", "namespace: Bank"),
        "kind: AccessPolicy\nmetadata: {name: p, namespace: bank".to_owned(),
    ] {
        reading.write("policy.yaml", &broken);
        assert_eq!(reading.closed(), ledger, "{broken}");
    }
    // A second one beside it that never was right.
    let second = policy("{selector: {matchLabels: {app: web}}, rules: [{action: Perhaps}]}");
    reading.write("policy.yaml", &format!("{good}---\n{}", second.replace("name: p", "name: q")));
    assert_eq!(reading.closed(), BANK);
    // The same name in another file, where it is right: that one is in force.
    reading.write("other.yaml", &policy("{}").replace("name: p", "name: q"));
    assert_eq!(reading.closed(), ledger);
    fs::remove_file(reading.folder.path().join("other.yaml")).unwrap();
    reading.scan();
    assert_eq!(reading.closed(), BANK);
    reading.write("policy.yaml", &good);
    assert_eq!(reading.closed(), ledger);
}

#[test]
fn a_file_that_could_never_be_read_closes_what_it_may_be_for() {
    let mut reading = Reading::of("");
    let path = reading.folder.path().join("policy.yaml");
    let bytes = [policy("{default: Deny}").as_bytes(), b"# \xff\n"].concat();
    fs::write(&path, bytes).unwrap();
    reading.scan();
    assert_eq!(reading.closed(), BANK);
    // As some editors and shells write it.
    let utf16 = policy("{default: Deny}").encode_utf16().flat_map(u16::to_le_bytes).collect();
    let utf16: Vec<u8> = [vec![0xff, 0xfe], utf16].concat();
    fs::write(&path, utf16).unwrap();
    reading.scan();
    assert_eq!(reading.closed(), BANK);
    fs::write(&path, b"kind: Service # \xff\n").unwrap();
    reading.scan();
    assert!(reading.closed().is_empty());
}

#[test]
fn check_fails_on_a_policy_that_is_not_in_force() {
    let check = |text: &str| {
        let reading = Reading::of(text);
        let out = run_check(reading.folder.path());
        (out.status.success(), String::from_utf8_lossy(&out.stdout).into_owned())
    };
    let (success, said) = check(&policy("{default: Deny}"));
    assert!(success && said.contains(" read, 0 errors, "), "{said}");
    for broken in
        [policy("{default: Perhaps}"), policy("{default: Deny}").replace("v1alpha1", "v1")]
    {
        let (success, said) = check(&broken);
        assert!(!success, "{said}");
        assert!(said.contains("all calls to any workload of namespace bank are denied"), "{said}");
    }
}

fn run_check(folder: &Path) -> std::process::Output {
    let program = env!("CARGO_BIN_EXE_outrigger-control-plane");
    Command::new(program).arg("check").arg(folder).output().unwrap()
}
