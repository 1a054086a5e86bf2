//! Every flag and environment variable of `outrigger-proxy`, with its unit and default.
//!
//! This is the one table: README's is generated from it, and nothing else reads the environment.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use http::HeaderName;
use outrigger_core::config::Protocol;
use outrigger_core::name::{Authority, check_label, check_subdomain};
use outrigger_core::telemetry::{AccessLog, LogLayout};

use crate::base::local::reaches;

/// The sidecar of an Outrigger mesh: routes, load-balances and observes the traffic of its app.
///
/// Outbound: point the app's HTTP_PROXY at --outbound, or redirect its traffic there. Inbound:
/// other proxies reach the app through --inbound. Routes come from --control-plane.
#[derive(Clone, Debug, Parser)]
#[command(
    name = "outrigger-proxy",
    version,
    after_help = "EXAMPLE:\n  outrigger-proxy --control-plane http://127.0.0.1:4780 --namespace bank \\\n    --service-account orders --workload orders-1 --label app=orders \\\n    --app-port 8080=grpc --token-file orders.token\n\nDocs: docs/life-of-a-request.md, docs/reasons.md"
)]
pub struct Settings {
    /// Listener for the app's outbound traffic (HTTP_PROXY, or redirected)
    #[arg(
        long,
        env = "OUTRIGGER_OUTBOUND",
        default_value = "127.0.0.1:4740",
        value_name = "IP:PORT"
    )]
    pub outbound: SocketAddr,

    /// Listener through which other proxies reach this workload
    #[arg(
        long,
        env = "OUTRIGGER_INBOUND",
        default_value = "127.0.0.1:4743",
        value_name = "IP:PORT"
    )]
    pub inbound: SocketAddr,

    /// Admin server: /live, /ready, /metrics, /config; drain and log level with the token of --admin-token-file
    #[arg(long, env = "OUTRIGGER_ADMIN", default_value = "127.0.0.1:4791", value_name = "IP:PORT")]
    pub admin: SocketAddr,

    /// The same on a Unix socket, which its owner alone may use (mode 0600), and without a token
    #[arg(long, env = "OUTRIGGER_ADMIN_SOCKET", value_name = "PATH")]
    pub admin_socket: Option<PathBuf>,

    /// File with the token that calls on --admin that change the proxy (POST /drain, PUT /log) must send, as
    /// `Authorization: Bearer TOKEN`; read again for each call
    #[arg(long, env = "OUTRIGGER_ADMIN_TOKEN_FILE", value_name = "FILE")]
    pub admin_token_file: Option<PathBuf>,

    /// A listener for one destination, for apps that cannot use a proxy; may be repeated
    #[arg(long = "listen", env = "OUTRIGGER_LISTEN", value_name = "IP:PORT=HOST:PORT", value_parser = parse_listener, value_delimiter = ',')]
    pub listeners: Vec<StaticListener>,

    /// The control plane's discovery address; without it, only the configuration in --state-dir is served
    #[arg(long, env = "OUTRIGGER_CONTROL_PLANE", value_name = "URL", value_parser = parse_url)]
    pub control_plane: Option<http::Uri>,

    /// Namespace of the workload; short names are resolved in it
    #[arg(long, env = "OUTRIGGER_NAMESPACE", default_value = "default", value_parser = parse_label)]
    pub namespace: String,

    /// Service account of the workload
    #[arg(long, env = "OUTRIGGER_SERVICE_ACCOUNT", default_value = "default", value_parser = parse_name)]
    pub service_account: String,

    /// Name of the workload, unique in its namespace
    #[arg(long, env = "OUTRIGGER_WORKLOAD", default_value = "proxy", value_parser = parse_name)]
    pub workload: String,

    /// Topology zone of the workload
    #[arg(long, env = "OUTRIGGER_ZONE")]
    pub zone: Option<String>,

    /// Node that the workload runs on, for Services whose traffic stays on one (internalTrafficPolicy)
    #[arg(long, env = "OUTRIGGER_NODE")]
    pub node: Option<String>,

    /// A label of the workload, which Services select by; may be repeated
    #[arg(long = "label", env = "OUTRIGGER_LABELS", value_name = "KEY=VALUE", value_parser = parse_label_pair, value_delimiter = ',')]
    pub labels: Vec<(String, String)>,

    /// Address of the app
    #[arg(long, env = "OUTRIGGER_APP_ADDRESS", default_value_t = IpAddr::V4(Ipv4Addr::LOCALHOST), value_name = "IP")]
    pub app_address: IpAddr,

    /// A port of the app with its protocol (h1, h2, grpc, tls, tcp, detect) and its name, as in
    /// 8080, 8080=grpc or 8080=h1:http; may be repeated. Without any, nothing is registered
    #[arg(long = "app-port", env = "OUTRIGGER_APP_PORTS", value_name = "PORT[=PROTOCOL[:NAME]]", value_parser = parse_app_port, value_delimiter = ',')]
    pub app_ports: Vec<AppPort>,

    /// Registers nothing, even with --app-port: the platform announces the workload, as Kubernetes does for pods
    #[arg(long, env = "OUTRIGGER_NO_REGISTRATION")]
    pub no_registration: bool,

    /// File with the join token, read at each connection to the control plane
    #[arg(long, env = "OUTRIGGER_TOKEN_FILE", value_name = "FILE")]
    pub token_file: Option<PathBuf>,

    /// File with the roots to trust before the control plane sends more, in PEM; for an https
    /// --control-plane, which turns identity on
    #[arg(long, env = "OUTRIGGER_TRUST_BUNDLE", value_name = "FILE")]
    pub trust_bundle: Option<PathBuf>,

    /// Saves key, certificate and trust bundle in --state-dir (mode 0600), so that a restarted proxy can serve while
    /// the control plane is unreachable
    #[arg(long, env = "OUTRIGGER_PERSIST_IDENTITY")]
    pub persist_identity: bool,

    /// A health probe of the platform that needs no identity: exactly GET of this path on this port of the app, or
    /// the gRPC call /grpc.health.v1.Health/Check; may be repeated. A port without a path is probed on --admin: GET
    /// /probe/tcp/PORT dials it
    #[arg(long = "probe", env = "OUTRIGGER_PROBES", value_name = "PORT[/PATH]", value_parser = parse_probe, value_delimiter = ',')]
    pub probes: Vec<Probe>,

    /// A header that probes may carry besides what a kubelet sends; may be repeated
    #[arg(
        long = "probe-header",
        env = "OUTRIGGER_PROBE_HEADERS",
        value_name = "NAME",
        value_delimiter = ','
    )]
    pub probe_headers: Vec<HeaderName>,

    /// Forwards the caller's identity to the app, in x-forwarded-client-cert; the header is never accepted from
    /// outside
    #[arg(long, env = "OUTRIGGER_FORWARD_CLIENT_IDENTITY")]
    pub forward_client_identity: bool,

    /// Saves the last good configuration here; one directory per proxy
    #[arg(long, env = "OUTRIGGER_STATE_DIR", value_name = "DIR")]
    pub state_dir: Option<PathBuf>,

    /// Worker threads for traffic [default: the CPU limit rounded down, at least 1, at most 2]
    #[arg(long, env = "OUTRIGGER_WORKERS", value_parser = clap::value_parser!(u16).range(1..=256))]
    pub workers: Option<u16>,

    /// Maximum open connections from the app
    #[arg(long, env = "OUTRIGGER_MAX_CONNECTIONS", default_value_t = 20_000)]
    pub max_connections: usize,

    /// Maximum open inbound connections, counted apart from those of the app [default: as many as --max-connections]
    #[arg(long, env = "OUTRIGGER_MAX_INBOUND_CONNECTIONS")]
    pub max_inbound_connections: Option<usize>,

    /// Time from accepting an inbound connection to its first byte, where the client speaks first
    #[arg(long, env = "OUTRIGGER_FIRST_BYTE_TIMEOUT", default_value = "10s", value_parser = parse_duration)]
    pub first_byte_timeout: Duration,

    /// Idle time after which an inbound HTTP connection is closed, in whole seconds; longer than the 10 min idle
    /// timeout of common load balancers
    #[arg(long, env = "OUTRIGGER_CLIENT_IDLE_TIMEOUT", default_value = "15m", value_parser = parse_duration)]
    pub client_idle_timeout: Duration,

    /// Maximum size of the headers of one request or response, in bytes
    #[arg(long, env = "OUTRIGGER_MAX_HEADER_BYTES", default_value_t = 65_536, value_parser = clap::value_parser!(u32).range(1_024..=1_048_576))]
    pub max_header_bytes: u32,

    /// Maximum number of headers of one request or response (HTTP/1.1)
    #[arg(long, env = "OUTRIGGER_MAX_HEADERS", default_value_t = 100)]
    pub max_headers: usize,

    /// Maximum concurrent streams on an HTTP/2 connection that the app or an external client opens
    #[arg(long, env = "OUTRIGGER_MAX_STREAMS", default_value_t = 256, value_parser = clap::value_parser!(u32).range(1..=65_536))]
    pub max_streams: u32,

    /// Time from the first byte of a request to the end of its headers, in whole seconds
    #[arg(long, env = "OUTRIGGER_HEADER_TIMEOUT", default_value = "10s", value_parser = parse_duration)]
    pub header_timeout: Duration,

    /// Time to connect to an endpoint
    #[arg(long, env = "OUTRIGGER_CONNECT_TIMEOUT", default_value = "2s", value_parser = parse_duration)]
    pub connect_timeout: Duration,

    /// Time that the first request to a destination waits for its configuration
    #[arg(long, env = "OUTRIGGER_CONFIG_TIMEOUT", default_value = "5s", value_parser = parse_duration)]
    pub config_timeout: Duration,

    /// Idle time after which a connection to an app is closed; shorter than the 5 s idle timeout of common servers
    #[arg(long, env = "OUTRIGGER_APP_IDLE_TIMEOUT", default_value = "4s", value_parser = parse_duration)]
    pub app_idle_timeout: Duration,

    /// Ends a request after this time without data in either direction, in whole seconds; 0s: never. A policy's
    /// timeouts.idle overrides it; upgraded connections and tunnels have no limit
    #[arg(long, env = "OUTRIGGER_STREAM_IDLE_TIMEOUT", default_value = "5m", value_parser = parse_duration)]
    pub stream_idle_timeout: Duration,

    /// Ends a request whose caller reads nothing of its response for this time, in whole seconds; 0s: never
    #[arg(long, env = "OUTRIGGER_WRITE_TIMEOUT", default_value = "5m", value_parser = parse_duration)]
    pub write_timeout: Duration,

    /// Memory for request bodies that are buffered for retries, in bytes for the process
    #[arg(long, env = "OUTRIGGER_MAX_BUFFERED_BYTES", default_value_t = 64 * 1024 * 1024)]
    pub max_buffered_bytes: usize,

    /// Memory for cached responses, in bytes for the process
    #[arg(long, env = "OUTRIGGER_CACHE_BYTES", default_value_t = 16 * 1024 * 1024)]
    pub cache_bytes: usize,

    /// Time after SIGTERM during which new connections are still accepted
    #[arg(long, env = "OUTRIGGER_DRAIN_DELAY", default_value = "1s", value_parser = parse_duration)]
    pub drain_delay: Duration,

    /// Time after that during which requests in flight may finish
    #[arg(long, env = "OUTRIGGER_DRAIN_TIMEOUT", default_value = "30s", value_parser = parse_duration)]
    pub drain_timeout: Duration,

    /// What is written to the access log: off, errors, all, or one of N as in 1/100 (errors always). Unset: the
    /// control plane's setting, else errors
    #[arg(long, env = "OUTRIGGER_ACCESS_LOG")]
    pub access_log: Option<AccessLog>,

    /// Format of the access log: json, or logstash (with @timestamp, @version and message). Unset: the control
    /// plane's setting, else json
    #[arg(long, env = "OUTRIGGER_ACCESS_LOG_LAYOUT", value_name = "LAYOUT")]
    pub access_log_layout: Option<LogLayout>,

    /// Log filter, as in info or outrigger_proxy=debug; a release build has no trace
    #[arg(long, env = "OUTRIGGER_LOG", default_value = "info")]
    pub log: String,

    /// Exit when standard input ends, so that no proxy outlives its parent process
    #[arg(long)]
    pub exit_with_stdin: bool,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StaticListener {
    pub listen: SocketAddr,
    pub destination: Authority,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AppPort {
    pub port: u16,
    pub protocol: Protocol,
    /// Matched by a Service's named targetPort; empty: none.
    pub name: String,
}

/// A request of the platform that needs no identity.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Probe {
    pub port: u16,
    /// As sent, with its query; empty: whether the port takes connections.
    pub path: String,
}

