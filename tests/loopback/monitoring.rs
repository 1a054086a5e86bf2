//! Rules and dashboards of the chart: the files by themselves, and what Prometheus makes of a mesh with them.

mod files;

use std::fs;
use std::process::Command;
use std::time::{Duration, Instant};

use outrigger_tests::app::Echo;
use outrigger_tests::client::{Curl, has};
use outrigger_tests::collector::Collector;
use outrigger_tests::manifests::{service, traffic_policy, unmeshed};
use outrigger_tests::process::{ControlPlane, Process, Proxy, TempDir, free_port, local};
use outrigger_tests::{eventually, skip};
use serde_json::Value;

use self::files::Query;
use crate::Mesh;

/// What has no data in this mesh, and why. That rules with them are right is shown in tests/rules.
const WITHOUT_DATA: &[(&str, &str)] = &[
    (
        "ALERTS{alertname=~\"Outrigger.*\",alertstate=\"firing\"}",
        "the first one fires after minutes",
    ),
    ("outrigger_control_plane_pods", "there are no pods"),
    ("outrigger_control_plane_watch_errors_total", "there is no API server"),
    ("outrigger_control_plane_admission_reviews_total", "there is no API server"),
    ("outrigger_lb_zone_spillover_total", "there is one zone"),
    ("outrigger_pacing_delayed_total", "callers are paced after they were refused many times"),
    ("outrigger_pacing_refused_total", "the same"),
];
/// Prometheus starts, scrapes each target twice, and the rules build on each other.
const ALL_THERE: Duration = Duration::from_secs(120);

/// Names of the one app, each with a TrafficPolicy of its own. Its proxy counts all under the first by name.
const POLICIES: &[(&str, &str)] = &[
    ("web", ""),
    ("web-shadow", ""),
    ("web-faulty", ""),
    (
        "web-retried",
        "  retries: {maxAttempts: 2, when: {statuses: [503]}, backoff: {base: 1ms, max: 2ms}}\n",
    ),
    ("web-breaks", "  breaker: {consecutiveFailures: 1, open: {fixed: 60s}}\n"),
    ("web-replaced", "  fallbacks: [{static: {status: 299}}]\n"),
    ("web-cached", "  cache: {ttl: 1m}\n"),
    ("web-checked", "  healthCheck: {http: {path: /}, interval: 1s}\n  slowStart: {window: 10m}\n"),
    (
        "web-ejected",
        "  outlierEjection: {consecutiveFailures: 1, baseEjection: 1m}\n  panicThreshold: 60\n",
    ),
];

const MORE: &str = r#"
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: web, namespace: bank}
spec:
  parentRefs: [{group: "", kind: Service, name: web}]
  rules:
  - filters: [{type: RequestMirror, requestMirror: {backendRef: {name: web-shadow, port: 80}}}]
    backendRefs: [{name: web, port: 80}]
---
apiVersion: outrigger.dev/v1alpha1
kind: AccessPolicy
metadata: {name: web, namespace: bank}
spec:
  selector: {matchLabels: {app: web}}
  default: Allow
  rules: [{name: no-entry, action: Deny, to: [{paths: [{prefix: /denied}]}]}]
---
apiVersion: outrigger.dev/v1alpha1
kind: ServerPolicy
metadata: {name: web, namespace: bank}
spec:
  targetRefs: [{group: "", kind: Service, name: web}]
  rateLimits: [{name: all, requests: 1000, period: 1s}]
  concurrency: {static: 100}
---
apiVersion: outrigger.dev/v1alpha1
kind: FaultInjection
metadata: {name: web-faulty, namespace: bank}
spec:
  targetRefs: [{kind: Service, group: "", name: web-faulty}]
  percent: 100
  end: END
  fault: {abort: {status: 500}}
"#;

/// A caller and an app with every policy, both traced.
struct Bed {
    caller: Proxy,
    web: Proxy,
    plane: ControlPlane,
    _app: Echo,
}

impl Bed {
    fn start(collector: &Collector) -> Self {
        let app = Echo::start("web");
        let mut manifests = MORE.replace("END", &crate::faults::in_time("+1 hour"));
        for (name, spec) in POLICIES {
            let service = match *name {
                "web-ejected" => two_endpoints(name, app.port),
                _ => service(name, "").replace(&format!("app: {name}"), "app: web"),
            };
            manifests.push_str(&format!("---\n{service}"));
            if !spec.is_empty() {
                manifests.push_str(&format!("---\n{}", traffic_policy(name, spec)));
            }
        }
        let traces = format!("http://{}", local(collector.grpc));
        let flags = ["--traces", &traces, "--trace-ratio", "1"];
        let plane = ControlPlane::start_with_identity(&[("bank.yaml", &manifests)], &flags);
        assert!(
            plane.admin("/problems").contains("\"problems\":[]"),
            "{}",
            plane.admin("/problems")
        );
        let web = Proxy::beside(&plane, "web", &[format!("{}=h1:main", app.port)], &[]);
        let caller = Proxy::caller(&plane, &[]);
        Self { caller, web, plane, _app: app }
    }

