//! A control plane on a temporary folder, and clients that speak the wire by hand.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use outrigger_control_plane::grant::Grant;
use outrigger_control_plane::options::Cli;
use outrigger_control_plane::replica::Timing;
use outrigger_control_plane::server::{self, Server};
use outrigger_control_plane::token::Tokens;
use outrigger_core::address::LocalEndpoints;
use outrigger_logging::Log;
use outrigger_proto::mesh::workload_client::WorkloadClient;
use outrigger_proto::mesh::{
    Health, MeshAddress, Protocol, RegisterRequest, RegisterResponse, Registration,
    register_request, register_response, registration,
};
use outrigger_proto::wire::{
    self, AggregatedDiscoveryServiceClient, DeltaDiscoveryRequest, DeltaDiscoveryResponse,
    Locality, Node, Status as Detail,
};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Request, Status, Streaming};

/// What a control plane that listens on loopback takes.
pub(crate) const LOOPBACK: LocalEndpoints = LocalEndpoints::Loopback;

/// How long anything may take that a test waits for.
pub(crate) const LIMIT: Duration = Duration::from_secs(20);

pub(crate) struct Mesh {
    pub(crate) folder: Arc<TempDir>,
    state: Arc<TempDir>,
    server: Option<Server>,
    flags: Vec<String>,
    /// How long certificates live, shorter than anybody should let them.
    lifetime: Option<Duration>,
    /// How replicas look at each other.
    timing: Timing,
}

impl Mesh {
    pub(crate) async fn start(files: &[(&str, &str)]) -> Self {
        Self::with_flags(files, &[]).await
    }

    pub(crate) async fn with_flags(files: &[(&str, &str)], flags: &[&str]) -> Self {
        Self::with_timing(files, flags, Timing::default()).await
    }

    pub(crate) async fn with_timing(
        files: &[(&str, &str)],
        flags: &[&str],
        timing: Timing,
    ) -> Self {
        let folder = Arc::new(TempDir::new().unwrap());
        for (name, text) in files {
            fs::write(folder.path().join(name), text).unwrap();
        }
        let flags = flags.iter().map(ToString::to_string).collect();
        let state = Arc::new(TempDir::new().unwrap());
        let mut mesh = Self { folder, state, server: None, flags, lifetime: None, timing };
        mesh.run().await;
        mesh
    }

    /// Another control plane on the same folder and the same state.
    pub(crate) async fn replica(&self, name: &str) -> Self {
        let mut flags = self.flags.clone();
        flags.push(format!("--replica={name}"));
        let (folder, state, timing) = (self.folder.clone(), self.state.clone(), self.timing);
        let mut mesh = Self { folder, state, server: None, flags, lifetime: None, timing };
        mesh.run().await;
        mesh
    }

    /// With identities.
    pub(crate) async fn secure(files: &[(&str, &str)], flags: &[&str]) -> Self {
        let flags: Vec<&str> = ["--identity=on"].into_iter().chain(flags.iter().copied()).collect();
        Self::with_flags(files, &flags).await
    }

    async fn run(&mut self) {
        let path = |path: &Path| path.to_str().unwrap().to_owned();
        let mut args = vec!["outrigger-control-plane".to_owned()];
        args.extend(["--manifests".to_owned(), path(self.folder.path())]);
        args.extend(["--state-dir".to_owned(), path(self.state.path())]);
        args.extend(["--listen=127.0.0.1:0".to_owned(), "--admin=127.0.0.1:0".to_owned()]);
        if !self.flags.iter().any(|flag| flag.starts_with("--identity")) {
            args.push("--identity=off".to_owned());
        }
        args.extend(self.flags.clone());
        let mut options = Cli::parse_from(args).options;
        options.timing = self.timing;
        options.certificate_lifetime = self.lifetime.unwrap_or(options.certificate_lifetime);
        self.server = Some(server::start(options, Log::unread()).await.unwrap());
    }

    pub(crate) async fn restart(&mut self) {
        self.server.take().unwrap().stop().await;
        self.run().await;
    }

    pub(crate) async fn stop(mut self) {
        self.server.take().unwrap().stop().await;
    }

    /// Starts again with certificates that live for so long.
    pub(crate) async fn restart_with_lifetime(&mut self, lifetime: Duration) {
        self.lifetime = Some(lifetime);
        self.restart().await;
    }

    pub(crate) fn state(&self) -> &Path {
        self.state.path()
    }

    pub(crate) fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Writes a file as an editor does: beside it, then renamed over it.
    pub(crate) fn write(&self, name: &str, text: &str) {
        let temporary = self.folder.path().join(format!(".{name}.tmp"));
        fs::write(&temporary, text).unwrap();
        fs::rename(temporary, self.path(name)).unwrap();
    }

