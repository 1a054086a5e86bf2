//! Certificates: who gets which, what is served without one, and what an identity may do.

use outrigger_control_plane::grant::Grant;
use outrigger_core::config::MtlsMode;
use outrigger_core::identity::SpiffeId;
use outrigger_proto::convert;
use outrigger_proto::mesh::{self, Health};
use outrigger_proto::wire;
use prost::Message;
use tonic::Code;

use crate::support::{Mesh, Proxy, register_over, registration, service};
use crate::tls::{Client, certify, request};

/// Names of a certificate request that ask for somebody else.
const SOMEBODY_ELSE: &str = "spiffe://outrigger.local/ns/outrigger-system/sa/control-plane";

#[tokio::test]
async fn a_token_gets_exactly_its_own_identity() {
    let mesh = Mesh::secure(&[], &[]).await;
    let mut client = Client::new();
    client.asks_for = vec![SOMEBODY_ELSE.to_owned()];
    client.join(&mesh, "bank", "orders", "bank.orders-1").await.unwrap();
    assert_eq!(client.id(), "spiffe://outrigger.local/ns/bank/sa/orders");
    let page = mesh.admin_json("/identity").await;
    let line = &page["certificates"][0];
    assert_eq!(line["node"], "bank.orders-1", "{page:#}");
    assert_eq!(line["identity"], "spiffe://outrigger.local/ns/bank/sa/orders");
    assert_eq!(line["root"], page["issuing_root"]);
    let metrics = mesh.admin("/metrics").await;
    assert!(metrics.contains("outrigger_control_plane_certificates_issued_total 1"), "{metrics}");
    for metric in ["certificate_expiry", "ca_expiry", "root_expiry"] {
        let name = format!("outrigger_control_plane_{metric}_timestamp_seconds");
        assert!(metrics.lines().any(|l| l.starts_with(&name) && !l.ends_with(" 0")), "{name}");
    }
    let text = std::fs::read_to_string(mesh.state().join("trust-bundle.pem")).unwrap();
    assert_eq!(text.matches("BEGIN CERTIFICATE").count(), 1);
}

#[tokio::test]
async fn without_a_sound_token_there_is_no_certificate() {
    let mesh = Mesh::secure(&[], &[]).await;
    let other = Mesh::secure(&[], &[]).await;
    let expired = mesh.expired_token("bank", "orders");
    for (token, code, text) in [
        (None, Code::Unauthenticated, "a join token is required"),
        (Some(other.token("bank", "orders")), Code::Unauthenticated, "not valid here"),
        (Some(expired), Code::Unauthenticated, "has expired"),
        (Some("garbage".to_owned()), Code::Unauthenticated, "not valid here"),
        (
            Some(mesh.token("outrigger-system", "control-plane")),
            Code::PermissionDenied,
            "the control plane's own identity",
        ),
    ] {
        let client = Client::new();
        let request = request(&client, "bank.orders-1");
        let status = certify(client.channel(&mesh).await, request, token.as_deref()).await;
        let status = status.unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        assert!(status.message().contains(text), "{status}");
    }
    let metrics = mesh.admin("/metrics").await;
    for (reason, count) in [("no_credential", 1), ("token_invalid", 2), ("token_expired", 1)] {
        let line = format!("certificates_refused_total{{reason=\"{reason}\"}} {count}");
        assert!(metrics.contains(&line), "{line}: {metrics}");
    }
}

#[tokio::test]
async fn hostile_requests_are_refused_by_field() {
    let mesh = Mesh::secure(&[], &[]).await;
    let client = Client::new();
    let good = request(&client, "bank.orders-1");
    let mut broken = good.csr.to_vec();
    let last = broken.len() - 1;
    broken[last] ^= 1;
    let wrong_curve = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap();
    let wrong_curve = rcgen::CertificateParams::default().serialize_request(&wrong_curve).unwrap();
    let rsa = include_bytes!("cases/rsa.csr");
    for (csr, node, text) in [
        (broken, "n", "csr: the signature does not fit the key"),
        (vec![0x30; 5000], "n", "csr: has 5000 bytes, at most 4096 are allowed"),
        (Vec::new(), "n", "csr: is not a PKCS#10 request"),
        (wrong_curve.der().to_vec(), "n", "csr: the key is not an uncompressed P-256 key"),
        (rsa.to_vec(), "n", "csr: the key is not an uncompressed P-256 key"),
        (good.csr.to_vec(), "", "node: must be"),
        (good.csr.to_vec(), "two words", "node: must be"),
    ] {
        let mut request = good.clone();
        (request.csr, request.node) = (csr.into(), node.to_owned());
        let token = mesh.token("bank", "orders");
        let status = certify(client.channel(&mesh).await, request, Some(&token)).await;
        let status = status.unwrap_err();
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
        assert!(status.message().contains(text), "{status}");
    }
    let mut huge = good;
    huge.csr = vec![0; 64 * 1024].into();
    let token = mesh.token("bank", "orders");
    let status = certify(client.channel(&mesh).await, huge, Some(&token)).await.unwrap_err();
    assert_eq!(status.code(), Code::OutOfRange, "{status}");
}

