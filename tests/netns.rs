//! Transparent interception: pods are network namespaces, joined by a bridge in a third one, and
//! nftables redirects what they send and get to their proxies. Needs root; else it is skipped.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::process::{Command, Stdio};
use std::thread;

use outrigger_tests::app::{Echo, count_then_answer, tcp_on};
use outrigger_tests::client::{Curl, has, http_get};
use outrigger_tests::process::{Process, TempDir, binary};
use outrigger_tests::{eventually, skip};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const NAME: &str = "what_pods_send_and_get_goes_through_their_proxies";
/// Whose traffic is not redirected: the proxies run under it.
const PROXY_UID: &str = "4747";
const RULES: &str = "
table inet outrigger {
  chain output {
    type nat hook output priority -100;
    meta skuid 4747 return
    fib daddr type local return
    meta l4proto tcp redirect to :4740
  }
  chain prerouting {
    type nat hook prerouting priority -100;
    iifname lo return
    tcp dport 4743 return
    meta l4proto tcp redirect to :4743
  }
}
";
const MANIFESTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: bank}
spec:
  selector: {app: web}
  clusterIP: 10.96.0.10
  clusterIPs: [10.96.0.10, \"fd96::10\"]
  ports: [{name: main, port: 80, targetPort: web}]
---
apiVersion: v1
kind: Service
metadata: {name: raw, namespace: bank}
spec:
  selector: {app: web}
  clusterIP: 10.96.0.11
  clusterIPs: [10.96.0.11, \"fd96::11\"]
  ports: [{name: main, port: 7000, targetPort: raw}]
";

/// Namespaces of one network: `hub` with the bridge and the control plane, `caller` and `server`.
struct Network {
    hub: String,
    caller: String,
    server: String,
    ipv6: bool,
}

/// Runs a command to its end; its error output if it failed.
fn run(program: &str, args: &str, input: &str) -> Result<(), String> {
    let mut child = Command::new(program)
        .args(args.split_whitespace())
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|e| format!("{program}: {e}"))?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let out = child.wait_with_output().map_err(|e| format!("{program}: {e}"))?;
    if out.status.success() && written.is_ok() {
        return Ok(());
    }
    Err(format!("{program} {args}: {}", String::from_utf8_lossy(&out.stderr).trim()))
}

impl Network {
    fn new() -> Result<Self, String> {
        let name = |what: &str| format!("outrigger-{}-{what}", std::process::id());
        // From here on dropped, whatever goes wrong.
        let mut network =
            Self { hub: name("hub"), caller: name("caller"), server: name("server"), ipv6: true };
        let ip = |args: String| run("ip", &args, "");
        let (hub, pods) = (&network.hub, [(&network.caller, 2), (&network.server, 3)]);
        for namespace in [hub, pods[0].0, pods[1].0] {
            ip(format!("netns add {namespace}"))?;
            ip(format!("-n {namespace} link set lo up"))?;
        }
        ip(format!("-n {hub} link add bridge type bridge"))?;
        ip(format!("-n {hub} addr add 10.77.0.1/24 dev bridge"))?;
        ip(format!("-n {hub} link set bridge up"))?;
        let mut ipv6 = ip(format!("-n {hub} addr add fd77::1/64 dev bridge nodad"));
        for (pod, number) in pods {
            ip(format!("-n {hub} link add pod{number} type veth peer name eth0 netns {pod}"))?;
            ip(format!("-n {hub} link set pod{number} master bridge up"))?;
            ip(format!("-n {pod} addr add 10.77.0.{number}/24 dev eth0"))?;
            ip(format!("-n {pod} link set eth0 up"))?;
            ip(format!("-n {pod} route add default via 10.77.0.1"))?;
            ipv6 = ipv6
                .and_then(|()| ip(format!("-n {pod} addr add fd77::{number}/64 dev eth0 nodad")))
                .and_then(|()| ip(format!("-n {pod} -6 route add default via fd77::1")));
            run("ip", &format!("netns exec {pod} nft -f -"), RULES)?;
        }
        if let Err(why) = ipv6 {
            skip("transparent interception of IPv6", &why);
            network.ipv6 = false;
        }
        Ok(network)
    }
}

impl Drop for Network {
    fn drop(&mut self) {
        for namespace in [&self.caller, &self.server, &self.hub] {
            // It may never have been made.
            let _ = run("ip", &format!("netns del {namespace}"), "");
        }
    }
}

/// Runs `f` on a thread of its own inside a namespace. Sockets made and processes started there
/// stay there.
fn within<T: Send>(namespace: &str, f: impl FnOnce() -> T + Send) -> T {
    thread::scope(|scope| {
        let inside = scope.spawn(|| {
            let file = File::open(format!("/var/run/netns/{namespace}")).expect("a namespace");
            move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("to enter it");
            f()
        });
        inside.join().expect("no panic inside")
    })
}

/// A proxy under its own user in a pod's namespace.
fn proxy(network: &str, dir: &TempDir, name: &str, args: &[&str]) -> Process {
    // The user must be able to read it, wherever it was built.
    let program = dir.path().join("outrigger-proxy");
    if !program.exists() {
        std::fs::copy(binary("outrigger-proxy"), &program).expect("a copy");
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", PROXY_UID, "--regid", PROXY_UID, "--clear-groups"]).arg(program);
    command.args(["--outbound", "[::]:4740", "--inbound", "[::]:4743", "--namespace", "bank"]);
    command.args(["--control-plane", "http://10.77.0.1:4780", "--access-log", "all"]);
    command.args(["--workload", name, "--service-account", name]).args(args);
    within(network, || Process::start(dir.path(), name, &mut command))
}

/// Whether the proxy in a namespace counts a success with a label.
fn counts(namespace: &str, label: &str) -> bool {
    let metrics = within(namespace, || http_get(4791, "/metrics")).unwrap_or_default().1;
    metrics.lines().any(|line| {
        line.starts_with("outrigger_requests_total")
            && line.contains(label)
            && line.contains("outcome=\"success\"")
    })
}

#[test]
fn what_pods_send_and_get_goes_through_their_proxies() {
    if !rustix::process::geteuid().is_root() {
        return skip(NAME, "it needs root");
    }
    for program in ["ip", "nft", "setpriv", "curl"] {
        if !has(program) {
            return skip(NAME, &format!("{program} is not installed"));
        }
    }
    let network = match Network::new() {
        Ok(network) => network,
        Err(why) => return skip(NAME, &why),
    };
    let dir = TempDir::new("netns");
    let manifests = dir.path().join("manifests");
    std::fs::create_dir(&manifests).expect("a folder");
    std::fs::write(manifests.join("bank.yaml"), MANIFESTS).expect("a file");
    let state = dir.path().join("state");
    let mut command = Command::new(binary("outrigger-control-plane"));
    command.arg("--manifests").arg(&manifests).arg("--state-dir").arg(&state);
    command.args(["--listen", "10.77.0.1:4780", "--identity", "off"]);
    let _plane = within(&network.hub, || Process::start(dir.path(), "control-plane", &mut command));
    eventually("the control plane is ready", || {
        within(&network.hub, || http_get(4782, "/ready").is_some_and(|answer| answer.0 == 200))
    });
    let token = Command::new(binary("outrigger-control-plane"))
        .args(["token", "--namespace", "bank", "--service-account", "web", "--state-dir"])
        .arg(&state)
        .output()
        .expect("the token command");
    let token_file = dir.path().join("token");
    std::fs::write(&token_file, token.stdout).expect("a file");

    let bind = || TcpListener::bind("[::]:0").expect("a port");
    let app = within(&network.server, || Echo::on(bind(), "web"));
    let raw = tcp_on(within(&network.server, bind), count_then_answer);
    let token_file = token_file.display().to_string();
    let ports = [format!("{}=detect:web", app.port), format!("{raw}=detect:raw")];
    let mut args = vec!["--token-file", &token_file, "--label", "app=web"];
    args.extend(["--app-address", "10.77.0.3", "--app-port", &ports[0], "--app-port", &ports[1]]);
    let server = proxy(&network.server, &dir, "web", &args);
    let caller = proxy(&network.caller, &dir, "caller", &[]);
    eventually("the workload is registered", || {
        within(&network.hub, || {
            http_get(4782, "/index").is_some_and(|answer| answer.1.contains("\"ready\":true"))
        })
    });
    for pod in [&network.caller, &network.server] {
        eventually("its proxy is ready", || {
            within(pod, || http_get(4791, "/ready").is_some_and(|answer| answer.0 == 200))
        });
    }

    // By cluster IP, from an app that knows of no proxy.
    let mut hosts = vec!["10.96.0.10"];
    if network.ipv6 {
        hosts.push("[fd96::10]");
    }
    for host in hosts {
        let url = format!("http://{host}/hello");
        let answer = within(&network.caller, || Curl::direct().args(&["--globoff"]).get(&url));
        assert!(answer.status == 200 && answer.head.contains("x-app: web"), "{host}: {answer:?}");
    }
    let web = "service=\"bank/web:80\"";
    eventually("both sides count it", || {
        counts(&network.caller, web) && counts(&network.server, web)
    });

    // Bytes that no proxy understands.
    let mut addresses = vec!["10.96.0.11:7000"];
    if network.ipv6 {
        addresses.push("[fd96::11]:7000");
    }
    for address in addresses {
        let said = within(&network.caller, || {
            let mut stream = TcpStream::connect(address).expect("a connection");
            stream.write_all(b"\x00\x01\x02binary").expect("written");
            stream.shutdown(Shutdown::Write).expect("half closed");
            let mut said = String::new();
            stream.read_to_string(&mut said).expect("an answer");
            said
        });
        assert_eq!(said, "got 9 bytes", "{address}");
    }
    eventually("the stream is counted", || {
        counts(&network.caller, "service=\"bank/raw:7000\"")
            && counts(&network.server, "service=\"bank/raw:7000\"")
    });

    // From outside the mesh, straight to the pod: redirected to its proxy all the same.
    let mut pods = vec![format!("10.77.0.3:{}", app.port)];
    if network.ipv6 {
        pods.push(format!("[fd77::3]:{}", app.port));
    }
    for pod in pods {
        let url = format!("http://{pod}/");
        let answer = within(&network.hub, || Curl::direct().args(&["--globoff"]).get(&url));
        assert_eq!(answer.status, 200, "{pod}: {answer:?}");
        // The app sees that a proxy stood in between.
        assert!(answer.body.contains("x-request-id"), "{pod}: {answer:?}");
    }

    // An address that nobody has declared passes through.
    let hub = within(&network.hub, || {
        Echo::on(TcpListener::bind("10.77.0.1:0").expect("a port"), "outside")
    });
    let url = format!("http://10.77.0.1:{}/", hub.port);
    let answer = within(&network.caller, || Curl::direct().get(&url));
    assert!(answer.status == 200 && answer.head.contains("x-app: outside"), "{answer:?}");
    drop((server, caller));
}
