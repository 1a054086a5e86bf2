//! Workloads that register themselves.

use std::time::Duration;

use outrigger_control_plane::grant::Grant;
use outrigger_proto::mesh::{self, Health, register_response};
use outrigger_proto::wire;
use prost::Message;
use tonic::Code;

use crate::support::{LIMIT, Mesh, Proxy, channel, register_at, registration, service};

const ORDERS: &str = "bank/orders:80";

async fn mesh_and_caller(flags: &[&str]) -> (Mesh, Proxy) {
    let mesh = Mesh::with_flags(&[("orders.yaml", &service("orders"))], flags).await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["orders.bank:80"]).await;
    proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    (mesh, proxy)
}

#[tokio::test]
async fn a_workload_is_an_endpoint_while_it_is_ready() {
    let (mesh, mut proxy) = mesh_and_caller(&[]).await;
    let workload = mesh.register(registration("bank", "orders-1", "orders", 9000)).await.unwrap();
    workload.health(Health::Starting).await;
    workload.health(Health::Ready).await;
    proxy.until("ready", |p| p.endpoints(ORDERS) == ["bank.orders-1:9000"]).await;
    let name = "bank/orders:80/bank.orders-1:9000".to_owned();
    let body = proxy.held[&("Endpoint".to_owned(), name.clone())].body.clone();
    let endpoint = mesh::Endpoint::decode(body).unwrap();
    assert_eq!(endpoint.address, "127.0.0.1:9000");
    assert_eq!(endpoint.mesh.unwrap().address, "127.0.0.1:9001");
    assert_eq!(endpoint.workload, "bank/orders");
    workload.health(Health::Unhealthy).await;
    proxy.until("unhealthy", |p| p.endpoints(ORDERS).is_empty()).await;
    workload.health(Health::Ready).await;
    proxy.until("ready again", |p| p.has("Endpoint", &name)).await;
    let responses = workload.close();
    proxy.until("closed", |p| p.endpoints(ORDERS).is_empty()).await;
    drop(responses);
}

#[tokio::test]
async fn draining_is_answered_when_every_proxy_has_acknowledged() {
    let (mesh, mut proxy) = mesh_and_caller(&[]).await;
    let mut workload =
        mesh.register(registration("bank", "orders-1", "orders", 9000)).await.unwrap();
    workload.health(Health::Ready).await;
    proxy.until("ready", |p| !p.endpoints(ORDERS).is_empty()).await;
    // The proxy has not read the removal yet, so the answer has to wait for it.
    workload.health(Health::Draining).await;
    let early = tokio::time::timeout(Duration::from_millis(200), workload.next()).await;
    assert!(early.is_err(), "answered before the proxy had acknowledged");
    proxy.until("removed", |p| p.endpoints(ORDERS).is_empty()).await;
    let answer = workload.next().await.unwrap();
    assert!(matches!(answer, register_response::Message::Removed(_)));
}

#[tokio::test]
async fn a_workload_sees_its_own_ports_also_while_it_starts_and_drains() {
    let mesh = Mesh::start(&[("orders.yaml", &service("orders"))]).await;
    let mut own = mesh.proxy("bank.orders-1", "bank").await;
    own.subscribe(wire::INBOUND, &["bank.orders-1"]).await;
    own.until("unknown yet", |p| p.removed.contains("bank.orders-1")).await;
    let workload = mesh.register(registration("bank", "orders-1", "orders", 9000)).await.unwrap();
    own.until("inbound", |p| p.has("Inbound", "bank.orders-1")).await;
    let body = own.held[&("Inbound".to_owned(), "bank.orders-1".to_owned())].body.clone();
    let inbound = mesh::Inbound::decode(body).unwrap();
    assert_eq!(inbound.ports[0].service, ORDERS);
    assert_eq!(inbound.ports[0].protocol(), mesh::Protocol::Http1);
    workload.health(Health::Ready).await;
    workload.health(Health::Draining).await;
    mesh.admin_until("/index", |page| {
        page["workloads"]["bank.orders-1"]["registration"]["health"] == "draining"
    })
    .await;
    assert!(own.has("Inbound", "bank.orders-1"));
}

