//! The reader that keeps every object's status: what it holds is what a computation of everything gives, whatever
//! has happened, and a change costs what depends on it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::sync::Arc;

use outrigger_control_plane::discovery::{Proxy, Session};
use outrigger_control_plane::index::{Dep, Index, PortId};
use outrigger_control_plane::metrics::Metrics;
use outrigger_control_plane::object::ObjectId;
use outrigger_control_plane::object::stopped::Stopped;
use outrigger_control_plane::problems::Problems;
use outrigger_control_plane::publish::{Answers, Handle, Programmed, Publisher};
use outrigger_control_plane::source::manifests::Folder;
use outrigger_control_plane::status;
use outrigger_control_plane::status::reader::{
    RoundCounts, Rounds, StatusTable, StatusWatcher, Statuses,
};
use outrigger_control_plane::translate;
use outrigger_core::config::MeshSettings;
use outrigger_core::policy::fault::FaultSource;
use outrigger_proto::wire::{self, DeltaDiscoveryRequest, DeltaDiscoveryResponse};
use tempfile::TempDir;

use crate::accepted::Random;
use crate::support::{LOOPBACK, node, registration};

/// Things that happen in one run.
const STEPS: usize = 1_500;
/// Of many Services, the one with files of its own.
const CHANGED: usize = 7;
const NAMESPACES: [&str; 2] = ["bank", "shop"];

/// A proxy without a network, that answers when the test says so.
struct Client {
    handle: Arc<Handle>,
    session: Session,
    unanswered: Vec<DeltaDiscoveryResponse>,
}

impl Client {
    fn new(publisher: &Publisher, id: &str, namespace: &str) -> Self {
        let session = Session::new(Proxy::from_node(&node(id, namespace)).unwrap());
        Self { handle: publisher.handle(), session, unanswered: Vec::new() }
    }

    fn ask(&mut self, publisher: &Publisher, type_url: &str, names: &[String], gone: &[String]) {
        self.session.receive(DeltaDiscoveryRequest {
            type_url: type_url.to_owned(),
            resource_names_subscribe: names.to_vec(),
            resource_names_unsubscribe: gone.to_vec(),
            ..Default::default()
        });
        self.session.report(publisher, &self.handle);
    }

    /// As the stream's task does.
    fn pump(&mut self, publisher: &Publisher) {
        let told = publisher.told();
        let dirty = self.handle.take_dirty();
        let mut view = publisher.view_for(&self.handle, told);
        self.session.touch(&dirty);
        if self.session.is_paused() {
            return;
        }
        self.unanswered.extend(self.session.pump(&mut view, 0));
        self.session.report(publisher, &self.handle);
        publisher.unsubscribe(&self.handle, &self.session.interest_changes());
    }

    fn answer(&mut self, publisher: &Publisher, refuse: Option<&str>) {
        if self.unanswered.is_empty() {
            return;
        }
        let response = self.unanswered.remove(0);
        let message = refuse.map(ToOwned::to_owned);
        self.session.receive(DeltaDiscoveryRequest {
            type_url: response.type_url,
            response_nonce: response.nonce,
            error_detail: message.map(|message| wire::Status { message, ..Default::default() }),
            ..Default::default()
        });
        self.session.report(publisher, &self.handle);
    }

    fn answer_all(&mut self, publisher: &Publisher) {
        while !self.unanswered.is_empty() {
            self.answer(publisher, None);
        }
    }

    fn leave(mut self, publisher: &Publisher) {
        self.session.retract(publisher, &self.handle);
        publisher.unsubscribe(&self.handle, &self.session.take_interests());
        publisher.disconnect(&self.handle);
    }
}

/// A folder, its index, and the reader of status.
struct Mesh {
    folder: TempDir,
    reader: Folder,
    problems: Arc<Problems>,
    publisher: Arc<Publisher>,
    statuses: Arc<Statuses>,
    rounds: Rounds,
    watcher: Arc<StatusWatcher>,
    /// What one who only follows the watcher knows.
    followed: StatusTable,
}

