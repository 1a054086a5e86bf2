//! How far a proxy has come: what it says of itself, and when it gives up at once.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use outrigger_tests::app::Echo;
use outrigger_tests::client::{Curl, http_get};
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Process, Proxy, TempDir, binary, free_port, local};

use crate::unmeshed;

/// A Service with two ports, each found by its name at the workload.
const TWO_PORTS: &str = "
apiVersion: v1
kind: Service
metadata: {name: web, namespace: bank}
spec:
  selector: {app: web}
  ports:
  - {name: main, port: 80, targetPort: main, appProtocol: http}
  - {name: other, port: 81, targetPort: other, appProtocol: http}
";

fn ready(proxy: &Proxy) -> String {
    http_get(proxy.admin, "/ready").expect("an answer").1
}

#[test]
fn one_port_that_does_not_accept_hides_no_other() {
    let plane = ControlPlane::start(&[("web.yaml", TWO_PORTS)]);
    let (app, late) = (Echo::start("main"), free_port());
    let ports = [format!("{}=h1:main", app.port), format!("{late}=h1:other")];
    let web = Proxy::beside(&plane, "web", &ports, &[]);
    let caller = Proxy::caller(&plane, &[]);
    let status = |url: &str| Curl::through(&caller).get(url).status;
    eventually("the port that accepts is an endpoint", || status("http://web.bank/") == 200);
    assert_eq!(status("http://web.bank:81/"), 503, "the other one is none");
    let said = ready(&web);
    let closed = format!("the app accepts no connections at {} (for ", local(late));
    assert!(
        said.starts_with("ready\nlive: yes\nconfigured: yes\nregistered: yes, as bank.web"),
        "{said}"
    );
    assert!(said.contains("\nendpoint: yes, on other ports; ") && said.contains(&closed), "{said}");
    web.wait_log(&[
        "the app accepts no connections on a port of --app-port",
        &local(late).to_string(),
    ]);
    let listener = TcpListener::bind(local(late)).expect("the port");
    let _late = Echo::on(listener, "other");
    eventually("it is an endpoint as soon as it accepts", || status("http://web.bank:81/") == 200);
    assert!(ready(&web).ends_with("\nendpoint: yes\n"), "{}", ready(&web));
    assert_eq!(status("http://web.bank/"), 200);
}

#[test]
fn an_app_that_does_not_listen_is_said_to_be_away_and_since_when() {
    let plane = ControlPlane::start(&[("web.yaml", TWO_PORTS)]);
    let port = free_port();
    let token = plane.token("bank", "web").display().to_string();
    let (account, port_flag) = (["--service-account", "web"], format!("{port}=h1:main"));
    let flags = [&account[..], &["--token-file", &token, "--app-port", &port_flag]].concat();
    let web = Proxy::start(&plane, "web", &flags);
    let away = format!("endpoint: no, the app accepts no connections at {} (for ", local(port));
    eventually("it says so", || ready(&web).contains(&away));
    let caller = Proxy::caller(&plane, &[]);
    let none = "registered: no, there is no --app-port, so this proxy only makes calls\n";
    assert!(ready(&caller).ends_with(none), "{}", ready(&caller));
}

/// Runs a proxy that shall end by itself: its exit code, and what it says.
fn ends(folder: &Path, flags: &[&str]) -> (Option<i32>, String) {
    let ports = [free_port(), free_port(), free_port()].map(|port| local(port).to_string());
    let mut command = Command::new(binary("outrigger-proxy"));
    command.args(["--outbound", &ports[0], "--inbound", &ports[1], "--admin", &ports[2]]);
    let mut process = Process::start(folder, "useless", command.args(flags));
    let status = process.wait(Duration::from_secs(15));
    (status.code(), process.log())
}

