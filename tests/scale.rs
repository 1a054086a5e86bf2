//! Ten thousand services: what must not grow with them, and how soon a change is everywhere.

use std::fmt::Write as _;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_proto::wire::{
    self, AggregatedDiscoveryServiceClient, DeltaDiscoveryRequest, DeltaDiscoveryResponse, Node,
};
use outrigger_tests::app::Echo;
use outrigger_tests::client::{Distinct, gets};
use outrigger_tests::process::{ControlPlane, Proxy, free_port, local};
use prost_types::value::Kind;
use prost_types::{Struct, Value};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Streaming;
use tonic::transport::Channel;

const MANY: usize = 10_000;
const CLIENTS: usize = 200;
const CHANGES: usize = 500;
/// From the index's commit to receipt, at the 99th percentile.
const PUBLISHED: Duration = Duration::from_millis(200);
/// What the control plane may take, in KiB.
const MEMORY: u64 = 300 * 1024;
/// By how much a proxy's memory may differ, in KiB.
const EQUAL: u64 = 1024;
/// Requests of the measured proxy to each of its three services: 10,000 in all.
const REQUESTS: usize = 3_334;
const LIMIT: Duration = Duration::from_secs(20);

/// A service with one endpoint.
fn service(name: &str, ip: &str, port: u16) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: bank}}\n\
         spec: {{ports: [{{name: main, port: 80, appProtocol: http}}]}}\n---\n{}---\n",
        slice(name, ip, port)
    )
}