impl Settings {
    /// Why the workload registers nothing, if it does not.
    pub fn why_no_registration(&self) -> Option<&'static str> {
        if self.no_registration {
            return Some("the platform announces the workload (--no-registration)");
        }
        if self.app_ports.is_empty() {
            return Some("there is no --app-port, so this proxy only makes calls");
        }
        self.control_plane.is_none().then_some("there is no --control-plane")
    }

    /// The workload's uid: what its node, its `Inbound` and its endpoints are named by.
    pub fn uid(&self) -> String {
        format!("{}.{}", self.namespace, self.workload)
    }

    pub fn label_map(&self) -> BTreeMap<String, String> {
        self.labels.iter().cloned().collect()
    }

    /// Whether a connection to `address` would come straight back to this process.
    pub fn is_own_listener(&self, address: SocketAddr) -> bool {
        reaches(self.inbound, address) || self.is_own_entrance(address)
    }

    /// The same of what nobody but the app and the platform may come to.
    pub fn is_own_entrance(&self, address: SocketAddr) -> bool {
        self.own_entrances().any(|listener| reaches(listener, address))
    }

    pub fn own_entrances(&self) -> impl Iterator<Item = SocketAddr> {
        self.listeners.iter().map(|one| one.listen).chain([self.outbound, self.admin])
    }

    pub fn workers(&self) -> usize {
        match self.workers {
            Some(workers) => usize::from(workers),
            // The scheduler's view follows the cgroup's CPU limit.
            None => std::thread::available_parallelism().map_or(1, usize::from).min(2),
        }
    }
}

