//! What a change of one object touches, and no more.

use std::collections::BTreeSet;

use outrigger_control_plane::index::{Dep, Index};
use outrigger_control_plane::object::{Kind, Object, ObjectId};
use outrigger_control_plane::translate::{self, Report};
use outrigger_core::config::MeshSettings;

use crate::scale::slice_object;
use crate::support::{LOOPBACK, registration, service};

fn service_object(yaml: &str) -> Object {
    let raw = serde_saphyr::from_str(yaml).unwrap();
    Object::Service(translate::service::translate(&raw, &mut Report::default()).unwrap())
}

fn route(namespace: &str, name: &str, parent: &str, backend: &str) -> Object {
    let yaml = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, \
         namespace: {namespace}}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: \
         {parent}, namespace: bank}}]\n  rules: [{{backendRefs: [{{name: {backend}, port: 80}}]}}]\n"
    );
    let raw = serde_saphyr::from_str(&yaml).unwrap();
    Object::Route(translate::http_route::translate(&raw, &mut Report::default()).unwrap())
}

/// Services `a`, `b` and `c`; a route of `a` sends to `b`.
fn index() -> Index {
    let mut index = Index::new(MeshSettings::default());
    for name in ["a", "b", "c"] {
        index.apply(service_object(&service(name)));
    }
    index.apply(route("bank", "r", "a", "b"));
    index.take_dirty();
    index
}

fn check(change: impl FnOnce(&mut Index), want: &[&str]) {
    let mut index = index();
    check_on(&mut index, change, want);
}

fn check_on(index: &mut Index, change: impl FnOnce(&mut Index), want: &[&str]) {
    change(index);
    let touched: BTreeSet<String> = index
        .take_dirty()
        .into_iter()
        .map(|dep| match dep {
            Dep::Service(id) => format!("service {id}"),
            Dep::Endpoints(port) => format!("endpoints {port}"),
            Dep::Ip(ip) => format!("ip {ip}"),
            Dep::Inbound(uid) => format!("inbound {uid}"),
            Dep::Settings => "settings".to_owned(),
            Dep::Trust => "trust".to_owned(),
            Dep::Dialled(authority) => format!("dialled {authority}"),
        })
        .collect();
    assert_eq!(touched.iter().map(String::as_str).collect::<Vec<_>>(), want);
}

fn id(kind: Kind, name: &str) -> ObjectId {
    ObjectId { kind, namespace: "bank".to_owned(), name: name.to_owned() }
}

#[test]
fn a_change_touches_what_depends_on_it() {
    check(|index| index.apply(service_object(&service("a"))), &[]);
    check(
        |index| index.apply(service_object(&service("c").replace("port: 80", "port: 81"))),
        &["endpoints bank/c:80", "endpoints bank/c:81", "service bank/c"],
    );
    // The route of a sends to b, so a's destination says how b is spoken to.
    check(
        |index| index.remove(&id(Kind::Service, "b")),
        &["endpoints bank/b:80", "service bank/a", "service bank/b"],
    );
    check(|index| index.apply(slice_object("c", &["10.0.0.1"])), &["endpoints bank/c:80"]);
    check(|index| index.apply(slice_object("nobody", &["10.0.0.1"])), &[]);
    check(|index| index.apply(route("bank", "r", "c", "b")), &["service bank/a", "service bank/c"]);
    check(|index| index.remove(&id(Kind::HttpRoute, "r")), &["service bank/a"]);
    check(
        |index| index.apply(service_object(&service("a").replace("bank", "shop"))),
        &["endpoints shop/a:80", "service shop/a", "settings"],
    );
    check(
        |index| {
            let ip = service("c").replace("spec:\n", "spec:\n  clusterIP: 10.0.0.1\n");
            index.apply(service_object(&ip));
        },
        &["endpoints bank/c:80", "ip 10.0.0.1", "service bank/c"],
    );
}

#[test]
fn a_workload_touches_the_services_that_select_it() {
    let mut index = index();
    let mut workload =
        translate::workload::translate(&registration("bank", "c-1", "c", 9000), LOOPBACK).unwrap();
    let register = |workload: &outrigger_control_plane::object::Workload| {
        let workload = workload.clone();
        move |index: &mut Index| index.register(workload)
    };
    let both = &["endpoints bank/c:80", "inbound bank.c-1"];
    check_on(&mut index, register(&workload), both);
    check_on(&mut index, register(&workload), &[]);
    workload.ready = true;
    check_on(&mut index, register(&workload), &["endpoints bank/c:80"]);
    // A Service that selects it names its port.
    let other = service_object(&service("b").replace("app: b", "app: c"));
    check_on(
        &mut index,
        |index| index.apply(other),
        &["endpoints bank/b:80", "inbound bank.c-1", "service bank/a", "service bank/b"],
    );
    check_on(
        &mut index,
        |index| index.deregister("bank.c-1"),
        &["endpoints bank/b:80", "endpoints bank/c:80", "inbound bank.c-1"],
    );
}

