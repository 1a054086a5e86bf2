//! Both directions: what proxies of a recorded release ask of the present control plane, and what control planes of
//! one tell the present proxy.

use std::collections::BTreeSet;
use std::fs;
use std::net::{SocketAddr, TcpListener};
use std::sync::{Arc, Mutex, MutexGuard};

use bytes::Bytes;
use http::HeaderValue;
use outrigger_proto::convert;
use outrigger_proto::identity::CertifyResponse;
use outrigger_proto::mesh::{Health, RegisterRequest, register_request};
use outrigger_proto::wire::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use outrigger_tests::app::Echo;
use outrigger_tests::process::{ControlPlane, free_port};
use outrigger_tests::{client, eventually};
use prost::Message;

use super::raw::{self, Call, Client, Receiver, Sender};
use super::record::{
    CALLS, DISCOVERY, MESH, REGISTER, STOP, Web, certify_at_a_new_one, no_errors, once, runtime,
};
use super::walk::{Messages, with_field};
use super::{Release, schema};

/// Where the recorded control plane has sent calls of `full.bank`.
const RECORDED: &str = "127.77.0.1:18080";
const ENDPOINT: &str = ".outrigger.mesh.v1.Endpoint";
/// Field of an Endpoint.
const ADDRESS: u32 = 2;
/// Field of a DeltaDiscoveryRequest.
const RESPONSE_NONCE: u32 = 6;

/// How a message is changed before it is sent: by its name.
pub(super) type Change = dyn Fn(&str, &Bytes) -> Bytes + Send + Sync;

/// The present control plane, asked as a recorded proxy asks, with every request changed.
pub(super) fn ask(release: &Release, change: &Change) {
    let plane = ControlPlane::start(&[(MESH, &release.text(MESH))]);
    no_errors(&plane);
    let token = fs::read_to_string(plane.token("bank", "web")).expect("a token");
    let token = HeaderValue::from_str(&format!("Bearer {}", token.trim())).expect("a header");
    let changed = |file: &str| -> Vec<Bytes> {
        let message = message_of(file);
        release.messages(file).iter().map(|bytes| change(message, bytes)).collect()
    };
    let runtime = runtime();
    runtime.block_on(async {
        let client = Client::connect(plane.listen).await;
        let (mut register, accepted) = client.call(REGISTER, Some(&token)).await;
        let mut said = changed("registration.requests").into_iter().peekable();
        register.send(&said.next().expect("a registration"));
        let mut answers = accepted.await;
        let accepted = answers.soon().await;
        assert!(accepted.is_some(), "{:?}", answers.status().await);
        while let Some(health) = said.next_if(|message| !is_draining(message)) {
            register.send(&health);
        }
        discover(&client, &token, &changed("discovery.requests")).await;
        let index = || plane.admin("/index");
        assert!(index().contains("bank.web-1"), "it is registered");
        for draining in said {
            register.send(&draining);
        }
        assert!(answers.soon().await.is_some(), "its removal is confirmed");
        register.end();
        for request in changed("experiments.requests") {
            once(&client, STOP, &token, &request).await.expect("an answer");
        }
    });
    for request in changed("identity.requests") {
        let answer = certify_at_a_new_one(&runtime, &request).expect("a certificate");
        let answer = CertifyResponse::decode(&*answer).expect("an answer");
        assert!(!answer.chain.is_empty() && answer.bundle.is_some());
    }
}

fn is_draining(message: &Bytes) -> bool {
    let message = RegisterRequest::decode(&**message).expect("a message").message;
    matches!(message, Some(register_request::Message::Health(health)) if health == Health::Draining as i32)
}

pub(super) fn message_of(file: &str) -> &'static str {
    let mut sides = CALLS.iter().flat_map(|(_, sides)| sides);
    sides.find(|(name, _)| *name == file).map(|(_, message)| *message).expect("a recorded file")
}

