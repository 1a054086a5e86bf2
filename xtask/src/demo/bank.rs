//! Who takes part in the demo: the roles of examples/simplebank, how many of each, and how one
//! replica with its sidecar is started.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::POLL;
use super::http;
use super::ports::Ports;
use super::process::Process;

/// How long a process may take to come so far that others can start.
const START_LIMIT: Duration = Duration::from_secs(30);

/// One line of the cast.
#[derive(Debug)]
pub(crate) struct Part {
    pub(crate) role: &'static str,
    version: Option<&'static str>,
    /// What `simplebank tier` is told, where the part is one; the role is only its name then.
    tier: Option<&'static [&'static str]>,
    /// Protocol and name of the port, as the proxy's `--app-port` takes them; none: no sidecar.
    port: Option<&'static str>,
    pub(crate) replicas: usize,
}

const fn part(role: &'static str, port: &'static str, replicas: usize) -> Part {
    Part { role, version: None, tier: None, port: Some(port), replicas }
}

/// A part of a story that the bank has no role for.
pub(crate) const fn tier(
    role: &'static str,
    args: &'static [&'static str],
    replicas: usize,
) -> Part {
    Part { role, version: None, tier: Some(args), port: Some("h1:http"), replicas }
}

/// Two replicas where a step of the demo takes one away, or where balancing is to be seen.
pub(crate) const CAST: &[Part] = &[
    Part { role: "stock-exchange", version: None, tier: None, port: None, replicas: 1 },
    part("ledger", "tcp:ledger", 1),
    part("account-transactions", "grpc:grpc", 1),
    part("market", "h1:http", 1),
    part("fees", "h1:http", 1),
    part("orders", "grpc:grpc", 2),
    Part { version: Some("v1"), ..part("market-data", "h1:http", 2) },
    Part { version: Some("v2"), ..part("market-data", "h1:http", 1) },
    part("transactions", "h1:http", 1),
    part("holdings", "h1:http", 2),
    part("gateway", "h1:http", 2),
];

impl Part {
    /// What its replicas are numbered after.
    pub(crate) fn stem(&self) -> String {
        match self.version {
            Some(version) => format!("{}-{version}", self.role),
            None => self.role.to_owned(),
        }
    }
}

/// What every process of the demo needs to know.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) proxy: PathBuf,
    pub(crate) control_plane: PathBuf,
    pub(crate) simplebank: PathBuf,
    /// Where the control plane's discovery and admin listen.
    pub(crate) discovery: SocketAddr,
    pub(crate) index: SocketAddr,
    /// What traces are sent to, and the flags of the control plane about it.
    pub(crate) backend: Option<SocketAddr>,
    pub(crate) telemetry: Vec<String>,
    /// Manifests, state and tokens: gone after the demo.
    pub(crate) scratch: PathBuf,
    pub(crate) logs: PathBuf,
}

/// One replica: an app and the proxy beside it.
#[derive(Debug)]
pub(crate) struct Member {
    pub(crate) part: &'static Part,
    pub(crate) name: String,
    pub(crate) app: Process,
    pub(crate) app_admin: SocketAddr,
    pub(crate) sidecar: Option<Sidecar>,
}

#[derive(Debug)]
pub(crate) struct Sidecar {
    pub(crate) process: Process,
    pub(crate) outbound: SocketAddr,
    pub(crate) inbound: SocketAddr,
    pub(crate) admin: SocketAddr,
}

/// An app that has been started and has not yet said where it listens.
#[derive(Debug)]
pub(crate) struct Starting {
    part: &'static Part,
    name: String,
    app: Process,
    said: Receiver<String>,
    ports: Option<[SocketAddr; 3]>,
}

impl Stage {
    pub(crate) fn manifests(&self) -> PathBuf {
        self.scratch.join("manifests")
    }

    pub(crate) fn start_control_plane(&self) -> io::Result<Process> {
        let mut command = Command::new(&self.control_plane);
        command.arg("--exit-with-parent");
        command.arg("--manifests").arg(self.manifests());
        command.arg("--state-dir").arg(self.control_plane_state());
        command.arg("--listen").arg(self.discovery.to_string());
        command.arg("--admin").arg(self.index.to_string());
        command.args(["--identity", "on", "--mtls", "strict"]);
        command.args(&self.telemetry);
        let mut process = Process::start("control-plane", command, &self.logs)?;
        // Sidecars begin with the roots that it writes.
        let limit = Instant::now() + START_LIMIT;
        while !self.trust_bundle().exists() {
            if process.ended().is_some() || Instant::now() > limit {
                let tail = process.tail();
                return Err(io::Error::other(format!("the control plane did not start\n{tail}")));
            }
            std::thread::park_timeout(POLL);
        }
        Ok(process)
    }

