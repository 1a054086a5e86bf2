//! Delta discovery: lazy, named as dialled, endpoint by endpoint.

use outrigger_control_plane::discovery::MAX_SUBSCRIPTIONS;
use outrigger_proto::mesh;
use outrigger_proto::wire::{self, DeltaDiscoveryRequest};
use prost::Message;

use crate::support::{Mesh, Proxy, service, slice};

const ORDERS: &str = "bank/orders:80";

fn route(namespace: &str, name: &str, rule: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, \
         namespace: {namespace}}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: orders, \
         namespace: bank}}]\n  rules:\n  - {rule}\n"
    )
}

fn destination(proxy: &Proxy, name: &str) -> mesh::Destination {
    let held = &proxy.held[&("Destination".to_owned(), name.to_owned())];
    mesh::Destination::decode(held.body.clone()).unwrap()
}

#[tokio::test]
async fn a_dialled_name_brings_its_destination_endpoints_and_marker_and_nothing_else() {
    let mesh = Mesh::start(&[
        ("orders.yaml", &service("orders")),
        ("orders-slice.yaml", &slice("orders", &["10.0.0.1", "10.0.0.2"])),
        ("other.yaml", &service("other")),
    ])
    .await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["orders.bank:80"]).await;
    proxy.until("complete", |p| p.has("Endpoint", "bank/orders:80/*")).await;
    proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    assert_eq!(proxy.endpoints(ORDERS), ["10.0.0.1:9000", "10.0.0.2:9000"]);
    assert_eq!(proxy.held.len(), 4, "{:?}", proxy.log);
    let held = &proxy.held[&("Destination".to_owned(), ORDERS.to_owned())];
    assert_eq!(held.aliases, ["orders.bank:80"]);
    let marker = &proxy.held[&("Endpoint".to_owned(), "bank/orders:80/*".to_owned())];
    assert!(marker.body.is_empty());
    assert!(proxy.log[0].ends_with("+bank/orders:80/*"), "the marker comes last: {:?}", proxy.log);
}

#[tokio::test]
async fn every_way_to_dial_a_service_is_an_alias_of_the_same_bytes() {
    let orders = service("orders").replace("spec:\n", "spec:\n  clusterIP: 10.96.0.7\n");
    let mesh = Mesh::start(&[("orders.yaml", &orders)]).await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    let names = [
        "orders:80",
        "orders.bank:80",
        "orders.bank.svc:80",
        "orders.bank.svc.cluster.local:80",
        "10.96.0.7:80",
    ];
    proxy.dial(&names).await;
    proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    let held = proxy.held[&("Destination".to_owned(), ORDERS.to_owned())].clone();
    let mut want = names.to_vec();
    want.sort_unstable();
    assert_eq!(held.aliases, want);
    let mut other = mesh.proxy("shop.caller", "shop").await;
    other.dial(&["orders.bank:80"]).await;
    other.until("known", |p| p.has("Destination", ORDERS)).await;
    let theirs = &other.held[&("Destination".to_owned(), ORDERS.to_owned())];
    assert_eq!((&theirs.version, &theirs.body), (&held.version, &held.body));
}

#[tokio::test]
async fn an_unknown_name_is_answered_at_once_and_pushed_when_it_appears() {
    let mesh = Mesh::start(&[]).await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["orders.bank:80"]).await;
    proxy.until("refused", |p| p.removed.contains("orders.bank:80")).await;
    mesh.write("orders.yaml", &service("orders"));
    proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    mesh.remove("orders.yaml");
    proxy.until("gone", |p| p.removed.contains(ORDERS)).await;
    let gone = proxy.log.iter().find(|line| line.contains(&format!("-{ORDERS}"))).unwrap();
    assert!(gone.contains("-orders.bank:80"), "{gone}");
}

