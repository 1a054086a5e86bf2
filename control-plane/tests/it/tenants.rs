//! What somebody who may write manifests or register workloads can do to others.

use std::fs;
use std::net::IpAddr;
use std::sync::Arc;

use outrigger_control_plane::index::{Index, PortId};
use outrigger_control_plane::metrics::Metrics;
use outrigger_control_plane::object::ServiceId;
use outrigger_control_plane::options::{Cli, LocalPolicy};
use outrigger_control_plane::problems::Problems;
use outrigger_control_plane::publish::Publisher;
use outrigger_control_plane::source::manifests::Folder;
use outrigger_control_plane::translate;
use outrigger_core::address::LocalEndpoints;
use outrigger_core::config::MeshSettings;
use outrigger_proto::{mesh, wire};
use prost::Message;
use tempfile::TempDir;
use tonic::Code;

use crate::support::{Mesh, registration, service};

/// An address, what it is, and whether it may be an endpoint of a mesh on one machine, and where it is
/// allowed expressly.
const ADDRESSES: [(&str, &str, bool, bool); 11] = [
    ("127.0.0.1", "a loopback address", true, true),
    ("127.9.9.9", "a loopback address", true, true),
    ("::1", "a loopback address", true, true),
    ("::ffff:127.0.0.1", "a loopback address", true, true),
    ("::7f00:1", "a loopback address", true, true),
    ("169.254.169.254", "a link-local address", false, true),
    ("fe80::1", "a link-local address", false, true),
    ("224.0.0.1", "a multicast address", false, false),
    ("0.0.0.0", "an unspecified address", false, false),
    ("::ffff:0.0.0.0", "an unspecified address", false, false),
    ("255.255.255.255", "a broadcast or reserved address", false, false),
];

/// Every field of a manifest that others are sent to.
fn manifests(address: &str) -> Vec<(String, &'static str)> {
    let socket = match address.parse::<IpAddr>().unwrap() {
        IpAddr::V4(_) => format!("{address}:9000"),
        IpAddr::V6(_) => format!("[{address}]:9000"),
    };
    let ours = |kind: &str, spec: &str| {
        format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: {kind}\n\
             metadata: {{name: m, namespace: bank}}\nspec: {{{spec}}}\n"
        )
    };
    let family = if address.contains(':') { "IPv6" } else { "IPv4" };
    vec![
        (
            format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: m\n  \
                 namespace: bank\n  labels: {{kubernetes.io/service-name: orders}}\n\
                 addressType: {family}\nports: [{{name: http, port: 9000}}]\n\
                 endpoints: [{{addresses: ['10.0.0.1']}}, {{addresses: ['{address}']}}]\n"
            ),
            "endpoints[1].addresses[0]",
        ),
        (
            ours("ExternalWorkload", &format!("address: '{address}', ports: [{{port: 80}}]")),
            "spec.address",
        ),
        (
            ours("ExternalWorkload", &format!("address: 10.0.0.1, mesh: {{address: '{socket}'}}")),
            "spec.mesh.address",
        ),
        (ours("ExternalService", &format!("host: '{address}', port: 80")), "spec.host"),
        (
            ours(
                "ExternalService",
                &format!("host: a.example, port: 80, endpoints: [{{address: '{address}'}}]"),
            ),
            "spec.endpoints[0].address",
        ),
        (
            format!(
                "apiVersion: v1\nkind: Service\nmetadata: {{name: m, namespace: bank}}\n\
                 spec: {{clusterIP: '{address}', ports: [{{port: 80}}]}}\n"
            ),
            "spec.clusterIP",
        ),
    ]
}

/// `field: problem` of everything wrong with a manifest.
fn problems(text: &str, local: LocalEndpoints) -> Vec<String> {
    let folder = TempDir::new().unwrap();
    fs::write(folder.path().join("m.yaml"), text).unwrap();
    let problems = Arc::new(Problems::default());
    let metrics = Arc::new(Metrics::new());
    let mut reader = Folder::new(folder.path().to_owned(), local, problems.clone(), metrics);
    reader.scan(&Publisher::new(Index::new(MeshSettings::default()))).unwrap();
    problems.all().iter().map(|p| format!("{}: {}", p.field, p.problem)).collect()
}

#[test]
fn no_manifest_sends_others_to_their_own_machines() {
    for (address, what, loopback, allowed) in ADDRESSES {
        for (text, field) in manifests(address) {
            for (local, good) in [
                (LocalEndpoints::Refuse, false),
                (LocalEndpoints::Loopback, loopback),
                (LocalEndpoints::Allow, allowed),
            ] {
                let found = problems(&text, local);
                if good {
                    assert!(found.is_empty(), "{local:?}: {text}: {found:?}");
                } else {
                    assert_eq!(found.len(), 1, "{local:?}: {text}: {found:?}");
                    assert!(found[0].starts_with(&format!("{field}: ")), "{}", found[0]);
                    assert!(found[0].contains(what), "{}", found[0]);
                }
            }
        }
    }
    for (text, _) in manifests("10.0.0.1").into_iter().chain(manifests("2001:db8::1")) {
        let found = problems(&text, LocalEndpoints::Refuse);
        assert!(found.is_empty(), "{text}: {found:?}");
    }
}

