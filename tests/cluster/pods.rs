//! Jobs, first requests and probes in a namespace that takes no plaintext.

use outrigger_tests::within;
use serde_json::json;
use std::time::Duration;

use crate::bed::{Bed, call, calling, sum};

/// Pods that call as soon as they run.
const STARTS: usize = 20;

fn job(bed: &Bed, kind: &str, name: &str, more: &str) -> String {
    let spec = calling(&[call("web", "web:8000/")]);
    let indent = |text: &str, by: &str| -> String {
        text.lines().map(|line| format!("{by}{line}\n")).collect()
    };
    let job = format!("backoffLimit: 0\n{more}template:\n  spec:\n{}", indent(&spec, "  "));
    let namespace = &bed.namespace;
    let head = format!("kind: {kind}\nmetadata: {{name: {name}, namespace: {namespace}}}\nspec:\n");
    match kind {
        "CronJob" => format!(
            "apiVersion: batch/v1\n{head}  schedule: '* * * * *'\n  jobTemplate:\n    spec:\n{}",
            indent(&job, "      ")
        ),
        _ => format!("apiVersion: batch/v1\n{head}{}", indent(&job, "  ")),
    }
}

#[test]
fn jobs_and_cron_jobs_end() {
    let Some(bed) = Bed::start("jobs_and_cron_jobs_end") else { return };
    bed.serve(None);
    bed.apply(&job(&bed, "CronJob", "cron", ""));
    bed.apply(&job(&bed, "Job", "once", ""));
    bed.wait("condition=Complete", "job/once");
    assert_eq!(sum(&bed.run(&["logs", "job/once", "--container=app"]))["web"]["200"], 5);
    within(Duration::from_secs(150), "a run of the CronJob is over", || {
        let jobs = bed.json(&["get", "jobs"]);
        let mut jobs = jobs["items"].as_array().cloned().unwrap_or_default().into_iter();
        jobs.any(|job| {
            job["metadata"]["ownerReferences"][0]["kind"] == "CronJob"
                && job["status"]["succeeded"] == 1
        })
    });
}

#[test]
fn the_first_requests_of_an_app_succeed() {
    let Some(bed) = Bed::start("the_first_requests_of_an_app_succeed") else { return };
    bed.serve(None);
    let more = format!("completions: {STARTS}\nparallelism: 5\n");
    bed.apply(&job(&bed, "Job", "many", &more));
    bed.wait("condition=Complete", "job/many");
    let pods = bed.run(&["get", "pods", "--selector=job-name=many", "--output=name"]);
    let pods: Vec<&str> = pods.lines().collect();
    assert_eq!(pods.len(), STARTS);
    for pod in pods {
        let said = sum(&bed.run(&["logs", pod, "--container=app"]));
        assert_eq!(said["web"], json!({"sent": 5, "200": 5}), "{pod}");
    }
}

/// The app listens on 8000 and 9900; what asks for another port must be told that nobody is there.
#[test]
fn probes_are_answered_by_the_app() {
    let Some(bed) = Bed::start("probes_are_answered_by_the_app") else { return };
    let namespace = &bed.namespace;
    let pod = |name: &str, probe: &str| {
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
             spec:\n  containers:\n  - name: app\n    image: outrigger.dev/simplebank:0.1.0\n    \
             args: [tier, '--listen=0.0.0.0:8000', '--admin=0.0.0.0:9900']\n    \
             ports: [{{name: web, containerPort: 8000}}]\n    \
             readinessProbe: {{{probe}, periodSeconds: 1}}\n    \
             livenessProbe: {{{probe}, periodSeconds: 1, failureThreshold: 60}}\n"
        )
    };
    let good = [
        ("http", "httpGet: {path: /any, port: web}"),
        ("admin", "httpGet: {path: /admin/stats, port: 9900}"),
        ("tcp", "tcpSocket: {port: web}"),
        ("exec", "exec: {command: [/usr/bin/simplebank, --version]}"),
    ];
    let bad = [
        ("no-http", "httpGet: {path: /any, port: 8002}"),
        ("no-tcp", "tcpSocket: {port: 8002}"),
        ("no-grpc", "grpc: {port: 8002}"),
    ];
    for (name, probe) in good.iter().chain(&bad) {
        bed.apply(&pod(name, probe));
    }
    for (name, _) in good {
        bed.wait("condition=Ready", &format!("pod/{name}"));
    }
    for (name, _) in bad {
        bed.wait("jsonpath={.status.containerStatuses[0].started}=true", &format!("pod/{name}"));
        within(Duration::from_secs(60), "the kubelet has been told", || {
            let events = bed.json(&["get", "events"]);
            let events = events["items"].as_array().cloned().unwrap_or_default();
            events
                .iter()
                .any(|e| e["involvedObject"]["name"] == *name && e["reason"] == "Unhealthy")
        });
        let status = bed.json(&["get", "pod", name])["status"]["containerStatuses"][0].clone();
        assert_eq!(
            (&status["ready"], &status["restartCount"]),
            (&json!(false), &json!(0)),
            "{name}"
        );
    }
}
