//! Replacing what the mesh trusts while it runs: step by step, and by the user's own files.

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use outrigger_control_plane::options::{Cli, Command, StateDir, TrustStep};
use outrigger_control_plane::{server, trust};
use outrigger_logging::Log;
use outrigger_proto::wire;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use sha2::{Digest, Sha256};
use tempfile::TempDir;
use tonic::Code;

use crate::support::{LIMIT, Mesh, Proxy};
use crate::tls::{Client, certify, request};

/// What the command line prints, or its error.
async fn ask(mesh: &Mesh, words: &[&str]) -> Result<String, String> {
    let state = mesh.state().to_str().unwrap();
    let words = ["outrigger-control-plane", "trust"].iter().chain(words);
    let words: Vec<&str> = words.copied().chain(["--state-dir", state]).collect();
    let Some(Command::Trust { step }) = Cli::parse_from(words).command else { panic!("trust") };
    tokio::task::spawn_blocking(move || trust::ask(&step)).await.unwrap()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// A connected proxy that has not yet said which roots it trusts.
async fn connected(mesh: &Mesh, client: &Client) -> Proxy {
    let channel = client.channel(mesh).await;
    let proxy = Proxy::connect(channel, "bank.orders-1", "bank", None).await;
    proxy.subscribe(wire::TRUST_BUNDLE, &[wire::TRUST_BUNDLE_NAME]).await;
    proxy
}

/// Lets a proxy acknowledge until it has the newest bundle, as the control plane sees it.
async fn acknowledged(mesh: &Mesh, proxy: &mut Proxy) {
    let want = mesh.admin_json("/identity").await["bundle"].as_str().unwrap().to_owned();
    let key = ("TrustBundle".to_owned(), wire::TRUST_BUNDLE_NAME.to_owned());
    proxy
        .until("the bundle came", |p| p.held.get(&key).is_some_and(|held| held.version == want))
        .await;
    let page = |page: &serde_json::Value| {
        let lines = page["certificates"].as_array().unwrap();
        lines.iter().any(|line| line["node"] == "bank.orders-1" && line["bundle"] == want.as_str())
    };
    mesh.admin_until("/identity", page).await;
}

#[tokio::test]
async fn a_root_is_replaced_step_by_step_and_unsafe_steps_are_refused_by_name() {
    let mut mesh = Mesh::secure(&[], &[]).await;
    let (mut orders, mut absent) = (Client::new(), Client::new());
    orders.join(&mesh, "bank", "orders", "bank.orders-1").await.unwrap();
    absent.join(&mesh, "bank", "ledger", "bank.ledger-1").await.unwrap();
    let mut proxy = connected(&mesh, &orders).await;
    acknowledged(&mesh, &mut proxy).await;
    let old = mesh.admin_json("/identity").await["issuing_root"].as_str().unwrap().to_owned();

    let new = ask(&mesh, &["add-root"]).await.unwrap().trim().to_owned();
    let pem = fs::read_to_string(mesh.state().join("trust-bundle.pem")).unwrap();
    assert_eq!(pem.matches("BEGIN CERTIFICATE").count(), 2);
    let refused = |text: String, names: &[&str]| {
        assert!(names.iter().all(|name| text.contains(name)), "{text}, not {names:?}");
    };
    let connected_one =
        "bank.orders-1 (spiffe://outrigger.local/ns/bank/sa/orders) is connected and has not ack";
    let absent_one =
        "bank.ledger-1 (spiffe://outrigger.local/ns/bank/sa/ledger) is not connected and has not";
    let text = ask(&mesh, &["issue-from", &new]).await.unwrap_err();
    refused(text, &["is not safe yet", connected_one, absent_one]);
    refused(ask(&mesh, &["issue-from", "ffff"]).await.unwrap_err(), &["there is no root ffff"]);
    refused(ask(&mesh, &["issue-from", &new[..2]]).await.unwrap_err(), &["write more digits"]);
    let issues = &["is the issuing root: issue from another"];
    refused(ask(&mesh, &["remove-root", &old]).await.unwrap_err(), issues);
    acknowledged(&mesh, &mut proxy).await;
    let text = ask(&mesh, &["issue-from", &new]).await.unwrap_err();
    refused(text.clone(), &[absent_one]);
    assert!(!text.contains("bank.orders-1"), "{text}");
    ask(&mesh, &["issue-from", &new, "--ignore-absent"]).await.unwrap();
    let status = ask(&mesh, &["status"]).await.unwrap();
    assert!(status.contains("bank.orders-1") && status.contains("issuing"), "{status}");

    // Anyone who has both roots goes on, over a restart, too.
    let bundle = orders.roots_of(&mesh);
    (orders.roots, absent.roots) = (bundle.clone(), bundle);
    mesh.restart().await;
    let page = mesh.admin_json("/identity").await;
    assert!(page["issuing_root"].as_str().unwrap().starts_with(&new), "{page:#}");
    assert_eq!(page["certificates"].as_array().unwrap().len(), 2, "{page:#}");
    let mut proxy = connected(&mesh, &orders).await;
    acknowledged(&mesh, &mut proxy).await;
    let text = ask(&mesh, &["remove-root", &old, "--ignore-absent"]).await.unwrap_err();
    let under =
        "certificate of bank.orders-1 (spiffe://outrigger.local/ns/bank/sa/orders) is issued under";
    refused(text, &[under, "is connected with a certificate issued under it"]);

    // A renewal is issued under the new root, and the connection of before is asked to end.
    let before = orders.chain.clone();
    let channel = orders.channel(&mesh).await;
    let renewal = certify(channel.clone(), request(&orders, "bank.orders-1"), None).await.unwrap();
    drop(channel);
    orders.take(&renewal);
    let status = loop {
        match proxy.next().await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("newer certificate issued under another root"), "{status}");
    let text = ask(&mesh, &["remove-root", &old]).await.unwrap_err();
    refused(text, &["bank.ledger-1", "is issued under it and expires 20"]);
    let renewal = certify(absent.channel(&mesh).await, request(&absent, "bank.ledger-1"), None);
    absent.take(&renewal.await.unwrap());
    let started = std::time::Instant::now();
    while let Err(text) = ask(&mesh, &["remove-root", &old]).await {
        assert!(started.elapsed() < LIMIT, "{text}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }

    assert_eq!(mesh.admin_json("/identity").await["roots"].as_array().unwrap().len(), 1);
    orders.roots.clear();
    connected(&mesh, &orders).await;
    orders.chain = before;
    if let Ok(channel) = orders.try_channel(&mesh).await {
        assert!(Proxy::try_connect(channel, "bank.orders-1", "bank", None).await.is_err());
    }
    mesh.metric_until("handshakes_failed_total 1").await;
}

#[tokio::test]
async fn a_connection_ends_with_its_certificate_and_the_own_one_is_renewed() {
    let mut mesh = Mesh::secure(&[], &[]).await;
    mesh.restart_with_lifetime(Duration::from_secs(4)).await;
    let mut client = Client::new();
    client.join(&mesh, "bank", "orders", "bank.orders-1").await.unwrap();
    let mut proxy = connected(&mesh, &client).await;
    let status = loop {
        match proxy.next().await {
            Ok(_) => {}
            Err(status) => break status,
        }
    };
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.message().contains("the certificate has expired"), "{status}");
    // A stream that is cut is not counted any more.
    mesh.admin_until("/proxies", |page| page["proxies"].as_array().is_some_and(Vec::is_empty))
        .await;
    // The control plane's own certificate was as short, and is fresh.
    let token = mesh.token("bank", "orders");
    client.chain.clear();
    let request = request(&client, "bank.orders-1");
    certify(client.channel(&mesh).await, request, Some(&token)).await.unwrap();
}

/// An authority of the user: a root, and a pair below it.
struct Pki {
    root: String,
    root_id: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().unwrap();
        let params = authority(name);
        let root = params.self_signed(&key).unwrap();
        let root_id = hex(&Sha256::digest(root.der()));
        Self { root: root.pem(), root_id, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key, in PEM.
    fn pair(&self, name: &str) -> (String, String) {
        let key = KeyPair::generate().unwrap();
        let certificate = authority(name).signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }
}

fn authority(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

struct Files(TempDir);

impl Files {
    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path("new"), text).unwrap();
        fs::rename(self.path("new"), self.path(name)).unwrap();
    }

    fn flags(&self) -> Vec<String> {
        let flags = [("certificate", "ca.pem"), ("key", "ca.key"), ("root", "root.pem")];
        let flag =
            |(flag, file): (&str, &str)| format!("--ca-{flag}={}", self.path(file).display());
        flags.into_iter().map(flag).collect()
    }
}

#[tokio::test]
async fn an_issuing_certificate_of_the_user_is_followed() {
    let files = Files(TempDir::new().unwrap());
    let (one, two) = (Pki::new("one"), Pki::new("two"));
    let (certificate, key) = one.pair("one a");
    files.write("root.pem", &one.root);
    files.write("ca.pem", &certificate);
    files.write("ca.key", &key);
    let flags = files.flags();
    let mesh = Mesh::secure(&[], &flags.iter().map(String::as_str).collect::<Vec<_>>()).await;
    let mut client = Client::new();
    client.join(&mesh, "bank", "orders", "bank.orders-1").await.unwrap();
    assert_eq!(client.chain.len(), 2);
    assert_eq!(client.id(), "spiffe://outrigger.local/ns/bank/sa/orders");
    assert_eq!(mesh.admin_json("/identity").await["issuing_root"], one.root_id.as_str());
    let text = ask(&mesh, &["add-root"]).await.unwrap_err();
    assert!(text.contains("--ca-root"), "{text}");

    // A key that is not that of the certificate, and a file that is none: the last good one stays.
    let issued_by = client.chain[1].clone();
    let (second, second_key) = one.pair("one b");
    for broken in [second_key.as_str(), "nonsense"] {
        files.write("ca.key", broken);
        mesh.admin_until("/identity", |page| page["held"].is_string()).await;
        client.join(&mesh, "bank", "orders", "bank.orders-1").await.unwrap();
        assert_eq!(client.chain[1], issued_by);
    }
    files.write("ca.pem", &second);
    files.write("ca.key", &second_key);
    mesh.admin_until("/identity", |page| page["held"].is_null()).await;
    client.join(&mesh, "bank", "orders", "bank.orders-1").await.unwrap();
    assert_ne!(client.chain[1], issued_by);

    // Another root: known at once, issued under when everybody knows it, alone when nobody needs
    // the other.
    let mut proxy = connected(&mesh, &client).await;
    acknowledged(&mesh, &mut proxy).await;
    let (certificate, key) = two.pair("two a");
    files.write("root.pem", &format!("{}{}", one.root, two.root));
    files.write("ca.pem", &certificate);
    files.write("ca.key", &key);
    let page = mesh
        .admin_until("/identity", |page| {
            page["held"].as_str().is_some_and(|held| held.contains("bank.orders-1"))
                && page["roots"].as_array().is_some_and(|roots| roots.len() == 2)
        })
        .await;
    assert_eq!(page["issuing_root"], one.root_id.as_str());
    acknowledged(&mesh, &mut proxy).await;
    let two_id = two.root_id.as_str();
    mesh.admin_until("/identity", |page| page["issuing_root"] == two_id).await;
    files.write("root.pem", &two.root);
    let held = |page: &serde_json::Value| {
        page["held"].as_str().is_some_and(|held| {
            held.contains("stays for now: the newest certificate of bank.orders-1")
        })
    };
    mesh.admin_until("/identity", held).await;
    client.roots = client.roots_of(&mesh);
    let renewal = certify(client.channel(&mesh).await, request(&client, "bank.orders-1"), None);
    client.take(&renewal.await.unwrap());
    drop(proxy);
    mesh.admin_until("/identity", |page| page["roots"].as_array().is_some_and(|r| r.len() == 1))
        .await;
}

#[tokio::test]
async fn a_root_made_elsewhere_can_be_added_when_it_can_issue() {
    let mesh = Mesh::secure(&[], &[]).await;
    let files = Files(TempDir::new().unwrap());
    let (key, other) = (KeyPair::generate().unwrap(), KeyPair::generate().unwrap());
    let root = authority("elsewhere").self_signed(&key).unwrap();
    let leaf = CertificateParams::default().self_signed(&key).unwrap();
    files.write("root.pem", &root.pem());
    files.write("leaf.pem", &leaf.pem());
    files.write("key", &key.serialize_pem());
    files.write("other", &other.serialize_pem());
    for (certificate, key, want) in [
        ("leaf.pem", "key", Err("is not the certificate of an authority")),
        ("root.pem", "other", Err("the key is not that of the certificate")),
        ("key", "key", Err("is not a certificate in PEM")),
        ("root.pem", "key", Ok(hex(&Sha256::digest(root.der())[..8]))),
        ("root.pem", "key", Err("is already there")),
    ] {
        let step = TrustStep::AddRoot {
            certificate: Some(files.path(certificate)),
            key: Some(files.path(key)),
            at: StateDir { state_dir: mesh.state().to_owned() },
        };
        let answer = tokio::task::spawn_blocking(move || trust::ask(&step)).await.unwrap();
        match (answer, want) {
            (Ok(name), Ok(want)) => assert_eq!(name.trim(), want),
            (Err(text), Err(want)) => assert!(text.contains(want), "{text}, not {want}"),
            (answer, want) => panic!("{answer:?}, not {want:?}"),
        }
    }
}

#[tokio::test]
async fn what_cannot_work_does_not_start_and_says_why() {
    let (folder, state) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let path = |dir: &TempDir| dir.path().to_str().unwrap().to_owned();
    let (manifests, state_dir) = (path(&folder), path(&state));
    let start = async |more: &[&str]| {
        let mut args = vec!["outrigger-control-plane", "--manifests", &manifests];
        args.extend(["--listen=127.0.0.1:0", "--admin=127.0.0.1:0"].iter().chain(more));
        server::start(Cli::parse_from(args).options, Log::unread())
            .await
            .map_err(|error| error.to_string())
    };
    let refused = |result: Result<server::Server, String>, want: &str| {
        let error = result.err().unwrap();
        assert!(error.contains(want), "{error}, not {want}");
    };
    refused(start(&[]).await, "--identity on, the default, needs --state-dir");
    refused(start(&["--identity=off", "--mtls=strict"]).await, "--mtls strict needs --identity on");
    let with_state = ["--state-dir", state_dir.as_str()];
    start(&with_state).await.unwrap().stop().await;
    let other = [&with_state[..], &["--trust-domain=other.local"]].concat();
    refused(start(&other).await, "is for the trust domain outrigger.local");
    let roots = state.path().join("ca/roots.json");
    let text = fs::read_to_string(&roots).unwrap();
    fs::write(&roots, &text[..text.len() / 2]).unwrap();
    refused(start(&with_state).await, "is damaged");
    fs::write(&roots, text).unwrap();
    let missing = state.path().join("nothing").to_str().unwrap().to_owned();
    let flags = ["certificate", "key", "root"].map(|flag| format!("--ca-{flag}={missing}"));
    let flags: Vec<&str> = flags.iter().map(String::as_str).collect();
    refused(start(&[&with_state[..], &flags].concat()).await, "nothing: No such file");
    // A lost ledger is said, and begun anew.
    fs::write(state.path().join("certificates.json"), "{").unwrap();
    start(&with_state).await.unwrap().stop().await;
}
