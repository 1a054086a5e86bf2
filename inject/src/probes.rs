//! The kubelet's probes, which arrive like anybody else's connections once everything is redirected.
//!
//! It has no identity, so a strict port would refuse it: HTTP and gRPC ones stay as they are and are named to
//! the proxy (`--probe`), which lets exactly them pass. A TCP one would always succeed, since the proxy accepts
//! every connection: it becomes a question to the proxy (`GET /probe/tcp/PORT`) that dials the app's port.

use std::collections::BTreeSet;

use outrigger_core::error::FieldError;
use serde_json::{Map, Value, json};

use crate::ADMIN_PORT;
use crate::annotations::Overrides;
use crate::pod::{containers_mut, named_port};
use crate::service::number;

/// Where the proxy answers for a port of the app.
const TCP: &str = "/probe/tcp/";
/// What a gRPC probe calls.
const GRPC: &str = "/grpc.health.v1.Health/Check";
/// What the kubelet sends without being told to; the proxy knows these.
const USUAL_HEADERS: [&str; 4] = ["host", "user-agent", "accept", "connection"];

/// What the proxy must know about probes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Probes {
    /// `8080/healthz`, and `5432` of a TCP one, as `--probe` takes them.
    pub(crate) list: BTreeSet<String>,
    /// Their ports.
    pub(crate) ports: BTreeSet<u16>,
    /// Names of headers that they carry, in lower case.
    pub(crate) headers: BTreeSet<String>,
}

/// Makes the probes of a pod work behind the proxy.
pub(crate) fn rewrite(
    pod: &mut Value,
    overrides: &Overrides,
    warnings: &mut Vec<FieldError>,
) -> Probes {
    let mut probes = Probes::default();
    for (path, container) in containers_mut(pod) {
        let ports = json!({ "ports": container.get("ports") });
        let own_name = container.get("name").and_then(Value::as_str).unwrap_or_default();
        let early = overrides.before.iter().any(|before| before == own_name);
        for kind in ["startupProbe", "livenessProbe", "readinessProbe"] {
            // Before the proxy is there nobody else could answer.
            if early && kind == "startupProbe" {
                continue;
            }
            let Some(probe) = container.get_mut(kind).and_then(Value::as_object_mut) else {
                continue;
            };
            let mut one = One { probes: &mut probes, overrides, ports: &ports, warnings };
            one.probe(probe, &format!("{path}.{kind}"));
        }
        let lifecycle = container.get("lifecycle");
        for hook in ["postStart", "preStop"] {
            let http = lifecycle.and_then(|lifecycle| lifecycle[hook].get("httpGet"));
            let mut one = One { probes: &mut probes, overrides, ports: &ports, warnings };
            one.http(http, &format!("{path}.lifecycle.{hook}.httpGet"));
        }
    }
    probes
}

/// A probe of one container.
struct One<'a> {
    probes: &'a mut Probes,
    overrides: &'a Overrides,
    /// With the container's own `ports`.
    ports: &'a Value,
    warnings: &'a mut Vec<FieldError>,
}

impl One<'_> {
    fn probe(&mut self, probe: &mut Map<String, Value>, path: &str) {
        self.http(probe.get("httpGet"), &format!("{path}.httpGet"));
        if let Some(port) = probe.get("grpc").and_then(|grpc| self.port(&grpc["port"])) {
            self.know(port, GRPC);
        }
        let Some(tcp) = probe.get("tcpSocket") else { return };
        if elsewhere(tcp) {
            return;
        }
        let Some(port) = self.port(&tcp["port"]) else { return };
        self.know(port, "");
        probe.remove("tcpSocket");
        let ask = json!({ "path": format!("{TCP}{port}"), "port": ADMIN_PORT, "scheme": "HTTP" });
        probe.insert("httpGet".to_owned(), ask);
    }

    fn http(&mut self, http: Option<&Value>, path: &str) {
        let Some(http) = http.filter(|http| !elsewhere(http)) else { return };
        let Some(port) = self.port(&http["port"]) else { return };
        let text = http["path"].as_str().filter(|text| !text.is_empty()).unwrap_or("/");
        let strict = "where the port is strict: use an exec probe, or name the port in \
                      outrigger.dev/skip-inbound-ports";
        if http["scheme"] == "HTTPS" {
            let problem = format!("an HTTPS probe is refused {strict}");
            return self.warnings.push(FieldError::at(format!("{path}.scheme"), problem));
        }
        if text.contains(',') {
            let problem = format!("a probe whose path has a comma is refused {strict}");
            return self.warnings.push(FieldError::at(format!("{path}.path"), problem));
        }
        let slash = if text.starts_with('/') { "" } else { "/" };
        self.know(port, &format!("{slash}{text}"));
        for header in http["httpHeaders"].as_array().into_iter().flatten() {
            let name = header["name"].as_str().unwrap_or_default().to_ascii_lowercase();
            if !name.is_empty() && !USUAL_HEADERS.contains(&&*name) {
                self.probes.headers.insert(name);
            }
        }
    }

    fn know(&mut self, port: u16, path: &str) {
        self.probes.list.insert(format!("{port}{path}"));
        self.probes.ports.insert(port);
    }

    /// The number of a probe's port, if what comes to it is redirected.
    fn port(&self, port: &Value) -> Option<u16> {
        let number = match port.as_str() {
            Some(text) => text.parse().ok().or_else(|| named_port(self.ports, text)),
            None => number(port),
        };
        number
            .filter(|port| !self.overrides.skip_inbound_ports.contains(port) && *port != ADMIN_PORT)
    }
}

/// Whether a probe goes to another host than the pod.
fn elsewhere(action: &Value) -> bool {
    action["host"].as_str().is_some_and(|host| !host.is_empty())
}

/// Makes the TCP probes of a pod that was injected what they were.
pub(crate) fn restore(pod: &mut Value) {
    for (_, container) in containers_mut(pod) {
        for kind in ["startupProbe", "livenessProbe", "readinessProbe"] {
            let Some(probe) = container.get_mut(kind).and_then(Value::as_object_mut) else {
                continue;
            };
            let asked = probe.get("httpGet").filter(|http| http["port"] == ADMIN_PORT);
            let path = asked.and_then(|http| http["path"].as_str()?.strip_prefix(TCP));
            let Some(port) = path.and_then(|port| port.parse::<u16>().ok()) else { continue };
            probe.remove("httpGet");
            probe.insert("tcpSocket".to_owned(), json!({ "port": port }));
        }
    }
}

/// The sidecar's own probes, by kind.
pub(crate) fn own() -> [(&'static str, Value); 3] {
    let get = |path: &str| json!({ "path": path, "port": ADMIN_PORT, "scheme": "HTTP" });
    [
        // It answers when the proxy has identity and configuration, so the app starts in that moment, or after
        // 8 s that it has not: for an hour, since a restart would not help.
        (
            "startupProbe",
            json!({
                "httpGet": get("/startup"),
                "periodSeconds": 1, "timeoutSeconds": 10, "failureThreshold": 400, "successThreshold": 1,
            }),
        ),
        (
            "readinessProbe",
            json!({
                "httpGet": get("/ready"),
                "periodSeconds": 1, "timeoutSeconds": 2, "failureThreshold": 3, "successThreshold": 1,
            }),
        ),
        // A minute, since a machine that is too busy is no reason for a restart.
        (
            "livenessProbe",
            json!({
                "httpGet": get("/live"),
                "periodSeconds": 10, "timeoutSeconds": 10, "failureThreshold": 6, "successThreshold": 1,
            }),
        ),
    ]
}