impl Mesh {
    fn new(index: Index, text: &str) -> Self {
        let folder = TempDir::new().unwrap();
        fs::write(folder.path().join("first.yaml"), text).unwrap();
        let problems = Arc::new(Problems::default());
        let path = folder.path().to_owned();
        let mut reader = Folder::new(path, LOOPBACK, problems.clone(), Arc::new(Metrics::new()));
        let publisher = Arc::new(Publisher::new(index));
        reader.scan(&publisher).unwrap();
        let (statuses, mut rounds) =
            Statuses::new(publisher.clone(), problems.clone(), &Metrics::new());
        rounds.round();
        let (watcher, followed) = (statuses.watch(), StatusTable::new());
        Self { folder, reader, problems, publisher, statuses, rounds, watcher, followed }
    }

    fn write(&mut self, name: &str, text: Option<&str>) {
        let path = self.folder.path().join(name);
        match text {
            Some(text) => fs::write(path, text).unwrap(),
            None if path.exists() => fs::remove_file(path).unwrap(),
            None => return,
        }
        self.reader.scan(&self.publisher).unwrap();
    }

    /// What a round costs.
    fn round(&mut self) -> RoundCounts {
        let before = self.statuses.counts();
        self.rounds.round();
        let after = self.statuses.counts();
        RoundCounts {
            rounds: after.rounds - before.rounds,
            computed: after.computed - before.computed,
            progress: after.progress - before.progress,
        }
    }

    /// The reader's table is what a computation of everything gives.
    fn check(&mut self, clients: &[Client], about: &dyn Fn() -> String) {
        self.round();
        let table = self.statuses.table();
        let view = self.publisher.view();
        let whole = status::objects(&view, &self.problems.all());
        let whole: BTreeMap<_, _> =
            whole.into_iter().map(|one| (one.object.clone(), one)).collect();
        let ids: BTreeSet<&ObjectId> = whole.keys().chain(table.keys()).collect();
        for id in ids {
            assert_eq!(table.get(id).map(|one| &**one), whole.get(id), "{id} after {}", about());
        }
        for id in self.watcher.take() {
            match table.get(&id) {
                Some(status) => drop(self.followed.insert(id, status.clone())),
                None => drop(self.followed.remove(&id)),
            }
        }
        assert_eq!(self.followed, *table, "after {}", about());
        let asked = ask_everybody(clients);
        let services = view.index.services().map(|service| Dep::Service(service.id.clone()));
        let externals = view.index.externals().map(|one| Dep::Service(one.service()));
        let inbounds = view.index.workloads().map(|workload| Dep::Inbound(workload.uid()));
        for dep in services.chain(externals).chain(inbounds) {
            assert_eq!(view.programmed(&dep), asked.get(&dep).cloned(), "{dep:?} {}", about());
        }
    }
}

/// How far everything has come, by asking every proxy.
fn ask_everybody(clients: &[Client]) -> BTreeMap<Dep, Programmed> {
    let mut all: BTreeMap<Dep, Programmed> = BTreeMap::new();
    for client in clients {
        let mut of_client: BTreeMap<Dep, Vec<_>> = BTreeMap::new();
        for (name, answer) in client.session.answers() {
            of_client.entry(Dep::Service(PortId::from(name).service)).or_default().push(answer);
        }
        for (uid, answer) in client.session.inbound_answers() {
            of_client.entry(Dep::Inbound(uid.to_owned())).or_default().push(answer);
        }
        for (dep, answers) in of_client {
            use outrigger_control_plane::publish::Acknowledgement;
            let total = all.entry(dep).or_default();
            total.proxies += 1;
            let current = answers.iter().all(|answer| *answer == Acknowledgement::Acknowledged);
            total.acknowledged += usize::from(current);
            for answer in answers {
                if let Acknowledgement::Refused(reason) = answer {
                    total.refused.insert(reason.to_owned());
                }
            }
        }
    }
    all
}

/// A quarter of a MiB that says nothing: three of it are too large for one resource.
fn large() -> String {
    let value = "x".repeat(4_000);
    let headers: Vec<_> = (0..16).map(|i| format!("{{name: h{i}, value: {value}}}")).collect();
    [format!("{{headers: [{}]}}", headers.join(", ")).as_str(); 4].join(", ")
}

/// Manifests that refer to each other, and now and then to nothing.
struct Manifests<'a>(&'a mut Random);

