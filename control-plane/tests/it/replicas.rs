//! Several control planes over one store.

use std::collections::BTreeSet;
use std::sync::{Arc, Barrier};
use std::time::{Duration, Instant};

use outrigger_control_plane::ca::Authority;
use outrigger_control_plane::grant::Grant;
use outrigger_control_plane::namespaces;
use outrigger_control_plane::replica::{Replica, Timing};
use outrigger_control_plane::store::Store;
use outrigger_control_plane::store::dir::Directory;
use outrigger_control_plane::token::Tokens;
use outrigger_proto::mesh::{self, Health};
use outrigger_proto::wire;
use serde_json::Value;
use tempfile::TempDir;
use tonic::Code;

use crate::support::{LIMIT, Mesh, Proxy, registration, service};
use crate::tls::{Client, certify, request};

const TIMING: Timing = Timing {
    poll: Duration::from_millis(100),
    renew: Duration::from_millis(200),
    expiry: Duration::from_secs(2),
    forget: Duration::from_secs(60),
};

/// A proxy that is connected, and has not yet said which roots it trusts.
async fn connected(mesh: &Mesh, client: &Client, node: &str) -> Proxy {
    let proxy = Proxy::connect(client.channel(mesh).await, node, "bank", None).await;
    proxy.subscribe(wire::TRUST_BUNDLE, &[wire::TRUST_BUNDLE_NAME]).await;
    proxy
}

/// Lets a proxy acknowledge until it has the newest bundle of its control plane.
async fn acknowledge(mesh: &Mesh, proxy: &mut Proxy) {
    let want = mesh.admin_json("/identity").await["bundle"].as_str().unwrap().to_owned();
    let key = ("TrustBundle".to_owned(), wire::TRUST_BUNDLE_NAME.to_owned());
    proxy
        .until("the bundle came", |p| p.held.get(&key).is_some_and(|held| held.version == want))
        .await;
}

fn roots(count: usize) -> impl Fn(&Value) -> bool {
    move |page| page["roots"].as_array().is_some_and(|roots| roots.len() == count)
}

