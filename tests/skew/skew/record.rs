//! What the present release's programs say to each other, and the command that writes it down:
//!
//! `OUTRIGGER_RECORD_SKEW=1 cargo nextest run -p outrigger-tests --test skew recorded`
//!
//! A proxy that has registered talks to a control plane through a tap. Anyone who changes what either says runs this
//! before a release; what older releases have said is never changed.

use std::collections::BTreeSet;
use std::fs;
use std::process::Command;
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http::HeaderValue;
use outrigger_proto::identity::CertifyRequest;
use outrigger_proto::mesh::{FaultCaller, StopRequest};
use outrigger_proto::wire::{self, DeltaDiscoveryResponse};
use outrigger_tests::app::Echo;
use outrigger_tests::client;
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Process, TempDir, binary, free_port, local};
use prost::Message;
use rcgen::{CertificateParams, KeyPair};

use super::raw::{self, Call, Client, LIMIT};
use super::walk::Messages;
use super::{Release, schema};

const RECORD: &str = "OUTRIGGER_RECORD_SKEW";

pub(super) const MESH: &str = "mesh.yaml";
pub(super) const DISCOVERY: &str =
    "/envoy.service.discovery.v3.AggregatedDiscoveryService/DeltaAggregatedResources";
pub(super) const REGISTER: &str = "/outrigger.mesh.v1.Workload/Register";
pub(super) const STOP: &str = "/outrigger.mesh.v1.Experiments/Stop";
pub(super) const CERTIFY: &str = "/outrigger.identity.v1.Identity/Certify";

/// The calls with the files of their two sides, and the messages that these hold.
pub(super) const CALLS: [(&str, [(&str, &str); 2]); 4] = [
    (
        DISCOVERY,
        [
            ("discovery.requests", ".envoy.service.discovery.v3.DeltaDiscoveryRequest"),
            ("discovery.responses", ".envoy.service.discovery.v3.DeltaDiscoveryResponse"),
        ],
    ),
    (
        REGISTER,
        [
            ("registration.requests", ".outrigger.mesh.v1.RegisterRequest"),
            ("registration.responses", ".outrigger.mesh.v1.RegisterResponse"),
        ],
    ),
    (
        STOP,
        [
            ("experiments.requests", ".outrigger.mesh.v1.StopRequest"),
            ("experiments.responses", ".outrigger.mesh.v1.StopResponse"),
        ],
    ),
    (
        CERTIFY,
        [
            ("identity.requests", ".outrigger.identity.v1.CertifyRequest"),
            ("identity.responses", ".outrigger.identity.v1.CertifyResponse"),
        ],
    ),
];

/// What no object says.
const FLAGS: &[&str] = &[
    "--identity=off",
    "--access-log=1/100",
    "--access-log-slower-than=3s",
    "--access-log-layout=logstash",
    "--otlp-logs=http://127.0.0.1:1",
    "--otlp-metrics=http://127.0.0.1:1",
    "--otlp-protocol=http",
    "--statsd=127.0.0.1:1",
    "--traces=http://127.0.0.1:1",
    "--trace-protocol=http",
    "--trace-ratio=0.5",
    "--trace-slower-than=2s",
    "--trace-no-errors",
    "--trace-ignore-parent",
];

/// What the proxy's app dials.
pub(super) const DIALLED: [&str; 8] = [
    "full.bank",
    "web.bank",
    "other.bank",
    "calls.bank",
    "sealed.bank:443",
    "opaque.bank:5432",
    "api.example.test:443",
    "nobody.bank",
];

/// Fields that no control plane of this release ever sets, and why.
const UNSET: [(&str, &str); 7] = [
    // A Service's name decides which routes apply.
    ("HttpRoute", "hostnames"),
    // Known in a mesh with identities alone, which is plaintext to nobody.
    ("MeshAddress", "identity"),
    // No object asks for these ways of balancing.
    ("Balancer", "round_robin"),
    ("HashKey", "header"),
    ("HashKey", "cookie"),
    ("SessionPersistence", "header"),
    // The bundle is recorded where it is handed out with a certificate, and needs no feature.
    ("TrustBundle", "requires"),
];

type Tapped = Arc<Mutex<Vec<(String, bool, Bytes)>>>;

/// A proxy `bank/web-1` whose control plane listens on a port of this machine.
pub(super) struct Web {
    pub(super) process: Process,
    pub(super) admin: u16,
    outbound: u16,
    _apps: [Echo; 3],
    _folder: TempDir,
}

