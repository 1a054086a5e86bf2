//! The files themselves: what promtool says of rules, and that names, runbooks and tests are there.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use outrigger_core::reason::{Reason, Side};
use outrigger_tests::client::has;
use outrigger_tests::process::{TempDir, binary};
use outrigger_tests::skip;
use serde_json::Value;

const CONTROL_PLANE: &str = include_str!("../../../control-plane/src/metrics.rs");
const RUNBOOKS: &str = include_str!("../../../docs/runbooks.md");
const MONITORING: &str = include_str!("../../../docs/monitoring.md");
const RULES: &str = "charts/outrigger/files/rules";

fn root() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// The files of a folder of the repository, with their texts.
fn files(folder: &str) -> Vec<(PathBuf, String)> {
    let entries = fs::read_dir(root().join(folder)).expect("the folder");
    let mut paths: Vec<_> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    assert!(!paths.is_empty(), "{folder} is empty");
    let read = |path: PathBuf| (path.clone(), fs::read_to_string(path).expect("its text"));
    paths.into_iter().map(read).collect()
}

fn list<'a>(value: &'a Value, name: &str) -> impl Iterator<Item = &'a Value> {
    value[name].as_array().into_iter().flatten()
}

fn text<'a>(value: &'a Value, name: &str) -> &'a str {
    value[name].as_str().unwrap_or_default()
}

/// Every rule, recording or alerting.
pub fn rules() -> Vec<Value> {
    let parsed = files(RULES).into_iter().map(|(path, text)| {
        serde_saphyr::from_str::<Value>(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"))
    });
    parsed.flat_map(|file| all_rules(&file)).collect()
}

fn all_rules(file: &Value) -> Vec<Value> {
    list(file, "groups").flat_map(|group| list(group, "rules").cloned()).collect()
}

/// A query of a dashboard, and where it stands.
pub struct Query {
    pub place: String,
    pub text: String,
}

pub fn dashboards() -> Vec<Value> {
    let files = files("charts/outrigger/files/dashboards").into_iter();
    let parsed = files.map(|(path, text)| {
        serde_json::from_str(&text).unwrap_or_else(|e| panic!("{path:?}: {e}"))
    });
    parsed.collect()
}

pub fn queries(dashboard: &Value) -> Vec<Query> {
    let of_panel = |panel: &Value| {
        let place = format!("{}: {}", text(dashboard, "title"), text(panel, "title"));
        let targets = list(panel, "targets").map(|target| text(target, "expr").to_owned());
        targets.map(move |text| Query { place: place.clone(), text }).collect::<Vec<_>>()
    };
    list(dashboard, "panels").flat_map(of_panel).collect()
}

/// The names of our metrics in a query.
pub fn metrics(query: &str) -> impl Iterator<Item = &str> {
    let words = query.split(|c: char| !c.is_alphanumeric() && c != '_' && c != ':');
    words.filter(|word| word.starts_with("outrigger"))
}

fn is_there(test: &str) -> bool {
    let is_there = has("promtool");
    if !is_there {
        skip(&format!("monitoring::files::{test}"), "promtool is not installed");
    }
    is_there
}

#[track_caller]
fn promtool(what: [&str; 2], files: &[&Path]) {
    let output = Command::new("promtool").args(what).args(files).output().expect("promtool runs");
    let said = [output.stdout, output.stderr].map(|o| String::from_utf8_lossy(&o).into_owned());
    assert!(output.status.success(), "promtool {what:?}: {}", said.concat());
}

#[test]
fn promtool_takes_the_rules_and_their_tests_hold() {
    if !is_there("promtool_takes_the_rules_and_their_tests_hold") {
        return;
    }
    for (what, folder) in [(["check", "rules"], RULES), (["test", "rules"], "tests/rules")] {
        let files = files(folder);
        let paths: Vec<&Path> = files.iter().map(|(path, _)| &**path).collect();
        promtool(what, &paths);
    }
}

#[test]
fn promtool_takes_the_scrape_configurations_of_the_document() {
    if !is_there("promtool_takes_the_scrape_configurations_of_the_document") {
        return;
    }
    let blocks = MONITORING.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next());
    let folder = TempDir::new("scrape");
    let mut count = 0;
    for (n, block) in blocks.enumerate() {
        let path = folder.path().join(format!("{n}.yaml"));
        // Debian's promtool does not know Kubernetes.
        let block = block.lines().map(|line| match line.trim_start() {
            known if known.starts_with("kubernetes_sd_configs:") => "  static_configs: []",
            _ => line,
        });
        fs::write(&path, block.collect::<Vec<_>>().join("\n")).expect("a file");
        promtool(["check", "config"], &[&path]);
        count += 1;
    }
    assert_eq!(count, 2, "with a cluster and without");
}