/// Takes a step until it is refused, or not, as it should be.
async fn step(
    mesh: &Mesh,
    step: impl Fn(&Authority) -> Result<(), String> + Clone + Send + 'static,
    wanted: impl Fn(&Result<(), String>) -> bool,
) -> Result<(), String> {
    let started = Instant::now();
    loop {
        let (authority, step) = (mesh.server().authority().unwrap().clone(), step.clone());
        let result = tokio::task::spawn_blocking(move || step(&authority)).await.unwrap();
        if wanted(&result) {
            return result;
        }
        assert!(started.elapsed() < LIMIT, "{result:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

fn issue_from(
    root: &str,
    absent_too: bool,
) -> impl Fn(&Authority) -> Result<(), String> + Clone + use<> {
    let root = root.to_owned();
    move |authority| authority.issue_from(&root, absent_too).map(drop).map_err(|e| e.to_string())
}

/// What is said when nothing but proxies is waited for.
fn of_proxies(result: &Result<(), String>) -> bool {
    result.as_ref().is_err_and(|text| !text.contains("has not loaded"))
}

#[tokio::test]
async fn a_rotation_waits_for_proxies_of_both_and_each_serves_what_the_other_did() {
    let one = Mesh::with_timing(&[], &["--identity=on"], TIMING).await;
    let two = one.replica("two").await;
    let (mut orders, mut ledger) = (Client::new(), Client::new());
    orders.join(&one, "bank", "orders", "bank.orders-1").await.unwrap();
    ledger.join(&two, "bank", "ledger", "bank.ledger-1").await.unwrap();
    let mut at_one = connected(&one, &orders, "bank.orders-1").await;
    let mut at_two = connected(&two, &ledger, "bank.ledger-1").await;
    acknowledge(&one, &mut at_one).await;
    acknowledge(&two, &mut at_two).await;
    let old = one.admin_json("/identity").await["issuing_root"].as_str().unwrap().to_owned();
    assert_eq!(two.admin_json("/identity").await["issuing_root"], old.as_str());

    // One adds a root, and the other takes it over.
    let new = one.server().authority().unwrap().add_root(None).unwrap().full();
    two.admin_until("/identity", roots(2)).await;
    acknowledge(&one, &mut at_one).await;
    let of_two = "bank.ledger-1 (spiffe://outrigger.local/ns/bank/sa/ledger) is connected to replica \
                  two and has not acknowledged it";
    let only_two = |result: &Result<(), String>| {
        of_proxies(result) && result.as_ref().is_err_and(|text| !text.contains("bank.orders-1"))
    };
    let refusal = step(&one, issue_from(&new, true), only_two).await.unwrap_err();
    assert!(refusal.contains(of_two), "{refusal}");
    // Whichever replica is asked says the same.
    let refusal = step(&two, issue_from(&new, true), only_two).await.unwrap_err();
    assert!(refusal.contains(of_two), "{refusal}");
    acknowledge(&two, &mut at_two).await;
    step(&one, issue_from(&new, true), Result::is_ok).await.unwrap();
    two.admin_until("/identity", |page| page["issuing_root"] == new.as_str()).await;

    // A renewal at the other replica counts: the connection of before is asked to end.
    orders.roots = orders.roots_of(&one);
    ledger.roots = orders.roots.clone();
    let channel = orders.channel(&two).await;
    let renewal = certify(channel, request(&orders, "bank.orders-1"), None).await.unwrap();
    orders.take(&renewal);
    let status = loop {
        match at_one.next().await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("newer certificate issued under another root"), "{status}");
    let remove = {
        let old = old.clone();
        move |authority: &Authority| {
            authority.remove_root(&old, true).map(drop).map_err(|error| error.to_string())
        }
    };
    let only_ledger = |result: &Result<(), String>| {
        of_proxies(result) && result.as_ref().is_err_and(|text| !text.contains("bank.orders-1"))
    };
    let refusal = step(&one, remove.clone(), only_ledger).await.unwrap_err();
    assert!(
        refusal.contains("is connected to replica two with a certificate issued under it"),
        "{refusal}"
    );
    let channel = ledger.channel(&two).await;
    let renewal = certify(channel, request(&ledger, "bank.ledger-1"), None).await.unwrap();
    ledger.take(&renewal);
    step(&two, remove, Result::is_ok).await.unwrap();
    one.admin_until("/identity", roots(1)).await;
    assert_eq!(one.admin_json("/identity").await["issuing_root"], new.as_str());
    // A proxy that moves is known by the version of the bundle that it has.
    let mut moved = connected(&one, &ledger, "bank.ledger-1").await;
    acknowledge(&one, &mut moved).await;
}

#[tokio::test]
async fn a_replica_that_died_is_waited_for_no_longer_than_its_lease() {
    let one = Mesh::with_timing(&[], &["--identity=on"], TIMING).await;
    let mut client = Client::new();
    client.join(&one, "bank", "orders", "bank.orders-1").await.unwrap();
    // A process of its own, as far as its tasks are concerned.
    let other = tokio::runtime::Runtime::new().unwrap();
    let one = Arc::new(one);
    let two = {
        let one = one.clone();
        other.spawn(async move { one.replica("two").await }).await.unwrap()
    };
    let mut proxy = connected(&two, &client, "bank.orders-1").await;
    acknowledge(&two, &mut proxy).await;
    let new = one.server().authority().unwrap().add_root(None).unwrap().full();
    two.admin_until("/identity", roots(2)).await;
    let refusal = step(&one, issue_from(&new, false), of_proxies).await.unwrap_err();
    assert!(refusal.contains("is connected to replica two"), "{refusal}");
    other.shutdown_background();
    let died = Instant::now();
    step(&one, issue_from(&new, false), Result::is_ok).await.unwrap();
    assert!(died.elapsed() < TIMING.expiry + LIMIT / 2, "{:?}", died.elapsed());
    // Its certificates still count: the proxy may carry traffic without a control plane.
    let old = one.admin_json("/identity").await["roots"]
        .as_array()
        .unwrap()
        .iter()
        .find(|root| root["root"] != new.as_str())
        .unwrap()["root"]
        .as_str()
        .unwrap()
        .to_owned();
    let refusal = one.server().authority().unwrap().remove_root(&old, true).unwrap_err();
    assert!(refusal.to_string().contains("bank.orders-1"), "{refusal}");
}

#[test]
fn replicas_that_start_at_once_agree_on_root_and_key() {
    const REPLICAS: usize = 4;
    for _ in 0..5 {
        let folder = TempDir::new().unwrap();
        let start = Barrier::new(REPLICAS);
        let begun = std::thread::scope(|scope| {
            let replicas = (0..REPLICAS).map(|number| {
                let (start, folder) = (&start, &folder);
                scope.spawn(move || {
                    let store: Arc<dyn Store> = Arc::new(Directory::open(folder.path()).unwrap());
                    let name = format!("r{number}").parse().unwrap();
                    let replica = Arc::new(Replica::new(name, store.clone(), TIMING));
                    start.wait();
                    let domain = "mesh.local".parse().unwrap();
                    let day = Duration::from_secs(86_400);
                    let authority = Authority::open(replica, domain, day, None).unwrap();
                    let tokens = Tokens::of(&*store).unwrap();
                    let token = tokens.issue("bank", "orders", Grant::default(), day).unwrap();
                    (authority.in_force().version.clone(), token)
                })
            });
            let replicas: Vec<_> = replicas.collect();
            replicas.into_iter().map(|replica| replica.join().unwrap()).collect::<Vec<_>>()
        });
        let versions: BTreeSet<_> = begun.iter().map(|(version, _)| version).collect();
        assert_eq!(versions.len(), 1);
        let tokens = Tokens::open(folder.path()).unwrap();
        assert!(begun.iter().all(|(_, token)| tokens.verify(token).is_ok()));
        let pem = std::fs::read_to_string(folder.path().join("trust-bundle.pem")).unwrap();
        assert_eq!(pem.matches("BEGIN CERTIFICATE").count(), 1);
    }
}

#[test]
fn no_namespace_is_lost_when_two_write_at_once() {
    let folder = TempDir::new().unwrap();
    let all: BTreeSet<String> = (0..80).map(|number| format!("n{number}")).collect();
    std::thread::scope(|scope| {
        for part in all.iter().cloned().collect::<Vec<_>>().chunks(20) {
            let (part, folder) = (part.to_vec(), &folder);
            scope.spawn(move || {
                let store = Directory::open(folder.path()).unwrap();
                for name in part {
                    namespaces::write(&store, &[name].into()).unwrap();
                }
            });
        }
    });
    assert_eq!(namespaces::read(&Directory::open(folder.path()).unwrap()), all);
}

const ORDERS: &str = "bank/orders:80";

async fn two_and_a_caller(timing: Timing) -> (Mesh, Mesh, Proxy) {
    let one = Mesh::with_timing(&[("orders.yaml", &service("orders"))], &[], timing).await;
    let two = one.replica("two").await;
    let mut proxy = one.proxy("bank.caller", "bank").await;
    proxy.dial(&["orders.bank:80"]).await;
    proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    (one, two, proxy)
}

fn rival(of: &mesh::Registration) -> mesh::Registration {
    mesh::Registration { session: "the session of another process".into(), ..of.clone() }
}

#[tokio::test]
async fn a_workload_of_one_replica_is_an_endpoint_at_the_other_and_keeps_its_name_there() {
    let (one, two, mut proxy) = two_and_a_caller(TIMING).await;
    let own = registration("bank", "orders-1", "orders", 9000);
    let mut first = two.register(own.clone()).await.unwrap();
    first.health(Health::Ready).await;
    proxy.until("ready", |p| p.endpoints(ORDERS) == ["bank.orders-1:9000"]).await;
    let refused = one.register(rival(&own)).await.err().unwrap();
    assert_eq!(refused.code(), Code::AlreadyExists, "{refused}");
    // It moves to the other replica as it is: nothing flaps, and its entry of before goes.
    let sent = proxy.log.len();
    let second = one.register(own).await.unwrap();
    let status = first.next().await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted, "{status}");
    let quiet = tokio::time::timeout(TIMING.poll * 5, proxy.next()).await;
    assert!(quiet.is_err(), "something was sent: {:?}", &proxy.log[sent..]);
    let seen = two.admin_json("/index").await;
    assert_eq!(seen["workloads"]["bank.orders-1"]["registration"]["connected"], true, "{seen:#}");
    drop(second.close());
    proxy.until("closed", |p| p.endpoints(ORDERS).is_empty()).await;
    two.admin_until("/index", |page| page["workloads"]["bank.orders-1"].is_null()).await;
}

#[tokio::test]
async fn a_name_claimed_at_two_replicas_within_a_second_is_the_first_ones() {
    let timing = Timing { poll: Duration::from_secs(1), ..TIMING };
    let (one, two, mut proxy) = two_and_a_caller(timing).await;
    let own = registration("bank", "orders-1", "orders", 9000);
    let mut first = one.register(own.clone()).await.unwrap();
    first.health(Health::Ready).await;
    // It is let in until the other replica's claim is seen, which may have been already.
    let status = match two.register(rival(&own)).await {
        Ok(mut second) => second.next().await.unwrap_err(),
        Err(status) => status,
    };
    assert_eq!(status.code(), Code::AlreadyExists, "{status}");
    proxy.until("ready", |p| p.endpoints(ORDERS) == ["bank.orders-1:9000"]).await;
    let quiet = tokio::time::timeout(timing.poll * 2, first.next()).await;
    assert!(quiet.is_err(), "{quiet:?}");
}

#[tokio::test]
async fn a_replica_that_stops_takes_no_endpoint_with_it_before_the_grace_period() {
    let flags = ["--grace-period=1s"];
    let one = Mesh::with_timing(&[("orders.yaml", &service("orders"))], &flags, TIMING).await;
    let two = one.replica("two").await;
    let own = registration("bank", "orders-1", "orders", 9000);
    let workload = two.register(own).await.unwrap();
    workload.health(Health::Ready).await;
    let mut proxy = one.proxy("bank.caller", "bank").await;
    proxy.dial(&["orders.bank:80"]).await;
    proxy.until("ready", |p| p.endpoints(ORDERS) == ["bank.orders-1:9000"]).await;
    let stopped = Instant::now();
    two.stop().await;
    proxy.until("gone", |p| p.endpoints(ORDERS).is_empty()).await;
    assert!(stopped.elapsed() >= Duration::from_secs(1), "{:?}", stopped.elapsed());
}