#[tokio::test]
async fn one_changed_endpoint_is_one_resource() {
    let addresses: Vec<String> = (1..=50).map(|i| format!("10.0.0.{i}")).collect();
    let mut addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let mesh = Mesh::start(&[
        ("orders.yaml", &service("orders")),
        ("slice.yaml", &slice("orders", &addresses)),
    ])
    .await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["orders.bank:80"]).await;
    proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    let before = proxy.log.len();
    addresses.push("10.0.1.1");
    addresses.remove(0);
    mesh.write("slice.yaml", &slice("orders", &addresses));
    proxy.until("told", |p| p.removed.contains("bank/orders:80/10.0.0.1:9000")).await;
    assert_eq!(
        proxy.log[before..],
        ["Endpoint +bank/orders:80/10.0.1.1:9000 -bank/orders:80/10.0.0.1:9000"]
    );
}

#[tokio::test]
async fn an_empty_collection_is_explicit() {
    let mesh = Mesh::start(&[("orders.yaml", &service("orders"))]).await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.subscribe(wire::ENDPOINT, &["bank/orders:80/*", "bank/none:80/*"]).await;
    proxy.until("marked", |p| p.has("Endpoint", "bank/orders:80/*")).await;
    proxy.until("refused", |p| p.removed.contains("bank/none:80/*")).await;
    assert!(proxy.endpoints(ORDERS).is_empty());
}

#[tokio::test]
async fn endpoints_of_a_new_backend_come_before_the_route_to_it_and_go_after_it() {
    let mesh = Mesh::start(&[
        ("orders.yaml", &service("orders")),
        ("canary.yaml", &service("canary")),
        ("canary-slice.yaml", &slice("canary", &["10.0.9.1"])),
    ])
    .await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["orders.bank:80"]).await;
    proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    let before = proxy.log.len();
    let to_canary = "backendRefs: [{name: orders, port: 80, weight: 7}, {name: canary, port: 80, \
                     weight: 3}]";
    mesh.write("route.yaml", &route("bank", "canary", to_canary));
    proxy.until("routed", |p| p.log.len() >= before + 2).await;
    assert_eq!(
        proxy.log[before..],
        ["Endpoint +bank/canary:80/10.0.9.1:9000 +bank/canary:80/*", "Destination +bank/orders:80"]
    );
    let value = destination(&proxy, ORDERS);
    assert_eq!(value.backends[0].name, "bank/canary:80");
    assert_eq!(value.http_routes[0].rules[0].backends[1].weight, 3);
    mesh.remove("route.yaml");
    proxy.until("let go", |p| p.removed.contains("bank/canary:80/*")).await;
    assert_eq!(proxy.log[before + 2], "Destination +bank/orders:80");
    assert!(destination(&proxy, ORDERS).http_routes.is_empty());
}

#[tokio::test]
async fn a_route_in_the_callers_namespace_is_for_that_namespace_alone() {
    let mesh = Mesh::start(&[
        ("orders.yaml", &service("orders")),
        ("producer.yaml", &route("bank", "producer", "name: producer")),
    ])
    .await;
    let mut shop = mesh.proxy("shop.caller", "shop").await;
    let mut bank = mesh.proxy("bank.caller", "bank").await;
    for proxy in [&mut shop, &mut bank] {
        proxy.dial(&["orders.bank:80"]).await;
        proxy.until("known", |p| p.has("Destination", ORDERS)).await;
        assert_eq!(destination(proxy, ORDERS).http_routes[0].name, "bank/producer");
    }
    mesh.write("consumer.yaml", &route("shop", "consumer", "name: consumer"));
    shop.until("own", |p| p.has("Destination", "bank/orders:80@shop")).await;
    shop.until("replaced", |p| p.removed.contains(ORDERS)).await;
    let own = destination(&shop, "bank/orders:80@shop");
    assert_eq!(own.http_routes.len(), 1);
    assert_eq!(own.http_routes[0].name, "shop/consumer");
    assert!(shop.has("Endpoint", "bank/orders:80/*"), "endpoints stay: {:?}", shop.log);
    mesh.write("other.yaml", &service("other"));
    bank.dial(&["other.bank:80"]).await;
    bank.until("other", |p| p.has("Destination", "bank/other:80")).await;
    assert_eq!(destination(&bank, ORDERS).http_routes[0].name, "bank/producer");
    mesh.remove("consumer.yaml");
    shop.until("back", |p| p.has("Destination", ORDERS)).await;
}

