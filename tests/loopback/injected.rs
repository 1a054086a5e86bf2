//! What the injector tells the proxy, told to the proxy.

use clap::{CommandFactory, Parser};
use outrigger_core::config::Protocol;
use outrigger_inject::{Mode, Namespace, Outcome, PROXY, Settings as Injection, inject};
use outrigger_proxy::base::settings::Settings;
use serde_json::{Value, json};

/// A pod with all that there is to be told.
fn pod() -> Value {
    json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "orders-1", "annotations": {
            "outrigger.dev/inject": "enabled",
            "outrigger.dev/forward-client-identity": "enabled",
            "outrigger.dev/access-log": "1/10",
        }},
        "spec": {"restartPolicy": "Never", "containers": [{
            "name": "app",
            "ports": [{"containerPort": 8080, "name": "grpc-api"}],
            "livenessProbe": {"httpGet": {"path": "/live?x=1", "port": 8081,
                "httpHeaders": [{"name": "X-Probe", "value": "1"}]}},
            "readinessProbe": {"tcpSocket": {"port": 5432}},
            "startupProbe": {"grpc": {"port": 8080}},
        }]},
    })
}

/// What the proxy of an injected pod understands of its variables.
fn settings(mode: Mode) -> Settings {
    let injection = Injection { mode, ..Injection::default() };
    let Ok(Outcome::Injected(injected)) = inject(&pod(), &Namespace::default(), &[], &injection)
    else {
        panic!("it asked");
    };
    let containers = injected.pod["spec"]["initContainers"].as_array().expect("a list");
    let proxy = containers.iter().find(|one| one["name"] == PROXY).expect("a sidecar");
    let command = Settings::command();
    let mut line = vec!["outrigger-proxy".to_owned()];
    for variable in proxy["env"].as_array().expect("a list") {
        let name = variable["name"].as_str().expect("a name");
        let known =
            command.get_arguments().find(|one| one.get_env().is_some_and(|env| env == name));
        let known = known.unwrap_or_else(|| panic!("the proxy knows no {name}"));
        let flag = format!("--{}", known.get_long().expect("a flag"));
        let value = match variable["valueFrom"]["fieldRef"]["fieldPath"].as_str() {
            None => variable["value"].as_str().expect("a value"),
            Some("metadata.namespace") => "bank",
            Some("metadata.name") => "orders-1",
            Some("spec.serviceAccountName") => "orders",
            Some("status.podIP") => "10.0.0.7",
            Some("spec.nodeName") => "node-1",
            Some(path) if path.contains("zone") => "",
            Some(path) => panic!("{path} is new here"),
        };
        if known.get_action().takes_values() {
            line.push(format!("{flag}={value}"));
        } else {
            assert_eq!(value, "true", "{name}");
            line.push(flag);
        }
    }
    Settings::try_parse_from(line).expect("settings")
}

#[test]
fn the_proxy_understands_everything_that_the_injector_tells_it() {
    for mode in Mode::ALL {
        let settings = settings(mode);
        assert_eq!(settings.uid(), "bank.orders-1");
        assert_eq!(settings.app_address.to_string(), "10.0.0.7");
        assert_eq!(settings.inbound.to_string(), "[::]:4743");
        assert!(settings.persist_identity && settings.no_registration);
        assert!(settings.forward_client_identity);
        assert_eq!(settings.drain_delay.as_secs(), 0, "a Job ends at once");
        let ports: Vec<_> = settings.app_ports.iter().map(|app| (app.port, app.protocol)).collect();
        let probes: Vec<_> =
            settings.probes.iter().map(|probe| format!("{}{}", probe.port, probe.path)).collect();
        if mode == Mode::Env {
            assert_eq!(settings.outbound.to_string(), "127.0.0.1:4740");
            assert_eq!(ports, [(8080, Protocol::Grpc)]);
            assert!(probes.is_empty());
            continue;
        }
        assert_eq!(settings.outbound.to_string(), "[::]:4740");
        assert_eq!(
            ports,
            [(5432, Protocol::Detect), (8080, Protocol::Grpc), (8081, Protocol::Detect)]
        );
        assert_eq!(probes, ["5432", "8080/grpc.health.v1.Health/Check", "8081/live?x=1"]);
        assert_eq!(settings.probe_headers, ["x-probe"]);
    }
}