#[test]
fn names_mean_services_endpoints_and_addresses() {
    let mut index = index();
    let headless = service("h").replace("spec:\n", "spec:\n  clusterIP: None\n");
    index.apply(service_object(&headless));
    index.apply(slice_object("h", &["10.0.0.1"]));
    let ip = service("i").replace("spec:\n", "spec:\n  clusterIP: 10.96.0.1\n");
    index.apply(service_object(&ip));
    index.apply(slice_object("i", &["10.0.0.2"]));
    for (name, host) in [
        ("own", "A.bank.svc.cluster.local."),
        ("chain", "own.bank.svc.cluster.local"),
        ("loop", "loop.bank.svc.cluster.local"),
        ("short", "a"),
        ("outside", "www.example.com"),
    ] {
        let kind = format!("spec:\n  type: ExternalName\n  externalName: {host}\n");
        index.apply(service_object(&service(name).replace("spec:\n", &kind)));
    }
    index.apply(route("shop", "own", "a", "a"));
    for (name, namespace, want) in [
        ("a:80", "bank", Some("bank/a:80")),
        ("a:80", "shop", None),
        ("a.bank:80", "other", Some("bank/a:80")),
        ("A.BANK.:80", "other", Some("bank/a:80")),
        ("a.bank:80", "shop", Some("bank/a:80@shop")),
        ("a.bank.svc:80", "shop", Some("bank/a:80@shop")),
        ("a.bank.svc.cluster.local:80", "bank", Some("bank/a:80")),
        ("a.bank.cluster.local:80", "bank", None),
        ("a.bank.svc.other.domain:80", "bank", None),
        ("a.bank:81", "bank", None),
        ("10.96.0.1:80", "bank", Some("bank/i:80")),
        ("10.96.0.1:81", "bank", None),
        ("[::ffff:10.96.0.1]:80", "bank", Some("bank/i:80")),
        ("10.0.0.1:9000", "bank", Some("bank/h:80")),
        ("10.0.0.1:80", "bank", None),
        ("10.0.0.2:9000", "bank", Some("bank/i:80")),
        ("10.0.0.2:9000", "other", Some("bank/i:80")),
        ("10.0.0.2:80", "bank", None),
        ("bank/a:80", "bank", Some("bank/a:80")),
        ("bank/a:80", "shop", Some("bank/a:80@shop")),
        ("bank/a:80@shop", "bank", Some("bank/a:80")),
        ("own.bank:80", "other", Some("bank/a:80")),
        ("own:80", "shop", None),
        ("own.bank.svc:80", "shop", Some("bank/a:80@shop")),
        ("own.bank:81", "bank", None),
        ("chain:80", "bank", Some("bank/a:80")),
        ("loop:80", "bank", None),
        ("short:80", "bank", None),
        ("outside:80", "bank", None),
        ("www.example.com:443", "bank", None),
        ("localhost:80", "bank", None),
    ] {
        let found = index.resolve(name, namespace).target.map(|target| target.name.to_string());
        assert_eq!(found.as_deref(), want, "{name} from {namespace}");
    }
}

