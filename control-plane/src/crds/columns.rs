//! What `kubectl get` shows: readable at 100 columns, with the rest behind `-o wide`.

use serde_json::{Value, json};

pub(super) fn of(kind: &str) -> Value {
    let mut columns = target(kind);
    columns.push(condition("Accepted"));
    // How far proxies have come with others is not known.
    if kind != "ExternalWorkload" {
        columns.push(condition("Programmed"));
    }
    columns.push(json!({
        "name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp",
        "description": "Time since it was created",
    }));
    Value::Array(columns)
}

/// What an object is about.
fn target(kind: &str) -> Vec<Value> {
    match kind {
        "AccessPolicy" => vec![
            column(
                "Target",
                ".spec.selector.matchLabels",
                "Labels of the workloads that it applies to",
            ),
            wide("Default", ".spec.default", "What happens to callers that match no rule"),
            wide("Audit", ".spec.audit", "Whether it is in audit mode"),
        ],
        "ExternalService" => vec![
            column("Target", ".spec.host", "Host, as apps dial it"),
            wide("Port", ".spec.port", "Port, as apps dial it"),
            wide("Protocol", ".spec.protocol", "Protocol that the app speaks"),
        ],
        "ExternalWorkload" => vec![
            column("Target", ".spec.address", "IP address of the process"),
            wide("Account", ".spec.serviceAccount", "Service account of the process"),
        ],
        _ => {
            let mut columns = vec![
                column("Target", ".spec.targetRefs[0].name", "Name of the first target"),
                wide("Kind", ".spec.targetRefs[0].kind", "Kind of the first target"),
            ];
            if kind == "FaultInjection" {
                columns.push(wide("End", ".spec.end", "End time"));
            }
            columns
        }
    }
}

fn condition(of: &str) -> Value {
    let path = format!(".status.conditions[?(@.type==\"{of}\")].status");
    column(of, &path, &format!("Status of the condition {of}"))
}

fn column(name: &str, path: &str, description: &str) -> Value {
    json!({"name": name, "type": "string", "jsonPath": path, "description": description})
}

fn wide(name: &str, path: &str, description: &str) -> Value {
    let mut column = column(name, path, description);
    column["priority"] = json!(1);
    column
}