    /// What goes well, and what fails in each way, each round with another change of a policy.
    fn call(&self, round: u64) {
        let changed = traffic_policy("web-shadow", &format!("  deadline: {}s\n", 10 + round));
        self.plane.write("changed.yaml", &changed);
        let get = |url: &str| Curl::through(&self.caller).get(&format!("http://{url}")).status;
        for (name, _) in POLICIES {
            for path in ["", "status/503", "denied"] {
                get(&format!("{name}.bank/{path}"));
            }
        }
        get("nobody.bank/");
    }
}

/// A service without sidecars, of whose two endpoints one takes no connections.
fn two_endpoints(name: &str, port: u16) -> String {
    const CLOSED: &str = "{addresses: [\"127.0.0.2\"], conditions: {ready: true}}, ";
    unmeshed(name, "", port).replace("endpoints: [", &format!("endpoints: [{CLOSED}"))
}

/// Prometheus with the rules of the chart, and the proxies as docs/monitoring.md says it for those without a cluster.
pub(crate) struct Prometheus {
    pub(crate) port: u16,
    _process: Process,
    _dir: TempDir,
}

impl Prometheus {
    fn start(bed: &Bed) -> Self {
        let proxies = [("caller", bed.caller.admin), ("web", bed.web.admin)];
        Self::scrape(&bed.plane, &proxies, "exemplar-storage")
    }

    /// `proxies`: the name of each app, and the admin port of its proxy.
    pub(crate) fn scrape(plane: &ControlPlane, proxies: &[(&str, u16)], features: &str) -> Self {
        let (dir, port) = (TempDir::new("prometheus"), free_port());
        let rules = concat!(env!("CARGO_MANIFEST_DIR"), "/../charts/outrigger/files/rules/*.yaml");
        let target = |app: &str, port| {
            format!(
                "  - {{targets: ['{}'], labels: {{namespace: bank, app: {app}}}}}\n",
                local(port)
            )
        };
        let config = format!(
            "global: {{scrape_interval: 1s, evaluation_interval: 1s}}\nrule_files: ['{rules}']\n\
             scrape_configs:\n- job_name: outrigger-proxies\n  static_configs:\n{}\
             - job_name: outrigger-control-plane\n  static_configs:\n{}",
            proxies.iter().map(|(app, port)| target(app, *port)).collect::<String>(),
            target("outrigger", plane.admin),
        );
        let file = dir.path().join("prometheus.yaml");
        fs::write(&file, config).expect("a file");
        let mut command = Command::new("prometheus");
        command.current_dir(dir.path()).env("GOMAXPROCS", "1").args([
            &format!("--config.file={}", file.display()),
            &format!("--storage.tsdb.path={}", dir.path().join("data").display()),
            &format!("--web.listen-address={}", local(port)),
            &format!("--enable-feature={features}"),
            "--log.level=warn",
        ]);
        let process = Process::start(dir.path(), "prometheus", &mut command);
        let prometheus = Self { port, _process: process, _dir: dir };
        eventually("prometheus is ready", || {
            Curl::direct().get(&format!("http://{}/-/ready", local(port))).status == 200
        });
        prometheus
    }

    fn get(&self, path: &str, form: &[&str]) -> Value {
        let form: Vec<&str> = form.iter().flat_map(|one| ["--data-urlencode", one]).collect();
        let url = format!("http://{}/api/v1/{path}", local(self.port));
        let answer = Curl::direct().args(&["--get"]).args(&form).get(&url);
        serde_json::from_str(&answer.body).unwrap_or_else(|e| panic!("{e}: {answer:?}"))
    }

    /// Whether there is a number for it; fails if it is no query.
    #[track_caller]
    pub(crate) fn has_data(&self, query: &str) -> bool {
        let answer = self.get("query", &[&format!("query={query}")]);
        assert_eq!(answer["status"], "success", "{query}: {answer}");
        let samples = answer["data"]["result"].as_array().expect("a vector");
        samples.iter().any(|sample| sample["value"][1].as_str().is_some_and(|n| n != "NaN"))
    }
}

/// What Grafana would ask.
fn filled_in(query: &str) -> String {
    let values = [
        ("$__rate_interval", "1m"),
        ("$namespace", ".*"),
        ("$app", ".*"),
        ("$instance", ".*"),
        ("$service", "bank/web:80"),
    ];
    let filled =
        values.iter().fold(query.to_owned(), |text, (name, value)| text.replace(name, value));
    assert!(!filled.contains('$'), "an unknown variable: {query}");
    filled
}

