//! Transparent interception: pods are network namespaces, joined by a bridge in a third one, and
//! `outrigger-proxy init` redirects what they send and get to their proxies, which speak mutual TLS. Needs root; else it is skipped.

use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering::Relaxed};
use std::thread;
use std::time::Duration;

use outrigger_tests::app::{Echo, count_then_answer, tcp_on};
use outrigger_tests::capture::{Capture, records};
use outrigger_tests::client::{Answer, Curl, has, http_get};
use outrigger_tests::process::{Process, TempDir, binary};
use outrigger_tests::{eventually, skip};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Whose traffic is not redirected: the proxies run under it.
const PROXY_UID: &str = "4747";
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
/// Takes plaintext from nobody any more.
const STRICT: &str = "
apiVersion: outrigger.dev/v1alpha1
kind: AccessPolicy
metadata: {name: web, namespace: bank}
spec: {selector: {matchLabels: {app: web}}, mtls: Strict}
";
/// Where a stalled connection gives up.
const PATIENCE: Duration = Duration::from_secs(20);

/// Namespaces of one network: `hub` with the bridge and the control plane, `caller` and `server`.
struct Network {
    hub: String,
    caller: String,
    server: String,
    ipv6: bool,
}

/// What an init container does in a pod, with more flags than the user.
fn init(pod: &str, flags: &str) -> Result<(), String> {
    let program = binary("outrigger-proxy");
    let command = format!("netns exec {pod} {} init --uid {PROXY_UID} {flags}", program.display());
    run("ip", &command, "")
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
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Relaxed);
        let name = |what: &str| format!("outrigger-{}-{number}-{what}", std::process::id());
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
            init(pod, "")?;
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
    command.args(["--control-plane", "https://10.77.0.1:4780", "--access-log", "all"]);
    command.arg("--trust-bundle").arg(dir.path().join("trust-bundle.pem"));
    command.arg("--token-file").arg(token(dir, name));
    command.args(["--workload", name, "--service-account", name]).args(args);
    // As in a pod: what it knew is there when it starts again.
    let state = dir.path().join(format!("{name}-state"));
    std::fs::create_dir_all(&state).expect("a folder");
    let uid = PROXY_UID.parse().ok();
    std::os::unix::fs::chown(&state, uid, uid).expect("the folder is the proxy's");
    command.arg("--state-dir").arg(state);
    within(network, || Process::start(dir.path(), name, &mut command))
}

fn token(dir: &TempDir, account: &str) -> PathBuf {
    let token = Command::new(binary("outrigger-control-plane"))
        .args(["token", "--namespace", "bank", "--service-account", account, "--state-dir"])
        .arg(dir.path().join("state"))
        .output()
        .expect("the token command");
    let file = dir.path().join(format!("{account}.token"));
    std::fs::write(&file, token.stdout).expect("a file");
    file
}

/// Two pods with a proxy each, the app `web` in the server's, and a control plane.
struct Pods {
    // Dropped in this order: processes before their network.
    server: Process,
    _caller: Process,
    _plane: Process,
    app: Echo,
    dir: TempDir,
    network: Network,
}

impl Pods {
    /// None: it cannot be tried here, and that has been said.
    fn start(test: &str) -> Option<Self> {
        let why = if !rustix::process::geteuid().is_root() {
            Some("it needs root".to_owned())
        } else {
            let missing =
                ["ip", "nft", "setpriv", "curl"].into_iter().find(|program| !has(program));
            missing.map(|program| format!("{program} is not installed"))
        };
        let network = why.map_or_else(Network::new, Err);
        match network {
            Ok(network) => Some(Self::on(network)),
            Err(why) => {
                skip(test, &why);
                None
            }
        }
    }

    fn on(network: Network) -> Self {
        let dir = TempDir::new("netns");
        let manifests = dir.path().join("manifests");
        std::fs::create_dir(&manifests).expect("a folder");
        std::fs::write(manifests.join("bank.yaml"), MANIFESTS).expect("a file");
        let state = dir.path().join("state");
        let mut command = Command::new(binary("outrigger-control-plane"));
        command.arg("--manifests").arg(&manifests).arg("--state-dir").arg(&state);
        command.args(["--listen", "10.77.0.1:4780"]);
        let plane =
            within(&network.hub, || Process::start(dir.path(), "control-plane", &mut command));
        eventually("the control plane is ready", || {
            within(&network.hub, || http_get(4782, "/ready").is_some_and(|answer| answer.0 == 200))
        });
        // Handed out, as to machines that do not share a disk.
        let bundle = dir.path().join("trust-bundle.pem");
        std::fs::copy(state.join("trust-bundle.pem"), bundle).expect("a copy");
        let bind = || TcpListener::bind("[::]:0").expect("a port");
        let app = within(&network.server, || Echo::on(bind(), "web"));
        let raw = tcp_on(within(&network.server, bind), count_then_answer);
        let ports = [format!("{}=detect:web", app.port), format!("{raw}=detect:raw")];
        let mut args = vec!["--label", "app=web", "--app-address", "10.77.0.3"];
        args.extend(["--app-port", &ports[0], "--app-port", &ports[1]]);
        let probe = format!("{}/healthz", app.port);
        args.extend(["--probe", &probe]);
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
        Self { server, _caller: caller, _plane: plane, app, dir, network }
    }

