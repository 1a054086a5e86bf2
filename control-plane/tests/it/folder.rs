//! The folder of manifests: every way in which a file changes.

use std::collections::BTreeSet;
use std::fs;
use std::io::Write as _;
use std::os::unix::fs::symlink;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_control_plane::index::Index;
use outrigger_control_plane::metrics::Metrics;
use outrigger_control_plane::problems::Problems;
use outrigger_control_plane::publish::Publisher;
use outrigger_control_plane::source::manifests::Folder;
use outrigger_core::config::MeshSettings;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{LOOPBACK, Mesh, service, slice};

fn services(page: &Value) -> Vec<String> {
    page["services"].as_object().unwrap().keys().cloned().collect()
}

fn texts(page: &Value) -> Vec<String> {
    let problems = page["problems"].as_array().unwrap().iter();
    problems.map(|problem| problem["text"].as_str().unwrap().to_owned()).collect()
}

#[tokio::test]
async fn files_come_change_move_and_go() {
    let mesh = Mesh::start(&[("a.yaml", &service("a"))]).await;
    assert_eq!(services(&mesh.admin_json("/index").await), ["bank/a"]);
    // Written in place, renamed into place, by another extension, in a folder below.
    fs::write(mesh.path("b.yml"), service("b")).unwrap();
    mesh.write("c.yaml", &service("c"));
    let json = serde_json::json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "d", "namespace": "bank"},
        "spec": {"ports": [{"port": 80}]},
    });
    fs::write(mesh.path("d.json"), json.to_string()).unwrap();
    fs::create_dir(mesh.path("below")).unwrap();
    fs::write(mesh.path("below/e.yaml"), service("e")).unwrap();
    let all = ["bank/a", "bank/b", "bank/c", "bank/d", "bank/e"];
    mesh.admin_until("/index", |page| services(page) == all).await;
    fs::rename(mesh.path("below/e.yaml"), mesh.path("e.yaml")).unwrap();
    fs::remove_file(mesh.path("c.yaml")).unwrap();
    fs::rename(mesh.path("b.yml"), mesh.path("b.txt")).unwrap();
    mesh.admin_until("/index", |page| services(page) == ["bank/a", "bank/d", "bank/e"]).await;
    fs::write(mesh.path("a.yaml"), service("renamed")).unwrap();
    let renamed = ["bank/d", "bank/e", "bank/renamed"];
    mesh.admin_until("/index", |page| services(page) == renamed).await;
    fs::write(mesh.path("below/f.yaml"), service("f")).unwrap();
    mesh.admin_until("/index", |page| services(page).contains(&"bank/f".to_owned())).await;
    fs::remove_dir_all(mesh.path("below")).unwrap();
    mesh.admin_until("/index", |page| services(page) == renamed).await;
}

#[tokio::test]
async fn a_folder_mounted_as_kubernetes_does_is_replaced_whole() {
    let mesh = Mesh::start(&[]).await;
    let version = |name: &str, service_name: &str| {
        fs::create_dir(mesh.path(name)).unwrap();
        fs::write(mesh.path(name).join("s.yaml"), service(service_name)).unwrap();
    };
    version("..2026_01", "one");
    symlink("..2026_01", mesh.path("..data")).unwrap();
    symlink("..data/s.yaml", mesh.path("s.yaml")).unwrap();
    mesh.admin_until("/index", |page| services(page) == ["bank/one"]).await;
    version("..2026_02", "two");
    symlink("..2026_02", mesh.path("..data_tmp")).unwrap();
    fs::rename(mesh.path("..data_tmp"), mesh.path("..data")).unwrap();
    fs::remove_dir_all(mesh.path("..2026_01")).unwrap();
    mesh.admin_until("/index", |page| services(page) == ["bank/two"]).await;
}

#[tokio::test]
async fn broken_manifests_keep_the_last_good_version_and_say_where() {
    let two = format!("{}---\n{}", service("a"), slice("a", &["10.0.0.1"]));
    let mesh = Mesh::start(&[("a.yaml", &two)]).await;
    let file = mesh.path("a.yaml").display().to_string();
    for (text, want) in [
        // Makes no sense.
        (service("a").replace("port: 80", "port: 80000"), "spec.ports[0].port: 80000"),
        // Does not fit the schema.
        (
            service("a").replace("port: 80", "port: eighty"),
            "spec.ports[0].port: must be a whole number",
        ),
        // Is no YAML.
        (service("a").replace("[{port: 80", "[{{port: 80"), ""),
        // Nobody knows what it is.
        ("spec: {}\n".to_owned(), "apiVersion: is missing"),
    ] {
        mesh.write("a.yaml", &format!("# {want}\n{text}---\n{}", slice("a", &["10.0.0.1"])));
        let page =
            mesh.admin_until("/index", |page| texts(page).iter().any(|t| t.contains(want))).await;
        let line = if want.starts_with("spec") { 7 } else { 2 };
        let text = &texts(&page)[0];
        let at = format!("{file}:{line}: ");
        assert!(
            want.is_empty() || text.starts_with(&at) && text.contains(want),
            "{text}, not {at}"
        );
        let endpoints = &page["services"]["bank/a"]["ports"][0]["endpoints"];
        assert_eq!(endpoints[0]["address"], "10.0.0.1:9000", "{page:#}");
    }
    mesh.write("a.yaml", &two);
    mesh.admin_until("/index", |page| texts(page).is_empty()).await;
    mesh.remove("a.yaml");
    mesh.admin_until("/index", |page| services(page).is_empty()).await;
}

