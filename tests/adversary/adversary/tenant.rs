//! Tenants and members of the mesh against each other: names of workloads, names of the mesh, and policies
//! that are broken from the start.

use std::process::Command;

use outrigger_tests::app::Echo;
use outrigger_tests::client::{Curl, http_get};
use outrigger_tests::process::{ControlPlane, Process, Proxy, binary, free_port, local};
use outrigger_tests::{eventually, skip};

use outrigger_tests::manifests::{service, unmeshed};
use outrigger_tests::mesh::Mesh;

/// A proxy of an app `web` under a name that is another's, with the flags that decide so.
fn rival(mesh: &Mesh, name: &str, more: &[&str]) -> (Process, u16) {
    let admin = free_port();
    let token = mesh.plane.token("bank", "web");
    let mut command = Command::new(binary("outrigger-proxy"));
    command
        .args(["--control-plane", &format!("http://{}", local(mesh.plane.listen))])
        .args(["--namespace", "bank", "--service-account", "web", "--workload", "web"])
        .args(["--outbound", &local(free_port()).to_string()])
        .args(["--inbound", &local(free_port()).to_string()])
        .args(["--admin", &local(admin).to_string(), "--token-file"])
        .arg(token)
        .args(["--app-port", &format!("{}=h1:main", mesh.app.port)])
        .args(more);
    (Process::start(mesh.plane.dir.path(), name, &mut command), admin)
}

#[test]
fn a_proxy_whose_name_is_anothers_says_so_is_not_ready_and_gets_it_when_that_one_is_dead() {
    let mut mesh = Mesh::start("h1");
    let (process, admin) = rival(&mesh, "rival", &["--label", "app=none"]);
    let ready = || http_get(admin, "/ready").unwrap_or_default();
    eventually("the rival is refused", || {
        ready().1.contains("the control plane refused this workload's registration")
    });
    assert_eq!(ready().0, 503);
    let refused = |line: &&str| line.contains("refused this workload's registration");
    let mut line = String::new();
    eventually("the rival's log says so", || {
        line = process.log().lines().find(refused).unwrap_or_default().to_owned();
        !line.is_empty()
    });
    assert!(line.contains("\"level\":\"ERROR\"") && line.contains("name: bank.web"), "{line}");
    let metrics = || http_get(admin, "/metrics").unwrap_or_default().1;
    assert!(metrics().contains("\noutrigger_registered 0\n"), "{}", metrics());
    assert!(!metrics().contains("\noutrigger_registrations_refused_total 0\n"), "{}", metrics());
    // Its owner has noticed nothing.
    let answer = Curl::through(&mesh.caller).get("http://web.bank/");
    assert!(answer.status == 200 && answer.head.contains("x-app: web"), "{answer:?}");
    // Dead without a word, as after a crash.
    mesh.web.process().kill();
    eventually("the rival has the name", || ready().0 == 200);
    assert!(metrics().contains("\noutrigger_registered 1\n"), "{}", metrics());
}

#[test]
fn a_name_that_was_inside_is_never_passed_outside() {
    if !rustix::process::geteuid().is_root() {
        let test = "a_name_that_was_inside_is_never_passed_outside";
        return skip(test, "an /etc/hosts of its own takes root");
    }
    let app = Echo::start("app");
    let rogue = Echo::start("rogue");
    let mut plane = ControlPlane::start(&[("web.yaml", &unmeshed("web", "", app.port))]);
    // Anyone who answers for these names outside.
    let hosts = "127.0.0.1 localhost\n127.0.0.1 web.bank\n127.0.0.1 web.bank.svc\n\
        127.0.0.1 web.bank.svc.old.example\n127.0.0.1 web.elsewhere\n";
    let caller = Proxy::start_with_hosts(&plane, "caller", hosts);
    let get = |host: &str| Curl::through(&caller).get(&format!("http://{host}:{}/", rogue.port));
    let inside = ["web.bank", "web.bank.svc", "web.bank.svc.old.example", "web.bank."];
    let check = |when: &str| {
        for host in inside {
            let answer = get(host);
            let refused = answer.status == 502 && answer.head.contains("no_such_service");
            assert!(refused, "{when}: {host}: {answer:?}");
        }
        assert!(get("web.elsewhere").head.contains("x-app: rogue"), "{when}");
    };
    let there = || Curl::through(&caller).get("http://web.bank:80/").status == 200;
    eventually("the service answers", there);
    check("while it is there");
    plane.remove("web.yaml");
    eventually("the service is gone", || !there());
    check("when the last file is gone");
    // A control plane that has never heard of the namespace.
    plane.kill();
    // Its death may have come before the file.
    let _ = std::fs::remove_file(plane.dir.path().join("state/namespaces.json"));
    plane.run();
    eventually("the proxy is back", || {
        let metrics = http_get(caller.admin, "/metrics").unwrap_or_default().1;
        metrics.contains("\noutrigger_discovery_connected 1\n")
    });
    check("after a restart of a control plane that forgot");
}

#[test]
fn a_policy_that_is_broken_from_the_start_lets_nobody_in() {
    let broken = "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\n\
        metadata: {name: web, namespace: bank}\n\
        spec: {selector: {matchLabels: {app: web}}, default: Perhaps}\n";
    let app = Echo::start("web");
    let files = [("web.yaml", &*service("web", "")), ("policy.yaml", broken)];
    let plane = ControlPlane::start(&files);
    let _web = Proxy::beside(&plane, "web", &[format!("{}=h1:main", app.port)], &[]);
    let caller = Proxy::caller(&plane, &[]);
    let get = || Curl::through(&caller).get("http://web.bank/");
    let answer = get();
    assert!(answer.status == 403 && answer.head.contains("access_denied"), "{answer:?}");
    assert!(plane.admin("/index").contains("no version of this policy has been valid yet"));
    plane.write("policy.yaml", &broken.replace("Perhaps", "Allow"));
    eventually("the policy is right", || get().status == 200);
    // From now on there is a good version, which stays.
    plane.write("policy.yaml", broken);
    eventually("the problem is seen", || plane.admin("/problems").contains("Perhaps"));
    assert_eq!(get().status, 200);
}
