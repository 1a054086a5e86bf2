//! What becomes of pods: a table of awkward ones (`pods.yaml`), with a snapshot of each, and what holds for all.

mod page;
mod properties;
mod table;

use std::fmt::Write;

use outrigger_inject::{INIT, Mode, Outcome, PROXY, patch, strip};
use serde_json::Value;

use table::{Case, cases};

#[test]
fn every_pod_of_the_table_becomes_what_its_snapshot_says() {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let _bound = settings.bind_to_scope();
    for case in cases() {
        insta::assert_snapshot!(case.name.clone(), shown(&case));
    }
}

#[test]
fn each_mode_adds_what_its_snapshot_shows_whole() {
    let mut settings = insta::Settings::clone_current();
    settings.set_prepend_module_to_snapshot(false);
    settings.set_omit_expression(true);
    let _bound = settings.bind_to_scope();
    for mode in Mode::ALL {
        let mut case = cases().into_iter().find(|case| case.name == "plain").expect("it is there");
        case.settings.mode = mode;
        let injected = case.injected();
        let text = serde_saphyr::to_string(&injected).expect("YAML");
        insta::assert_snapshot!(format!("whole-{mode}"), text);
    }
}

/// What has become of it: the outcome, our containers where they are not alike, and all else that has changed.
fn shown(case: &Case) -> String {
    let mut text = format!("{}\n\n", case.say);
    match case.outcome() {
        Err(refused) => {
            text.push_str("refused\n");
            for error in refused.0 {
                writeln!(text, "  {error}").expect("a string");
            }
        }
        Ok(Outcome::NotInjected(why)) => writeln!(text, "not injected: {why}").expect("a string"),
        Ok(Outcome::Injected(injected)) => {
            writeln!(text, "injected in the mode {}", injected.mode).expect("a string");
            for warning in &injected.warnings {
                writeln!(text, "  warning: {warning}").expect("a string");
            }
            let new = case.pod_of(&injected.pod);
            let names = |list: &str| -> Vec<String> {
                let all = new["spec"][list].as_array().into_iter().flatten();
                all.map(|one| one["name"].as_str().unwrap_or("?").to_owned()).collect()
            };
            writeln!(text, "\ninitContainers: {}", names("initContainers").join(", "))
                .expect("a string");
            writeln!(text, "containers: {}", names("containers").join(", ")).expect("a string");
            if let Some(init) = container(new, INIT) {
                writeln!(text, "\n{INIT}: {}", init["args"]).expect("a string");
            }
            let proxy = container(new, PROXY).expect("a sidecar");
            writeln!(text, "\n{PROXY}: {}", proxy["image"]).expect("a string");
            writeln!(text, "  resources {}", proxy["resources"]).expect("a string");
            writeln!(text, "  user {}", proxy["securityContext"]["runAsUser"]).expect("a string");
            for env in proxy["env"].as_array().expect("env").iter().filter(|env| differs(env)) {
                writeln!(text, "  {} {}", env["name"].as_str().unwrap_or_default(), env["value"])
                    .expect("a string");
            }
            text.push_str("\nelse\n");
            for operation in
                patch(case.pod_of(&case.object), &without_ours(new)).as_array().expect("a list")
            {
                writeln!(text, "  {operation}").expect("a string");
            }
        }
    }
    text
}

/// Whether a variable is not the same in every pod.
fn differs(env: &Value) -> bool {
    let name = env["name"].as_str().unwrap_or_default();
    ["APP_PORTS", "PROBE", "LOG", "FORWARD", "DRAIN", "OUTBOUND"]
        .iter()
        .any(|part| name.contains(part))
}

fn container<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    pod["spec"]["initContainers"].as_array()?.iter().find(|one| one["name"] == name)
}

/// The pod as it is for the app: without containers and volumes of ours.
fn without_ours(pod: &Value) -> Value {
    let bare = strip(pod);
    let mut seen = pod.clone();
    for list in ["initContainers", "volumes"] {
        match bare["spec"].get(list) {
            Some(_) => {
                let all = seen["spec"][list].as_array_mut().expect("a list");
                all.retain(|one| {
                    !one["name"].as_str().is_some_and(|name| name.starts_with("outrigger-"))
                });
            }
            None => drop(seen["spec"].as_object_mut().expect("a spec").remove(list)),
        }
    }
    seen
}
