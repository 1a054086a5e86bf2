//! YAML in, readable text out: `cases/<name>.yaml` becomes `cases/<name>.snap`.
//!
//! The text has the problems, then what proxies would be told: every destination with its routes,
//! its endpoints, and every workload's inbound. Run with `INSTA_UPDATE=always` to write it anew, and
//! read what changed.

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::sync::Arc;

use outrigger_control_plane::index::{Index, PortId};
use outrigger_control_plane::metrics::Metrics;
use outrigger_control_plane::problems::Problems;
use outrigger_control_plane::publish::Publisher;
use outrigger_control_plane::source::manifests::Folder;
use outrigger_control_plane::status;
use outrigger_control_plane::translate::{destination, inbound};
use outrigger_core::compile::compile;
use outrigger_core::config::{
    BackendTarget, Balancer, Destination, Filter, HeaderModifier, HttpMatch, HttpRule,
    MeshSettings, PathMatch, TcpBackend, ValueMatch,
};
use outrigger_core::policy::{BackendPolicy, CallPolicy};
use tempfile::TempDir;

use crate::render;
use crate::support::LOOPBACK;

fn check(name: &str) {
    let cases = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/it/cases");
    let folder = TempDir::new().unwrap();
    let file = format!("{name}.yaml");
    fs::copy(format!("{cases}/{file}"), folder.path().join(&file)).unwrap();
    let publisher = Publisher::new(Index::new(MeshSettings::default()));
    let problems = Arc::new(Problems::default());
    let metrics = Arc::new(Metrics::new());
    let mut reader = Folder::new(folder.path().to_owned(), LOOPBACK, problems.clone(), metrics);
    reader.scan(&publisher).unwrap();
    let mut text = String::new();
    let prefix = format!("{}/", folder.path().display());
    for problem in problems.all() {
        let severity = format!("{:?}", problem.severity).to_lowercase();
        let line = problem.to_string().replace(&prefix, "");
        writeln!(text, "{severity}: {line}").unwrap();
    }
    let view = publisher.view();
    for (object, problem) in status::unresolved(&view.index) {
        writeln!(text, "unresolved: {object}: {problem}").unwrap();
    }
    render_index(&view.index, &mut text);
    insta::with_settings!({
        snapshot_path => cases, prepend_module_to_snapshot => false, omit_expression => true,
    }, {
        insta::assert_snapshot!(name, text);
    });
}

fn render_index(index: &Index, text: &mut String) {
    for service in index.services() {
        for port in &service.ports {
            let id = PortId::new(&service.id, port.port);
            let namespaces: BTreeSet<&str> = index
                .routes_of(&service.id)
                .map(|route| route.id.namespace.as_str())
                .chain([service.id.namespace.as_str()])
                .collect();
            for namespace in namespaces {
                let found = index.resolve(&id.to_string(), namespace).target.unwrap();
                let value = destination::build(index, &found.name).unwrap();
                if namespace == service.id.namespace || found.name.consumer.is_some() {
                    compile(&value).unwrap();
                    render_destination(&value, text);
                }
            }
            for endpoint in index.endpoints(&id).unwrap() {
                let mesh = endpoint.mesh.map(|mesh| format!(" mesh {}", mesh.address));
                let zone = endpoint.zone.map(|zone| format!(" zone {zone}"));
                let hostname = endpoint.hostname.map(|name| format!(" hostname {name}"));
                let workload = endpoint.workload.map(|workload| format!(" as {workload}"));
                let rest: String = [mesh, zone, hostname, workload].into_iter().flatten().collect();
                writeln!(text, "  endpoint {} at {}{rest}", endpoint.id, endpoint.address).unwrap();
            }
        }
    }
    for workload in index.workloads() {
        let value = inbound::build(index, &workload.uid()).unwrap();
        writeln!(text, "inbound {} at {:?}", value.workload, value.addresses).unwrap();
        for port in value.ports {
            let services: Vec<_> = port.services.iter().map(ToString::to_string).collect();
            let service = match services.as_slice() {
                [] => String::new(),
                services => format!(" of {}", services.join(", ")),
            };
            writeln!(text, "  port {} {}{service}", port.port, port.protocol.as_str()).unwrap();
            if let Some(policy) = port.server {
                writeln!(text, "    lets in {}", render::server(&policy)).unwrap();
            }
        }
    }
}

fn render_destination(value: &Destination, text: &mut String) {
    let balancer = |balancer: &Balancer| match balancer {
        Balancer::PowerOfTwo => String::new(),
        other => format!(" {other:?}"),
    };
    let own = balancer(&value.balancer);
    writeln!(text, "destination {} {}{own}", value.name, value.protocol.as_str()).unwrap();
    if value.call != CallPolicy::default() {
        writeln!(text, "  call {}", render::call(&value.call)).unwrap();
    }
    render_protection("  ", &value.policy, text);
    for backend in &value.backends {
        let own = balancer(&backend.balancer);
        writeln!(text, "  backend {} {}{own}", backend.name, backend.protocol.as_str()).unwrap();
        render_protection("    ", &backend.policy, text);
    }
    for route in &value.http_routes {
        writeln!(text, "  route {} created {}", route.name, route.created).unwrap();
        for rule in &route.rules {
            render_rule(rule, text);
        }
    }
    for route in &value.tls_routes {
        writeln!(text, "  tls route {} for {:?}", route.name, route.hostnames).unwrap();
        render_stream(&route.backends, text);
    }
    if let Some(route) = &value.tcp_route {
        writeln!(text, "  tcp route {}", route.name).unwrap();
        render_stream(&route.backends, text);
    }
}

