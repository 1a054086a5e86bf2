//! What a change costs, counted, and that readers and writers at once end with the same.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use outrigger_control_plane::discovery::{Proxy, Session};
use outrigger_control_plane::index::Index;
use outrigger_control_plane::object::{
    EndpointSlice, Kind, Object, ObjectId, Readiness, ServiceId, SliceEndpoint,
};
use outrigger_control_plane::publish::{CommitCounts, Handle, Publisher};
use outrigger_control_plane::translate::{self, Report};
use outrigger_core::config::MeshSettings;
use outrigger_proto::wire::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};

use crate::support::{LOOPBACK, node, registration, service};

/// A proxy without a network between it and the publisher.
struct Reader {
    handle: Arc<Handle>,
    session: Session,
    /// Version of everything held, by type and name.
    held: BTreeMap<(String, String), String>,
}

impl Reader {
    fn new(publisher: &Publisher, id: &str, names: &[String]) -> Self {
        let session = Session::new(Proxy::from_node(&node(id, "bank")).unwrap());
        let mut reader = Self { handle: publisher.handle(), session, held: BTreeMap::new() };
        reader.subscribe(wire::DESTINATION, names);
        while reader.pump(publisher) > 0 {}
        reader
    }

    fn subscribe(&mut self, type_url: &str, names: &[String]) {
        self.session.receive(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: names.to_vec(),
            ..Default::default()
        });
    }

    fn unsubscribe(&mut self, names: &[String]) {
        self.session.receive(DeltaDiscoveryRequest {
            type_url: wire::DESTINATION.to_owned(),
            resource_names_unsubscribe: names.to_vec(),
            ..Default::default()
        });
        self.held.retain(|(type_url, _), _| type_url != wire::DESTINATION);
    }

    /// What it dials.
    fn names(&self) -> Vec<String> {
        let page = self.session.describe();
        let names = page["subscriptions"].as_array().unwrap().iter();
        names.map(|name| name["name"].as_str().unwrap().to_owned()).collect()
    }

    /// Takes and acknowledges what there is, as the stream's task does; gives how many resources came.
    fn pump(&mut self, publisher: &Publisher) -> usize {
        let told = publisher.told();
        let dirty = self.handle.take_dirty();
        let mut view = publisher.view_for(&self.handle, told);
        self.session.touch(&dirty);
        let mut responses = self.session.pump(&mut view, 0);
        while self.session.has_more() {
            responses.extend(self.session.pump(&mut view, 0));
        }
        publisher.unsubscribe(&self.handle, &self.session.interest_changes());
        responses.into_iter().map(|response| self.take(response)).sum()
    }

    fn take(&mut self, response: DeltaDiscoveryResponse) -> usize {
        let DeltaDiscoveryResponse { type_url, resources, removed_resources, nonce, .. } = response;
        let count = resources.len() + removed_resources.len();
        for name in removed_resources {
            self.held.remove(&(type_url.clone(), name));
        }
        for resource in resources {
            self.held.insert((type_url.clone(), resource.name), resource.version);
        }
        self.session.receive(DeltaDiscoveryRequest {
            type_url,
            response_nonce: nonce,
            ..Default::default()
        });
        count
    }
}

fn slice(service: &str, number: usize, uids: std::ops::Range<usize>, last: u8) -> Object {
    let endpoint = |i: usize| SliceEndpoint {
        address: format!("10.{}.{}.{last}", i / 250, i % 250).parse().unwrap(),
        uid: format!("uid-{i}"),
        readiness: Readiness::Ready,
        zone: None,
        node: None,
        hostname: None,
    };
    Object::EndpointSlice(EndpointSlice {
        namespace: "bank".to_owned(),
        name: format!("{service}-{number}"),
        service: ServiceId::new("bank", service),
        ports: vec![("http".to_owned(), 9000)],
        endpoints: uids.map(endpoint).collect(),
    })
}

fn service_object(name: &str) -> Object {
    let raw = serde_saphyr::from_str(&service(name)).unwrap();
    Object::Service(translate::service::translate(&raw, &mut Report::default()).unwrap())
}