#[tokio::test]
async fn a_file_that_is_empty_or_half_written_takes_nothing_away() {
    let two = format!("{}---\n{}", service("a"), service("b"));
    let mesh = Mesh::start(&[("a.yaml", &two), ("z.yaml", &service("z"))]).await;
    let both = ["bank/a", "bank/b", "bank/z"];
    // Emptied and closed: a problem, and nothing is gone.
    fs::write(mesh.path("a.yaml"), "").unwrap();
    let page = mesh.admin_until("/index", |page| !texts(page).is_empty()).await;
    let empty = "a.yaml:1: is empty: its earlier objects stay in force";
    assert!(texts(&page)[0].contains(empty), "{page:#}");
    assert_eq!(services(&page), both);
    fs::write(mesh.path("a.yaml"), &two).unwrap();
    mesh.admin_until("/index", |page| texts(page).is_empty() && services(page) == both).await;
    // Half of it, ending where a document does, while the writer has it open: other files are read.
    let mut writer = fs::File::create(mesh.path("a.yaml")).unwrap();
    writer.write_all(service("a").as_bytes()).unwrap();
    writer.flush().unwrap();
    // For so long that it would be taken for whole if nobody had it open.
    writer.set_modified(SystemTime::now() - Duration::from_secs(60)).unwrap();
    fs::write(mesh.path("new.yaml"), service("new")).unwrap();
    fs::create_dir(mesh.path("below")).unwrap();
    fs::write(mesh.path("below/more.yaml"), service("more")).unwrap();
    let more = |page: &Value| services(page).contains(&"bank/more".to_owned());
    let page = mesh.admin_until("/index", more).await;
    assert_eq!(services(&page), ["bank/a", "bank/b", "bank/more", "bank/new", "bank/z"]);
    // Once it is closed, what is not there is gone.
    drop(writer);
    let without = ["bank/a", "bank/more", "bank/new", "bank/z"];
    mesh.admin_until("/index", |page| services(page) == without).await;
    // A file that is removed takes along what an empty one has kept.
    fs::write(mesh.path("a.yaml"), "# nothing\n").unwrap();
    mesh.admin_until("/index", |page| !texts(page).is_empty() && services(page) == without).await;
    mesh.remove("a.yaml");
    let rest = ["bank/more", "bank/new", "bank/z"];
    mesh.admin_until("/index", |page| texts(page).is_empty() && services(page) == rest).await;
}

/// A writer that keeps its file open is not waited for without end.
#[test]
fn a_file_that_stays_open_adds_what_it_says_and_takes_away_when_it_is_closed() {
    let folder = TempDir::new().unwrap();
    let path = folder.path().join("a.yaml");
    fs::write(&path, format!("{}---\n{}", service("a"), service("b"))).unwrap();
    let (problems, metrics) = (Arc::new(Problems::default()), Arc::new(Metrics::new()));
    let root = folder.path().to_owned();
    let mut reader = Folder::new(root, LOOPBACK, problems.clone(), metrics);
    let publisher = Publisher::new(Index::new(MeshSettings::default()));
    let names = || {
        let view = publisher.view();
        view.index.services().map(|service| service.id.name.clone()).collect::<Vec<_>>()
    };
    reader.scan(&publisher).unwrap();
    assert_eq!(names(), ["a", "b"]);
    fs::write(&path, format!("{}---\n{}", service("a"), service("c"))).unwrap();
    let this = BTreeSet::from([path]);
    reader.load(BTreeSet::new(), &this, &publisher);
    assert_eq!(names(), ["a", "b", "c"]);
    assert!(problems.all()[0].problem.starts_with("is still being written"), "{problems:?}");
    reader.load(this, &BTreeSet::new(), &publisher);
    assert_eq!(names(), ["a", "c"]);
    assert_eq!(problems.count(), 0, "{problems:?}");
}