/// A workload in a process of its own, as far as its connection is concerned.
struct Elsewhere(Option<tokio::runtime::Runtime>);

impl Elsewhere {
    /// Registers and becomes ready.
    async fn start(mesh: &Mesh, registration: mesh::Registration) -> Self {
        let token = mesh.token(&registration.namespace, &registration.service_account);
        let address = mesh.server().discovery;
        let runtime = tokio::runtime::Runtime::new().unwrap();
        let (done, ready) = tokio::sync::oneshot::channel();
        runtime.spawn(async move {
            let workload = register_at(address, registration, &token).await.unwrap();
            workload.health(Health::Ready).await;
            done.send(()).unwrap();
            std::future::pending::<()>().await;
            drop(workload);
        });
        ready.await.unwrap();
        Self(Some(runtime))
    }

    /// The process vanishes; nothing is closed in order.
    fn kill(mut self) {
        self.0.take().unwrap().shutdown_background();
    }
}

#[tokio::test]
async fn a_broken_stream_is_forgiven_for_the_grace_period_and_no_longer() {
    const GRACE: Duration = Duration::from_millis(500);
    let (mesh, mut proxy) = mesh_and_caller(&["--grace-period=500ms"]).await;
    let workload = registration("bank", "orders-1", "orders", 9000);
    let first = Elsewhere::start(&mesh, workload.clone()).await;
    proxy.until("ready", |p| !p.endpoints(ORDERS).is_empty()).await;
    let sent = proxy.log.len();
    let connected = |want: bool| {
        move |page: &serde_json::Value| {
            page["workloads"]["bank.orders-1"]["registration"]["connected"] == want
        }
    };
    first.kill();
    mesh.admin_until("/index", connected(false)).await;
    // It comes back in time, and nobody notices.
    let second = Elsewhere::start(&mesh, workload.clone()).await;
    mesh.admin_until("/index", connected(true)).await;
    // It is replaced by itself: the end of the old stream must not end the new one.
    let third = Elsewhere::start(&mesh, workload).await;
    second.kill();
    let quiet = tokio::time::timeout(GRACE * 2, proxy.next()).await;
    assert!(quiet.is_err(), "something was sent: {:?}", &proxy.log[sent..]);
    let killed = std::time::Instant::now();
    third.kill();
    proxy.until("removed", |p| p.endpoints(ORDERS).is_empty()).await;
    assert!(killed.elapsed() >= GRACE, "{:?}", killed.elapsed());
}

#[tokio::test]
async fn a_restart_withdraws_no_endpoint_until_the_grace_period_is_over() {
    let (mut mesh, mut proxy) = mesh_and_caller(&["--grace-period=1s"]).await;
    let stays = registration("bank", "orders-1", "orders", 9000);
    let leaves = registration("bank", "orders-2", "orders", 9100);
    let a = mesh.register(stays.clone()).await.unwrap();
    let b = mesh.register(leaves).await.unwrap();
    a.health(Health::Ready).await;
    b.health(Health::Ready).await;
    proxy.until("ready", |p| p.endpoints(ORDERS).len() == 2).await;
    mesh.restart().await;
    let mut proxy = mesh.proxy("bank.caller", "bank").await;
    proxy.dial(&["orders.bank:80"]).await;
    proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    assert_eq!(proxy.endpoints(ORDERS).len(), 2, "{:?}", proxy.log);
    let again = mesh.register(stays).await.unwrap();
    again.health(Health::Ready).await;
    proxy.until("forgotten", |p| p.endpoints(ORDERS) == ["bank.orders-1:9000"]).await;
}