    pub(crate) fn remove(&self, name: &str) {
        fs::remove_file(self.path(name)).unwrap();
    }

    pub(crate) fn token(&self, namespace: &str, account: &str) -> String {
        let tokens = Tokens::open(self.state.path()).unwrap();
        tokens.issue(namespace, account, Grant::default(), Duration::from_secs(60)).unwrap()
    }

    /// One that is bound.
    pub(crate) fn bound_token(&self, namespace: &str, account: &str, grant: Grant) -> String {
        let tokens = Tokens::open(self.state.path()).unwrap();
        tokens.issue(namespace, account, grant, Duration::from_secs(60)).unwrap()
    }

    /// A token of this control plane that ended long ago.
    pub(crate) fn expired_token(&self, namespace: &str, account: &str) -> String {
        let key = fs::read(self.state.path().join("join-token.key")).unwrap();
        let claims = serde_json::json!({
            "namespace": namespace, "service_account": account, "iat": 1, "exp": 2,
            "iss": "outrigger-control-plane", "aud": "outrigger.mesh.v1.Workload",
        });
        let key = jsonwebtoken::EncodingKey::from_secret(&key);
        let header = jsonwebtoken::Header::new(jsonwebtoken::Algorithm::HS256);
        jsonwebtoken::encode(&header, &claims, &key).unwrap()
    }

