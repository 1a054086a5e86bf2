//! Reports of calls by a raw client: what is taken, what is refused, and which of several replicas keeps the graph.

use std::time::{Duration, Instant};

use outrigger_control_plane::replica::Timing;
use outrigger_proto::graph::graph_client::GraphClient;
use outrigger_proto::graph::{EdgeDelta, EdgeName, Report, Reporter};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::support::{LIMIT, Mesh, service};
use crate::tls::Client;

const TIMING: Timing = Timing {
    poll: Duration::from_millis(100),
    renew: Duration::from_millis(200),
    expiry: Duration::from_secs(2),
    forget: Duration::from_secs(60),
};

/// A proxy that reports.
struct Stream {
    reports: mpsc::Sender<Report>,
    ended: tokio::task::JoinHandle<Result<(), Status>>,
}

impl Stream {
    async fn open(channel: Channel, account: &str, first: Vec<EdgeDelta>) -> Self {
        let (reports, queue) = mpsc::channel(8);
        let reporter = Reporter {
            namespace: "bank".to_owned(),
            workload: format!("{account}-1"),
            service_account: account.to_owned(),
            app: account.to_owned(),
            ..Reporter::default()
        };
        let ended = tokio::spawn(async move {
            let opened = GraphClient::new(channel).report(ReceiverStream::new(queue)).await;
            let mut answers = opened?.into_inner();
            while answers.message().await?.is_some() {}
            Ok(())
        });
        // The stream may be refused before.
        let _ = reports.send(Report { reporter: Some(reporter), edges: first }).await;
        Self { reports, ended }
    }

    async fn refusal(self) -> Status {
        let ended = tokio::time::timeout(LIMIT, self.ended).await.expect("an end");
        ended.unwrap().expect_err("it is refused")
    }
}

fn called(number: u32, service: &str, succeeded: u64) -> EdgeDelta {
    let name = EdgeName {
        service: service.to_owned(),
        protocol: "http1".to_owned(),
        ..EdgeName::default()
    };
    EdgeDelta { edge: number, name: Some(name), succeeded, ..EdgeDelta::default() }
}

async fn channel(mesh: &Mesh) -> Channel {
    let uri = format!("http://{}", mesh.server().discovery);
    Channel::from_shared(uri).unwrap().connect().await.unwrap()
}

fn has_edge(from: &'static str, service: &'static str) -> impl Fn(&Value) -> bool {
    move |page| {
        let edges = page["edges"].as_array().cloned().unwrap_or_default();
        edges.iter().any(|edge| edge["from"] == from && edge["service"] == service)
    }
}

#[tokio::test]
async fn a_report_is_shown_at_once_and_nothing_in_it_is_trusted() {
    let mesh = Mesh::start(&[("fees.yaml", &service("fees"))]).await;
    let long = "x".repeat(100_000);
    let first = vec![
        called(0, "bank/fees:80", 7),
        EdgeDelta {
            latency_bucket: vec![3; 9_999],
            latency_count: vec![1; 7],
            ..called(1, "\u{1b}[31m\"\n", 1)
        },
        EdgeDelta { succeeded: u64::MAX, failed: u64::MAX, ..called(2, &long, u64::MAX) },
    ];
    let stream = Stream::open(channel(&mesh).await, "orders", first).await;
    mesh.admin_until("/graph", has_edge("bank/orders", "bank/fees:80")).await;
    let page = mesh.admin_json("/graph").await;
    assert_eq!(page["edges"].as_array().map(Vec::len), Some(3), "{page:#}");
    let text = page.to_string();
    assert!(!text.contains('\u{1b}') && text.len() < 10_000, "{}", text.len());
    drop(stream.reports);
    assert!(stream.ended.await.unwrap().is_ok());
}

#[tokio::test]
async fn a_stream_that_breaks_its_own_rules_ends_and_others_go_on() {
    let mesh = Mesh::start(&[]).await;
    let good =
        Stream::open(channel(&mesh).await, "orders", vec![called(0, "bank/fees:80", 1)]).await;
    let nameless = EdgeDelta { edge: 4, succeeded: 1, ..EdgeDelta::default() };
    for first in
        [vec![nameless], vec![called(9, "bank/fees:80", 1)], vec![EdgeDelta::default(); 6_000]]
    {
        let status = Stream::open(channel(&mesh).await, "evil", first).await.refusal().await;
        assert_eq!(status.code(), Code::InvalidArgument, "{status}");
    }
    let long = "x".repeat(500);
    let many = |from: u32| (from..from + 1_500).map(|number| called(number, &long, 1)).collect();
    let greedy = Stream::open(channel(&mesh).await, "evil", many(0)).await;
    greedy.reports.send(Report { reporter: None, edges: many(1_500) }).await.unwrap();
    let status = greedy.refusal().await;
    assert!(status.message().contains("names of more than"), "{status}");
    let more = EdgeDelta { edge: 0, failed: 3, ..EdgeDelta::default() };
    good.reports.send(Report { reporter: None, edges: vec![more] }).await.unwrap();
    mesh.admin_until("/graph", |page| {
        let edges = page["edges"].as_array().cloned().unwrap_or_default();
        let edge = edges.into_iter().find(|edge| edge["from"] == "bank/orders");
        edge.is_some_and(|edge| edge["success_rate"].as_f64().is_some_and(|rate| rate < 1.0))
    })
    .await;
}

#[tokio::test]
async fn nobody_reports_for_another_identity() {
    let mesh = Mesh::secure(&[], &[]).await;
    let mut client = Client::new();
    client.join(&mesh, "bank", "orders", "bank.orders-1").await.unwrap();
    let channel = client.channel(&mesh).await;
    let status = Stream::open(channel.clone(), "ledger", vec![]).await.refusal().await;
    assert_eq!(status.code(), Code::PermissionDenied, "{status}");
    let _own = Stream::open(channel, "orders", vec![called(0, "bank/fees:80", 1)]).await;
    mesh.admin_until("/graph", has_edge("bank/orders", "bank/fees:80")).await;
}

#[tokio::test]
async fn one_replica_keeps_the_graph_and_the_next_one_goes_on_with_it() {
    let one = Mesh::with_timing(&[], &[], TIMING).await;
    let two = one.replica("two").await;
    let status = Stream::open(channel(&two).await, "orders", vec![]).await.refusal().await;
    assert_eq!(status.code(), Code::Unavailable, "{status}");
    assert!(status.message().contains("another replica"), "{status}");
    let (is_ok, page) = two.admin_answer("/graph").await;
    let page: Value = serde_json::from_str(&page).unwrap();
    assert!(!is_ok && page["keeper"] == "control-plane", "{page:#}");
    let stream =
        Stream::open(channel(&one).await, "orders", vec![called(0, "bank/fees:80", 1)]).await;
    one.admin_until("/graph", has_edge("bank/orders", "bank/fees:80")).await;
    let before = one.admin_json("/graph").await["edges"][0]["first_seen"].clone();
    let began = Instant::now();
    one.stop().await;
    // Its proxy is told, and finds the other one.
    assert_eq!(stream.refusal().await.code(), Code::Unavailable);
    while !two.admin_answer("/graph").await.0 {
        assert!(began.elapsed() < LIMIT, "it does not come to keep the graph");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    two.admin_until("/graph", has_edge("bank/orders", "bank/fees:80")).await;
    assert!(began.elapsed() < LIMIT / 2, "{:?}", began.elapsed());
    assert_eq!(two.admin_json("/graph").await["edges"][0]["first_seen"], before);
}