#[tokio::test]
async fn a_registration_must_fit_its_token_and_its_origin() {
    let mesh = Mesh::start(&[]).await;
    let token = mesh.token("bank", "orders");
    let good = registration("bank", "orders-1", "orders", 9000);
    let cases = [
        ("another namespace", mesh::Registration { namespace: "shop".into(), ..good.clone() }),
        ("another account", mesh::Registration { service_account: "a".into(), ..good.clone() }),
        ("another address", mesh::Registration { address: "10.1.2.3".into(), ..good.clone() }),
    ];
    for (what, registration) in cases {
        let error = mesh.register_with(registration, &token).await.err().expect(what);
        assert_eq!(error.code(), Code::PermissionDenied, "{what}: {error}");
    }
    let invalid = mesh::Registration { name: "No.Label".into(), ..good.clone() };
    let error = mesh.register_with(invalid, &token).await.err().unwrap();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().starts_with("name: "), "{error}");
    for token in ["", "garbage", &format!("{token}x")] {
        let error = mesh.register_with(good.clone(), token).await.err().unwrap();
        assert_eq!(error.code(), Code::Unauthenticated);
    }
    let again = mesh.register_with(good, &token).await;
    assert!(again.is_ok());
}

#[tokio::test]
async fn discovery_takes_no_token_or_a_good_one() {
    let mesh = Mesh::start(&[("orders.yaml", &service("orders"))]).await;
    let token = mesh.token("bank", "orders");
    let address = mesh.server().discovery;
    let mut proxy =
        Proxy::connect(channel(address).await, "bank.orders-1", "bank", Some(&token)).await;
    proxy.dial(&["orders.bank:80"]).await;
    proxy.until("known", |p| p.has("Destination", ORDERS)).await;
    let other = Proxy::connect(channel(address).await, "shop.a", "shop", Some(&token));
    let mut other = tokio::time::timeout(LIMIT, other).await.unwrap();
    assert_eq!(other.next().await.unwrap_err().code(), Code::PermissionDenied);
}

/// The same workload as another process would register it, from elsewhere.
fn rival(of: &mesh::Registration) -> mesh::Registration {
    mesh::Registration {
        session: "somebody else's session".into(),
        ports: registration("bank", "x", "x", 9900).ports,
        mesh: registration("bank", "x", "x", 9900).mesh,
        ..of.clone()
    }
}

#[track_caller]
fn refused(mesh: Result<crate::support::RegisteredWorkload, tonic::Status>) {
    let error = mesh.err().expect("the name is somebody else's");
    assert_eq!(error.code(), Code::AlreadyExists, "{error}");
    assert!(error.message().starts_with("name: bank.orders-1 is registered by"), "{error}");
}

#[tokio::test]
async fn a_name_stays_with_its_holder_while_that_is_alive() {
    let (mesh, mut proxy) = mesh_and_caller(&[]).await;
    let own = registration("bank", "orders-1", "orders", 9000);
    let mut first = mesh.register(own.clone()).await.unwrap();
    first.health(Health::Ready).await;
    proxy.until("ready", |p| p.endpoints(ORDERS) == ["bank.orders-1:9000"]).await;
    let sent = proxy.log.len();
    for session in ["somebody else's session", ""] {
        let other = mesh::Registration { session: session.into(), ..own.clone() };
        refused(mesh.register(other).await);
        refused(mesh.register(mesh::Registration { session: session.into(), ..rival(&own) }).await);
    }
    let quiet = tokio::time::timeout(Duration::from_millis(200), proxy.next()).await;
    assert!(quiet.is_err(), "something was sent: {:?}", &proxy.log[sent..]);
    // The holder itself may come again, also with another address, and its earlier stream is told.
    let moved = mesh::Registration { session: own.session.clone(), ..rival(&own) };
    let second = mesh.register(moved).await.unwrap();
    assert_eq!(first.next().await.unwrap_err().code(), Code::Aborted);
    second.health(Health::Ready).await;
    proxy.until("moved", |p| p.endpoints(ORDERS) == ["bank.orders-1:9900"]).await;
    // Once it says good-bye the name is free.
    drop(second.close());
    proxy.until("removed", |p| p.endpoints(ORDERS).is_empty()).await;
    mesh.register(rival(&own)).await.unwrap();
}