#[tokio::test]
async fn a_refusal_is_recorded_and_holds_back_nothing_else() {
    let mesh =
        Mesh::start(&[("orders.yaml", &service("orders")), ("other.yaml", &service("other"))])
            .await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.refuse = Some(ORDERS.to_owned());
    proxy.dial(&["orders.bank:80"]).await;
    proxy.until("sent", |p| p.log.iter().any(|line| line.contains("Destination +"))).await;
    proxy.dial(&["other.bank:80"]).await;
    proxy.until("other", |p| p.has("Destination", "bank/other:80")).await;
    let page = mesh
        .admin_until("/proxies", |page| !page["proxies"][0]["nacks"].as_array().unwrap().is_empty())
        .await;
    let nack = &page["proxies"][0]["nacks"][0];
    assert_eq!(nack["resources"][0], ORDERS);
    assert_eq!(nack["reason"], "rules[0].path: cannot be understood");
}

#[tokio::test]
async fn a_proxy_that_comes_back_is_sent_only_what_changed() {
    let mut mesh = Mesh::start(&[
        ("orders.yaml", &service("orders")),
        ("slice.yaml", &slice("orders", &["10.0.0.1", "10.0.0.2"])),
        ("gone.yaml", &service("gone")),
    ])
    .await;
    let mut first = mesh.proxy("bank.caller", "bank").await;
    first.dial(&["orders.bank:80", "gone.bank:80"]).await;
    first.until("known", |p| p.has("Destination", "bank/gone:80")).await;
    first.until("known", |p| p.has("Destination", ORDERS)).await;
    mesh.remove("gone.yaml");
    mesh.write("slice.yaml", &slice("orders", &["10.0.0.1", "10.0.0.3"]));
    mesh.restart().await;
    let mut second = mesh.proxy("bank.caller", "bank").await;
    for (type_url, kind, names) in [
        (wire::ENDPOINT, "Endpoint", &[][..]),
        (wire::DESTINATION, "Destination", &["orders.bank:80", "gone.bank:80"][..]),
    ] {
        second
            .send(DeltaDiscoveryRequest {
                type_url: type_url.to_owned(),
                initial_resource_versions: first.versions(kind),
                resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
                ..Default::default()
            })
            .await;
    }
    second.until("told", |p| p.removed.contains("bank/orders:80/10.0.0.2:9000")).await;
    second.until("told", |p| p.removed.contains("bank/gone:80")).await;
    let sent: Vec<_> = second.held.keys().map(|(_, name)| name.as_str()).collect();
    assert_eq!(sent, ["bank/orders:80/10.0.0.3:9000"], "{:?}", second.log);
    // A new name for a known destination has to be told, though its bytes are the same.
    second.dial(&["orders.bank.svc:80"]).await;
    second.until("alias", |p| p.has("Destination", ORDERS)).await;
}

#[tokio::test]
async fn a_headless_service_answers_to_its_pods() {
    let headless = service("orders").replace("spec:\n", "spec:\n  clusterIP: None\n");
    let pods = slice("orders", &["10.0.0.1", "10.0.0.2"])
        .replace("['10.0.0.2']", "['10.0.0.2']\n  hostname: orders-1");
    let mesh = Mesh::with_flags(
        &[("orders.yaml", &headless), ("slice.yaml", &pods)],
        &["--max-endpoints=1"],
    )
    .await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["10.0.0.1:9000", "orders-1.orders.bank.svc.cluster.local:80"]).await;
    proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    // The limit does not apply to endpoints that are dialled by their own names.
    proxy.until("both", |p| p.endpoints(ORDERS).len() == 2).await;
    let page = mesh.admin_json("/proxies").await;
    let pinned: Vec<_> = page["proxies"][0]["subscriptions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|name| name["pinned"].as_str().unwrap())
        .collect();
    assert_eq!(pinned, ["10.0.0.1:9000", "10.0.0.2:9000"]);
    mesh.write("slice.yaml", &slice("orders", &["10.0.0.9"]));
    proxy.until("gone", |p| p.removed.contains("10.0.0.1:9000")).await;
}