    /// A step of `outrigger-control-plane trust`: what it answered, or why it was refused.
    pub(crate) fn trust(&self, step: &[&str]) -> io::Result<Result<String, String>> {
        let mut command = Command::new(&self.control_plane);
        command.arg("trust").args(step).arg("--state-dir").arg(self.control_plane_state());
        let output = command.output()?;
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() {
            return Ok(Ok(text(&output.stdout)));
        }
        Ok(Err(text(&output.stderr)))
    }

    fn control_plane_state(&self) -> PathBuf {
        self.scratch.join("control-plane")
    }

    /// The roots that proxies start with. The control plane writes them when it first starts.
    pub(crate) fn trust_bundle(&self) -> PathBuf {
        self.control_plane_state().join("trust-bundle.pem")
    }

    /// Starts replica `number` of `part`; [`Stage::finish`] waits for it.
    pub(crate) fn begin(
        &self,
        part: &'static Part,
        number: usize,
        ports: &mut Ports,
        listen: Option<SocketAddr>,
    ) -> io::Result<Starting> {
        let name = format!("{}-{number}", part.stem());
        let mut command = Command::new(&self.simplebank);
        command.args(["--exit-with-parent", part.tier.map_or(part.role, |_| "tier")]);
        command.args(part.tier.unwrap_or_default());
        // While callers hear that this replica is leaving, it must still serve them.
        command.args(["--drain-delay", "1s"]);
        if let Some(listen) = listen {
            command.arg("--listen").arg(listen.to_string());
        }
        if let Some(version) = part.version {
            command.args(["--version", version]);
        }
        if let Some(backend) = self.backend.filter(|_| part.role == "gateway") {
            // The one app of the bank with spans of its own.
            command.arg("--traces").arg(format!("http://{backend}"));
        }
        let mut sidecar = None;
        command.env_remove("HTTP_PROXY").env_remove("OTEL_EXPORTER_OTLP_ENDPOINT");
        if part.port.is_some() {
            let ports = [ports.free()?, ports.free()?, ports.free()?];
            command.arg("--proxy").arg(ports[0].to_string());
            sidecar = Some(ports);
        }
        let (app, said) = Process::start_reading(&name, command, &self.logs)?;
        Ok(Starting { part, name, app, said, ports: sidecar })
    }

    /// Waits until the app listens and starts its sidecar.
    pub(crate) fn finish(&self, mut starting: Starting) -> io::Result<Member> {
        let line = starting.said.recv_timeout(START_LIMIT).map_err(|_| {
            let _ = starting.app.ended();
            io::Error::other(format!(
                "{} did not say where it listens\n{}",
                starting.name,
                starting.app.tail()
            ))
        })?;
        let Starting { part, name, app, ports, .. } = starting;
        let (listen, app_admin) = addresses(&line)
            .ok_or_else(|| io::Error::other(format!("{name}: not a start line: {line}")))?;
        let sidecar = match (part.port, ports) {
            (Some(port), Some([outbound, inbound, admin])) => {
                let mut labels = vec![format!("app={}", part.role)];
                labels.extend(part.version.map(|version| format!("version={version}")));
                let mut command = self.proxy_command(&name, part.role)?;
                for label in labels {
                    command.arg("--label").arg(label);
                }
                command.arg("--app-port").arg(format!("{}={port}", listen.port()));
                Some(self.start_proxy(&name, command, [outbound, inbound, admin])?)
            }
            _ => None,
        };
        Ok(Member { part, name, app, app_admin, sidecar })
    }

    /// A sidecar for an app that only calls others.
    pub(crate) fn start_callers_proxy(
        &self,
        name: &str,
        ports: [SocketAddr; 3],
    ) -> io::Result<Sidecar> {
        let command = self.proxy_command(name, name)?;
        self.start_proxy(name, command, ports)
    }

    fn proxy_command(&self, workload: &str, account: &str) -> io::Result<Command> {
        let mut command = Command::new(&self.proxy);
        command.arg("--exit-with-stdin");
        command.arg("--control-plane").arg(format!("https://{}", self.discovery));
        command.arg("--trust-bundle").arg(self.trust_bundle());
        command.args(["--namespace", "bank", "--workload", workload]);
        command.args(["--service-account", account]);
        command.arg("--token-file").arg(self.token(account)?);
        command.arg("--state-dir").arg(self.scratch.join("proxies").join(workload));
        Ok(command)
    }