fn route(name: &str, parent: &str, weight: u32) -> Object {
    let yaml = format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\nmetadata: {{name: {name}, \
         namespace: bank}}\nspec:\n  parentRefs: [{{group: '', kind: Service, name: {parent}}}]\n  \
         rules: [{{backendRefs: [{{name: {parent}, port: 80, weight: {weight}}}]}}]\n"
    );
    let raw = serde_saphyr::from_str(&yaml).unwrap();
    Object::Route(translate::http_route::translate(&raw, &mut Report::default()).unwrap())
}

fn traffic(name: &str, service: &str, deadline: u32) -> Object {
    let yaml = format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: {name}, \
         namespace: bank}}\nspec: {{targetRefs: [{{kind: Service, name: {service}}}], deadline: \
         {deadline}s}}\n"
    );
    let raw = serde_saphyr::from_str(&yaml).unwrap();
    let policy = translate::traffic_policy::translate(&raw, &mut Report::default()).unwrap();
    Object::TrafficPolicy(Box::new(policy))
}

fn access(name: &str, app: &str, port: u16) -> Object {
    let yaml = format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\nmetadata: {{name: {name}, \
         namespace: bank}}\nspec: {{selector: {{matchLabels: {{app: {app}}}}}, ports: [{port}], \
         default: Deny}}\n"
    );
    let raw = serde_saphyr::from_str(&yaml).unwrap();
    Object::AccessPolicy(translate::access_policy::translate(&raw, &mut Report::default()).unwrap())
}

/// `n` Services with a slice, a route, two policies and a workload each, one Service of `n` endpoints, and
/// readers: nine of ten Services each, five of the large one.
fn mesh(n: usize) -> (Publisher, Vec<Reader>) {
    let publisher = Publisher::new(Index::new(MeshSettings::default()));
    publisher.commit(|index| {
        for i in 0..n {
            let name = format!("s{i}");
            index.apply(service_object(&name));
            index.apply(slice(&name, 0, i..i + 1, 1));
            index.apply(route(&name, &name, 1));
            index.apply(traffic(&name, &name, 1));
            index.apply(access(&name, &name, 9000));
            let workload = registration("bank", &format!("w{i}"), &name, 9000);
            index.register(translate::workload::translate(&workload, LOOPBACK).unwrap());
        }
        index.apply(service_object("large"));
        for i in 0..n / 100 {
            index.apply(slice("large", i, i * 100..i * 100 + 100, 1));
        }
        // Beyond what any share holds, also where the mesh is small.
        index.apply(slice("large", n, 20_000..20_200, 1));
    });
    let mut readers = Vec::new();
    for reader in 0..9 {
        let names: Vec<_> = (0..10).map(|i| format!("s{}.bank:80", reader * 10 + i)).collect();
        readers.push(Reader::new(&publisher, &format!("bank.r{reader}"), &names));
    }
    for reader in 0..5 {
        let names = ["large.bank:80".to_owned()];
        readers.push(Reader::new(&publisher, &format!("bank.l{reader}"), &names));
    }
    (publisher, readers)
}

/// What a change costs until every reader has what it should, and how many resources travelled.
fn cost(
    publisher: &Publisher,
    readers: &mut [Reader],
    change: impl FnOnce(&mut Index),
) -> (CommitCounts, usize) {
    let before = publisher.counts();
    publisher.commit(change);
    let sent = readers.iter_mut().map(|reader| reader.pump(publisher)).sum();
    let after = publisher.counts();
    let counts = CommitCounts {
        touched: after.touched - before.touched,
        encoded: after.encoded - before.encoded,
        compared: after.compared - before.compared,
        woken: after.woken - before.woken,
    };
    (counts, sent)
}

