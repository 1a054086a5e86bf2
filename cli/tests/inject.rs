//! `outrigger inject` as people run it.

use std::fs;
use std::io::Write;
use std::process::{Command, Output, Stdio};

use tempfile::TempDir;

const BANK: &str = "\
# The bank.
apiVersion: v1
kind: Namespace
metadata:
  name: bank
  labels: {outrigger.dev/inject: enabled}
---
apiVersion: v1
kind: Service          # stays as it is
metadata: {name: orders, namespace: bank}
spec:
  selector: {app: orders}
  ports: [{port: 80, targetPort: 8080, appProtocol: grpc}]
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: orders, namespace: bank}
spec:
  selector: {matchLabels: {app: orders}}
  template:
    metadata: {labels: {app: orders}}
    spec:
      containers:
      - name: app
        image: orders
        env: [{name: A, value: \"yes\"}]
---
apiVersion: v1
kind: Pod
metadata: {name: other}
spec:   {containers: [ {name: app,   image: app}]}
";

fn outrigger(args: &[&str], input: &str) -> Output {
    let mut child = Command::new(env!("CARGO_BIN_EXE_outrigger"))
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("it starts");
    let mut stdin = child.stdin.take().expect("a pipe");
    // It may have ended already, when it reads nothing.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("it ends")
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).expect("text")
}

#[test]
fn what_asked_is_injected_and_all_else_passes_byte_for_byte() {
    let done = outrigger(&["inject", "-f", "-"], BANK);
    let (out, said) = (text(&done.stdout), text(&done.stderr));
    assert!(done.status.success(), "{said}");
    let (first, rest) = out.split_once("apiVersion: apps/v1").expect("the Deployment");
    assert!(BANK.starts_with(first));
    let (deployment, last) = rest.split_once("---\n").expect("one more");
    assert!(BANK.ends_with(last));
    assert!(deployment.contains("name: outrigger-proxy"), "{deployment}");
    // By the Service, though no container declares the port.
    assert!(deployment.contains("value: 8080=grpc"), "{deployment}");
    assert!(deployment.contains("value: \"yes\""), "{deployment}");
    assert_eq!(
        said,
        "standard input, document 3: Deployment bank/orders: injected, mode init\n\
         standard input, document 4: Pod default/other: not injected: neither it nor its namespace says \
         outrigger.dev/inject: enabled\n"
    );
}

#[test]
fn what_has_been_injected_stays_as_it_is() {
    let once = outrigger(&["inject", "-"], BANK).stdout;
    let twice = outrigger(&["inject", "-"], text(&once));
    assert!(twice.status.success());
    assert_eq!(text(&twice.stdout), text(&once));
}

#[test]
fn files_and_folders_become_one_stream_in_order() {
    let folder = TempDir::new().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    fs::create_dir(path("sub")).expect("a folder");
    fs::write(path("b.yaml"), "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}")
        .expect("a file");
    fs::write(
        path("a.json"),
        "{\"apiVersion\":\"v1\",\"kind\":\"Pod\",\"metadata\":{\"name\":\"a\"},\
        \"spec\":{\"containers\":[{\"name\":\"app\",\"image\":\"app\"}]}}",
    )
    .expect("a file");
    fs::write(path("sub/c.yml"), "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: c}\n")
        .expect("a file");
    fs::write(path("notes.txt"), "not: [a manifest").expect("a file");
    let out = path("out.yaml");
    let (folder, out_text) = (folder.path().display().to_string(), out.display().to_string());
    let done =
        outrigger(&["inject", "--inject", "enabled", "--mode=env", "-o", &out_text, &folder], "");
    assert!(done.status.success(), "{}", text(&done.stderr));
    assert!(done.stdout.is_empty());
    let written = fs::read_to_string(out).expect("written");
    assert!(written.starts_with("{\n  \"apiVersion\": \"v1\""), "JSON stays JSON: {written}");
    let after = "---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: b}\n---\napiVersion: v1\n\
                 kind: ConfigMap\nmetadata: {name: c}\n";
    assert!(written.ends_with(after), "{written}");
    let said = text(&done.stderr);
    assert!(said.contains("a.json: Pod default/a: injected, mode env"), "{said}");
}

#[test]
fn items_of_a_list_are_injected() {
    let list = "apiVersion: v1\nkind: List\nitems:\n\
                - {apiVersion: v1, kind: Namespace, metadata: {name: default, labels: {outrigger.dev/inject: enabled}}}\n\
                - {apiVersion: batch/v1, kind: Job, metadata: {name: j}, spec: {template: {spec: {restartPolicy: Never, containers: [{name: app}]}}}}\n";
    let done = outrigger(&["inject", "-"], list);
    assert!(done.status.success());
    let out = text(&done.stdout);
    assert!(out.contains("kind: List") && out.contains("name: outrigger-init"), "{out}");
}

#[test]
fn a_refusal_writes_nothing_and_names_the_field() {
    let pod = "apiVersion: batch/v1\nkind: CronJob\nmetadata: {name: c}\nspec:\n  jobTemplate:\n    spec:\n      \
               template:\n        metadata: {annotations: {outrigger.dev/inject: enabled, outrigger.dev/uid: root}}\n        \
               spec: {restartPolicy: Never, containers: [{name: app}]}\n";
    let done = outrigger(&["inject", "-"], pod);
    assert_eq!(done.status.code(), Some(1));
    assert!(done.stdout.is_empty());
    assert_eq!(
        text(&done.stderr),
        "standard input: CronJob default/c: refused: \
         spec.jobTemplate.spec.template.metadata.annotations[\"outrigger.dev/uid\"]: \"root\" must be a user id \
         from 1 to 2147483647\n1 refused, nothing is written\n"
    );
}

#[test]
fn what_cannot_be_read_is_named() {
    for (args, input, what) in [
        (vec!["inject", "-"], "a: 1\n---\nb: [\n", "standard input, document 2: "),
        (vec!["inject", "/nowhere.yaml"], "", "/nowhere.yaml: "),
        (vec!["inject"], "", "no input"),
    ] {
        let done = outrigger(&args, input);
        assert_eq!(done.status.code(), Some(1), "{args:?}");
        assert!(text(&done.stderr).contains(what), "{}", text(&done.stderr));
        assert!(done.stdout.is_empty());
    }
    for args in [
        ["inject", "--mode=ebpf", "-"],
        ["inject", "--skip-outbound-networks=example.com", "-"],
        ["inject", "--proxy-cpu-limit=fast", "-"],
    ] {
        assert_eq!(outrigger(&args, "").status.code(), Some(2), "{args:?}");
    }
}

#[test]
fn who_asks_in_the_wrong_place_is_told() {
    let deployment = "apiVersion: apps/v1\nkind: Deployment\nmetadata: {name: d, annotations: {outrigger.dev/inject: enabled}}\n\
                      spec: {template: {spec: {containers: [{name: app}]}}}\n";
    let done = outrigger(&["inject", "-"], deployment);
    assert!(done.status.success());
    assert_eq!(text(&done.stdout), deployment);
    let said = text(&done.stderr);
    assert!(said.contains("counts on the template's metadata only"), "{said}");
}

#[test]
fn help_shows_how() {
    let help = outrigger(&["inject", "--help"], "");
    let help = text(&help.stdout);
    assert!(help.contains("kubectl apply -f -") && help.contains("docs/injection.md"), "{help}");
}