fn parse_listener(text: &str) -> Result<StaticListener, String> {
    let (listen, destination) =
        text.split_once('=').ok_or("write it as IP:PORT=HOST:PORT".to_owned())?;
    Ok(StaticListener {
        listen: listen.parse().map_err(|e| format!("{listen:?}: {e}"))?,
        destination: Authority::parse(destination, None).map_err(|e| e.to_string())?,
    })
}

/// Pods and service accounts may have dots in their names.
fn parse_name(text: &str) -> Result<String, String> {
    check_subdomain(text).map(|()| text.to_owned()).map_err(|e| e.to_string())
}

fn parse_label(text: &str) -> Result<String, String> {
    check_label(text).map(|()| text.to_owned()).map_err(|e| e.to_string())
}

fn parse_label_pair(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("write it as KEY=VALUE".to_owned())?;
    if key.is_empty() {
        return Err("the key is empty".to_owned());
    }
    Ok((key.to_owned(), value.to_owned()))
}

/// Of the control plane.
fn parse_url(text: &str) -> Result<http::Uri, String> {
    let uri: http::Uri = text.parse().map_err(|error| format!("{error}"))?;
    if !matches!(uri.scheme_str(), Some("http" | "https")) || uri.host().is_none() {
        return Err("must begin with https:// or, without identities, http://".to_owned());
    }
    if uri.path_and_query().is_some_and(|path| path != "/") {
        return Err("must end with the port, as in https://127.0.0.1:4780".to_owned());
    }
    Ok(uri)
}