impl Manifests<'_> {
    fn one_of<'t>(&mut self, all: &[&'t str]) -> &'t str {
        all[self.0.below(all.len())]
    }

    fn service(&mut self) -> &'static str {
        self.one_of(&["s0", "s1", "s2"])
    }

    /// The name of a file, and its text.
    fn any(&mut self) -> (String, String) {
        let namespace = NAMESPACES[self.0.below(2)];
        let n = self.0.below(3);
        let created = ["", ", creationTimestamp: '2020-01-01T00:00:00Z'"][self.0.below(2)];
        let meta =
            |name: &str| format!("metadata: {{namespace: {namespace}, name: {name}{created}}}");
        let (kind, name, text) = match self.0.below(15) {
            0 => ("Service", format!("s{n}"), self.service_spec()),
            1 => ("EndpointSlice", format!("e{n}"), self.slice(namespace, n)),
            2 | 3 => {
                let n = self.0.below(5);
                ("HTTPRoute", format!("r{n}"), self.http_route())
            }
            4 => ("GRPCRoute", format!("r{n}"), self.other_route()),
            5 => ("TCPRoute", format!("r{n}"), self.other_route()),
            6 => ("TrafficPolicy", format!("t{n}"), self.traffic(namespace)),
            7 => ("ServerPolicy", format!("p{n}"), self.server(namespace)),
            8 | 13 => {
                let n = self.0.below(40);
                ("FaultInjection", format!("f{n}"), self.faults(namespace))
            }
            9 => ("AccessPolicy", format!("a{n}"), self.access()),
            10 => ("ExternalService", format!("x{n}"), self.external()),
            11 => ("ReferenceGrant", format!("g{n}"), self.grant()),
            _ => ("ExternalWorkload", format!("w{n}"), self.workload(n)),
        };
        let group = match kind {
            "Service" => "v1",
            "EndpointSlice" => "discovery.k8s.io/v1",
            "HTTPRoute" | "GRPCRoute" => "gateway.networking.k8s.io/v1",
            "TCPRoute" => "gateway.networking.k8s.io/v1alpha2",
            "ReferenceGrant" => "gateway.networking.k8s.io/v1beta1",
            _ => "outrigger.dev/v1alpha1",
        };
        let mut head = format!("apiVersion: {group}\nkind: {kind}\n");
        match kind {
            "EndpointSlice" => {
                let of = self.service();
                let _ = writeln!(
                    head,
                    "metadata: {{namespace: {namespace}, name: {name}, labels: \
                     {{kubernetes.io/service-name: {of}}}}}"
                );
            }
            "ExternalWorkload" => {
                let label = self.one_of(&["a0", "a1"]);
                let _ = writeln!(
                    head,
                    "metadata: {{namespace: {namespace}, name: {name}, labels: {{app: {label}}}}}"
                );
            }
            _ => head.push_str(&format!("{}\n", meta(&name))),
        }
        // Sometimes what was written is wrong.
        let text = if self.0.below(12) == 0 && kind != "EndpointSlice" {
            "spec: {ports: 5, rules: 5, targetRefs: 5, host: 5, from: 5, address: 5}\n".to_owned()
        } else {
            text
        };
        (format!("{kind}-{namespace}-{name}.yaml"), head + &text)
    }

    fn service_spec(&mut self) -> String {
        let ports = self.one_of(&[
            "{port: 80, name: http, targetPort: http}",
            "{port: 80, name: http, targetPort: http}, {port: 81, name: grpc, targetPort: 9001}",
            "{port: 81, name: grpc, targetPort: 9000}",
        ]);
        let ip = self.one_of(&["", "clusterIP: None, ", "clusterIP: 10.96.0.1, "]);
        let selector = self.one_of(&["", "selector: {app: a0}, ", "selector: {app: a1}, "]);
        format!("spec: {{{ip}{selector}ports: [{ports}]}}\n")
    }

    fn slice(&mut self, namespace: &str, n: usize) -> String {
        let hostname = self.one_of(&["", ", hostname: h0", ", hostname: h1"]);
        let last = self.0.below(2);
        let third = n + if namespace == "shop" { 10 } else { 0 };
        format!(
            "addressType: IPv4\nports: [{{name: http, port: 9000}}]\nendpoints: [{{addresses: \
             ['10.0.{third}.{last}']{hostname}}}]\n"
        )
    }

    fn parent(&mut self) -> String {
        let (namespace, service) = (self.one_of(&NAMESPACES), self.service());
        let port = self.one_of(&["", ", port: 80", ", port: 81", ", sectionName: http"]);
        format!("{{group: '', kind: Service, namespace: {namespace}, name: {service}{port}}}")
    }

    fn backend(&mut self) -> String {
        let (namespace, service) = (self.one_of(&NAMESPACES), self.service());
        let port = self.one_of(&["80", "81"]);
        format!("{{name: {service}, namespace: {namespace}, port: {port}}}")
    }

    fn http_route(&mut self) -> String {
        let (parent, backend) = (self.parent(), self.backend());
        let name = self.one_of(&["", "name: one, ", "name: two, "]);
        let timeouts = self.one_of(&["", "timeouts: {request: 1s}, "]);
        let (parent, matches) = match self.0.below(2) {
            0 => {
                let parent = "{group: '', kind: Service, namespace: bank, name: s0}".to_owned();
                (parent, format!("matches: [{}], ", large()))
            }
            _ => (parent, String::new()),
        };
        format!(
            "spec: {{parentRefs: [{parent}], rules: [{{{name}{timeouts}{matches}backendRefs: \
             [{backend}]}}]}}\n"
        )
    }

    fn other_route(&mut self) -> String {
        let (parent, backend) = (self.parent(), self.backend());
        format!("spec: {{parentRefs: [{parent}], rules: [{{backendRefs: [{backend}]}}]}}\n")
    }

    fn target(&mut self, namespace: &str, route: bool) -> String {
        let service = self.service();
        let r = self.one_of(&["r0", "r1", "r2"]);
        match self.0.below(if route { 6 } else { 4 }) {
            0 => format!("{{kind: Namespace, name: {namespace}}}"),
            1 => format!("{{kind: Service, name: {service}, port: 80}}"),
            2 if route => {
                let name = self.one_of(&["x0", "x1"]);
                format!("{{group: outrigger.dev, kind: ExternalService, name: {name}}}")
            }
            2 | 3 => format!("{{kind: Service, name: {service}}}"),
            4 => format!("{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: {r}}}"),
            _ => format!(
                "{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: {r}, sectionName: one}}"
            ),
        }
    }

    fn traffic(&mut self, namespace: &str) -> String {
        let target = self.target(namespace, true);
        let deadline = self.one_of(&["", ", deadline: 1s", ", deadline: 2s"]);
        let timeouts = self.one_of(&["", ", timeouts: {attempt: 500ms}"]);
        let fallbacks = match self.0.below(2) {
            0 => format!(", fallbacks: [{{backend: {}}}]", self.backend()),
            _ => ", priority: Sheddable".to_owned(),
        };
        format!("spec: {{targetRefs: [{target}]{deadline}{timeouts}{fallbacks}}}\n")
    }

    fn server(&mut self, namespace: &str) -> String {
        let target = self.target(namespace, false);
        let limits = self.one_of(&[
            "rateLimits: [{name: all, requests: 10, period: 1s}]",
            "rateLimits: [{name: all, requests: 10, period: 1s}], concurrency: {static: 10}",
            "concurrency: {static: 20}",
        ]);
        format!("spec: {{targetRefs: [{target}], {limits}}}\n")
    }

    fn faults(&mut self, namespace: &str) -> String {
        let target = match self.0.below(3) {
            0 => self.target(namespace, true),
            _ => format!("{{kind: Namespace, name: {namespace}}}"),
        };
        let service = self.service();
        let guard = match self.0.below(2) {
            0 => format!(
                ", guard: {{from: {{namespace: bank}}, to: {{kind: Service, name: {service}, port: \
                 80}}, minSuccessPercent: 95}}"
            ),
            _ => String::new(),
        };
        format!(
            "spec: {{targetRefs: [{target}], percent: 10, fault: {{reset: {{}}}}, start: \
             '2030-11-22T10:00:00Z', end: '2030-11-22T10:30:00Z'{guard}}}\n"
        )
    }

    fn access(&mut self) -> String {
        let selector =
            self.one_of(&["", "selector: {matchLabels: {app: a0}}, ", "ports: [9000], "]);
        let rules = match self.0.below(3) {
            0 => {
                let path = "x".repeat(4_000);
                let paths: Vec<_> = (0..60).map(|i| format!("{{exact: /{path}{i}}}")).collect();
                let rule = format!("action: Allow, to: [{{paths: [{}]}}]", paths.join(", "));
                format!(", rules: [{{name: one, {rule}}}, {{name: two, {rule}}}]")
            }
            _ => String::new(),
        };
        format!("spec: {{{selector}default: Deny{rules}}}\n")
    }

    fn external(&mut self) -> String {
        let host = self.one_of(&[
            "api.pay.example",
            "s0.bank",
            "s1.shop.svc",
            "h0.s0.bank",
            "h1.s1.shop.svc.cluster.local",
            "10.96.0.1",
            "10.0.10.0",
        ]);
        let endpoints = self.one_of(&["", ", endpoints: [{address: 192.0.2.10}]"]);
        let port = self.one_of(&["80", "9000"]);
        format!("spec: {{host: {host}, port: {port}{endpoints}}}\n")
    }

    fn grant(&mut self) -> String {
        let from = self.one_of(&NAMESPACES);
        let to = match self.0.below(2) {
            0 => format!("{{group: '', kind: Service, name: {}}}", self.service()),
            _ => "{group: '', kind: Service}".to_owned(),
        };
        format!(
            "spec: {{from: [{{group: outrigger.dev, kind: TrafficPolicy, namespace: {from}}}], to: \
             [{to}]}}\n"
        )
    }

    fn workload(&mut self, n: usize) -> String {
        let ports = self.one_of(&["{port: 9000, name: http}", "{port: 9001, name: http}"]);
        format!("spec: {{address: 10.1.0.{n}, ports: [{ports}]}}\n")
    }
}