    /// Status and text of a GET from the caller's pod, by an app that knows of no proxy.
    fn get(&self, url: &str) -> Answer {
        within(&self.network.caller, || Curl::direct().args(&["--globoff"]).get(url))
    }

    /// The same from outside the mesh.
    fn get_from_outside(&self, url: &str) -> Answer {
        within(&self.network.hub, || Curl::direct().args(&["--globoff"]).get(url))
    }

    /// What the app of port 7000 answers to these bytes from the caller's pod.
    fn send(&self, address: &str, bytes: &[u8]) -> String {
        within(&self.network.caller, || {
            let mut stream = TcpStream::connect(address).expect("a connection");
            stream.write_all(bytes).expect("written");
            stream.shutdown(Shutdown::Write).expect("half closed");
            let mut said = String::new();
            stream.read_to_string(&mut said).expect("an answer");
            said
        })
    }

    /// A connection from outside the mesh to the app's own address.
    fn plaintext(&self) -> TcpStream {
        let address = format!("10.77.0.3:{}", self.app.port);
        let stream =
            within(&self.network.hub, || TcpStream::connect(address).expect("a connection"));
        stream.set_read_timeout(Some(PATIENCE)).expect("a limit");
        stream
    }
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
    let Some(pods) = Pods::start("what_pods_send_and_get_goes_through_their_proxies") else {
        return;
    };
    let network = &pods.network;
    // By cluster IP.
    let mut hosts = vec!["10.96.0.10"];
    if network.ipv6 {
        hosts.push("[fd96::10]");
    }
    for host in hosts {
        let answer = pods.get(&format!("http://{host}/hello"));
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
        assert_eq!(pods.send(address, b"\x00\x01\x02binary"), "got 9 bytes", "{address}");
    }
    eventually("the stream is counted", || {
        counts(&network.caller, "service=\"bank/raw:7000\"")
            && counts(&network.server, "service=\"bank/raw:7000\"")
    });

    // From outside the mesh, straight to the pod: redirected to its proxy all the same.
    let mut addresses = vec![format!("10.77.0.3:{}", pods.app.port)];
    if network.ipv6 {
        addresses.push(format!("[fd77::3]:{}", pods.app.port));
    }
    for address in addresses {
        let answer = pods.get_from_outside(&format!("http://{address}/"));
        assert_eq!(answer.status, 200, "{address}: {answer:?}");
        // The app sees that a proxy stood in between.
        assert!(answer.body.contains("x-request-id"), "{address}: {answer:?}");
    }

    // An address that nobody has declared passes through.
    let hub = within(&network.hub, || {
        Echo::on(TcpListener::bind("10.77.0.1:0").expect("a port"), "outside")
    });
    let answer = pods.get(&format!("http://10.77.0.1:{}/", hub.port));
    assert!(answer.status == 200 && answer.head.contains("x-app: outside"), "{answer:?}");
}