#[test]
fn a_change_costs_what_depends_on_it_whatever_there_is() {
    let costs = |n: usize| {
        let (publisher, mut readers) = mesh(n);
        let mut cost = |change: &dyn Fn(&mut Index)| cost(&publisher, &mut readers, change);
        // One endpoint of a small Service that one proxy calls.
        let small = cost(&|index| index.apply(slice("s7", 0, 7..8, 2)));
        // One of a Service that nobody calls.
        let nobody = n - 1;
        let unused = cost(&|index| {
            index.remove(&ObjectId {
                kind: Kind::EndpointSlice,
                namespace: "bank".to_owned(),
                name: format!("s{nobody}-0"),
            });
        });
        let policy = cost(&|index| index.apply(traffic("s7", "s7", 2)));
        let who = cost(&|index| index.apply(access("s7", "s7", 9001)));
        let routed = cost(&|index| index.apply(route("s7", "s7", 2)));
        let namespace = cost(&|index| {
            let Object::Service(mut service) = service_object("other") else { unreachable!() };
            service.id.namespace = "shop".to_owned();
            index.apply(Object::Service(service));
        });
        [small, unused, policy, who, routed, namespace]
    };
    let counts = |touched, encoded, woken| CommitCounts { touched, encoded, compared: 0, woken };
    let few = costs(100);
    let expected = [
        // The endpoint for the one who holds it.
        (counts(1, 1, 1), 1),
        (counts(1, 0, 0), 0),
        (counts(1, 1, 1), 1),
        // The workload's own ports, which nobody here asked for.
        (counts(1, 0, 0), 0),
        (counts(1, 1, 1), 1),
        // The Service, its port and the settings: nobody here depends on them.
        (counts(3, 0, 0), 0),
    ];
    assert_eq!(few, expected);
    assert_eq!(costs(10_000), expected);
}

/// Of a Service that is too large for everybody only those are woken whose share a change can touch.
#[test]
fn a_change_of_a_large_service_concerns_few() {
    for n in [100, 10_000] {
        let (publisher, mut readers) = mesh(n);
        let (mut woken, mut sent) = (0, 0);
        for i in 0..20 {
            let mut moved = slice("large", n, 20_000..20_200, 1);
            if let Object::EndpointSlice(slice) = &mut moved {
                slice.endpoints[i].address = "10.99.0.1".parse().unwrap();
            }
            let (counts, resources) =
                cost(&publisher, &mut readers, |index| index.apply(moved.clone()));
            // The one before is as it was again.
            let changed = if i == 0 { 1 } else { 2 };
            assert_eq!((counts.touched, counts.encoded, counts.compared), (1, changed, 5), "{n}");
            (woken, sent) = (woken + counts.woken, sent + resources);
        }
        let share = 100.0 / (n / 100 * 100 + 200) as f64;
        // 39 changes of members, five proxies, each of which holds that share of all.
        let expected = 39.0 * 5.0 * share;
        assert!((woken as f64) < expected * 2.0 + 5.0, "{woken} of {expected}");
        assert!((sent as f64) < expected * 2.0 + 5.0, "{sent} of {expected}");
        assert!(n > 100 || woken > 0, "nobody heard of anything");
        assert_same(&publisher, &mut readers);
    }
}

/// What everybody holds is what somebody new would be given.
fn assert_same(publisher: &Publisher, readers: &mut [Reader]) {
    for reader in readers {
        while reader.pump(publisher) > 0 {}
        let names = reader.names();
        let new = Reader::new(publisher, &reader.session.proxy.id.clone(), &names);
        assert_eq!(reader.held, new.held, "{}", reader.session.proxy.id);
    }
}