#[tokio::test]
async fn only_certify_is_served_without_a_certificate() {
    let mesh = Mesh::secure(&[], &[]).await;
    let unregistered = Client::new();
    let token = mesh.token("bank", "orders");
    let refused = [
        Proxy::try_connect(
            unregistered.channel(&mesh).await,
            "bank.orders-1",
            "bank",
            Some(&token),
        )
        .await
        .err(),
        register_over(
            unregistered.channel(&mesh).await,
            registration("bank", "orders-1", "orders", 9000),
            Some(&token),
        )
        .await
        .err(),
    ];
    for status in refused {
        let status = status.unwrap();
        assert_eq!(status.code(), Code::Unauthenticated);
        assert!(status.message().contains("a client certificate is required"), "{status}");
    }
    // A certificate of another mesh does not even get so far.
    let other = Mesh::secure(&[], &[]).await;
    let mut foreign = Client::new();
    foreign.join(&other, "bank", "orders", "bank.orders-1").await.unwrap();
    foreign.roots = unregistered.roots_of(&mesh);
    let connected = foreign.try_channel(&mesh).await;
    if let Ok(channel) = connected {
        let refused = Proxy::try_connect(channel, "bank.orders-1", "bank", None).await;
        assert!(refused.is_err());
    }
    mesh.metric_until("outrigger_control_plane_handshakes_failed_total 1").await;
}

#[tokio::test]
async fn an_identity_may_do_only_what_is_its_own() {
    let mesh = Mesh::secure(&[("a.yaml", &service("orders"))], &["--mtls=strict"]).await;
    let mut client = Client::new();
    client.join(&mesh, "bank", "orders", "bank.orders-1").await.unwrap();
    // Discovery in another namespace.
    let mut other = Proxy::connect(client.channel(&mesh).await, "shop.x", "shop", None).await;
    let status = other.next().await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(status.message(), "the certificate is for another namespace");
    // Registering as somebody else, whatever the token says.
    let token = mesh.token("bank", "ledger");
    for (namespace, account) in [("bank", "ledger"), ("shop", "orders")] {
        let wanted = registration(namespace, "x", account, 9000);
        let refused = register_over(client.channel(&mesh).await, wanted, Some(&token)).await;
        let status = refused.err().unwrap();
        assert_eq!(status.code(), Code::PermissionDenied);
        assert!(status.message().contains("the certificate is for another one"), "{status}");
    }
    // Its own, without a token: published with the identity that the control plane decided.
    let mut own = registration("bank", "orders-1", "orders", 9000);
    own.mesh.as_mut().unwrap().identity = SOMEBODY_ELSE.to_owned();
    let channel = client.channel(&mesh).await;
    let registered = register_over(channel.clone(), own, None).await.unwrap();
    registered.health(Health::Ready).await;
    let mut proxy = Proxy::connect(channel, "bank.orders-1", "bank", None).await;
    proxy.dial(&["orders.bank:80"]).await;
    proxy.subscribe(wire::INBOUND, &["bank.orders-1"]).await;
    let endpoint = "bank/orders:80/bank.orders-1:9000";
    proxy
        .until("all came", |p| p.has("Endpoint", endpoint) && p.has("Inbound", "bank.orders-1"))
        .await;
    let body = &proxy.held[&("Endpoint".to_owned(), endpoint.to_owned())].body;
    let endpoint = outrigger_proto::mesh::Endpoint::decode(body.clone()).unwrap();
    let identity = endpoint.mesh.unwrap().identity;
    assert_eq!(identity, "spiffe://outrigger.local/ns/bank/sa/orders");
    let body = &proxy.held[&("Inbound".to_owned(), "bank.orders-1".to_owned())].body;
    let inbound = outrigger_proto::mesh::Inbound::decode(body.clone()).unwrap();
    let inbound = convert::inbound::from_wire(&inbound).unwrap();
    assert_eq!(inbound.ports[0].mtls, MtlsMode::Strict);
    // The ports of a workload of another account are not to be seen, under whatever node.
    let mut spy = Client::new();
    spy.join(&mesh, "bank", "spy", "bank.orders-1").await.unwrap();
    let mut spying = Proxy::connect(spy.channel(&mesh).await, "bank.orders-1", "bank", None).await;
    spying.subscribe(wire::INBOUND, &["bank.orders-1"]).await;
    spying.until("refused", |p| p.removed.contains("bank.orders-1")).await;
    assert!(!spying.has("Inbound", "bank.orders-1"));
}

