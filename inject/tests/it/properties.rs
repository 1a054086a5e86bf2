//! What holds for every pod of the table.

use outrigger_inject::{INIT, Mark, Mode, Outcome, PROXY, patch, should_have_proxy, strip};
use serde_json::{Value, json};

use super::table::{Case, cases, injected_cases};

#[test]
fn a_pod_that_is_injected_again_is_the_same() {
    for case in injected_cases() {
        let once = case.injected();
        assert_eq!(case.with(once.clone()).injected(), once, "{}", case.name);
    }
}

#[test]
fn defaults_that_the_api_server_adds_change_nothing() {
    for case in injected_cases() {
        let once = case.injected();
        let mut defaulted = once.clone();
        for list in ["initContainers", "containers"] {
            let all = case.pod_of_mut(&mut defaulted)["spec"][list].as_array_mut();
            for container in all.into_iter().flatten().filter(|one| is_ours(one)) {
                container["terminationMessagePath"] = json!("/dev/termination-log");
                container["livenessProbe"]["initialDelaySeconds"] = json!(0);
                // What the ServiceAccount admission plugin does to every container.
                let token = json!({"name": "kube-api-access-x", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"});
                match container["volumeMounts"].as_array_mut() {
                    Some(mounts) => mounts.push(token),
                    None => container["volumeMounts"] = json!([token]),
                }
            }
        }
        assert_eq!(case.with(defaulted).injected(), once, "{}", case.name);
    }
}

#[test]
fn another_injector_in_between_changes_nothing_of_ours() {
    let foreign = json!({"name": "foreign", "image": "foreign"});
    for case in injected_cases() {
        let once = case.injected();
        let mut changed = once.clone();
        let spec = &mut case.pod_of_mut(&mut changed)["spec"];
        // Right at the front, and at the end.
        spec["initContainers"].as_array_mut().expect("a list").insert(0, foreign.clone());
        spec["containers"].as_array_mut().expect("a list").push(foreign.clone());
        let again = case.with(changed).injected();
        let (first, second) = (case.pod_of(&once), case.pod_of(&again));
        assert_eq!(ours(first), ours(second), "{}", case.name);
        let names: Vec<&str> = names(second, "initContainers");
        let at = |name| names.iter().position(|one| *one == name).expect("it is there");
        assert!(at(PROXY) < at("foreign"), "{}: {names:?}", case.name);
        // And once more, as the API server does.
        assert_eq!(case.with(again.clone()).injected(), again, "{}", case.name);
    }
}

#[test]
fn an_older_version_is_replaced_and_never_doubled() {
    for case in injected_cases() {
        let mut older = case.clone();
        older.settings.version = "0.0.1".to_owned();
        older.settings.proxy_image = "outrigger/proxy:0.0.1".to_owned();
        let old = older.injected();
        assert_eq!(case.with(old).injected(), normal(&case), "{}", case.name);
    }
}

#[test]
fn a_change_of_the_mode_leaves_nothing_of_the_earlier_one() {
    for case in injected_cases() {
        let said = case.namespace.annotations.contains_key("outrigger.dev/mode");
        if said
            || !case.pod_of(&case.object)["metadata"]["annotations"]["outrigger.dev/mode"].is_null()
        {
            continue;
        }
        for (from, to) in [(Mode::Init, Mode::Env), (Mode::Env, Mode::Cni), (Mode::Cni, Mode::Env)]
        {
            let (mut before, mut after) = (case.clone(), case.clone());
            before.settings.mode = from;
            after.settings.mode = to;
            before.namespace.labels.remove("pod-security.kubernetes.io/enforce");
            after.namespace.labels.remove("pod-security.kubernetes.io/enforce");
            let changed = after.with(before.injected()).injected();
            let direct = after.with(before.injected_and_stripped()).injected();
            assert_eq!(changed, direct, "{}: {from} to {to}", case.name);
        }
    }
}

#[test]
fn the_way_back_leads_to_what_was_there() {
    for case in injected_cases() {
        let (mut back, mut was) = (case.injected_and_stripped(), normal_object(&case));
        for object in [&mut back, &mut was] {
            // Those of outrigger.dev/before stay first.
            if let Some(all) = case.pod_of_mut(object)["spec"]["initContainers"].as_array_mut() {
                all.sort_by_key(|one| one["name"].to_string());
            }
        }
        assert_eq!(back, was, "{}", case.name);
    }
}

#[test]
fn a_patch_does_what_the_injector_did() {
    for case in injected_cases() {
        let injected = case.injected();
        let operations: json_patch::Patch =
            serde_json::from_value(patch(&case.object, &injected)).expect("a patch");
        let mut patched = case.object.clone();
        json_patch::patch(&mut patched, &operations).expect("it fits");
        assert_eq!(patched, injected, "{}", case.name);
    }
}

#[test]
fn an_injected_pod_bears_the_mark_and_should_have_a_proxy() {
    for case in cases() {
        let should = should_have_proxy(case.pod_of(&case.object), &case.namespace);
        match case.outcome() {
            Ok(Outcome::Injected(injected)) => {
                let mark = Mark::of(case.pod_of(&injected.pod)).expect("a mark");
                assert_eq!((&*mark.version, mark.mode), ("1.2.3", injected.mode), "{}", case.name);
                assert!(should, "{}", case.name);
            }
            Ok(Outcome::NotInjected(_)) => assert!(!should, "{}", case.name),
            Err(_) => {}
        }
    }
}

#[test]
fn every_refusal_names_a_field_and_says_what_to_do() {
    let mut refused = 0;
    for case in cases() {
        let Err(all) = case.outcome() else { continue };
        refused += 1;
        assert!(!all.0.is_empty(), "{}", case.name);
        for error in all.0 {
            assert!(!error.path.is_empty(), "{}: {error}", case.name);
            assert!(!error.problem.ends_with('.'), "{}: {error}", case.name);
        }
    }
    assert!(refused >= 10, "{refused} refusals");
}

#[test]
fn the_proxy_satisfies_pod_security_and_a_quota_in_every_pod() {
    for case in injected_cases() {
        let injected = case.injected();
        let pod = case.pod_of(&injected);
        for container in ours(pod) {
            for kind in ["cpu", "memory"] {
                assert!(container["resources"]["requests"][kind].is_string(), "{}", case.name);
            }
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false);
            assert_eq!(security["readOnlyRootFilesystem"], true);
            assert_eq!(security["capabilities"]["drop"], json!(["ALL"]));
            assert_eq!(security["seccompProfile"]["type"], "RuntimeDefault");
            let redirects = container["name"] == INIT && security["runAsUser"] == 0;
            assert_eq!(security["runAsNonRoot"], !redirects, "{}", case.name);
            assert_eq!(security["capabilities"]["add"].is_null(), !redirects, "{}", case.name);
        }
    }
}

#[test]
fn whatever_shape_a_pod_has_nothing_panics() {
    let shapes =
        [json!(null), json!(1), json!("x"), json!([]), json!({}), json!([null, 1, {"name": 1}])];
    for case in injected_cases() {
        for pointer in [
            "/metadata",
            "/metadata/labels",
            "/metadata/annotations",
            "/spec",
            "/spec/containers",
            "/spec/initContainers",
            "/spec/volumes",
            "/spec/containers/0",
            "/spec/containers/0/ports",
            "/spec/containers/0/env",
            "/spec/containers/0/lifecycle",
            "/spec/containers/0/livenessProbe",
            "/spec/containers/0/livenessProbe/tcpSocket",
            "/spec/containers/0/livenessProbe/httpGet",
            "/spec/securityContext",
            "/spec/restartPolicy",
            "/spec/terminationGracePeriodSeconds",
        ] {
            for shape in &shapes {
                for mode in Mode::ALL {
                    let mut odd = case.clone();
                    odd.settings.mode = mode;
                    if let Some(place) = case_pod(&mut odd).pointer_mut(pointer) {
                        *place = shape.clone();
                    }
                    if let Ok(Outcome::Injected(injected)) = odd.outcome() {
                        let again = odd.with(injected.pod.clone()).outcome();
                        assert!(again.is_ok(), "{}: {pointer} {shape}: {again:?}", case.name);
                    }
                }
            }
        }
    }
}

fn case_pod(case: &mut Case) -> &mut Value {
    let copy = case.clone();
    copy.pod_of_mut(&mut case.object)
}

impl Case {
    fn injected_and_stripped(&self) -> Value {
        let mut object = self.injected();
        let pod = self.pod_of_mut(&mut object);
        *pod = strip(pod);
        object
    }
}

/// The object with numbers for the names of probed ports, and without lists and maps that are empty.
fn normal_object(case: &Case) -> Value {
    let mut object = case.object.clone();
    let mark = case.injected();
    let mark = &case.pod_of(&mark)["metadata"]["annotations"]["outrigger.dev/injected"];
    if mark.as_str().is_some_and(|mark| mark.ends_with("mode=env")) {
        return object;
    }
    for container in
        case.pod_of_mut(&mut object)["spec"]["containers"].as_array_mut().into_iter().flatten()
    {
        let ports = container["ports"].clone();
        for kind in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let Some(port) = container.pointer_mut(&format!("/{kind}/tcpSocket/port")) else {
                continue;
            };
            let named = ports.as_array().into_iter().flatten().find(|one| one["name"] == *port);
            if let Some(named) = named {
                *port = named["containerPort"].clone();
            }
        }
    }
    object
}

fn normal(case: &Case) -> Value {
    case.with(normal_object(case)).injected()
}

fn is_ours(container: &Value) -> bool {
    container["name"] == INIT || container["name"] == PROXY
}

fn ours(pod: &Value) -> Vec<Value> {
    let all = pod["spec"]["initContainers"].as_array().into_iter().flatten();
    all.filter(|one| is_ours(one)).cloned().collect()
}

fn names<'a>(pod: &'a Value, list: &str) -> Vec<&'a str> {
    let all = pod["spec"][list].as_array().into_iter().flatten();
    all.filter_map(|one| one["name"].as_str()).collect()
}