#[test]
fn no_registration_sends_others_to_their_own_machines() {
    let good = mesh::Registration {
        address: "10.0.0.1".to_owned(),
        mesh: None,
        ..registration("bank", "orders-1", "orders", 9000)
    };
    assert!(translate::workload::translate(&good, LocalEndpoints::Refuse).is_ok());
    for (address, what, loopback, allowed) in ADDRESSES {
        let socket = std::net::SocketAddr::new(address.parse().unwrap(), 9001).to_string();
        let mesh = mesh::MeshAddress { address: socket, hop_version: 1, identity: String::new() };
        let own = mesh::Registration { address: address.to_owned(), ..good.clone() };
        let proxy = mesh::Registration { mesh: Some(mesh), ..good.clone() };
        for (registration, field) in [(own, "address"), (proxy, "mesh.address")] {
            for (local, is_good) in [
                (LocalEndpoints::Refuse, false),
                (LocalEndpoints::Loopback, loopback),
                (LocalEndpoints::Allow, allowed),
            ] {
                match translate::workload::translate(&registration, local) {
                    Ok(_) => assert!(is_good, "{address} {field} {local:?}"),
                    Err(error) => {
                        assert!(!is_good, "{local:?}: {error}");
                        assert_eq!(error.path, field);
                        assert!(error.problem.contains(what), "{error}");
                    }
                }
            }
        }
    }
}

#[test]
fn loopback_is_trusted_where_only_this_machine_reaches_the_control_plane() {
    use clap::Parser;
    let local = |flags: &[&str]| {
        let all = ["outrigger-control-plane"].iter().chain(flags);
        Cli::parse_from(all).options.local()
    };
    assert_eq!(local(&[]), LocalEndpoints::Loopback);
    assert_eq!(local(&["--listen=[::1]:4780"]), LocalEndpoints::Loopback);
    assert_eq!(local(&["--listen=0.0.0.0:4780"]), LocalEndpoints::Refuse);
    assert_eq!(local(&["--listen=10.0.0.1:4780"]), LocalEndpoints::Refuse);
    assert_eq!(local(&["--local-endpoints=refuse"]), LocalEndpoints::Refuse);
    assert_eq!(local(&["--listen=0.0.0.0:4780", "--local-endpoints=allow"]), LocalEndpoints::Allow);
    assert_eq!(LocalPolicy::Auto.of(false), LocalEndpoints::Refuse);
}

#[tokio::test]
async fn a_control_plane_that_others_reach_takes_no_loopback_registration() {
    let mesh = Mesh::with_flags(&[], &["--local-endpoints=refuse"]).await;
    let error =
        mesh.register(registration("bank", "orders-1", "orders", 9000)).await.err().unwrap();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().starts_with("address: 127.0.0.1 is a loopback address"), "{error}");
}

/// Anyone who answers for a name says where it is.
#[tokio::test]
async fn a_name_that_leads_to_this_machine_is_no_endpoint() {
    let external = "apiVersion: outrigger.dev/v1alpha1\nkind: ExternalService\n\
                    metadata: {name: m, namespace: bank}\nspec: {host: localhost, port: 80}\n";
    let mesh = Mesh::with_flags(&[("e.yaml", external)], &["--local-endpoints=refuse"]).await;
    mesh.admin_until("/index", |page| page.to_string().contains("is a loopback address")).await;
    let id = PortId::new(&ServiceId::external("bank", "m"), 80);
    let endpoints = mesh.server().publisher().view().index.endpoints(&id);
    assert!(endpoints.is_none_or(|endpoints| endpoints.is_empty()));
}

#[tokio::test]
async fn a_namespace_that_was_known_is_never_forgotten() {
    let shop = service("web").replace("bank", "shop");
    let mut mesh = Mesh::start(&[("orders.yaml", &service("orders")), ("shop.yaml", &shop)]).await;
    let known = async |mesh: &Mesh, expected: &[&str]| {
        let mut proxy = mesh.proxy("bank.caller", "bank").await;
        proxy.subscribe(wire::MESH_SETTINGS, &[wire::MESH_SETTINGS_NAME]).await;
        let key = ("MeshSettings".to_owned(), wire::MESH_SETTINGS_NAME.to_owned());
        proxy.until("settings", |p| p.held.contains_key(&key)).await;
        let settings = mesh::MeshSettings::decode(proxy.held[&key].body.clone()).unwrap();
        assert_eq!(settings.namespaces, expected);
    };
    known(&mesh, &["bank", "shop"]).await;
    mesh.remove("shop.yaml");
    mesh.admin_until("/index", |page| page["services"].get("shop/web").is_none()).await;
    known(&mesh, &["bank", "shop"]).await;
    mesh.restart().await;
    known(&mesh, &["bank", "shop"]).await;
    // Whatever kind of thing was there.
    let workload = registration("depot", "a", "a", 9000);
    mesh.register(workload).await.unwrap();
    known(&mesh, &["bank", "depot", "shop"]).await;
}

#[test]
fn beyond_the_bound_of_namespaces_nothing_is_outside() {
    use outrigger_core::bounds::NAMESPACES;
    use outrigger_core::config::Unmatched;
    let all = |count: usize| (0..count).map(|n| format!("n{n}")).collect();
    let full = Index::new(MeshSettings::default()).with_namespaces(all(NAMESPACES));
    assert_eq!(full.settings().unmatched, Unmatched::Passthrough);
    let more = Index::new(MeshSettings::default()).with_namespaces(all(NAMESPACES + 1));
    assert_eq!(more.settings().unmatched, Unmatched::Refuse);
    assert_eq!(more.settings().namespaces.len(), NAMESPACES);
}