#[test]
fn a_proxy_that_could_never_do_anything_says_so_and_ends() {
    let secure = ControlPlane::start_with_identity(&[], &[]);
    let plain = ControlPlane::start(&[]);
    let folder = TempDir::new("useless");
    let path = |name: &str| folder.path().join(name).display().to_string();
    std::fs::write(path("empty"), "\n").expect("a file");
    let (bundle, token) =
        (secure.trust_bundle().display().to_string(), secure.token("bank", "web"));
    let token = token.display().to_string();
    let web = ["--namespace", "bank", "--service-account", "web", "--trust-bundle", &bundle];
    let url = |scheme: &str, plane: &ControlPlane| format!("{scheme}://{}", local(plane.listen));
    let (to_secure, to_plain) = (url("https", &secure), url("http", &plain));
    let state = path("state");
    let cases: [(Vec<&str>, i32, &str); 9] = [
        (vec![], 1, "--control-plane is missing, and there is no --state-dir"),
        (vec!["--state-dir", &state], 1, "contains no configuration: there is nothing to serve"),
        (vec!["--control-plane", "127.0.0.1:4780"], 2, "must begin with https:// or"),
        (vec!["--control-plane", "http://127.0.0.1:4780/mesh"], 2, "must end with the port"),
        (
            vec!["--control-plane", &to_plain, "--token-file", "/gone"],
            1,
            "--token-file /gone: No such file",
        ),
        (
            vec!["--control-plane", &to_plain, "--token-file", "EMPTY"],
            1,
            "is empty: write the output of",
        ),
        (
            vec![
                "--control-plane",
                &to_secure,
                "--token-file",
                &token,
                "--trust-bundle",
                &bundle,
                "--namespace",
                "shop",
            ],
            1,
            "the token is for bank/web, but this proxy is shop/default: set --namespace bank --service-account web",
        ),
        (
            vec!["--control-plane", "PLAINTEXT"],
            1,
            "the control plane speaks TLS on this port: use https://",
        ),
        (
            vec!["--control-plane", "TLS", "--token-file", &token],
            1,
            "the control plane does not speak TLS on this port: use http://",
        ),
    ];
    let (empty, plaintext, tls) = (path("empty"), url("http", &secure), url("https", &plain));
    for (flags, code, says) in cases {
        let mut flags: Vec<&str> = flags
            .into_iter()
            .map(|flag| match flag {
                "EMPTY" => empty.as_str(),
                "PLAINTEXT" => plaintext.as_str(),
                "TLS" => tls.as_str(),
                flag => flag,
            })
            .collect();
        if flags.contains(&tls.as_str()) {
            flags.extend(web);
        }
        let (ended, said) = ends(folder.path(), &flags);
        assert!(said.contains(says), "{flags:?} does not say {says:?}: {said}");
        assert_eq!(ended, Some(code), "{flags:?}: {said}");
    }
}

#[test]
fn a_control_plane_that_is_away_is_one_line_a_minute() {
    let mut plane = ControlPlane::start(&[]);
    let caller = Proxy::caller(&plane, &[]);
    plane.kill();
    caller.wait_log(&["cannot reach the control plane, going on with the last good configuration"]);
    // Long enough for several attempts, which are 2 s apart at most.
    let killed = Instant::now();
    eventually("time has passed", || killed.elapsed() > Duration::from_secs(7));
    let log = caller.log();
    let lines = log.lines().filter(|line| line.contains("cannot reach the control plane"));
    assert_eq!(lines.count(), 1, "{log}");
    plane.run();
    caller.wait_log(&["connected to the control plane"]);
}

#[test]
fn a_request_that_is_passed_through_says_where_to() {
    let (plane, app) = (ControlPlane::start(&[]), Echo::start("outside"));
    let caller = Proxy::caller(&plane, &[]);
    let host = local(app.port).to_string();
    assert_eq!(Curl::through(&caller).get(&format!("http://{host}/")).status, 200);
    caller.wait_log(&[&format!("\"host\":\"{host}\""), "\"outcome\":\"success\""]);
}

#[test]
fn a_proxy_with_a_configuration_on_disk_serves_it_whatever_becomes_of_its_token() {
    let app = Echo::start("app");
    let mut plane = ControlPlane::start(&[("app.yaml", &unmeshed("app", "http", app.port))]);
    let (token, state) = (plane.token("bank", "web"), plane.dir.path().join("proxy-state"));
    let flags = ["--service-account", "web", "--state-dir", &state.display().to_string()];
    let file = token.display().to_string();
    let flags = [&flags[..], &["--token-file", &file]].concat();
    let mut caller = Proxy::start(&plane, "web", &flags);
    let status = |caller: &Proxy| Curl::through(caller).get("http://app.bank/").status;
    assert_eq!(status(&caller), 200);
    caller.process().terminate();
    assert!(caller.process().wait(Duration::from_secs(40)).success());
    plane.kill();
    std::fs::remove_file(&token).expect("a file");
    caller.run();
    eventually("it serves what it knows", || status(&caller) == 200);
}