#[test]
fn between_two_proxies_there_is_nothing_but_tls() {
    let Some(pods) = Pods::start("between_two_proxies_there_is_nothing_but_tls") else { return };
    // Every frame between pods crosses the hub.
    let capture = match within(&pods.network.hub, Capture::start) {
        Ok(capture) => capture,
        Err(why) => return skip("between_two_proxies_there_is_nothing_but_tls", &why),
    };
    assert_eq!(pods.get("http://10.96.0.10/secret-of-a-request").status, 200);
    assert_eq!(pods.send("10.96.0.11:7000", b"secret-of-a-stream"), "got 18 bytes");
    // To show that what is not encrypted would be seen.
    let address = format!("http://10.77.0.3:{}/no-secret", pods.app.port);
    assert_eq!(pods.get_from_outside(&address).status, 200);
    let frames = capture.stop();
    assert!(frames.hold("no-secret"));
    for secret in ["secret-of-a-request", "secret-of-a-stream", "bank/web", "sa/caller"] {
        assert!(!frames.hold(secret), "{secret} was on the network");
    }
    let conversations = frames.conversations((Ipv4Addr::new(10, 77, 0, 3), 4743));
    assert!(!conversations.is_empty(), "no connection between the proxies was captured");
    for talk in conversations {
        let [client, server] = [&talk.client, &talk.server]
            .map(|bytes| records(bytes).unwrap_or_else(|why| panic!("{why}")));
        let hello = |kind: u8, body: &[u8]| kind == 22 && !body.is_empty();
        assert!(hello(client[0].kind, client[0].body) && client[0].body[0] == 1, "a ClientHello");
        assert!(hello(server[0].kind, server[0].body) && server[0].body[0] == 2, "a ServerHello");
        // Its extension supported_versions, with TLS 1.3 as the one that was chosen.
        let chosen = [0x00, 0x2b, 0x00, 0x02, 0x03, 0x04];
        assert!(server[0].body.windows(6).any(|part| part == chosen), "not TLS 1.3");
        // After the hellos nothing is readable, certificates included; 20 is there for middleboxes.
        for record in client[1..].iter().chain(&server[1..]) {
            assert!([20, 23].contains(&record.kind), "a record of kind {}", record.kind);
        }
        let bytes: usize = server.iter().filter(|r| r.kind == 23).map(|r| r.body.len()).sum();
        assert!(bytes > 500, "{bytes} encrypted bytes");
    }
}

#[test]
fn a_port_that_becomes_strict_lets_go_of_plaintext_and_of_nothing_else() {
    let test = "a_port_that_becomes_strict_lets_go_of_plaintext_and_of_nothing_else";
    let Some(pods) = Pods::start(test) else { return };
    let request = |path: &str| format!("GET {path} HTTP/1.1\r\nhost: web\r\n\r\n");
    let address = format!("http://10.77.0.3:{}", pods.app.port);
    // One connection that is idle, one with a request in flight.
    let mut idle = pods.plaintext();
    idle.write_all(request("/status/204").as_bytes()).expect("written");
    let mut first = [0; 12];
    idle.read_exact(&mut first).expect("an answer");
    assert_eq!(&first, b"HTTP/1.1 204");
    let mut busy = pods.plaintext();
    busy.write_all(request("/sleep/5000").as_bytes()).expect("written");
    eventually("the request is with the app", || pods.app.requests.load(Relaxed) >= 2);

    let draft = pods.dir.path().join("strict.yaml");
    std::fs::write(&draft, STRICT).expect("a file");
    std::fs::rename(draft, pods.dir.path().join("manifests/strict.yaml")).expect("a move");
    eventually("plaintext is refused", || {
        let answer = pods.get_from_outside(&format!("{address}/hello"));
        answer.status == 403 && answer.body.contains("mtls_required")
    });
    let mut rest = Vec::new();
    idle.read_to_end(&mut rest).expect("its end, in order");
    let mut answer = String::new();
    busy.read_to_string(&mut answer).expect("the answer and then the end, in order");
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("/sleep/5000"), "{answer}");

    let before = pods.app.requests.load(Relaxed);
    let mut garbage = pods.plaintext();
    garbage.write_all(b"\x00\x01\x02no request\n").expect("written");
    let mut said = Vec::new();
    // However it ends, nothing is said.
    let _ = garbage.read_to_end(&mut said);
    assert_eq!(said, b"", "{}", pods.server.log());
    assert_eq!(pods.get_from_outside(&format!("{address}/healthz/x")).status, 403);
    let posted = within(&pods.network.hub, || {
        Curl::direct().args(&["--data", "x"]).get(&format!("{address}/healthz"))
    });
    assert_eq!(posted.status, 403, "{posted:?}");
    assert_eq!(pods.app.requests.load(Relaxed), before, "nothing of that got to the app");
    // The platform's probe, and the mesh.
    assert_eq!(pods.get_from_outside(&format!("{address}/healthz")).status, 200);
    assert_eq!(pods.get("http://10.96.0.10/hello").status, 200);
}

/// Anyone who routes a network through a pod gets no further than the pod.
#[test]
fn only_the_pods_own_addresses_are_reached_through_it() {
    let Some(pods) = Pods::start("only_the_pods_own_addresses_are_reached_through_it") else {
        return;
    };
    let (hub, server, port) = (&pods.network.hub, &pods.network.server, pods.app.port);
    let ip = |args: String| run("ip", &args, "").expect("a change of the network");
    // A second address of the pod's own, and one beyond it.
    ip(format!("-n {server} addr add 10.77.0.33/24 dev eth0"));
    ip(format!("-n {hub} route add 10.99.0.0/24 via 10.77.0.3"));
    assert_eq!(pods.get_from_outside(&format!("http://10.77.0.33:{port}/second")).status, 200);
    let before = pods.app.requests.load(Relaxed);
    for target in [format!("10.99.0.7:{port}"), "10.99.0.7:4740".to_owned()] {
        let answer = pods.get_from_outside(&format!("http://{target}/"));
        assert_eq!(answer.status, 0, "{target}: {answer:?}");
    }
    assert_eq!(pods.app.requests.load(Relaxed), before);
    eventually("the proxy says why", || {
        let log = pods.server.log();
        log.contains("10.99.0.7") && log.contains("not_for_us")
    });
}