#[test]
fn readers_that_race_with_writers_end_with_the_newest() {
    let (publisher, mut readers) = mesh(200);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let (publisher, over) = (&publisher, &over);
        for chunk in readers.chunks_mut(5) {
            scope.spawn(move || {
                while !over.load(Ordering::Relaxed) {
                    for reader in &mut *chunk {
                        reader.pump(publisher);
                        // Some let go of everything and come back, while it changes.
                        let names = reader.names();
                        reader.unsubscribe(&names);
                        reader.pump(publisher);
                        reader.subscribe(wire::DESTINATION, &names);
                        reader.pump(publisher);
                    }
                }
            });
        }
        let writers: Vec<_> = (0..2u8)
            .map(|writer| {
                scope.spawn(move || {
                    for round in 0..150usize {
                        let last = (round % 200) as u8 + 2;
                        let s = (round * 2 + usize::from(writer)) % 100;
                        let name = format!("s{s}");
                        publisher.commit(|index| index.apply(slice(&name, 0, s..s + 1, last)));
                        publisher.commit(|index| {
                            let mut moved = slice("large", usize::from(writer), 0..0, 1);
                            if let Object::EndpointSlice(slice) = &mut moved {
                                slice.endpoints = (0..60)
                                    .map(|i| SliceEndpoint {
                                        address: format!("10.77.{i}.{last}").parse().unwrap(),
                                        uid: format!("moved-{writer}-{}", i + round % 7),
                                        readiness: Readiness::Ready,
                                        zone: None,
                                        node: None,
                                        hostname: None,
                                    })
                                    .collect();
                            }
                            index.apply(moved);
                        });
                        let id = ObjectId {
                            kind: Kind::Service,
                            namespace: "bank".to_owned(),
                            name: name.clone(),
                        };
                        match round % 3 {
                            0 => publisher.commit(|index| index.remove(&id)),
                            _ => publisher.commit(|index| index.apply(service_object(&name))),
                        };
                        let route = route(&name, &name, last.into());
                        publisher.commit(|index| index.apply(route));
                    }
                })
            })
            .collect();
        for writer in writers {
            writer.join().unwrap();
        }
        over.store(true, Ordering::Relaxed);
    });
    assert_eq!(publisher.told(), publisher.view().commit.generation);
    assert_same(&publisher, &mut readers);
}

/// A new namespace makes the last part of the settings travel, not the list of all.
#[test]
fn a_new_namespace_is_told_without_all_others() {
    let publisher = Publisher::new(Index::new(MeshSettings::default()));
    let known = (0..1_000).map(|n| format!("n{n}")).collect();
    let publisher_of_many =
        Publisher::new(Index::new(MeshSettings::default()).with_namespaces(known));
    for (publisher, parts) in [(publisher, 1), (publisher_of_many, 16)] {
        let mut reader = Reader::new(&publisher, "bank.caller", &[]);
        reader.subscribe(wire::MESH_SETTINGS, &[wire::MESH_SETTINGS_NAME.to_owned()]);
        assert_eq!(reader.pump(&publisher), parts);
        publisher.commit(|index| index.apply(service_object("orders")));
        assert_eq!(reader.pump(&publisher), 1);
        let settings = publisher.view().settings();
        assert_eq!(settings.len(), parts);
        assert!(settings.iter().all(|part| part.body.len() < 1_000), "a part is small");
        // A proxy that comes back with what it has is told nothing.
        let versions = reader.held.iter().map(|((_, name), v)| (name.clone(), v.clone()));
        let mut again = Reader::new(&publisher, "bank.caller", &[]);
        again.session.receive(DeltaDiscoveryRequest {
            type_url: wire::MESH_SETTINGS.to_owned(),
            resource_names_subscribe: vec![wire::MESH_SETTINGS_NAME.to_owned()],
            initial_resource_versions: versions.collect(),
            ..Default::default()
        });
        assert_eq!(again.pump(&publisher), 0);
    }
}

/// A commit between the moment at which a stream looks and that at which it subscribes.
#[test]
fn what_changes_between_a_look_and_a_subscription_is_not_missed() {
    let changes: [fn(&mut Index); 3] = [
        |index| index.apply(slice("s7", 0, 7..8, 2)),
        |index| index.apply(traffic("s7", "s7", 2)),
        |index| {
            let Object::Service(mut service) = service_object("other") else { unreachable!() };
            service.id.namespace = "shop".to_owned();
            index.apply(Object::Service(service));
        },
    ];
    for change in changes {
        let (publisher, _) = mesh(200);
        let names = ["s7.bank:80".to_owned()];
        let mut reader = Reader::new(&publisher, "bank.late", &[]);
        reader.subscribe(wire::DESTINATION, &names);
        reader.subscribe(wire::MESH_SETTINGS, &[wire::MESH_SETTINGS_NAME.to_owned()]);
        let mut before = publisher.view_for(&reader.handle, publisher.told());
        publisher.commit(change);
        let responses = reader.session.pump(&mut before, 0);
        drop(before);
        for response in responses {
            reader.take(response);
        }
        while reader.pump(&publisher) > 0 {}
        // Versions are of the content: what somebody holds to whom nothing else has happened.
        let (publisher, _) = mesh(200);
        publisher.commit(change);
        let mut expected = Reader::new(&publisher, "bank.late", &names);
        expected.subscribe(wire::MESH_SETTINGS, &[wire::MESH_SETTINGS_NAME.to_owned()]);
        expected.pump(&publisher);
        assert_eq!(expected.held.len(), 4, "destination, endpoint, marker and settings");
        assert_eq!(reader.held, expected.held);
    }
}