#[tokio::test]
async fn a_name_is_free_when_its_holder_is_dead_and_not_before_it_could_come_back() {
    let (mesh, mut proxy) = mesh_and_caller(&[]).await;
    let own = registration("bank", "orders-1", "orders", 9000);
    let first = Elsewhere::start(&mesh, own.clone()).await;
    proxy.until("ready", |p| !p.endpoints(ORDERS).is_empty()).await;
    let killed = std::time::Instant::now();
    first.kill();
    mesh.admin_until("/index", |page| {
        page["workloads"]["bank.orders-1"]["registration"]["connected"] == false
    })
    .await;
    // A moment's interruption is no opportunity.
    refused(mesh.register(rival(&own)).await);
    let again = mesh.register(own.clone()).await.unwrap();
    refused(mesh.register(rival(&own)).await);
    drop(again);
    mesh.admin_until("/index", |page| page["workloads"].get("bank.orders-1").is_none()).await;
    let second = Elsewhere::start(&mesh, own.clone()).await;
    second.kill();
    let heir = loop {
        match mesh.register(rival(&own)).await {
            Ok(heir) => break heir,
            Err(error) => assert_eq!(error.code(), Code::AlreadyExists, "{error}"),
        }
        assert!(killed.elapsed() < LIMIT, "the name is never free");
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    // Now it is the other one's.
    refused(mesh.register(own).await);
    drop(heir);
}

#[tokio::test]
async fn a_restart_gives_no_name_away() {
    let (mut mesh, _proxy) = mesh_and_caller(&[]).await;
    let own = registration("bank", "orders-1", "orders", 9000);
    let first = mesh.register(own.clone()).await.unwrap();
    first.health(Health::Ready).await;
    mesh.admin_until("/index", |page| page["workloads"]["bank.orders-1"]["ready"] == true).await;
    mesh.restart().await;
    refused(mesh.register(rival(&own)).await);
    mesh.register(own).await.unwrap();
}

#[tokio::test]
async fn a_token_may_be_bound_to_names_and_labels() {
    let mesh = Mesh::start(&[]).await;
    let own = registration("bank", "orders-1", "orders", 9000);
    let labels = own.labels.clone();
    let by_name =
        Grant { workloads: vec!["orders-1".into(), "orders-2".into()], ..Grant::default() };
    let by_label = Grant { labels: labels.clone(), ..Grant::default() };
    let name = |name: &str| mesh::Registration { name: name.to_owned(), ..own.clone() };
    let label = |pairs: &[(&str, &str)]| mesh::Registration {
        labels: pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
        ..own.clone()
    };
    for (grant, registration, problem) in [
        (&by_name, name("orders-1"), None),
        (&by_name, name("orders-2"), None),
        (
            &by_name,
            name("ledger-1"),
            Some("name: the join token is bound to the workload orders-1, orders-2"),
        ),
        (&by_label, name("anything"), None),
        (
            &by_label,
            label(&[("app", "ledger")]),
            Some("labels: the join token is bound to exactly app=orders"),
        ),
        (&by_label, label(&[]), Some("labels: ")),
        // One more label could be the one that another Service selects.
        (&by_label, label(&[("app", "orders"), ("tier", "ledger")]), Some("labels: ")),
    ] {
        let token = mesh.bound_token("bank", "orders", grant.clone());
        match (mesh.register_with(registration.clone(), &token).await, problem) {
            (Ok(workload), None) => drop(workload.close()),
            (Err(error), Some(problem)) => {
                assert_eq!(error.code(), Code::PermissionDenied, "{error}");
                assert!(error.message().starts_with(problem), "{error}");
            }
            (Ok(_), Some(_)) => panic!("{registration:?} was taken"),
            (Err(error), None) => panic!("{registration:?}: {error}"),
        }
    }
}

#[tokio::test]
async fn a_name_is_free_at_once_when_its_holder_has_drained() {
    let (mesh, _proxy) = mesh_and_caller(&[]).await;
    let own = registration("bank", "orders-1", "orders", 9000);
    let workload = mesh.register(own.clone()).await.unwrap();
    workload.health(Health::Draining).await;
    mesh.admin_until("/index", |page| {
        page["workloads"]["bank.orders-1"]["registration"]["health"] == "draining"
    })
    .await;
    // Both ways at once, as a process that ends does.
    drop(workload);
    mesh.admin_until("/index", |page| {
        page["workloads"]["bank.orders-1"]["registration"]["connected"] != true
    })
    .await;
    mesh.register(rival(&own)).await.unwrap();
}