impl Web {
    pub(super) fn start(control_plane: u16, token: Option<&str>) -> Self {
        let folder = TempDir::new("skew");
        let apps = ["main", "second", "third"].map(|port| (port, Echo::start(port)));
        let (outbound, admin) = (free_port(), free_port());
        let mut command = Command::new(binary("outrigger-proxy"));
        command
            .args(["--control-plane", &format!("http://{}", local(control_plane))])
            .args(["--namespace", "bank", "--service-account", "web", "--workload", "web-1"])
            .args(["--label", "app=web", "--zone", "a"])
            .args(apps.iter().flat_map(|(name, app)| {
                ["--app-port".to_owned(), format!("{}=http:{name}", app.port)]
            }))
            // Where nothing listens.
            .args(["--app-port", "1=http:closed"])
            .args(["--outbound", &local(outbound).to_string()])
            .args(["--inbound", &local(free_port()).to_string()])
            .args(["--admin", &local(admin).to_string()])
            .args(["--config-timeout", "1s", "--drain-delay", "200ms"]);
        let file = folder.path().join("token");
        fs::write(&file, token.unwrap_or("none")).expect("a file");
        command.arg("--token-file").arg(&file);
        let process = Process::start(folder.path(), "web", &mut command);
        Self { process, admin, outbound, _apps: apps.map(|(_, app)| app), _folder: folder }
    }

    /// The answer to a request of its app, if there is one.
    pub(super) fn get(&self, authority: &str, path: &str) -> (u16, String) {
        let request = format!(
            "GET http://{authority}{path} HTTP/1.1\r\nhost: {authority}\r\nconnection: close\r\n\r\n"
        );
        let answer = client::raw(self.outbound, request.as_bytes(), LIMIT);
        let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok());
        (status.unwrap_or_default(), answer)
    }

    pub(super) fn leave(&mut self) {
        self.process.terminate();
        assert!(self.process.wait(LIMIT).success());
    }
}

pub(super) fn runtime() -> tokio::runtime::Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.worker_threads(1).enable_all().build().expect("a runtime")
}

/// Passes every call on to `port`, and keeps what both sides say.
async fn tap(call: Call, port: u16, kept: Tapped) {
    let Call { path, token, mut sender, mut receiver } = call;
    let client = Client::connect(port).await;
    let (mut on, answers) = client.call(&path, token.as_ref()).await;
    let asked = async {
        while let Some(message) = receiver.next().await {
            on.send(&message);
            kept.lock().expect("nobody panics").push((path.clone(), true, message));
        }
        on.end();
    };
    let answered = async {
        let mut answers = answers.await;
        while let Some(message) = answers.next().await {
            sender.send(&message);
            kept.lock().expect("nobody panics").push((path.clone(), false, message));
        }
        let (code, why) = answers.status().await;
        sender.finish(code, why);
    };
    tokio::join!(asked, answered);
}

fn record(release: &Release) {
    let plane = ControlPlane::start_with(&[(MESH, &release.text(MESH))], FLAGS);
    no_errors(&plane);
    let token = fs::read_to_string(plane.token("bank", "web")).expect("a token");
    let runtime = runtime();
    let (port, to) = (free_port(), plane.listen);
    let kept = Tapped::default();
    let keeping = Arc::clone(&kept);
    runtime.block_on(raw::serve(port, move |call| tap(call, to, Arc::clone(&keeping))));
    let mut web = Web::start(port, Some(&token));
    eventually("the workload is ready", || plane.admin("/index").contains("\"ready\":true"));
    for authority in DIALLED {
        web.get(authority, "/");
    }
    let told = || {
        let kept = kept.lock().expect("nobody panics");
        let responses = kept.iter().filter(|(path, asked, _)| path == DISCOVERY && !asked);
        let responses = responses
            .map(|(.., bytes)| DeltaDiscoveryResponse::decode(&**bytes).expect("a response"));
        let names = responses.flat_map(|r| r.resources.into_iter().map(|r| r.name));
        names.collect::<BTreeSet<_>>()
    };
    eventually("everything has been sent", || {
        let told = told();
        [
            "bank/full:80/*",
            "bank/web:80/bank.web-1",
            "bank/opaque:5432",
            "bank/sealed:443",
            "mesh",
            "bank.web-1",
        ]
        .iter()
        .all(|name| told.iter().any(|told| told.starts_with(name)))
    });
    web.leave();
    let stop = StopRequest {
        name: "bank/delay".to_owned(),
        version: "of another spec".to_owned(),
        reason: "2 of 30 requests succeeded, at least 10 % should".to_owned(),
        caller: Some(FaultCaller {
            namespace: "bank".to_owned(),
            service_account: "web".to_owned(),
        }),
    };
    let bearer = HeaderValue::from_str(&format!("Bearer {}", token.trim())).expect("a header");
    let stopped = runtime.block_on(async {
        once(&Client::connect(plane.listen).await, STOP, &bearer, &stop.encode_to_vec()).await
    });
    let certify = CertifyRequest { csr: csr().into(), node: "bank.web-1".to_owned() };
    let certify = Bytes::from(certify.encode_to_vec());
    let certified = certify_at_a_new_one(&runtime, &certify);
    let mut kept = std::mem::take(&mut *kept.lock().expect("nobody panics"));
    kept.push((STOP.to_owned(), true, stop.encode_to_vec().into()));
    kept.push((STOP.to_owned(), false, stopped.expect("an answer")));
    kept.push((CERTIFY.to_owned(), true, certify));
    kept.push((CERTIFY.to_owned(), false, certified.expect("a certificate")));
    for (call, sides) in CALLS {
        for ((file, _), asked) in sides.into_iter().zip([true, false]) {
            let of = kept.iter().filter(|(path, is_asked, _)| path == call && *is_asked == asked);
            release.write(file, &of.map(|(.., bytes)| bytes.clone()).collect::<Vec<_>>());
        }
    }
    let descriptors = schema::present().encode_to_vec();
    fs::write(release.folder.join(schema::FILE), descriptors).expect("a file");
}