/// Sends what the proxy has asked for, acknowledges in its words, and waits for an answer to every name.
async fn discover(client: &Client, token: &HeaderValue, requests: &[Bytes]) {
    let decoded: Vec<_> = requests
        .iter()
        .map(|bytes| (bytes, DeltaDiscoveryRequest::decode(&**bytes).expect("a request")))
        .collect();
    let asks = decoded.iter().filter(|(_, request)| request.response_nonce.is_empty());
    let (mut sender, answers) = client.call(DISCOVERY, Some(token)).await;
    let mut wanted = BTreeSet::new();
    for (bytes, request) in asks {
        wanted.extend(request.resource_names_subscribe.iter().cloned());
        sender.send(bytes);
    }
    let mut answers = answers.await;
    while !wanted.is_empty() {
        let Some(answer) = answers.soon().await else {
            panic!(
                "the stream ended with {:?}, and nothing said of {wanted:?}",
                answers.status().await
            );
        };
        let answer = DeltaDiscoveryResponse::decode(&*answer).expect("a response");
        for resource in &answer.resources {
            wanted.remove(&resource.name);
            wanted.retain(|name| !resource.aliases.contains(name));
        }
        wanted.retain(|name| !answer.removed_resources.contains(name));
        let same = |request: &DeltaDiscoveryRequest| {
            request.type_url == answer.type_url && !request.response_nonce.is_empty()
        };
        if let Some((ack, _)) = decoded.iter().find(|(_, request)| same(request)) {
            sender.send(&with_field(ack, RESPONSE_NONCE, answer.nonce.as_bytes()));
        }
    }
}

/// A control plane that says what was recorded, changed, to who asks for it.
pub(super) struct Former {
    pub(super) port: u16,
    shared: Arc<Shared>,
    _runtime: tokio::runtime::Runtime,
}

struct Shared {
    accepted: Vec<Bytes>,
    responses: Vec<Bytes>,
    /// Sent to every stream after the first resources.
    more: Vec<Bytes>,
    answers: Mutex<Answers>,
}

/// What the proxy has said to responses.
#[derive(Default)]
pub(super) struct Answers {
    pub(super) acks: Vec<String>,
    pub(super) nacks: Vec<String>,
}

impl Former {
    /// `app`: where calls of `full.bank` are sent now. `more`: further responses.
    pub(super) fn start(
        release: &Release,
        app: SocketAddr,
        change: &Change,
        more: Vec<Bytes>,
    ) -> Self {
        let messages = Messages::of(&schema::present());
        let app = app.to_string();
        let redirected = |bytes: &Bytes| {
            messages.changed(message_of("discovery.responses"), bytes, &mut |message, bytes| {
                let is_it = message == ENDPOINT
                    && bytes.windows(RECORDED.len()).any(|part| part == RECORDED.as_bytes());
                if is_it { with_field(&bytes, ADDRESS, app.as_bytes()) } else { bytes }
            })
        };
        let responses = release.messages("discovery.responses");
        let responses = responses.iter().map(redirected);
        let responses = responses.map(|bytes| change(message_of("discovery.responses"), &bytes));
        let accepted = release.messages("registration.responses");
        let accepted = accepted.iter().map(|b| change(message_of("registration.responses"), b));
        let shared = Arc::new(Shared {
            accepted: accepted.collect(),
            responses: responses.collect(),
            more,
            answers: Mutex::default(),
        });
        let (runtime, port) = (runtime(), free_port());
        let serving = Arc::clone(&shared);
        runtime.block_on(raw::serve(port, move |call| answer(call, Arc::clone(&serving))));
        Self { port, shared, _runtime: runtime }
    }

    pub(super) fn answers(&self) -> MutexGuard<'_, Answers> {
        self.shared.answers.lock().expect("nobody panics")
    }
}

async fn answer(call: Call, shared: Arc<Shared>) {
    let Call { path, mut sender, mut receiver, .. } = call;
    match path.as_str() {
        DISCOVERY => discovery(&mut sender, &mut receiver, &shared).await,
        REGISTER => {
            let mut answers = shared.accepted.iter();
            while let Some(message) = receiver.next().await {
                let is_first = answers.len() == shared.accepted.len();
                if is_first || is_draining(&message) {
                    answers.next().iter().for_each(|answer| sender.send(answer));
                }
            }
        }
        _ => {}
    }
    sender.finish(HeaderValue::from_static("0"), None);
}