/// What has been seen at all: a run that never saw something shows nothing of it.
#[derive(Debug, Default)]
struct Seen(BTreeSet<&'static str>);

impl Seen {
    const ALL: [&'static str; 12] = [
        "acknowledged",
        "conflict",
        "left out",
        "lost",
        "no version",
        "not found",
        "refused",
        "refused configuration",
        "shadowed",
        "stopped",
        "too many",
        "unresolved",
    ];

    fn look(&mut self, table: &StatusTable) {
        for status in table.values() {
            let accepted = status.accepted.problems.join("\n");
            let resolved = status.resolved_refs.problems.join("\n");
            let all = [
                ("acknowledged", status.programmed.acknowledged > 0),
                ("refused configuration", !status.programmed.refused.is_empty()),
                ("lost", !status.overridden.is_empty()),
                ("too many", status.overridden.iter().any(|line| line.contains("older ones"))),
                ("stopped", status.stopped.is_some()),
                ("unresolved", !status.resolved_refs.status),
                ("not found", resolved.contains("cannot be looked up")),
                ("conflict", accepted.contains("Conflicted")),
                ("left out", accepted.contains("left out at")),
                ("shadowed", accepted.contains("callers reach instead")),
                ("no version", accepted.contains("no version of this policy")),
                ("refused", accepted.contains(".yaml:")),
            ];
            self.0.extend(all.into_iter().filter(|(_, seen)| *seen).map(|(what, _)| what));
        }
    }
}

#[test]
fn the_reader_holds_what_computing_everything_gives() {
    let seed = std::env::var("OUTRIGGER_SEED").ok().and_then(|text| text.parse().ok());
    let first = seed.unwrap_or(16);
    let mut seen = Seen::default();
    for seed in first..first + 4 {
        println!("OUTRIGGER_SEED={seed}");
        run(seed, &mut seen);
    }
    assert_eq!(seen.0.into_iter().collect::<Vec<_>>(), Seen::ALL, "seen in all runs");
}

fn run(seed: u64, seen: &mut Seen) {
    let mut random = Random(seed);
    let mut mesh = Mesh::new(Index::new(MeshSettings::default()), "");
    let mut clients: Vec<Client> = Vec::new();
    let mut files: BTreeSet<String> = BTreeSet::new();
    let mut steps: Vec<String> = Vec::new();
    for _ in 0..STEPS {
        let publisher = mesh.publisher.clone();
        let step = match random.below(20) {
            0..=9 => {
                let (name, text) = Manifests(&mut random).any();
                mesh.write(&name, Some(&text));
                files.insert(name);
                text.chars().take(500).collect()
            }
            10 | 11 => {
                let name = files.iter().nth(random.below(files.len())).cloned();
                let Some(name) = name else { continue };
                files.remove(&name);
                mesh.write(&name, None);
                format!("removed {name}")
            }
            12 => happen(&publisher, &mut random),
            13 => come_or_leave(&publisher, &mut random, &mut clients),
            _ => {
                let which = random.below(clients.len());
                let Some(client) = clients.get_mut(which) else { continue };
                match random.below(6) {
                    0 => client.answer(&publisher, Some("it is refused")),
                    1 => client.answer_all(&publisher),
                    2 => client.answer(&publisher, None),
                    _ => client.pump(&publisher),
                }
                format!("proxy {which}")
            }
        };
        steps.push(step);
        if random.below(3) == 0 {
            let last = steps.len().saturating_sub(8);
            let about =
                || format!("seed {seed}, step {}: {}", steps.len(), steps[last..].join("\n--\n"));
            mesh.check(&clients, &about);
            seen.look(&mesh.statuses.table());
        }
    }
    while let Some(client) = clients.pop() {
        client.leave(&mesh.publisher);
    }
    mesh.check(&[], &|| "everybody left".to_owned());
    let none = |status: &status::ObjectStatus| status.programmed == Programmed::default();
    assert!(mesh.statuses.table().values().all(|status| none(status)));
}

/// What comes from elsewhere than manifests.
fn happen(publisher: &Publisher, random: &mut Random) -> String {
    let namespace = NAMESPACES[random.below(2)];
    let name = format!("w{}", random.below(3));
    match random.below(5) {
        0 | 1 => {
            let label = ["a0", "a1"][random.below(2)];
            let port = [9000, 9001][random.below(2)];
            let registration = registration(namespace, &name, label, port);
            let mut workload = translate::workload::translate(&registration, LOOPBACK).unwrap();
            workload.ready = random.below(2) == 0;
            publisher.commit(|index| index.register(workload));
            format!("registered {namespace}.{name} {label}")
        }
        2 => {
            publisher.commit(|index| index.deregister(&format!("{namespace}.{name}")));
            format!("deregistered {namespace}.{name}")
        }
        3 => {
            let answer = match random.below(2) {
                0 => Err("there is no such host".to_owned()),
                _ => Ok(["192.0.2.1".parse().unwrap()].into()),
            };
            publisher.commit(|index| index.set_addresses("api.pay.example", answer));
            "looked up".to_owned()
        }
        _ => {
            let index = &publisher.view().index;
            let all: Vec<_> = index.fault_injections().collect();
            let Some(one) = all.get(random.below(all.len())) else { return String::new() };
            let by = FaultSource { namespace: "bank".to_owned(), service_account: None };
            let stopped = Stopped {
                version: one.sections.fault.version.to_string(),
                since: 1,
                by: "bank/gateway".to_owned(),
                why: "too many failed".to_owned(),
            };
            let name = one.sections.fault.name.to_string();
            let _ = publisher.commit(|index| index.stop_experiment(&name, &by, stopped));
            format!("stopped {name}")
        }
    }
}

fn come_or_leave(publisher: &Publisher, random: &mut Random, clients: &mut Vec<Client>) -> String {
    if clients.len() > 6 || (random.below(3) == 0 && !clients.is_empty()) {
        let which = random.below(clients.len());
        clients.remove(which).leave(publisher);
        return format!("proxy {which} left");
    }
    let namespace = NAMESPACES[random.below(2)];
    let id = format!("{namespace}.w{}", random.below(3));
    let mut client = Client::new(publisher, &id, namespace);
    let hosts = [
        "s0.bank:80",
        "s0.bank:81",
        "s1.shop:80",
        "s1.bank:80",
        "s0.shop:80",
        "s2.shop:81",
        "api.pay.example:80",
        "s2.bank:80",
    ];
    let names: Vec<String> =
        hosts.iter().filter(|_| random.below(2) == 0).map(ToString::to_string).collect();
    client.ask(publisher, wire::DESTINATION, &names, &[]);
    client.ask(publisher, wire::INBOUND, std::slice::from_ref(&id), &[]);
    client.pump(publisher);
    if random.below(2) == 0 {
        client.ask(publisher, wire::DESTINATION, &[], &names[..names.len() / 2]);
    }
    clients.push(client);
    format!("{id} came for {names:?}")
}

/// `n` Services with a slice, a route, every kind of policy and a workload each.
fn many(n: usize) -> Mesh {
    let mut text = String::new();
    for i in (0..n).filter(|i| *i != CHANGED) {
        for (_, one) in objects_of(i, "1s", 1) {
            let _ = write!(text, "---\n{one}");
        }
    }
    let mut mesh = Mesh::new(Index::new(MeshSettings::default()), &text);
    for (kind, one) in objects_of(CHANGED, "1s", 1) {
        fs::write(mesh.folder.path().join(format!("{kind}.yaml")), one).unwrap();
    }
    mesh.reader.scan(&mesh.publisher).unwrap();
    mesh.round();
    mesh
}

/// By kind, all that belongs to one Service.
fn objects_of(i: usize, deadline: &str, last: u8) -> [(&'static str, String); 7] {
    let meta = format!("metadata: {{namespace: bank, name: o{i}");
    let target = format!("targetRefs: [{{kind: Service, name: o{i}}}]");
    let own = "apiVersion: outrigger.dev/v1alpha1\nkind:";
    [
        (
            "service",
            format!(
                "apiVersion: v1\nkind: Service\n{meta}}}\nspec: {{selector: {{app: o{i}}}, ports: \
                 [{{port: 80, name: http, targetPort: http}}]}}\n"
            ),
        ),
        (
            "slice",
            format!(
                "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n{meta}, labels: \
                 {{kubernetes.io/service-name: o{i}}}}}\naddressType: IPv4\nports: [{{name: http, port: \
                 9000}}]\nendpoints: [{{addresses: ['10.{}.{}.{last}']}}]\n",
                i / 250,
                i % 250
            ),
        ),
        (
            "route",
            format!(
                "apiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n{meta}}}\nspec: \
                 {{parentRefs: [{{group: '', kind: Service, name: o{i}}}], rules: [{{backendRefs: \
                 [{{name: o{i}, port: 80, weight: {last}}}]}}]}}\n"
            ),
        ),
        (
            "traffic",
            format!("{own} TrafficPolicy\n{meta}}}\nspec: {{{target}, deadline: {deadline}}}\n"),
        ),
        (
            "server",
            format!(
                "{own} ServerPolicy\n{meta}}}\nspec: {{{target}, concurrency: {{static: {last}}}}}\n"
            ),
        ),
        (
            "access",
            format!(
                "{own} AccessPolicy\n{meta}}}\nspec: {{selector: {{matchLabels: {{app: o{i}}}}}, \
                 ports: [90{last}], default: Deny}}\n"
            ),
        ),
        (
            "workload",
            format!(
                "{own} ExternalWorkload\n{meta}, labels: {{app: o{i}}}}}\nspec: {{address: \
                 10.99.{}.{}, ports: [{{port: 9000, name: http}}, {{port: 91{last}}}]}}\n",
                i / 250,
                i % 250
            ),
        ),
    ]
}

#[test]
fn a_change_costs_the_statuses_that_depend_on_it_whatever_there_is() {
    let counts = |computed, progress| RoundCounts { rounds: 1, computed, progress };
    let costs = |n: usize| {
        let mut mesh = many(n);
        let publisher = mesh.publisher.clone();
        assert_eq!(mesh.problems.all(), []);
        // Routes, and policies of three kinds.
        assert_eq!(mesh.statuses.table().len(), 4 * n);
        let mut costs = Vec::new();
        let mut proxies: Vec<_> =
            (0..5).map(|i| Client::new(&publisher, &format!("bank.c{i}"), "bank")).collect();
        for proxy in &mut proxies {
            proxy.ask(&publisher, wire::DESTINATION, &["o7.bank:80".to_owned()], &[]);
            proxy.pump(&publisher);
            proxy.answer_all(&publisher);
        }
        costs.push(("proxies", mesh.round()));
        for (kind, after) in objects_of(CHANGED, "2s", 2) {
            let after = match kind {
                "service" => after.replace("targetPort: http", "targetPort: 9000"),
                _ => after,
            };
            mesh.write(&format!("{kind}.yaml"), Some(&after));
            costs.push((kind, mesh.round()));
            for proxy in &mut proxies {
                proxy.pump(&publisher);
                proxy.answer_all(&publisher);
            }
            mesh.round();
        }
        mesh.write(
            "namespace.yaml",
            Some(
                "apiVersion: v1\nkind: Service\nmetadata: {namespace: other, name: o7}\nspec: \
                 {ports: [{port: 80}]}\n",
            ),
        );
        costs.push(("namespace", mesh.round()));
        costs
    };
    let expected = [
        // How far the route and the TrafficPolicy have come.
        ("proxies", counts(0, 2)),
        // It itself, its route, both policies.
        ("service", counts(4, 0)),
        ("slice", RoundCounts::default()),
        // The route, and the policy that may apply to its rules.
        ("route", counts(2, 0)),
        ("traffic", counts(1, 0)),
        ("server", counts(1, 0)),
        ("access", counts(1, 0)),
        // The workload itself, and the two policies that are for it.
        ("workload", counts(3, 0)),
        // The new Service.
        ("namespace", counts(1, 0)),
    ];
    assert_eq!(costs(100), expected);
    assert_eq!(costs(10_000), expected);
}

#[test]
fn a_refused_destination_concerns_its_own_objects_only() {
    let mut mesh = many(50);
    let publisher = mesh.publisher.clone();
    let mut proxy = Client::new(&publisher, "bank.c", "bank");
    proxy.ask(&publisher, wire::DESTINATION, &["o7.bank:80".to_owned()], &[]);
    proxy.pump(&publisher);
    mesh.round();
    while !proxy.unanswered.is_empty() {
        proxy.answer(&publisher, Some("no"));
    }
    assert_eq!(mesh.round(), RoundCounts { rounds: 1, computed: 0, progress: 2 });
    let refused = |mesh: &Mesh| {
        let table = mesh.statuses.table();
        let all = table.values().filter(|status| !status.programmed.refused.is_empty());
        all.map(|status| status.object.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(refused(&mesh), ["HTTPRoute bank/o7", "TrafficPolicy bank/o7"]);
    mesh.watcher.take();
    proxy.leave(&publisher);
    mesh.round();
    assert_eq!(refused(&mesh), Vec::<String>::new());
    let changed = mesh.watcher.take();
    let changed: Vec<_> = changed.iter().map(ToString::to_string).collect();
    assert_eq!(changed, ["HTTPRoute bank/o7", "TrafficPolicy bank/o7"]);
    // Answers that were known say nothing new.
    assert_eq!(Answers::of([]), None);
    assert_eq!(mesh.round(), RoundCounts::default());
}

#[tokio::test]
async fn a_burst_is_one_round_or_two_and_who_asks_has_the_newest() {
    let Mesh { folder: _folder, publisher, statuses, rounds, watcher, .. } = many(1_000);
    let running = tokio::spawn(rounds.run());
    // The first one is under way or done.
    let table = statuses.up_to_date().await;
    assert_eq!(table.len(), 4_000);
    watcher.take();
    let before = statuses.counts();
    for i in 0..1_000 {
        publisher.commit(|index| {
            index.remove(&ObjectId {
                kind: outrigger_control_plane::object::Kind::TrafficPolicy,
                namespace: "bank".to_owned(),
                name: format!("o{i}"),
            });
        });
    }
    let mut changed = BTreeSet::new();
    while changed.len() < 1_000 {
        let more = tokio::time::timeout(crate::support::LIMIT, watcher.changed());
        changed.extend(more.await.unwrap());
    }
    let after = statuses.counts();
    assert!((1..=2).contains(&(after.rounds - before.rounds)), "{before:?} {after:?}");
    assert_eq!(after.computed - before.computed, 1_000, "each once");
    assert_eq!(statuses.table().len(), 3_000);
    // Nobody waits for a period who asks.
    for i in 0..20 {
        publisher.commit(|index| {
            index.remove(&ObjectId {
                kind: outrigger_control_plane::object::Kind::HttpRoute,
                namespace: "bank".to_owned(),
                name: format!("o{i}"),
            });
        });
        assert_eq!(statuses.up_to_date().await.len(), 2_999 - i);
    }
    running.abort();
    // Who asks a reader that runs no more gets what there is.
    let _ = running.await;
    assert_eq!(statuses.up_to_date().await.len(), 2_980);
}