#[tokio::test]
async fn a_pod_answers_to_its_address_whatever_its_service_is() {
    let mesh = Mesh::with_flags(&[("orders.yaml", &service("orders"))], &[]).await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["10.0.0.1:9000"]).await;
    proxy.until("nothing there", |p| p.removed.contains("10.0.0.1:9000")).await;
    mesh.write("slice.yaml", &slice("orders", &["10.0.0.1", "10.0.0.2"]));
    proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    proxy.until("both", |p| p.endpoints(ORDERS).len() == 2).await;
    proxy.removed.clear();
    mesh.write("slice.yaml", &slice("orders", &["10.0.0.2"]));
    proxy.until("gone", |p| p.removed.contains("10.0.0.1:9000")).await;
}

#[tokio::test]
async fn a_proxy_gets_its_share_of_many_endpoints() {
    let addresses: Vec<String> = (1..=30).map(|i| format!("10.0.0.{i}")).collect();
    let addresses: Vec<&str> = addresses.iter().map(String::as_str).collect();
    let mesh = Mesh::with_flags(
        &[("orders.yaml", &service("orders")), ("slice.yaml", &slice("orders", &addresses))],
        &["--max-endpoints=10"],
    )
    .await;
    let mut shares = Vec::new();
    for id in ["bank.a", "bank.b"] {
        let mut proxy = mesh.proxy(id, "bank").await;
        proxy.dial(&["orders.bank:80"]).await;
        proxy.until("known", |p| p.has("Destination", ORDERS)).await;
        shares.push(proxy.endpoints(ORDERS));
    }
    assert_eq!(shares.iter().map(Vec::len).collect::<Vec<_>>(), [10, 10]);
    assert_ne!(shares[0], shares[1]);
}

#[tokio::test]
async fn a_service_whose_traffic_stays_local_has_the_endpoints_of_the_callers_node_alone() {
    let local = service("orders").replace("spec:\n", "spec:\n  internalTrafficPolicy: Local\n");
    let on = |first: &str| {
        let nodes = [("10.0.0.1", first), ("10.0.0.2", "node-of-bank.b")];
        nodes.iter().fold(slice("orders", &["10.0.0.1", "10.0.0.2"]), |slice, (ip, node)| {
            slice.replace(&format!("['{ip}']"), &format!("['{ip}']\n  nodeName: {node}"))
        })
    };
    let files = [("orders.yaml", local.as_str()), ("slice.yaml", &on("node-of-bank.a"))];
    let mesh = Mesh::start(&files).await;
    let (mut a, mut c) = (mesh.proxy("bank.a", "bank").await, mesh.proxy("bank.c", "bank").await);
    for proxy in [&mut a, &mut c] {
        proxy.dial(&["orders.bank:80"]).await;
        proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    }
    assert_eq!(a.endpoints(ORDERS), ["10.0.0.1:9000"]);
    assert_eq!(c.endpoints(ORDERS), [""; 0]);
    mesh.write("slice.yaml", &on("node-of-bank.c"));
    c.until("moved here", |p| p.endpoints(ORDERS) == ["10.0.0.1:9000"]).await;
    a.until("moved away", |p| p.removed.contains("bank/orders:80/10.0.0.1:9000")).await;
    mesh.write("orders.yaml", &service("orders"));
    a.until("everywhere", |p| p.endpoints(ORDERS).len() == 2).await;
}

#[tokio::test]
async fn settings_name_every_namespace_and_nobody_sees_anothers_inbound() {
    let mesh = Mesh::start(&[("orders.yaml", &service("orders"))]).await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.subscribe(wire::MESH_SETTINGS, &["mesh"]).await;
    proxy.until("settings", |p| p.has("MeshSettings", "mesh")).await;
    let body = proxy.held[&("MeshSettings".to_owned(), "mesh".to_owned())].body.clone();
    assert_eq!(mesh::MeshSettings::decode(body).unwrap().namespaces, ["bank"]);
    proxy.subscribe(wire::INBOUND, &["bank.orders-1"]).await;
    proxy.until("refused", |p| p.removed.contains("bank.orders-1")).await;
    let shop = service("cart").replace("bank", "shop");
    let version = proxy.held[&("MeshSettings".to_owned(), "mesh".to_owned())].version.clone();
    mesh.write("shop.yaml", &shop);
    proxy
        .until("told", |p| {
            p.held[&("MeshSettings".to_owned(), "mesh".to_owned())].version != version
        })
        .await;
}