    fn start_proxy(
        &self,
        workload: &str,
        mut command: Command,
        [outbound, inbound, admin]: [SocketAddr; 3],
    ) -> io::Result<Sidecar> {
        command.arg("--outbound").arg(outbound.to_string());
        command.arg("--inbound").arg(inbound.to_string());
        command.arg("--admin").arg(admin.to_string());
        let process = Process::start(&format!("{workload}-proxy"), command, &self.logs)?;
        Ok(Sidecar { process, outbound, inbound, admin })
    }

    /// The join token of a service account, made on first use.
    fn token(&self, account: &str) -> io::Result<PathBuf> {
        let file = self.scratch.join("tokens").join(account);
        if file.exists() {
            return Ok(file);
        }
        let output = Command::new(&self.control_plane)
            .args(["token", "--namespace", "bank", "--service-account", account, "--ttl", "7d"])
            .arg("--state-dir")
            .arg(self.control_plane_state())
            .output()?;
        if !output.status.success() {
            let why = String::from_utf8_lossy(&output.stderr);
            return Err(io::Error::other(format!("no join token: {}", why.trim())));
        }
        std::fs::create_dir_all(file.parent().unwrap_or(Path::new(".")))?;
        std::fs::write(&file, output.stdout)?;
        Ok(file)
    }
}

impl Member {
    /// The name by which endpoints of it are known.
    pub(crate) fn uid(&self) -> String {
        format!("bank.{}", self.name)
    }

    /// Every process of it.
    pub(crate) fn processes(&mut self) -> impl Iterator<Item = &mut Process> {
        let sidecar = self.sidecar.as_mut().map(|sidecar| &mut sidecar.process);
        std::iter::once(&mut self.app).chain(sidecar)
    }

    /// Requests that have arrived at the app.
    pub(crate) fn requests(&self) -> u64 {
        self.stat("requests")
    }

    /// One of the numbers that the app counts.
    pub(crate) fn stat(&self, name: &str) -> u64 {
        let stats = http::get_json(self.app_admin, "/admin/stats").unwrap_or_default();
        stats[name].as_u64().unwrap_or(0)
    }

    /// Sets one field of the app's fault and leaves the others.
    pub(crate) fn change_fault(&self, field: &str, value: &Value) -> io::Result<()> {
        let mut fault = http::get_json(self.app_admin, "/admin/fault")?;
        fault[field] = value.clone();
        let answer = http::post_json(self.app_admin, "/admin/fault", &fault)?;
        if answer.status == 200 {
            return Ok(());
        }
        Err(io::Error::other(format!("{}: {}", self.name, answer.body.trim())))
    }

    /// Operation ids that have arrived at the app, and how often each.
    pub(crate) fn operations(&self) -> io::Result<Vec<(String, u64)>> {
        let Value::Object(all) = http::get_json(self.app_admin, "/admin/operations")? else {
            return Err(io::Error::other(format!("{}: operations are not a map", self.name)));
        };
        Ok(all.into_iter().map(|(id, times)| (id, times.as_u64().unwrap_or(0))).collect())
    }

    /// Adds this to every answer of the app.
    pub(crate) fn slow_down(&self, delay_ms: u64) -> io::Result<()> {
        let fault = serde_json::json!({ "delay_ms": delay_ms });
        http::post_json(self.app_admin, "/admin/fault", &fault).map(drop)
    }
}

impl Sidecar {
    pub(crate) fn is_ready(&self) -> bool {
        http::get(self.admin, "/ready").is_ok_and(|answer| answer.status == 200)
    }
}

/// `listen` and `admin` of an app's first line.
fn addresses(line: &str) -> Option<(SocketAddr, SocketAddr)> {
    let line: Value = serde_json::from_str(line).ok()?;
    let address = |key: &str| line[key].as_str()?.parse().ok();
    Some((address("listen")?, address("admin")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_line_names_both_addresses() {
        let line = r#"{"role":"fees","listen":"127.0.0.1:41001","admin":"127.0.0.1:41002"}"#;
        let (listen, admin) = addresses(line).unwrap();
        assert_eq!((listen.port(), admin.port()), (41001, 41002));
        assert_eq!(addresses("starting"), None);
    }

    #[test]
    fn a_step_can_take_a_replica_from_these() {
        for role in ["gateway", "holdings", "orders"] {
            assert!(CAST.iter().any(|part| part.role == role && part.replicas > 1), "{role}");
        }
    }
}