/// A pod with a proxy; its app is ready or not.
fn pod(uid: &str, app_ready: bool) -> Object {
    let raw = serde_json::json!({
        "metadata": {"name": uid, "namespace": "bank", "uid": uid},
        "spec": {"containers": [{"name": "app"}], "initContainers": [{"name": "outrigger-proxy"}]},
        "status": {"phase": "Running", "podIPs": [{"ip": "10.0.0.1"}],
            "containerStatuses": [{"name": "app", "ready": app_ready}]},
    });
    let raw = serde_json::from_value(raw).unwrap();
    Object::Pod(translate::pod::translate(&raw, &mut Report::default()).unwrap())
}

/// While one is ready, no other counts; else those that are being deleted, and else those that wait for their proxies.
#[test]
fn the_last_endpoints_stay() {
    use Readiness::{Ready, Terminating, Unready};
    let publisher = Publisher::new(Index::new(MeshSettings::default()));
    let apply = |object| {
        publisher.commit(|index| index.apply(object));
    };
    let orders = |states: &[Readiness]| {
        let mut new = slice("orders", 0, 0..states.len(), 1);
        let Object::EndpointSlice(slice) = &mut new else { unreachable!() };
        for (endpoint, state) in slice.endpoints.iter_mut().zip(states) {
            endpoint.address = "10.0.0.1".parse().unwrap();
            endpoint.readiness = *state;
        }
        new
    };
    apply(service_object("orders"));
    for (uid, app_ready) in [("uid-0", true), ("uid-1", true), ("uid-2", false)] {
        apply(pod(uid, app_ready));
    }
    let mut reader = Reader::new(&publisher, "bank.caller", &["orders:80".to_owned()]);
    let mut held = |what: &str| -> Vec<String> {
        reader.pump(&publisher);
        let endpoints = reader.held.keys().filter(|(type_url, _)| type_url == wire::ENDPOINT);
        let names = endpoints.filter_map(|(_, name)| name.strip_prefix("bank/orders:80/"));
        let names: Vec<_> = names.filter(|name| *name != "*").map(str::to_owned).collect();
        assert!(names.iter().all(|name| name.ends_with(":9000")), "{what}: {names:?}");
        names.iter().map(|name| name.replace(":9000", "")).collect()
    };
    let steps: [(&[Readiness], &[&str]); 7] = [
        (&[Ready, Ready, Ready], &["uid-0", "uid-1", "uid-2"]),
        (&[Ready, Terminating, Unready], &["uid-0"]),
        (&[Terminating, Terminating, Unready], &["uid-0", "uid-1"]),
        (&[Unready, Terminating, Unready], &["uid-1"]),
        // The app of uid-2 is not ready itself.
        (&[Unready, Unready, Unready], &["uid-0", "uid-1"]),
        (&[Unready, Unready, Ready], &["uid-2"]),
        (&[Unready, Unready, Unready], &["uid-0", "uid-1"]),
    ];
    for (states, expected) in steps {
        apply(orders(states));
        assert_eq!(held("a slice"), expected, "{states:?}");
    }
    apply(pod("uid-0", false));
    assert_eq!(held("a pod"), ["uid-1"], "the app of uid-0 is not ready any more");
    apply(orders(&[]));
    assert_eq!(held("nothing"), [""; 0]);
}
