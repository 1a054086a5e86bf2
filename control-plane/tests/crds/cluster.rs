//! The same asked of a real API server.

use std::fs::OpenOptions;
use std::io::Write;
use std::time::Duration;

use http::Request;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, Patch, PatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{await_condition, conditions};
use kube::{Client, Config};
use outrigger_control_plane::kinds::TrafficPolicy;
use serde_json::{Value, json};

use crate::schema::translated;
use crate::wrong::{By, rules, without_places, wrong};
use crate::{CRDS, crd_of, examples, manifests};

/// Names the kubeconfig of a cluster that tests may write to. No other variable is looked at.
const KUBECONFIG: &str = "OUTRIGGER_TEST_KUBECONFIG";
/// Where objects are tried.
const NAMESPACE: &str = "outrigger-crds";
/// Until the API server serves a new kind.
const PATIENCE: Duration = Duration::from_secs(30);

#[tokio::test]
async fn an_api_server_takes_examples_and_refuses_wrong_objects() {
    let Some(client) = cluster("objects on an API server").await else { return };
    establish(&client).await;
    let (mut loaded, mut failures) = (0, Vec::new());
    let examples = examples::all().into_iter().map(|example| (example.at, example.object));
    let templates =
        manifests::templates().into_iter().map(|object| ("template".to_owned(), object));
    for (at, object) in examples.chain(templates) {
        if object["apiVersion"] == "outrigger.dev/v1alpha1" {
            match create(&client, &object).await {
                Ok(mut written) => {
                    loaded += 1;
                    // Defaults that the API server writes change nothing for translation.
                    written["metadata"]["namespace"] = object["metadata"]["namespace"].clone();
                    let wrong = translated(&written);
                    failures
                        .extend(wrong.iter().map(|wrong| format!("{at}, with defaults: {wrong}")));
                }
                Err(message) => failures.push(format!("{at}: {message}")),
            }
        }
    }
    let (mut refused, mut by_rule) = (0, 0);
    let mut unheard = rules();
    for case in wrong() {
        match create(&client, &case.object).await {
            Err(message) if names(&message, &case.field) => {
                refused += 1;
                by_rule += usize::from(case.by == By::Rule);
                let said = without_places(&message);
                unheard.retain(|(kind, field, problem)| {
                    kind != case.kind()
                        || !(said.contains(&format!("{field}: Invalid value"))
                            && said.contains(problem))
                });
            }
            answer => failures.push(format!("{} of {}: {answer:?}", case.field, case.object)),
        }
    }
    assert!(failures.is_empty(), "{}:\n{}", failures.len(), failures.join("\n"));
    assert!(unheard.is_empty(), "rules that nothing broke: {unheard:#?}");
    eprintln!(
        "{loaded} examples loaded, {refused} wrong objects refused, {by_rule} of them by rules alone"
    );
}

/// Each writer of a condition has its own entry, and none may write nonsense.
#[tokio::test]
async fn conditions_are_a_list_by_type() {
    let Some(client) = cluster("conditions on an API server").await else { return };
    establish(&client).await;
    let kind = ApiResource::erase::<TrafficPolicy>(&());
    let policies: Api<DynamicObject> = Api::namespaced_with(client, NAMESPACE, &kind);
    let name = "conditions";
    let policy = json!({
        "apiVersion": "outrigger.dev/v1alpha1", "kind": "TrafficPolicy", "metadata": {"name": name},
        "spec": {"targetRefs": [{"kind": "Service", "name": "orders"}], "deadline": "1s"},
    });
    let apply = |manager: &str| PatchParams::apply(manager).force();
    policies.patch(name, &apply("outrigger-tests"), &Patch::Apply(&policy)).await.unwrap();
    let status = |kind: &str, status: &str| {
        json!({
            "apiVersion": "outrigger.dev/v1alpha1", "kind": "TrafficPolicy",
            "status": {"conditions": [{
                "type": kind, "status": status, "reason": kind, "message": "", "observedGeneration": 1,
                "lastTransitionTime": "2030-01-01T00:00:00Z",
            }]},
        })
    };
    let mut last = None;
    for kind in ["Accepted", "Programmed"] {
        let patch = Patch::Apply(status(kind, "True"));
        last = Some(policies.patch_status(name, &apply(kind), &patch).await.unwrap());
    }
    let last = last.unwrap();
    let conditions = last.data["status"]["conditions"].as_array().unwrap();
    // A control plane that is there may have written others.
    for kind in ["Accepted", "Programmed"] {
        let of_kind = conditions.iter().filter(|condition| condition["type"] == kind);
        assert_eq!(of_kind.count(), 1, "{kind} in {conditions:?}");
    }
    assert_eq!(last.metadata.generation, Some(1), "status is no part of what is wanted");
    let wrong = Patch::Apply(status("Accepted", "Maybe"));
    let refused = policies.patch_status(name, &apply("Accepted"), &wrong).await.unwrap_err();
    assert!(refused.to_string().contains("status.conditions[0].status"), "{refused}");
    policies.delete(name, &DeleteParams::default()).await.unwrap();
}

/// `spec.a.b: Invalid value`, `unknown field "spec.a.b"`.
fn names(message: &str, field: &str) -> bool {
    message.contains(&format!("{field}: ")) || message.contains(&format!("\"{field}\""))
}

/// Without one, says that a test could not run.
async fn cluster(test: &str) -> Option<Client> {
    let Some(path) = std::env::var_os(KUBECONFIG) else {
        skip(test);
        return None;
    };
    let file = Kubeconfig::read_from(path).unwrap();
    let config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await.unwrap();
    Some(Client::try_from(config).unwrap())
}

/// As `skip` of outrigger-tests.
fn skip(test: &str) {
    let line = format!("SKIPPED {test}: {KUBECONFIG} names no cluster");
    eprintln!("{line}");
    if let Some(path) = std::env::var_os("OUTRIGGER_SKIP_LOG")
        && let Ok(mut file) = OpenOptions::new().create(true).append(true).open(path)
    {
        // The line on standard error is there in any case.
        let _ = writeln!(file, "{line}");
    }
}

async fn establish(client: &Client) {
    let apply = PatchParams::apply("outrigger-tests").force();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for crd in CRDS.iter() {
        let name = crd.definition["metadata"]["name"].as_str().unwrap().to_owned();
        let applied = definitions.patch(&name, &apply, &Patch::Apply(&crd.definition)).await;
        applied.unwrap_or_else(|error| panic!("{name}: {error}"));
        let established =
            await_condition(definitions.clone(), &name, conditions::is_crd_established());
        tokio::time::timeout(PATIENCE, established).await.unwrap().unwrap();
    }
    let namespaces: Api<Namespace> = Api::all(client.clone());
    let namespace =
        json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}});
    namespaces.patch(NAMESPACE, &apply, &Patch::Apply(&namespace)).await.unwrap();
}

/// As `kubectl create --dry-run=server --validate=strict`; a refusal is given as its message.
async fn create(client: &Client, object: &Value) -> Result<Value, String> {
    let plural = &crd_of(object).plural;
    let mut object = object.clone();
    object["metadata"]["namespace"] = json!(NAMESPACE);
    let path = format!(
        "/apis/outrigger.dev/v1alpha1/namespaces/{NAMESPACE}/{plural}?dryRun=All&fieldValidation=Strict"
    );
    let body = object.to_string().into_bytes();
    let request =
        Request::post(path).header("content-type", "application/json").body(body).unwrap();
    client.request::<Value>(request).await.map_err(|error| match error {
        kube::Error::Api(status) => status.message,
        other => panic!("{object}: {other}"),
    })
}