/// Who may write slices in one namespace may write any address into them.
#[test]
fn the_address_of_a_pod_is_answered_for_in_its_own_namespace_alone() {
    let mut index = Index::new(MeshSettings::default());
    let pod = |ip: &str| {
        let raw = serde_json::json!({
            "metadata": {"name": "i-0", "namespace": "bank", "uid": "u-1"},
            "spec": {"containers": [{"name": "app"}]},
            "status": {"phase": "Running", "podIPs": [{"ip": ip}]},
        });
        let raw = serde_json::from_value(raw).unwrap();
        Object::Pod(translate::pod::translate(&raw, &mut Report::default()).unwrap())
    };
    let slice_in = |namespace: &str, name: &str, address: &str| {
        let Object::EndpointSlice(mut slice) = slice_object(name, &[address]) else {
            unreachable!()
        };
        namespace.clone_into(&mut slice.namespace);
        namespace.clone_into(&mut slice.service.namespace);
        Object::EndpointSlice(slice)
    };
    // Before all others by name, and one of each kind.
    for (name, kind) in [("a", ""), ("b", "  clusterIP: None\n")] {
        let yaml = service(name).replace("namespace: bank", "namespace: aaa");
        index.apply(service_object(&yaml.replace("spec:\n", &format!("spec:\n{kind}"))));
    }
    index.apply(slice_in("aaa", "a", "10.0.0.1"));
    index.apply(slice_in("aaa", "b", "10.0.0.1"));
    let meant = |index: &Index, address: &str, namespace: &str| {
        let found = index.resolve(&format!("{address}:9000"), namespace).target;
        found.map(|target| target.name.to_string())
    };
    index.apply(service_object(&service("i")));
    index.apply(pod("10.0.0.1"));
    index.take_moved();
    // The pod has no Service yet: nobody speaks for it.
    for namespace in ["bank", "shop", "aaa"] {
        assert_eq!(meant(&index, "10.0.0.1", namespace), None, "{namespace}");
    }
    index.apply(slice_in("bank", "i", "10.0.0.1"));
    for namespace in ["bank", "shop", "aaa"] {
        assert_eq!(meant(&index, "10.0.0.1", namespace).as_deref(), Some("bank/i:80"));
    }
    // What is outside of the cluster is nobody's to speak for but to its own namespace.
    index.apply(slice_in("aaa", "a", "192.0.2.1"));
    assert_eq!(meant(&index, "192.0.2.1", "aaa").as_deref(), Some("aaa/a:80"));
    assert_eq!(meant(&index, "192.0.2.1", "shop"), None);
    // Another address for the pod: both are looked at again by those that have dialled them.
    index.take_moved();
    index.apply(pod("10.0.0.2"));
    let moved = index.take_moved();
    for ip in ["10.0.0.1", "10.0.0.2"] {
        assert!(moved.contains(&ip.parse().unwrap()), "{ip} in {moved:?}");
    }
    assert_eq!(meant(&index, "10.0.0.1", "aaa").as_deref(), Some("aaa/b:80"));
}

#[test]
fn a_policy_touches_exactly_what_it_is_for() {
    fn traffic(target: &str, section: &str) -> Object {
        let yaml = format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, \
             namespace: bank}}\nspec: {{targetRefs: [{target}], {section}}}\n"
        );
        let raw = serde_saphyr::from_str(&yaml).unwrap();
        let policy = translate::traffic_policy::translate(&raw, &mut Report::default());
        Object::TrafficPolicy(Box::new(policy.unwrap()))
    }
    fn server(target: &str) -> Object {
        let yaml = format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: ServerPolicy\nmetadata: {{name: p, \
             namespace: bank}}\nspec: {{targetRefs: [{target}], concurrency: {{static: 1}}}}\n"
        );
        let raw = serde_saphyr::from_str(&yaml).unwrap();
        let policy = translate::server_policy::translate(&raw, &mut Report::default());
        Object::ServerPolicy(policy.unwrap())
    }
    let of = |service: &str| format!("{{kind: Service, name: {service}}}");
    let call = "deadline: 1s";
    let spare = "limits: {maxInFlight: 1}";
    check(|index| index.apply(traffic(&of("c"), call)), &["service bank/c"]);
    check(|index| index.apply(traffic(&of("nobody"), call)), &[]);
    // How b is called is told to those who dial b; its client-side protection, also to those who are led there.
    check(|index| index.apply(traffic(&of("b"), call)), &["service bank/b"]);
    check(|index| index.apply(traffic(&of("b"), spare)), &["service bank/a", "service bank/b"]);
    let route = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: r}";
    check(|index| index.apply(traffic(route, call)), &["service bank/a"]);
    let namespace = "{kind: Namespace, name: bank}";
    check(
        |index| index.apply(traffic(namespace, call)),
        &["service bank/a", "service bank/b", "service bank/c"],
    );

    let mut index = index();
    index.apply(traffic(&of("b"), call));
    for name in ["a", "c"] {
        let workload = registration("bank", &format!("{name}-1"), name, 9000);
        index.register(translate::workload::translate(&workload, LOOPBACK).unwrap());
    }
    index.take_dirty();
    let changed = traffic(&of("c"), call);
    // The same again touches nothing; another target, the old one and the new one.
    check_on(&mut index, |index| index.apply(traffic(&of("b"), call)), &[]);
    check_on(&mut index, |index| index.apply(changed), &["service bank/b", "service bank/c"]);
    let gone = id(Kind::TrafficPolicy, "p");
    check_on(&mut index, |index| index.remove(&gone), &["service bank/c"]);

    check_on(&mut index, |index| index.apply(server(&of("c"))), &["inbound bank.c-1"]);
    check_on(
        &mut index,
        |index| index.apply(server(namespace)),
        &["inbound bank.a-1", "inbound bank.c-1"],
    );
    check_on(
        &mut index,
        |index| index.remove(&id(Kind::ServerPolicy, "p")),
        &["inbound bank.a-1", "inbound bank.c-1"],
    );
}