fn parse_app_port(text: &str) -> Result<AppPort, String> {
    let (port, rest) = text.split_once('=').unwrap_or((text, "detect"));
    let (protocol, name) = rest.split_once(':').unwrap_or((rest, ""));
    let port = port.parse().ok().filter(|p| *p != 0).ok_or(format!("{port:?} is not a port"))?;
    let protocol = match protocol {
        "h1" | "http" | "http1" => Protocol::Http1,
        "h2" | "h2c" | "http2" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "tls" => Protocol::Tls,
        "tcp" => Protocol::Tcp,
        "detect" => Protocol::Detect,
        other => {
            return Err(format!("{other:?} is not one of h1, h2, grpc, tls, tcp, detect"));
        }
    };
    Ok(AppPort { port, protocol, name: name.to_owned() })
}

fn parse_probe(text: &str) -> Result<Probe, String> {
    let (port, path) = text.split_at(text.find('/').unwrap_or(text.len()));
    let wrong = || format!("{port:?} is not a port: write it as 8080/healthz, or as 5432");
    let port = port.parse().ok().filter(|p| *p != 0).ok_or_else(wrong)?;
    Ok(Probe { port, path: path.to_owned() })
}

/// `250ms`, `10s`, `2m`.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let wrong = || format!("{text:?} is not a duration such as 250ms, 10s or 2m");
    let number: u64 = number.parse().map_err(|_| wrong())?;
    let millis = match unit {
        "ms" => Some(number),
        "s" => number.checked_mul(1_000),
        "m" => number.checked_mul(60_000),
        "h" => number.checked_mul(3_600_000),
        _ => None,
    };
    millis.map(Duration::from_millis).ok_or_else(wrong)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_parse_and_bad_ones_say_why() {
        let app = parse_app_port("8080=grpc:api").unwrap();
        assert_eq!((app.port, app.protocol, app.name.as_str()), (8080, Protocol::Grpc, "api"));
        assert_eq!(parse_app_port("8080").unwrap().protocol, Protocol::Detect);
        assert!(parse_app_port("0").is_err());
        assert!(parse_app_port("1=smtp").unwrap_err().contains("smtp"));
        assert_eq!(parse_duration("250ms"), Ok(Duration::from_millis(250)));
        assert!(parse_duration("5").is_err());
        assert!(parse_duration("99999999999999999h").is_err());
        assert_eq!(parse_probe("8080/healthz").unwrap().path, "/healthz");
        assert_eq!(parse_probe("5432").unwrap().path, "");
        assert!(parse_probe("healthz").is_err());
        assert!(parse_probe("/healthz").is_err());
        assert!(parse_listener("127.0.0.1:1=a.b:80").is_ok());
        assert!(parse_listener("127.0.0.1:1").is_err());
    }
}