#[test]
fn rules_are_put_in_force_again_without_harm_and_can_be_taken_away() {
    let test = "rules_are_put_in_force_again_without_harm_and_can_be_taken_away";
    let Some(pods) = Pods::start(test) else { return };
    let (caller, server) = (&pods.network.caller, &pods.network.server);
    // As an app: another user than the proxy.
    let redirected = || {
        let program = pods.dir.path().join("outrigger-proxy");
        let program = program.display();
        let command = format!("netns exec {server} setpriv --reuid 1000 {program} init --check");
        run("ip", &command, "")
    };
    // A connection that the app keeps, and one after each change.
    let mut kept = within(caller, || TcpStream::connect("10.96.0.11:7000").expect("a connection"));
    for flags in
        ["", "", "--skip-outbound-ports 3306 --skip-outbound-networks 192.0.2.128/25,fd00::/8"]
    {
        init(caller, flags).expect("rules");
        assert_eq!(pods.get("http://10.96.0.10/again").status, 200, "{flags}");
    }
    kept.write_all(b"still").expect("written");
    kept.shutdown(Shutdown::Write).expect("half closed");
    let mut said = String::new();
    kept.read_to_string(&mut said).expect("an answer");
    assert!(said.contains('5'), "{said}");
    // Where no proxy has the ports. What is shown is not done.
    let hub = &pods.network.hub;
    let why = |result: Result<(), String>| result.expect_err("an error");
    let check = |pod: &str| {
        let program = binary("outrigger-proxy");
        let command = format!(
            "netns exec {pod} setpriv --reuid 1000 {} init --check --outbound-port 4750",
            program.display()
        );
        run("ip", &command, "")
    };
    run("ip", &format!("-n {hub} route add default dev bridge"), "").expect("a route");
    let mut backends = vec!["nftables"];
    match has("iptables-restore") {
        true => backends.push("iptables"),
        false => skip(test, "iptables is not installed: only nftables was tried"),
    }
    for backend in backends {
        let flags = format!("--outbound-port 4750 --inbound-port 4753 --backend {backend}");
        init(hub, &format!("{flags} --dry-run")).expect("rules");
        assert!(why(check(hub)).contains("are not redirected"), "{backend}");
        init(hub, &flags).expect("rules");
        init(hub, &flags).expect("the same rules");
        check(hub).expect("it is redirected");
        init(hub, &format!("{flags} --remove")).expect("no rules");
        init(hub, &format!("{flags} --remove")).expect("still none");
        assert!(why(check(hub)).contains("are not redirected"), "{backend}");
    }
    // There the proxy itself has the port, and answers.
    redirected().expect("it is redirected");
}

/// A proxy that is restarted is not there for a moment.
#[test]
fn a_connection_begun_while_the_proxy_is_away_waits_for_it() {
    let test = "a_connection_begun_while_the_proxy_is_away_waits_for_it";
    let Some(pods) = Pods::start(test) else { return };
    let Pods { mut server, _caller, _plane, app, dir, network } = pods;
    // What it knows is written a moment after it came.
    eventually("its configuration is on disk", || {
        let kept = std::fs::read(dir.path().join("web-state/config")).unwrap_or_default();
        kept.windows(8).any(|name| name == b"bank/web")
    });
    server.kill();
    let address = format!("10.77.0.3:{}", app.port);
    let began = std::time::Instant::now();
    let refused = within(&network.hub, || {
        TcpStream::connect_timeout(
            &address.parse().expect("an address"),
            Duration::from_millis(500),
        )
    });
    let error = refused.expect_err("nobody is there");
    assert_eq!(error.kind(), std::io::ErrorKind::TimedOut, "{error}");
    thread::scope(|scope| {
        let waits = scope.spawn(|| {
            within(&network.hub, || Curl::direct().get(&format!("http://{address}/late")))
        });
        let port = format!("{}=detect:web", app.port);
        let args = ["--label", "app=web", "--app-address", "10.77.0.3", "--app-port", &port];
        let _again = proxy(&network.server, &dir, "web", &args);
        let answer = waits.join().expect("no panic");
        assert_eq!(answer.status, 200, "{answer:?} after {:?}", began.elapsed());
    });
}