#[tokio::test]
async fn unsubscribing_lets_go_of_everything_that_was_implied() {
    let mesh = Mesh::start(&[
        ("orders.yaml", &service("orders")),
        ("slice.yaml", &slice("orders", &["10.0.0.1"])),
    ])
    .await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["orders.bank:80"]).await;
    proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    proxy.unsubscribe(wire::DESTINATION, &["orders.bank:80"]).await;
    proxy.until("let go", |p| p.removed.contains("bank/orders:80/10.0.0.1:9000")).await;
    let page = mesh.admin_json("/proxies").await;
    assert_eq!(page["proxies"][0]["destinations"].as_array().unwrap().len(), 0);
}

#[tokio::test]
async fn hostile_requests_are_refused_by_name_and_others_are_unharmed() {
    let mesh = Mesh::start(&[("orders.yaml", &service("orders"))]).await;
    let long = "x".repeat(600);
    let many: Vec<String> = (0..=MAX_SUBSCRIPTIONS).map(|i| format!("s{i}.bank:80")).collect();
    let many: Vec<&str> = many.iter().map(String::as_str).collect();
    // Each is refused by itself, and the stream goes on: what is held stays known.
    for (names, refused) in
        [(&[long.as_str()][..], long.as_str()), (&["*"], "*"), (&many[..], many[MAX_SUBSCRIPTIONS])]
    {
        let mut proxy = mesh.proxy("bank.hostile", "bank").await;
        proxy.dial(&["orders.bank:80"]).await;
        proxy.until("known", |p| p.has("Destination", ORDERS)).await;
        proxy.dial(names).await;
        proxy.until("refused", |p| p.removed.contains(refused)).await;
        // Neither is a name that is subscribed to already one too many, nor one after others went.
        proxy.dial(&["orders.bank:80"]).await;
        proxy.unsubscribe(wire::DESTINATION, &["s1.bank:80", "s2.bank:80"]).await;
        proxy.dial(&["orders.bank.svc:80"]).await;
        let alias = "orders.bank.svc:80".to_owned();
        let held = ("Destination".to_owned(), ORDERS.to_owned());
        proxy.until("known by another name", |p| p.held[&held].aliases.contains(&alias)).await;
        mesh.write("slice.yaml", &slice("orders", &["10.0.0.1"]));
        proxy.until("told", |p| p.endpoints(ORDERS) == ["10.0.0.1:9000"]).await;
        mesh.write("slice.yaml", &slice("orders", &[]));
        proxy.until("told", |p| p.endpoints(ORDERS).is_empty()).await;
    }
    // Names that mean nothing are names that nothing has.
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["", "::::", "a b", "orders.bank", "ORDERS.bank:80"]).await;
    proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    proxy.until("refused", |p| p.removed.contains("::::")).await;
    proxy.subscribe("type.googleapis.com/some.newer.Type", &["a"]).await;
    proxy.until("refused", |p| p.removed.contains("a")).await;
}

