//! Large meshes: what must not grow with them.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use outrigger_control_plane::discovery::{MAX_SUBSCRIPTIONS, Proxy, Session};
use outrigger_control_plane::index::Dep;
use outrigger_control_plane::object::{EndpointSlice, Object, Readiness, ServiceId, SliceEndpoint};
use outrigger_proto::wire::{self, DeltaDiscoveryRequest};

use crate::support::{LIMIT, Mesh, service, slice};

pub(crate) fn slice_object(name: &str, addresses: &[&str]) -> Object {
    let endpoints = addresses.iter().map(|address| SliceEndpoint {
        address: address.parse().unwrap(),
        uid: (*address).to_owned(),
        readiness: Readiness::Ready,
        zone: None,
        node: None,
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

/// What each name costs by itself, whatever the number of names held: nobody knows these.
#[tokio::test]
async fn a_name_costs_the_same_however_many_are_held() {
    const STEP: usize = 500;
    let mesh = Mesh::start(&[("orders.yaml", &service("orders"))]).await;
    let publisher = mesh.server().publisher();
    let node = crate::support::node("bank.caller", "bank");
    let mut session = Session::new(Proxy::from_node(&node).unwrap());
    let mut view = publisher.view();
    let mut steps = Vec::new();
    for step in 0..MAX_SUBSCRIPTIONS / STEP {
        let started = Instant::now();
        for i in step * STEP..(step + 1) * STEP {
            session.receive(DeltaDiscoveryRequest {
                type_url: wire::DESTINATION.to_owned(),
                resource_names_subscribe: vec![format!("h{i}.example.com:80")],
                ..Default::default()
            });
            let responses = session.pump(&mut view, 0);
            assert_eq!(responses[0].removed_resources, [format!("h{i}.example.com:80")]);
            session.interest_changes();
            session.receive(DeltaDiscoveryRequest {
                type_url: wire::DESTINATION.to_owned(),
                response_nonce: responses[0].nonce.clone(),
                ..Default::default()
            });
        }
        steps.push(started.elapsed());
    }
    // The least of many: a busy machine makes a step slower, never faster.
    let least = |steps: &[Duration]| steps.iter().min().copied().unwrap();
    let (first, last) = steps.split_at(steps.len() / 2);
    let (first, last) = (least(first), least(last));
    assert!(last < first * 3, "{steps:?}");
}

/// The budget is 200 ms at the 99th percentile from the index's commit; what an unoptimised build on
/// a busy machine needs is allowed on top.
#[tokio::test(flavor = "multi_thread")]
async fn two_hundred_proxies_hear_of_every_endpoint_soon() {
    const PROXIES: usize = 200;
    const CHANGES: u8 = 50;
    let mesh = Mesh::start(&[("orders.yaml", &service("orders"))]).await;
    let (heard, mut latencies) = tokio::sync::mpsc::unbounded_channel();
    for i in 0..PROXIES {
        let mut proxy = mesh.proxy(&format!("bank.p{i}"), "bank").await;
        proxy.dial(&["orders.bank:80"]).await;
        proxy.until("known", |p| p.has("Destination", "bank/orders:80")).await;
        let heard = heard.clone();
        tokio::spawn(async move {
            while let Ok(response) = proxy.next().await {
                let committed: u128 = response.system_version_info.parse().unwrap();
                let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_nanos();
                heard.send(Duration::from_nanos((now - committed) as u64)).unwrap();
            }
        });
    }
    let mut all = Vec::new();
    for i in 1..=CHANGES {
        let slice = slice_object("orders", &[&format!("10.0.0.{i}")]);
        mesh.server().publisher().commit(|index| index.apply(slice));
        for _ in 0..PROXIES {
            all.push(tokio::time::timeout(LIMIT, latencies.recv()).await.unwrap().unwrap());
        }
    }
    all.sort_unstable();
    let p99 = all[all.len() * 99 / 100];
    println!("median {:?}, 99th percentile {p99:?}", all[all.len() / 2]);
    assert!(p99 < Duration::from_secs(1), "{p99:?}");
}