/// One request and its answer; the code and the message of gRPC if there is none.
pub(super) async fn once(
    client: &Client,
    path: &str,
    token: &HeaderValue,
    message: &[u8],
) -> Result<Bytes, String> {
    let (mut sender, answers) = client.call(path, Some(token)).await;
    sender.send(message);
    sender.end();
    let mut answers = answers.await;
    match answers.soon().await {
        Some(answer) => Ok(answer),
        None => Err(format!("{:?}", answers.status().await)),
    }
}

/// A request for a certificate, at a control plane with identities.
pub(super) fn certify_at_a_new_one(
    runtime: &tokio::runtime::Runtime,
    request: &[u8],
) -> Result<Bytes, String> {
    let plane = ControlPlane::start_with_identity(&[], &[]);
    let token = fs::read_to_string(plane.token("bank", "web")).expect("a token");
    let token = HeaderValue::from_str(&format!("Bearer {}", token.trim())).expect("a header");
    runtime.block_on(async {
        once(&Client::connect_tls(plane.listen).await, CERTIFY, &token, request).await
    })
}

fn csr() -> Vec<u8> {
    let key = KeyPair::generate().expect("a key");
    let request = CertificateParams::default().serialize_request(&key).expect("a request");
    request.der().to_vec()
}

#[test]
fn the_present_release_is_recorded_with_every_field() {
    let release = Release::present();
    if std::env::var_os(RECORD).is_some() {
        record(&release);
    }
    let messages = Messages::of(&schema::present());
    let mut seen = BTreeSet::new();
    for (file, message) in CALLS.iter().flat_map(|(_, sides)| sides) {
        let all = release.messages(file);
        assert!(!all.is_empty(), "{file}: is empty");
        all.iter().for_each(|bytes| messages.note(message, bytes, &mut seen));
    }
    let fields = messages.fields();
    let unseen = fields.difference(&seen).filter(|(message, field)| {
        let name = message.rsplit('.').next().unwrap_or_default();
        field != "requires" && !UNSET.contains(&(name, field))
    });
    let unseen: Vec<String> = unseen.map(|(message, field)| format!("{message}.{field}")).collect();
    let hint = format!(
        "have tests/skew/{}/{MESH} use them, and record it anew with {RECORD}=1",
        release.name
    );
    assert!(unseen.is_empty(), "fields that are recorded nowhere: {unseen:#?}; {hint}");
    assert!(
        seen.iter()
            .any(|(message, _)| message.ends_with(wire::INBOUND.rsplit('.').next().unwrap_or("?")))
    );
}

/// Every object is taken; what it refers to need not be there.
pub(super) fn no_errors(plane: &ControlPlane) {
    let page: serde_json::Value = serde_json::from_str(&plane.admin("/problems")).expect("JSON");
    let problems = page["problems"].as_array().expect("problems");
    assert!(problems.iter().all(|problem| problem["severity"] != "error"), "{problems:#?}");
}