#[test]
fn every_metric_that_is_asked_for_exists() {
    let output = Command::new(binary("outrigger-proxy")).arg("metrics").output().expect("it runs");
    let page = String::from_utf8(output.stdout).expect("text");
    let rows = page.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | "));
    let mut known = BTreeSet::new();
    for (name, rest) in rows {
        known.insert(name.to_owned());
        if rest.starts_with("histogram") {
            known.extend(["_bucket", "_sum", "_count"].map(|suffix| format!("{name}{suffix}")));
        }
    }
    assert!(known.len() > 50, "{known:?}");
    let registered = CONTROL_PLANE.split("registry.register(").skip(1);
    for name in registered.filter_map(|rest| rest.split('"').nth(1)) {
        for suffix in ["", "_total", "_bucket", "_sum", "_count"] {
            known.insert(format!("outrigger_control_plane_{name}{suffix}"));
        }
    }
    let rules = rules();
    let records = rules.iter().filter_map(|rule| rule["record"].as_str());
    known.extend(records.map(str::to_owned));
    let dashboards = dashboards();
    let variables = dashboards.iter().flat_map(|dashboard| list(&dashboard["templating"], "list"));
    let asked = rules.iter().map(|rule| text(rule, "expr").to_owned());
    let asked = asked.chain(variables.map(|variable| text(variable, "query").to_owned()));
    let asked = asked.chain(dashboards.iter().flat_map(queries).map(|query| query.text));
    for query in asked {
        for name in metrics(&query) {
            assert!(known.contains(name), "{name} does not exist: {query}");
        }
    }
}

#[test]
fn every_alert_has_an_owner_a_runbook_and_tests_in_which_it_fires_and_does_not() {
    let sections: BTreeSet<&str> =
        RUNBOOKS.lines().filter_map(|line| line.strip_prefix("## ")).collect();
    let (mut fires, mut quiet) = (BTreeSet::new(), BTreeSet::new());
    for (path, content) in files("tests/rules") {
        let file: Value =
            serde_saphyr::from_str(&content).unwrap_or_else(|e| panic!("{path:?}: {e}"));
        for test in list(&file, "tests") {
            let samples = list(test, "promql_expr_test").flat_map(|one| list(one, "exp_samples"));
            let labels = samples.filter_map(|sample| sample["labels"].as_str());
            let names = labels.filter_map(|labels| labels.split("alertname=\"").nth(1));
            fires.extend(names.filter_map(|rest| Some(rest.split_once('"')?.0.to_owned())));
            let of_alerts = list(test, "alert_rule_test");
            let without = of_alerts.filter(|one| list(one, "exp_alerts").next().is_none());
            quiet.extend(without.map(|one| text(one, "alertname").to_owned()));
        }
    }
    let rules = rules();
    let mut alerts = BTreeSet::new();
    for rule in rules.iter().filter(|rule| rule["alert"].is_string()) {
        let name = text(rule, "alert");
        alerts.insert(name);
        let (labels, annotations) = (&rule["labels"], &rule["annotations"]);
        assert!(["critical", "warning"].contains(&text(labels, "severity")), "{rule}");
        assert_eq!(labels["owner"], "platform", "{name}: the chart replaces it");
        assert!(!text(annotations, "summary").is_empty(), "{rule}");
        assert!(!text(annotations, "description").is_empty(), "{rule}");
        let section = format!("docs/runbooks.md#{}", name.to_lowercase());
        assert!(text(annotations, "runbook_url").ends_with(&section), "{rule}");
        assert!(fires.contains(name), "no test in tests/rules in which {name} fires");
        assert!(quiet.contains(name), "no test in tests/rules in which {name} does not fire");
    }
    assert_eq!(alerts, sections, "alerts and sections of docs/runbooks.md");
}

#[test]
fn the_fault_of_a_caller_is_no_error_of_the_service() {
    let rules = rules();
    let mut errors =
        rules.iter().filter(|rule| rule["record"] == "outrigger_service:errors:rate5m");
    let query = text(errors.next().expect("the rule"), "expr");
    let of_callers = Reason::ALL.iter().filter(|reason| reason.side() == Side::Downstream);
    let of_callers: Vec<&str> = of_callers.map(|reason| reason.as_str()).collect();
    let selectors: Vec<&str> = query.split("reason!~\"").skip(1).collect();
    assert_eq!(selectors.len(), 2, "{query}");
    for selector in selectors {
        assert_eq!(selector.split('"').next(), Some(&*of_callers.join("|")));
    }
}

#[test]
fn dashboards_are_of_one_make() {
    for dashboard in dashboards() {
        let title = text(&dashboard, "title");
        let uid = title.to_lowercase().replace(" / ", "-").replace(' ', "-");
        assert_eq!(text(&dashboard, "uid"), uid);
        assert_eq!(dashboard["templating"]["list"][0]["type"], "datasource", "{title}");
        let mut ids = BTreeSet::new();
        for panel in list(&dashboard, "panels") {
            assert!(ids.insert(panel["id"].as_u64()), "{title}: {} twice", panel["id"]);
            assert!(text(panel, "title").ends_with('?'), "{title}: a question: {panel}");
            assert_eq!(panel["datasource"]["uid"], "${datasource}", "{title}: {panel}");
            assert!(
                !text(&panel["fieldConfig"]["defaults"], "unit").is_empty(),
                "{title}: {panel}"
            );
        }
        let queries = queries(&dashboard);
        assert!(queries.len() >= ids.len(), "{title}");
        assert!(queries.iter().all(|query| !query.text.is_empty()), "{title}");
    }
}