#[tokio::test]
async fn a_certificate_renews_itself() {
    let mesh = Mesh::secure(&[], &[]).await;
    let mut client = Client::new();
    client.join(&mesh, "bank", "orders", "bank.orders-1").await.unwrap();
    let first = client.chain.clone();
    // By the connection's certificate alone, and beside a token that has ended.
    for token in [None, Some(mesh.expired_token("bank", "orders"))] {
        let request = request(&client, "bank.orders-1");
        let channel = client.channel(&mesh).await;
        let response = certify(channel, request, token.as_deref()).await.unwrap();
        client.take(&response);
        assert_eq!(client.id(), "spiffe://outrigger.local/ns/bank/sa/orders");
    }
    assert_ne!(first, client.chain);
    // A foreign token is never overlooked.
    let other = Mesh::secure(&[], &[]).await.token("bank", "orders");
    let request = request(&client, "bank.orders-1");
    let refused = certify(client.channel(&mesh).await, request, Some(&other)).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let page = mesh.admin_json("/identity").await;
    assert_eq!(page["certificates"].as_array().unwrap().len(), 1, "{page:#}");
}

#[tokio::test]
async fn the_control_plane_shows_its_own_identity_and_tls_1_3() {
    let mesh = Mesh::secure(&[], &["--trust-domain=bank.example"]).await;
    let client = Client::new();
    client.channel(&mesh).await;
    let id = SpiffeId::control_plane(&"bank.example".parse().unwrap());
    assert_eq!(client.peer_id(&mesh).await, id.as_str());
    assert!(client.speaks_tls_1_2(&mesh).await.is_err());
}

#[tokio::test]
async fn what_a_token_binds_holds_for_its_certificates() {
    let mesh = Mesh::secure(&[], &[]).await;
    let own = registration("bank", "orders-1", "orders", 9000);
    let other = registration("bank", "ledger-1", "orders", 9100);
    // Somebody of the same account without bounds is known by that name.
    let mut free = Client::new();
    free.join(&mesh, "bank", "orders", "bank.ledger-1").await.unwrap();
    let grant = Grant { workloads: vec!["orders-1".to_owned()], ..Grant::default() };
    let token = mesh.bound_token("bank", "orders", grant);
    let mut bound = Client::new();
    let status =
        certify(bound.channel(&mesh).await, request(&bound, "bank.ledger-1"), Some(&token));
    let status = status.await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let asked = request(&bound, "bank.orders-1");
    let response = certify(bound.channel(&mesh).await, asked, Some(&token)).await.unwrap();
    bound.take(&response);
    let check = async |client: &Client| {
        let status = register_over(client.channel(&mesh).await, other.clone(), None).await.err();
        let status = status.expect("the name is not the token's");
        assert_eq!(status.code(), Code::PermissionDenied, "{status}");
        assert!(status.message().starts_with("name: the certificate is bound to"), "{status}");
        let taken = register_over(client.channel(&mesh).await, own.clone(), None).await.unwrap();
        drop(taken.close());
    };
    check(&bound).await;
    // A renewal widens nothing, whatever node it names.
    let renewal = request(&bound, "bank.ledger-1");
    let status = certify(bound.channel(&mesh).await, renewal, None).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let renewal = request(&bound, "bank.orders-1");
    let response = certify(bound.channel(&mesh).await, renewal, None).await.unwrap();
    bound.take(&response);
    check(&bound).await;
}

#[tokio::test]
async fn any_address_is_for_the_token_that_says_so_and_not_for_its_account() {
    let mesh = Mesh::secure(&[], &[]).await;
    let away = mesh::Registration {
        address: "10.1.2.3".to_owned(),
        mesh: None,
        ..registration("bank", "orders-1", "orders", 9000)
    };
    let grant = Grant { any_address: true, ..Grant::default() };
    let token = mesh.bound_token("bank", "orders", grant);
    let mut trusted = Client::new();
    let asked = request(&trusted, "bank.orders-1");
    let response = certify(trusted.channel(&mesh).await, asked, Some(&token)).await.unwrap();
    trusted.take(&response);
    let taken = register_over(trusted.channel(&mesh).await, away.clone(), None).await.unwrap();
    drop(taken.close());
    // Another one of the account that calls itself the same.
    let mut unregistered = Client::new();
    unregistered.join(&mesh, "bank", "orders", "bank.orders-2").await.unwrap();
    let renewal = request(&unregistered, "bank.orders-1");
    let response = certify(unregistered.channel(&mesh).await, renewal, None).await.unwrap();
    unregistered.take(&response);
    let status = register_over(unregistered.channel(&mesh).await, away, None).await.err().unwrap();
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
}