async fn discovery(sender: &mut Sender, receiver: &mut Receiver, shared: &Shared) {
    let mut unsent: Vec<_> = shared
        .responses
        .iter()
        .map(|bytes| (bytes, DeltaDiscoveryResponse::decode(&**bytes).expect("a response")))
        .collect();
    let mut more = shared.more.iter();
    while let Some(message) = receiver.next().await {
        let request = DeltaDiscoveryRequest::decode(&*message).expect("a request");
        if !request.response_nonce.is_empty() {
            let mut answers = shared.answers.lock().expect("nobody panics");
            match request.error_detail {
                Some(detail) => answers.nacks.push(detail.message),
                None => answers.acks.push(request.type_url),
            }
            continue;
        }
        let names: BTreeSet<_> = request.resource_names_subscribe.into_iter().collect();
        let asked = |response: &DeltaDiscoveryResponse| {
            let named = response.resources.iter().any(|resource| {
                names.contains(&resource.name) || resource.aliases.iter().any(|a| names.contains(a))
            });
            let removed = response.removed_resources.iter().any(|name| names.contains(name));
            // Endpoints come with their destinations.
            let brought =
                request.type_url == wire::DESTINATION && response.type_url == wire::ENDPOINT;
            brought || (response.type_url == request.type_url && (named || removed))
        };
        unsent.retain(|(bytes, response)| {
            let is_asked = asked(response);
            if is_asked {
                sender.send(bytes);
            }
            !is_asked
        });
        if request.type_url == wire::DESTINATION {
            more.by_ref().for_each(|bytes| sender.send(bytes));
        }
    }
}

/// An app at the far end of `full.bank`, and the proxy that is told about it.
pub(super) struct Told {
    pub(super) web: Web,
    pub(super) former: Former,
    app: Echo,
}

impl Told {
    pub(super) fn start(release: &Release, change: &Change, more: Vec<Bytes>) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("its address");
        let app = Echo::on(listener, "full");
        let former = Former::start(release, address, change, more);
        let web = Web::start(former.port, None);
        eventually("the proxy is ready", || {
            client::http_get(web.admin, "/ready").is_some_and(|answer| answer.0 == 200)
        });
        Self { web, former, app }
    }

    /// A request is answered by the app, as the route says: it knows that by now.
    pub(super) fn works(&self) {
        let before = self.app.requests.load(std::sync::atomic::Ordering::Relaxed);
        let (status, text) = self.web.get("full.bank", "/");
        assert_eq!(status, 200, "{text}");
        assert!(self.app.requests.load(std::sync::atomic::Ordering::Relaxed) > before);
        let (status, text) = self.web.get("full.bank", "/moved/a");
        assert_eq!(status, 301, "{text}");
        assert!(text.contains("https://new.example.test:8443/there/a"), "{text}");
    }
}

#[test]
fn what_a_recorded_proxy_asks_is_answered() {
    for release in Release::all() {
        ask(&release, &|_, bytes| bytes.clone());
    }
}

#[test]
fn what_a_recorded_control_plane_says_is_in_force() {
    for release in Release::all() {
        let mut told = Told::start(&release, &|_, bytes| bytes.clone(), Vec::new());
        told.works();
        for authority in super::record::DIALLED {
            told.web.get(authority, "/");
        }
        for type_url in [wire::MESH_SETTINGS, wire::INBOUND, wire::DESTINATION, wire::ENDPOINT] {
            eventually("every type is acknowledged", || {
                told.former.answers().acks.iter().any(|acknowledged| acknowledged == type_url)
            });
        }
        assert_eq!(told.former.answers().nacks, [""; 0]);
        told.web.leave();
        for answer in release.messages("identity.responses") {
            let answer = CertifyResponse::decode(&*answer).expect("an answer");
            let bundle = convert::trust::from_wire(answer.bundle.as_ref().expect("a bundle"));
            assert!(!bundle.expect("roots").roots.is_empty() && !answer.chain.is_empty());
        }
    }
}