#[tokio::test]
async fn of_two_files_with_the_same_object_the_first_is_in_force() {
    let other = |port: &str| service("a").replace("port: 80", &format!("port: {port}"));
    let mesh = Mesh::start(&[("b.yaml", &other("81")), ("c.yaml", &other("82"))]).await;
    let port = |page: &Value| page["services"]["bank/a"]["ports"][0]["port"].as_u64().unwrap_or(0);
    let page = mesh.admin_json("/index").await;
    assert_eq!(port(&page), 81);
    let in_c = mesh.path("c.yaml").display().to_string();
    let twice = format!("{in_c}:1: Service bank/a: is already defined in");
    assert!(texts(&page)[0].starts_with(&twice));
    mesh.write("a.yaml", &other("83"));
    mesh.admin_until("/index", |page| port(page) == 83 && texts(page).len() == 2).await;
    mesh.remove("a.yaml");
    mesh.admin_until("/index", |page| port(page) == 81 && texts(page).len() == 1).await;
    mesh.remove("b.yaml");
    mesh.admin_until("/index", |page| port(page) == 82 && texts(page).is_empty()).await;
}

#[tokio::test]
async fn lists_and_unusual_layouts_are_read_too() {
    let list = "apiVersion: v1\nkind: List\nitems:\n- apiVersion: v1\n  kind: Service\n  metadata: \
                {name: a, namespace: bank}\n  spec: {ports: [{port: 80}]}\n- apiVersion: v1\n  \
                kind: Service\n  metadata: {name: b, namespace: bank}\n  spec:\n    ports:\n    - \
                port: 0\n";
    let flow = "{apiVersion: v1, kind: Service, metadata: {name: c, namespace: bank}, spec: \
                {ports: [{port: 80}]}}\n--- # another one\n\"kind\": ConfigMap\n\"apiVersion\": v1\n";
    let mesh = Mesh::start(&[("list.yaml", list), ("flow.yaml", flow)]).await;
    let page = mesh.admin_json("/index").await;
    assert_eq!(services(&page), ["bank/a", "bank/c"]);
    let file = mesh.path("list.yaml").display().to_string();
    let want = format!(
        "{file}:13: Service bank/b: items[1].spec.ports[0].port: 0 must be between 1 and 65535"
    );
    assert_eq!(texts(&page), [want]);
}

#[tokio::test]
async fn routes_report_their_status() {
    let route = "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {name: r, \
                 namespace: bank}\nspec:\n  parentRefs: [{group: '', kind: Service, name: a}]\n  \
                 rules: [{backendRefs: [{name: nowhere, port: 80}]}]\n";
    let mesh = Mesh::start(&[("a.yaml", &service("a")), ("r.yaml", route)]).await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["a.bank:80"]).await;
    proxy.until("known", |p| p.has("Destination", "bank/a:80")).await;
    let page = mesh
        .admin_until("/index", |page| page["status"][0]["programmed"]["acknowledged"] == 1)
        .await;
    let status = &page["status"][0];
    assert_eq!(status["object"], "HTTPRoute bank/r");
    assert_eq!(status["accepted"]["status"], true);
    assert_eq!(
        status["resolved_refs"]["problems"][0],
        "spec.rules[0].backendRefs[0].name: there is no Service bank/nowhere"
    );
    assert_eq!(status["programmed"]["proxies"], 1);
    assert_eq!(page["services"]["bank/a"]["programmed"]["acknowledged"], 1);
    // A version that is not accepted is reported, and the one in force stays.
    mesh.write("r.yaml", &route.replace("name: nowhere, port: 80", "name: nowhere, port: 0"));
    let page =
        mesh.admin_until("/index", |page| page["status"][0]["accepted"]["status"] == false).await;
    let problem = page["status"][0]["accepted"]["problems"][0].as_str().unwrap();
    assert!(problem.contains("spec.rules[0].backendRefs[0].port: 0 must be"), "{problem}");
    assert_eq!(page["status"][0]["resolved_refs"]["status"], false);
    // A refusal by a proxy is part of the status, too.
    proxy.refuse = Some("bank/a:80".to_owned());
    mesh.write("r.yaml", &route.replace("name: nowhere, port: 80", "name: a, port: 80"));
    let sent = proxy.log.len();
    proxy.until("refused", |p| p.log.len() > sent).await;
    let page = mesh
        .admin_until("/index", |page| page["status"][0]["programmed"]["refused"].is_array())
        .await;
    assert_eq!(page["status"][0]["programmed"]["acknowledged"], 0);
}

#[tokio::test]
async fn the_admin_server_answers() {
    let mesh = Mesh::start(&[("a.yaml", &service("a"))]).await;
    for path in ["/", "/live", "/ready", "/problems", "/proxies"] {
        assert!(!mesh.admin(path).await.is_empty());
    }
    let metrics = mesh.admin("/metrics").await;
    assert!(metrics.contains("outrigger_control_plane_objects{kind=\"Service\"} 1"), "{metrics}");
}