fn slice(name: &str, ip: &str, port: u16) -> String {
    format!(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, namespace: bank, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{name: main, port: {port}}}]\n\
         endpoints: [{{addresses: [\"{ip}\"], conditions: {{ready: true}}}}]\n"
    )
}

/// A control plane with `count` services `s0`, `s1`, ..., all of them at `port`.
fn plane(count: usize, port: u16) -> ControlPlane {
    let mut text = String::new();
    for i in 0..count {
        text.push_str(&service(&format!("s{i}"), "127.0.0.1", port));
    }
    ControlPlane::start(&[("services.yaml", &text)])
}

/// What one client has been told: the name of an endpoint, when it was committed, and when it came.
struct Heard {
    endpoint: String,
    committed: Duration,
    received: Duration,
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970")
}

/// A delta ADS client that acknowledges everything and reports every endpoint.
struct Client {
    requests: mpsc::Sender<DeltaDiscoveryRequest>,
    responses: Streaming<DeltaDiscoveryResponse>,
    heard: UnboundedSender<Heard>,
}

impl Client {
    async fn connect(port: u16, id: usize, dialled: &str, heard: UnboundedSender<Heard>) -> Self {
        let namespace = Value { kind: Some(Kind::StringValue("bank".to_owned())) };
        let fields = [(wire::NODE_NAMESPACE.to_owned(), namespace)];
        let node = Node {
            id: format!("bank.client-{id}"),
            metadata: Some(Struct { fields: fields.into() }),
            ..Default::default()
        };
        let (requests, receiver) = mpsc::channel(64);
        let first = DeltaDiscoveryRequest {
            node: Some(node),
            type_url: wire::DESTINATION.to_owned(),
            resource_names_subscribe: vec![dialled.to_owned()],
            ..Default::default()
        };
        requests.send(first).await.expect("room for the first request");
        let uri = format!("http://{}", local(port));
        let channel = Channel::from_shared(uri).expect("a URI").connect().await;
        let mut client = AggregatedDiscoveryServiceClient::new(channel.expect("a connection"));
        let stream = client.delta_aggregated_resources(ReceiverStream::new(receiver)).await;
        Self { requests, responses: stream.expect("a stream").into_inner(), heard }
    }

    /// Until the control plane or the test ends.
    async fn listen(mut self) {
        while let Ok(Some(response)) = self.responses.message().await {
            let received = since_epoch();
            let nanos = response.system_version_info.parse().expect("nanoseconds");
            let committed = Duration::from_nanos(nanos);
            if response.type_url == wire::ENDPOINT {
                for resource in response.resources {
                    let heard = Heard { endpoint: resource.name, committed, received };
                    // The test may have ended.
                    let _ = self.heard.send(heard);
                }
            }
            let ack = DeltaDiscoveryRequest {
                type_url: response.type_url,
                response_nonce: response.nonce,
                ..Default::default()
            };
            if self.requests.send(ack).await.is_err() {
                return;
            }
        }
    }
}

/// Waits until every client has heard of the endpoint at `ip`.
async fn everybody(from: &mut UnboundedReceiver<Heard>, ip: &str) -> Vec<Heard> {
    let word = format!("/{ip}:");
    let mut all = Vec::with_capacity(CLIENTS);
    while all.len() < CLIENTS {
        let heard = tokio::time::timeout(LIMIT, from.recv()).await;
        let heard = heard.expect("in time").expect("clients that listen");
        if heard.endpoint.contains(&word) {
            all.push(heard);
        }
    }
    all
}

/// Median, 99th percentile and maximum, in milliseconds.
fn quantiles(mut all: Vec<Duration>) -> (Duration, String) {
    all.sort_unstable();
    let at = |percent: usize| all[(all.len() * percent / 100).min(all.len() - 1)];
    let mut text = String::new();
    for (name, percent) in [("median", 50), ("p99", 99), ("max", 100)] {
        let ms = at(percent).as_secs_f64() * 1e3;
        write!(text, "{name} {ms:.1} ms  ").expect("written to a String");
    }
    (at(99), text)
}

#[test]
fn a_change_among_ten_thousand_services_is_soon_everywhere() {
    let plane = plane(MANY, 9000);
    let changing = service("changing", "10.0.0.0", 9000);
    plane.write("changing.yaml", &changing);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let (published, loaded) = runtime.expect("a runtime").block_on(async {
        let (heard, mut from) = mpsc::unbounded_channel();
        for id in 0..CLIENTS {
            let client = Client::connect(plane.listen, id, "changing.bank:80", heard.clone());
            tokio::spawn(client.await.listen());
        }
        everybody(&mut from, "10.0.0.0").await;
        let (mut published, mut loaded) = (Vec::new(), Vec::new());
        for i in 1..=CHANGES {
            let ip = format!("10.0.{}.{}", i / 250, i % 250);
            let written = since_epoch();
            plane.write("changing.yaml", &changing.replace("10.0.0.0", &ip));
            let all = everybody(&mut from, &ip).await;
            loaded.push(all[0].committed.saturating_sub(written));
            published.extend(all.iter().map(|h| h.received.saturating_sub(h.committed)));
        }
        (published, loaded)
    });
    let pss = plane.process().pss();
    let (p99, text) = quantiles(published);
    println!("{MANY} services, {CLIENTS} clients, {CHANGES} changes");
    println!("commit to receipt: {text}");
    println!("file to commit:    {}", quantiles(loaded).1);
    println!("control plane:     {:.1} MiB", pss as f64 / 1024.0);
    assert!(pss < MEMORY, "the control plane takes {pss} KiB");
    assert!(p99 < PUBLISHED, "{p99:?} from commit to receipt at the 99th percentile");
}

#[test]
fn a_proxy_grows_with_what_its_app_calls_and_not_with_the_mesh() {
    let app = Echo::start("app");
    let planes = [plane(10, app.port), plane(MANY, app.port)];
    let mut sizes = [Vec::new(), Vec::new()];
    for _ in 0..5 {
        for (plane, sizes) in planes.iter().zip(&mut sizes) {
            let ports = [free_port(), free_port(), free_port()];
            let listeners: Vec<String> = ports
                .iter()
                .enumerate()
                .map(|(i, port)| format!("{}=s{i}.bank:80", local(*port)))
                .collect();
            let args: Vec<&str> = listeners.iter().flat_map(|l| ["--listen", l]).collect();
            let mut proxy = Proxy::caller(plane, &args);
            for port in ports {
                gets(port, REQUESTS);
            }
            sizes.push(proxy.process().pss());
        }
    }
    let [few, many] = sizes.map(|mut sizes| {
        sizes.sort_unstable();
        println!("{sizes:?} KiB");
        sizes[2]
    });
    println!("proxy with 10 services: {few} KiB, with {MANY}: {many} KiB");
    assert!(few.abs_diff(many) <= EQUAL, "{few} KiB with 10 services, {many} KiB with {MANY}");
}

/// Distinct requests, unless `OUTRIGGER_DISTINCT` says how many.
const DISTINCT: usize = 100_000;
/// By how much they may make a proxy's own memory larger, in KiB.
const FLAT: u64 = 2 * 1024;

#[test]
fn whatever_requests_say_makes_no_series_and_takes_no_memory() {
    let many = std::env::var("OUTRIGGER_DISTINCT").ok().and_then(|n| n.parse().ok());
    let many: usize = many.unwrap_or(DISTINCT);
    let app = Echo::start("app");
    let plane = plane(1, app.port);
    let port = free_port();
    let listener = format!("{}=s0.bank:80", local(port));
    // Everything that is kept of requests is on: the access log too, whose lines go to a file.
    let mut proxy = Proxy::caller(&plane, &["--listen", &listener, "--access-log", "1/10"]);
    let mut requests = Distinct::new(port);
    requests.send(20_000);
    let series = |proxy: &Proxy| proxy.metrics().lines().count();
    let before = (proxy.process().own_memory(), series(&proxy));
    requests.send(many);
    let after = (proxy.process().own_memory(), series(&proxy));
    println!("{many} distinct requests: from {before:?} to {after:?} KiB and series");
    assert_eq!(before.1, after.1, "lines of metrics");
    assert!(after.0 <= before.0 + FLAT, "{} KiB, then {} KiB", before.0, after.0);
}