    /// Asks for the metrics until one of them reads so.
    pub(crate) async fn metric_until(&self, line: &str) {
        let started = std::time::Instant::now();
        while !self.admin("/metrics").await.contains(line) {
            assert!(started.elapsed() < LIMIT, "{line} never came");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) async fn proxy(&self, id: &str, namespace: &str) -> Proxy {
        Proxy::connect(channel(self.server().discovery).await, id, namespace, None).await
    }

    /// Registers a workload and gives its stream.
    pub(crate) async fn register(
        &self,
        registration: Registration,
    ) -> Result<RegisteredWorkload, Status> {
        let token = self.token(&registration.namespace, &registration.service_account);
        self.register_with(registration, &token).await
    }

    pub(crate) async fn register_with(
        &self,
        registration: Registration,
        token: &str,
    ) -> Result<RegisteredWorkload, Status> {
        register_at(self.server().discovery, registration, token).await
    }

    pub(crate) async fn admin(&self, path: &str) -> String {
        let (is_ok, page) = self.admin_answer(path).await;
        assert!(is_ok, "{path}: {page}");
        page
    }

    /// Whether it is a 200, and what it says.
    pub(crate) async fn admin_answer(&self, path: &str) -> (bool, String) {
        let mut stream = tokio::net::TcpStream::connect(self.server().admin).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: admin\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        let (head, body) = text.split_once("\r\n\r\n").unwrap();
        // Small pages come whole; larger ones in chunks that JSON readers would stumble over.
        let page = if head.contains("chunked") { unchunk(body) } else { body.to_owned() };
        (head.starts_with("HTTP/1.1 200"), page)
    }

    pub(crate) async fn admin_json(&self, path: &str) -> serde_json::Value {
        serde_json::from_str(&self.admin(path).await).unwrap()
    }

    /// Asks the admin server until `condition` holds.
    pub(crate) async fn admin_until(
        &self,
        path: &str,
        condition: impl Fn(&serde_json::Value) -> bool,
    ) -> serde_json::Value {
        let started = std::time::Instant::now();
        loop {
            let page = self.admin_json(path).await;
            if condition(&page) {
                return page;
            }
            assert!(started.elapsed() < LIMIT, "{path} never became what was waited for: {page:#}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
}

fn unchunk(mut body: &str) -> String {
    let mut text = String::new();
    while let Some((size, rest)) = body.split_once("\r\n") {
        let size = usize::from_str_radix(size, 16).unwrap();
        text.push_str(&rest[..size]);
        body = &rest[size + 2..];
    }
    text
}

pub(crate) struct RegisteredWorkload {
    pub(crate) requests: mpsc::Sender<RegisterRequest>,
    responses: Streaming<RegisterResponse>,
}

impl RegisteredWorkload {
    pub(crate) async fn health(&self, health: Health) {
        let message = Some(register_request::Message::Health(health.into()));
        self.requests.send(RegisterRequest { message, closed_ports: Vec::new() }).await.unwrap();
    }

    pub(crate) async fn next(&mut self) -> Result<register_response::Message, Status> {
        let message = tokio::time::timeout(LIMIT, self.responses.message()).await.expect("in time");
        Ok(message?.expect("the stream goes on").message.expect("a message"))
    }

    /// Closes the stream in order.
    pub(crate) fn close(self) -> Streaming<RegisterResponse> {
        self.responses
    }
}

/// Registers a workload with the control plane at an address.
pub(crate) async fn register_at(
    address: SocketAddr,
    registration: Registration,
    token: &str,
) -> Result<RegisteredWorkload, Status> {
    register_over(channel(address).await, registration, Some(token)).await
}

pub(crate) async fn register_over(
    channel: Channel,
    registration: Registration,
    token: Option<&str>,
) -> Result<RegisteredWorkload, Status> {
    let (requests, receiver) = mpsc::channel(16);
    let first = register_request::Message::Registration(registration);
    requests
        .send(RegisterRequest { message: Some(first), closed_ports: Vec::new() })
        .await
        .unwrap();
    let mut request = Request::new(ReceiverStream::new(receiver));
    if let Some(token) = token {
        let token = format!("Bearer {token}").parse().unwrap();
        request.metadata_mut().insert("authorization", token);
    }
    let mut client = WorkloadClient::new(channel);
    let responses = client.register(request).await?.into_inner();
    let mut workload = RegisteredWorkload { requests, responses };
    match workload.next().await? {
        register_response::Message::Accepted(_) => Ok(workload),
        other => panic!("{other:?}"),
    }
}

pub(crate) async fn channel(address: SocketAddr) -> Channel {
    let uri = format!("http://{address}");
    Channel::from_shared(uri).unwrap().connect().await.unwrap()
}

/// A registration of `namespace.name` that listens on one port named `http`.
pub(crate) fn registration(namespace: &str, name: &str, app: &str, port: u16) -> Registration {
    Registration {
        namespace: namespace.to_owned(),
        service_account: app.to_owned(),
        name: name.to_owned(),
        labels: [("app".to_owned(), app.to_owned())].into(),
        address: "127.0.0.1".to_owned(),
        ports: vec![registration::Port {
            port: port.into(),
            name: "http".to_owned(),
            protocol: Protocol::Http1.into(),
        }],
        mesh: Some(MeshAddress {
            address: format!("127.0.0.1:{}", port + 1),
            hop_version: 1,
            identity: String::new(),
        }),
        zone: String::new(),
        session: format!("the session of {namespace}.{name}").into(),
    }
}

/// A delta discovery client that acknowledges what it gets and remembers it.
pub(crate) struct Proxy {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    /// By type (its last word) and name: version and body.
    pub(crate) held: BTreeMap<(String, String), Held>,
    pub(crate) removed: BTreeSet<String>,
    /// Every response, as `type +name -name`.
    pub(crate) log: Vec<String>,
    /// Refuse resources of this name.
    pub(crate) refuse: Option<String>,
    /// Leave responses without an answer.
    pub(crate) silent: bool,
}

#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) version: String,
    pub(crate) aliases: Vec<String>,
    pub(crate) body: bytes::Bytes,
}

pub(crate) fn node(id: &str, namespace: &str) -> Node {
    let namespace = Value { kind: Some(Kind::StringValue(namespace.to_owned())) };
    let fields = [(wire::NODE_NAMESPACE.to_owned(), namespace)];
    Node {
        id: id.to_owned(),
        metadata: Some(Struct { fields: fields.into() }),
        locality: Some(Locality {
            zone: "z1".to_owned(),
            sub_zone: format!("node-of-{id}"),
            ..Default::default()
        }),
        ..Default::default()
    }
}

pub(crate) fn short(type_url: &str) -> String {
    type_url.rsplit('.').next().unwrap().to_owned()
}

impl Proxy {
    pub(crate) async fn connect(
        channel: Channel,
        id: &str,
        namespace: &str,
        token: Option<&str>,
    ) -> Self {
        Self::try_connect(channel, id, namespace, token).await.unwrap()
    }

    pub(crate) async fn try_connect(
        channel: Channel,
        id: &str,
        namespace: &str,
        token: Option<&str>,
    ) -> Result<Self, Status> {
        let (requests, receiver) = mpsc::channel(1024);
        // The first request of a stream says who this is.
        let first = DeltaDiscoveryRequest {
            node: Some(node(id, namespace)),
            type_url: wire::MESH_SETTINGS.to_owned(),
            ..Default::default()
        };
        requests.send(first).await.unwrap();
        let mut request = Request::new(ReceiverStream::new(receiver));
        if let Some(token) = token {
            let token = format!("Bearer {token}").parse().unwrap();
            request.metadata_mut().insert("authorization", token);
        }
        let mut client = AggregatedDiscoveryServiceClient::new(channel);
        let responses = client.delta_aggregated_resources(request).await?.into_inner();
        Ok(Self {
            requests,
            responses,
            held: BTreeMap::new(),
            removed: BTreeSet::new(),
            log: Vec::new(),
            refuse: None,
            silent: false,
        })
    }

    pub(crate) async fn send(&self, request: DeltaDiscoveryRequest) {
        self.requests.send(request).await.unwrap();
    }

    pub(crate) async fn subscribe(&self, type_url: &str, names: &[&str]) {
        self.send(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: names.iter().map(ToString::to_string).collect(),
            ..Default::default()
        })
        .await;
    }

    pub(crate) async fn unsubscribe(&self, type_url: &str, names: &[&str]) {
        self.send(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_unsubscribe: names.iter().map(ToString::to_string).collect(),
            ..Default::default()
        })
        .await;
    }

    pub(crate) async fn dial(&self, names: &[&str]) {
        self.subscribe(wire::DESTINATION, names).await;
    }

    /// The next response, answered.
    pub(crate) async fn next(&mut self) -> Result<DeltaDiscoveryResponse, Status> {
        let response = tokio::time::timeout(LIMIT, self.responses.message()).await;
        let response = response.unwrap_or_else(|_| panic!("nothing came after {:#?}", self.log))?;
        let response = response.expect("the stream goes on");
        let kind = short(&response.type_url);
        let mut line = kind.clone();
        let refused = response.resources.iter().any(|r| Some(&r.name) == self.refuse.as_ref());
        for resource in &response.resources {
            line.push_str(&format!(" +{}", resource.name));
            if !refused {
                let body = resource.resource.as_ref().unwrap().value.clone();
                let held = Held {
                    version: resource.version.clone(),
                    aliases: resource.aliases.clone(),
                    body,
                };
                self.held.insert((kind.clone(), resource.name.clone()), held);
                self.removed.remove(&resource.name);
            }
        }
        for name in &response.removed_resources {
            line.push_str(&format!(" -{name}"));
            self.held.remove(&(kind.clone(), name.clone()));
            self.removed.insert(name.clone());
        }
        self.log.push(line);
        if !self.silent {
            self.send(DeltaDiscoveryRequest {
                type_url: response.type_url.clone(),
                response_nonce: response.nonce.clone(),
                error_detail: refused.then(|| Detail {
                    code: 3,
                    message: "rules[0].path: cannot be understood".to_owned(),
                    details: Vec::new(),
                }),
                ..Default::default()
            })
            .await;
        }
        Ok(response)
    }

    /// Reads responses until `condition` holds.
    pub(crate) async fn until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        while !condition(self) {
            let next = tokio::time::timeout(LIMIT, self.next()).await;
            next.unwrap_or_else(|_| panic!("waiting until {what}: {:#?}", self.log)).unwrap();
        }
    }

