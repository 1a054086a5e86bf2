//! Large meshes: what must not grow with them.

use std::time::{Duration, Instant};

use outrigger_control_plane::index::Dep;
use outrigger_control_plane::object::{EndpointSlice, Object, ServiceId, SliceEndpoint};

use crate::support::{Mesh, service, slice};

pub(crate) fn slice_object(name: &str, addresses: &[&str]) -> Object {
    let endpoints = addresses.iter().map(|address| SliceEndpoint {
        address: address.parse().unwrap(),
        uid: (*address).to_owned(),
        ready: true,
        zone: None,
        hostname: None,
    });
    Object::EndpointSlice(EndpointSlice {
        namespace: "bank".to_owned(),
        name: format!("{name}-1"),
        service: ServiceId::new("bank", name),
        ports: vec![("http".to_owned(), 9000)],
        endpoints: endpoints.collect(),
    })
}

#[tokio::test]
async fn ten_thousand_services_load_soon_and_one_change_touches_one() {
    let mut text = String::new();
    for i in 0..10_000 {
        text.push_str(&service(&format!("s{i}")));
        text.push_str("---\n");
        text.push_str(&slice(&format!("s{i}"), &["10.0.0.1"]));
        text.push_str("---\n");
    }
    let started = Instant::now();
    let mesh = Mesh::start(&[("all.yaml", &text)]).await;
    let elapsed = started.elapsed();
    // Unoptimised builds are some ten times slower than what ships.
    assert!(elapsed < Duration::from_secs(60), "loading took {elapsed:?}");
    let publisher = mesh.server().publisher();
    let ((), _) = publisher.commit(|index| {
        assert_eq!(index.services().count(), 10_000);
        index.apply(slice_object("s7", &["10.0.0.2"]));
        let touched = index.take_dirty();
        assert_eq!(touched.len(), 1, "{touched:?}");
        assert!(matches!(touched.iter().next(), Some(Dep::Endpoints(p)) if p.service.name == "s7"));
    });
}

#[tokio::test]
async fn many_proxies_hear_of_one_endpoint_soon() {
    const PROXIES: usize = 50;
    let mesh = Mesh::start(&[("orders.yaml", &service("orders"))]).await;
    let mut proxies = Vec::new();
    for i in 0..PROXIES {
        let mut proxy = mesh.proxy(&format!("bank.p{i}"), "bank").await;
        proxy.dial(&["orders.bank:80"]).await;
        proxy.until("known", |p| p.has("Destination", "bank/orders:80")).await;
        proxies.push(proxy);
    }
    let started = Instant::now();
    let slice = slice_object("orders", &["10.0.0.1"]);
    mesh.server().publisher().commit(|index| index.apply(slice));
    for proxy in &mut proxies {
        proxy.until("told", |p| !p.endpoints("bank/orders:80").is_empty()).await;
    }
    let elapsed = started.elapsed();
    assert!(elapsed < Duration::from_secs(2), "{elapsed:?}");
}