fn render_protection(indent: &str, policy: &BackendPolicy, text: &mut String) {
    if *policy != BackendPolicy::default() {
        writeln!(text, "{indent}protected by {}", render::backend(policy)).unwrap();
    }
}

fn render_stream(backends: &[TcpBackend], text: &mut String) {
    for backend in backends {
        writeln!(text, "    {} to {}", backend.weight, target(&backend.target)).unwrap();
    }
}

fn target(target: &BackendTarget) -> String {
    match target {
        BackendTarget::Service(name) => name.to_string(),
        BackendTarget::Invalid(why) => format!("nowhere ({why})"),
    }
}

fn render_rule(rule: &HttpRule, text: &mut String) {
    writeln!(text, "    rule {}", rule.name.as_deref().unwrap_or("-")).unwrap();
    if let Some(policy) = &rule.call {
        writeln!(text, "      call {}", render::call(policy)).unwrap();
    }
    for value in &rule.matches {
        writeln!(text, "      match {}", render_match(value)).unwrap();
    }
    for filter in &rule.filters {
        writeln!(text, "      {}", render_filter(filter)).unwrap();
    }
    for backend in &rule.backends {
        writeln!(text, "      {} to {}", backend.weight, target(&backend.target)).unwrap();
        for filter in &backend.filters {
            writeln!(text, "        {}", render_filter(filter)).unwrap();
        }
    }
}

fn render_match(value: &HttpMatch) -> String {
    let path = value.path.as_ref().map(|path| match path {
        PathMatch::Exact(path) => format!("path = {path}"),
        PathMatch::Prefix(path) => format!("path under {path}"),
        PathMatch::Regex(path) => format!("path ~ {path}"),
    });
    let test = |value: &ValueMatch| match value {
        ValueMatch::Exact(text) => format!("= {text}"),
        ValueMatch::Regex(text) => format!("~ {text}"),
    };
    let method = value.method.as_ref().map(|method| format!("method {method}"));
    let headers = value.headers.iter();
    let headers = headers.map(|h| format!("header {} {}", h.name, test(&h.value)));
    let query = value.query.iter().map(|q| format!("query {} {}", q.name, test(&q.value)));
    let all: Vec<_> = path.into_iter().chain(method).chain(headers).chain(query).collect();
    if all.is_empty() { "anything".to_owned() } else { all.join(", ") }
}

fn render_filter(filter: &Filter) -> String {
    let modifier = |headers: &HeaderModifier| {
        let pairs = |word: &str, list: &[(http::HeaderName, http::HeaderValue)]| {
            let list = list.iter();
            list.map(|(name, value)| format!(" {word} {name}={}", value.to_str().unwrap()))
                .collect::<String>()
        };
        let remove: String = headers.remove.iter().map(|name| format!(" remove {name}")).collect();
        pairs("set", &headers.set) + &pairs("add", &headers.add) + &remove
    };
    match filter {
        Filter::RequestHeaders(headers) => format!("request headers{}", modifier(headers)),
        Filter::ResponseHeaders(headers) => format!("response headers{}", modifier(headers)),
        Filter::Redirect(redirect) => format!(
            "redirect {} scheme {:?} host {:?} port {:?} path {:?}",
            redirect.status.as_u16(),
            redirect.scheme,
            redirect.host,
            redirect.port,
            redirect.path
        ),
        Filter::Rewrite(rewrite) => {
            format!("rewrite host {:?} path {:?}", rewrite.host, rewrite.path)
        }
        Filter::Mirror(mirror) => format!(
            "mirror {}/{} to {}",
            mirror.numerator,
            mirror.denominator,
            target(&mirror.target)
        ),
        Filter::Cors(cors) => format!(
            "cors origins {:?} credentials {} methods {:?} headers {:?} expose {:?} for {} s",
            cors.origins, cors.credentials, cors.methods, cors.headers, cors.expose, cors.max_age
        ),
    }
}

#[test]
fn services() {
    check("service");
}

#[test]
fn a_service_may_prefer_its_callers_zone() {
    check("distribution");
}

#[test]
fn endpoint_slices() {
    check("endpoint_slice");
}

#[test]
fn every_match_of_an_http_route() {
    check("http_route_matches");
}

#[test]
fn every_filter_of_an_http_route() {
    check("http_route_filters");
}

#[test]
fn what_is_wrong_in_http_routes() {
    check("http_route_errors");
}

#[test]
fn backends_that_do_not_resolve() {
    check("backends");
}

#[test]
fn parents_and_consumers() {
    check("parents");
}

#[test]
fn grpc_routes() {
    check("grpc_route");
}

#[test]
fn tls_and_tcp_routes() {
    check("stream_routes");
}

#[test]
fn policies() {
    check("policies");
}

#[test]
fn external_workloads() {
    check("external_workload");
}

#[test]
fn experiments() {
    check("experiments");
}