#[tokio::test]
async fn what_a_consumer_route_replaces_is_withdrawn_once_the_replacement_is_in_force() {
    let mesh = Mesh::start(&[
        ("orders.yaml", &service("orders")),
        ("old.yaml", &service("old")),
        ("slice.yaml", &slice("old", &["10.0.0.7"])),
        ("producer.yaml", &route("bank", "producer", "backendRefs: [{name: old, port: 80}]")),
    ])
    .await;
    let own = "bank/orders:80@shop";
    let mut proxy = mesh.proxy("shop.caller", "shop").await;
    proxy.dial(&["orders.bank:80"]).await;
    proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    proxy.refuse = Some(own.to_owned());
    let rule = "backendRefs: [{name: orders, namespace: bank, port: 80}]";
    mesh.write("consumer.yaml", &route("shop", "consumer", rule));
    proxy.until("offered", |p| p.log.iter().any(|line| line.contains(own))).await;
    // What it has goes on, with endpoints that only the old one needs.
    mesh.write("slice.yaml", &slice("old", &["10.0.0.7", "10.0.0.8"]));
    proxy.until("told", |p| p.endpoints("bank/old:80").len() == 2).await;
    assert!(!proxy.removed.contains(ORDERS), "{:?}", proxy.log);
    proxy.refuse = None;
    mesh.write("consumer.yaml", &route("shop", "consumer", &format!("name: x\n    {rule}")));
    proxy.until("withdrawn", |p| p.removed.contains(ORDERS)).await;
    proxy.until("withdrawn too", |p| p.endpoints("bank/old:80").is_empty()).await;
    assert!(proxy.has("Destination", own), "{:?}", proxy.log);
}

#[tokio::test]
async fn a_destination_that_is_too_large_is_cut_by_itself_and_says_so() {
    // Sixteen headers of 4,000 bytes in each of four matches: a quarter of a MiB.
    let value = "x".repeat(4_000);
    let headers: Vec<_> = (0..16).map(|i| format!("{{name: h{i}, value: {value}}}")).collect();
    let one = format!("{{headers: [{}]}}", headers.join(", "));
    let rule = format!("matches: [{}]", [one.as_str(); 4].join(", "));
    let mut files = vec![
        ("orders.yaml".to_owned(), service("orders")),
        ("other.yaml".to_owned(), service("other")),
    ];
    for name in ["a", "b", "c", "d"] {
        files.push((format!("{name}.yaml"), route("bank", name, &rule)));
    }
    let files: Vec<_> = files.iter().map(|(name, text)| (name.as_str(), text.as_str())).collect();
    let mesh = Mesh::start(&files).await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["orders.bank:80", "other.bank:80"]).await;
    proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    proxy.until("known", |p| p.has("Destination", "bank/other:80")).await;
    let held = destination(&proxy, ORDERS);
    assert!(held.encoded_len() < wire::MAX_RESPONSE);
    // The oldest stay; what is left out answers 500.
    let invalid = |route: &mesh::HttpRoute| match &route.rules[0].backends[..] {
        [one] => matches!(
            one.target.as_ref().and_then(|target| target.kind.as_ref()),
            Some(mesh::target::Kind::Invalid(why)) if why.contains("are sent")
        ),
        _ => false,
    };
    let left_out: Vec<_> = held.http_routes.iter().map(invalid).collect();
    assert_eq!(left_out, [false, false, false, true]);
    let status = |page: &serde_json::Value, object: &str| {
        let all = page["status"].as_array().unwrap().iter();
        all.clone().find(|status| status["object"] == object).unwrap()["accepted"].clone()
    };
    let page = mesh.admin_json("/index").await;
    assert_eq!(status(&page, "HTTPRoute bank/a")["status"], true);
    let refused = status(&page, "HTTPRoute bank/d");
    assert_eq!(refused["status"], false);
    let problem = refused["problems"][0].as_str().unwrap();
    assert!(problem.starts_with("left out at bank/orders:80: would make"), "{problem}");
}

#[tokio::test]
async fn a_proxy_that_acknowledges_nothing_is_sent_the_newest_state_later() {
    let mesh = Mesh::start(&[("orders.yaml", &service("orders"))]).await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.silent = true;
    proxy.dial(&["orders.bank:80"]).await;
    proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    let publisher = mesh.server().publisher();
    for i in 0..500_u16 {
        let address = format!("10.0.{}.{}", i / 250, i % 250 + 1);
        let slice = crate::scale::slice_object("orders", &[&address]);
        publisher.commit(|index| index.apply(slice));
        if i % 7 == 0 {
            tokio::task::yield_now().await;
        }
    }
    let page = mesh.admin_json("/proxies").await;
    let waiting = page["proxies"][0]["unacknowledged"].as_u64().unwrap();
    assert!(waiting <= 64 + 4, "{waiting} responses wait");
}