    pub(crate) fn has(&self, kind: &str, name: &str) -> bool {
        self.held.contains_key(&(kind.to_owned(), name.to_owned()))
    }

    /// Names of endpoints without the collection's, and without its marker.
    pub(crate) fn endpoints(&self, collection: &str) -> Vec<String> {
        let prefix = format!("{collection}/");
        let names = self.held.keys().filter(|(kind, _)| kind == "Endpoint");
        let names = names.filter_map(|(_, name)| name.strip_prefix(&prefix));
        names.filter(|name| *name != "*").map(str::to_owned).collect()
    }

    /// What a proxy that lost its stream sends first: every resource with its version.
    pub(crate) fn versions(&self, kind: &str) -> BTreeMap<String, String> {
        let held = self.held.iter().filter(|((k, _), _)| k == kind);
        held.map(|((_, name), held)| (name.clone(), held.version.clone())).collect()
    }
}

/// A Service `name` in namespace `bank` with port 80 named `http` that selects `app: name`.
pub(crate) fn service(name: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: bank}}\nspec:\n  \
         selector: {{app: {name}}}\n  ports: [{{port: 80, name: http, targetPort: http}}]\n"
    )
}

/// An EndpointSlice of Service `name` in `bank` with these addresses on port 9000.
pub(crate) fn slice(name: &str, addresses: &[&str]) -> String {
    let endpoints: String = addresses.iter().map(|a| format!("- addresses: ['{a}']\n")).collect();
    let endpoints = if endpoints.is_empty() { "[]".to_owned() } else { format!("\n{endpoints}") };
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: {name}-1\n  \
         namespace: bank\n  labels: {{kubernetes.io/service-name: {name}}}\naddressType: IPv4\n\
         ports: [{{name: http, port: 9000}}]\nendpoints: {endpoints}\n"
    )
}

/// References that do not resolve, `Kind namespace/name: field: problem`.
pub fn unresolved_lines(index: &outrigger_control_plane::index::Index) -> Vec<String> {
    let unresolved = outrigger_control_plane::status::unresolved(index).into_iter();
    unresolved.map(|(object, problem)| format!("{object}: {problem}")).collect()
}