#[test]
fn every_query_of_the_dashboards_has_data_and_every_rule_works() {
    if !has("prometheus") {
        let test = "monitoring::every_query_of_the_dashboards_has_data_and_every_rule_works";
        return skip(test, "prometheus is not installed");
    }
    let collector = Collector::start();
    let bed = Bed::start(&collector);
    let nobody = bed.plane.dir.path().join("nobody.token");
    fs::write(&nobody, "no token").expect("a file");
    let flags = ["--token-file", &nobody.display().to_string(), "--service-account", "nobody"];
    let _refused = Proxy::start_unready(&bed.plane, "nobody", &flags);
    let prometheus = Prometheus::start(&bed);

    let rules = files::rules();
    let records = rules.iter().filter_map(|rule| rule["record"].as_str());
    let of_rules = records.map(|name| Query { place: "rules".to_owned(), text: name.to_owned() });
    let mut pending: Vec<Query> =
        of_rules.chain(files::dashboards().iter().flat_map(files::queries)).collect();
    let excused = |query: &Query| WITHOUT_DATA.iter().any(|(name, _)| query.text.contains(name));
    let began = Instant::now();
    for round in 0.. {
        bed.call(round);
        pending.retain(|query| !prometheus.has_data(&filled_in(&query.text)));
        let missing = pending.iter().filter(|query| !excused(query));
        let missing: Vec<String> =
            missing.map(|Query { place, text }| format!("{place}: {text}")).collect();
        if missing.is_empty() {
            break;
        }
        assert!(began.elapsed() < ALL_THERE, "no data: {missing:#?}");
    }
    for (name, why) in WITHOUT_DATA {
        assert!(!prometheus.has_data(name), "{name} has data after all, although {why}");
    }

    let groups = prometheus.get("rules", &[]);
    let groups = groups["data"]["groups"].as_array().expect("groups");
    let evaluated: Vec<&Value> =
        groups.iter().flat_map(|group| group["rules"].as_array().into_iter().flatten()).collect();
    assert_eq!(evaluated.len(), rules.len());
    for rule in evaluated {
        assert_eq!(rule["health"], "ok", "{rule}");
    }
    exemplars_lead_to_traces(&prometheus, &collector);
}

fn exemplars_lead_to_traces(prometheus: &Prometheus, collector: &Collector) {
    let query = "query=outrigger_request_duration_seconds_bucket{direction=\"outbound\",service=\"bank/web:80\"}";
    eventually("a bucket's trace is in the backend", || {
        let found = prometheus.get("query_exemplars", &[query, "start=0", "end=9999999999"]);
        let series = found["data"].as_array().into_iter().flatten();
        let exemplars = series.flat_map(|one| one["exemplars"].as_array().into_iter().flatten());
        let traces: Vec<&str> =
            exemplars.filter_map(|one| one["labels"]["trace_id"].as_str()).collect();
        collector.spans().iter().any(|span| traces.contains(&&*span.trace))
    });
}

/// Prometheus asks for protocol buffers then, and takes the native form of each histogram.
#[test]
fn native_histograms_arrive_and_say_how_long_requests_took() {
    if !has("prometheus") {
        let test = "monitoring::native_histograms_arrive_and_say_how_long_requests_took";
        return skip(test, "prometheus is not installed");
    }
    let mesh = Mesh::start("h1");
    let features = "exemplar-storage,native-histograms";
    let prometheus = Prometheus::scrape(
        &mesh.plane,
        &[("caller", mesh.caller.admin), ("web", mesh.web.admin)],
        features,
    );
    for path in ["sleep/200", "sleep/200", "sleep/200", ""] {
        assert_eq!(Curl::through(&mesh.caller).get(&format!("http://web.bank/{path}")).status, 200);
    }
    let of = "outrigger_request_duration_seconds{direction=\"outbound\",outcome=\"success\"}";
    let value = |query: String| {
        let answer = prometheus.get("query", &[&format!("query={query}")]);
        let text = answer["data"]["result"][0]["value"][1].as_str().map(str::to_owned);
        text.and_then(|text| text.parse::<f64>().ok())
    };
    eventually("all requests are counted", || {
        value(format!("histogram_count({of})")).is_some_and(|count| (count - 4.0).abs() < 1e-9)
    });
    // Three of four took 200 ms and a little; a bucket is 9 % wide.
    let median = value(format!("histogram_quantile(0.7, {of})")).expect("a quantile");
    assert!((0.19..0.30).contains(&median), "{median} s");
    // Of counters and gauges nothing is lost.
    assert!(prometheus.has_data("sum(outrigger_requests_total{status=\"2xx\"}) >= 4"));
    assert!(prometheus.has_data("outrigger_discovery_connected == 1"));
}

#[test]
fn a_proxy_that_does_not_acknowledge_its_configuration_is_counted() {
    let mut mesh = Mesh::start("h1");
    assert_eq!(Curl::through(&mesh.caller).get("http://web.bank/").status, 200);
    let are_behind = |plane: &ControlPlane, count: u32| {
        let line = format!("outrigger_control_plane_proxies_behind {count}");
        eventually(&line, || plane.admin("/metrics").lines().any(|known| known == line));
    };
    are_behind(&mesh.plane, 0);
    mesh.caller.process().freeze(true);
    mesh.plane.write("policy.yaml", &traffic_policy("web", "  deadline: 7s\n"));
    are_behind(&mesh.plane, 1);
    mesh.caller.process().freeze(false);
    are_behind(&mesh.plane, 0);
}
