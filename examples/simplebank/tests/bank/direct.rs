//! The bank without a mesh: every role as a process of its own.

use std::time::{Duration, Instant};

use http::{Method, StatusCode};
use rustix::process::Signal;
use serde_json::{Value, json};
use tokio::net::TcpStream;

use crate::support::{Bank, LIMIT, command, eventually, request, signal, start};

#[tokio::test]
async fn holdings_and_sales_cross_the_whole_bank() {
    let bank = Bank::direct().await;
    let holdings = bank.holdings().await;
    assert_eq!(holdings.status, StatusCode::OK, "{holdings:?}");
    let holdings = holdings.json();
    assert_eq!(holdings["account"], "anna");
    assert_eq!(holdings["market_data"], "v1");
    assert!(holdings["value_cents"].as_u64().unwrap() > 10_000, "{holdings}");

    for operation in ["op-1", "op-2", "op-2"] {
        let sold = bank.sell(operation).await;
        assert_eq!(sold.status, StatusCode::OK, "{sold:?}");
        assert_eq!(sold.headers["x-operation-id"], operation);
        let sold = sold.json();
        assert_eq!(sold["price_cents"], 12_345);
        assert_eq!(sold["fee_cents"], 100);
        assert_eq!(sold["booked_cents"], 2 * 12_345 - 100);
        assert!(sold["ledger_entry"].as_u64().unwrap() >= 1);
    }
    // The id went with each sale, so the one that came twice shows everywhere.
    for role in ["gateway", "orders", "market", "stock-exchange", "account-transactions", "ledger"]
    {
        let stats = bank.stats(role).await;
        assert_eq!(stats["operations"], 2, "{role}: {stats}");
        assert_eq!(stats["duplicates"], 1, "{role}: {stats}");
        assert_eq!(stats["duplicated"], json!(["op-2"]), "{role}: {stats}");
        assert_eq!(stats["in_flight"], 0, "{role}: {stats}");
    }
    let gateway = bank.roles["gateway"].admin;
    let operations = request(gateway, Method::GET, "/admin/operations", None).await.json();
    assert_eq!(operations, json!({ "op-1": 1, "op-2": 2 }));
}

#[tokio::test]
async fn market_data_says_its_version() {
    let v2 = start(&["market-data", "--version", "v2"]).await;
    let all = request(v2.listen, Method::GET, "/prices", None).await;
    assert_eq!(all.headers["x-version"], "v2");
    assert_eq!(all.json()["version"], "v2");
    let one = request(v2.listen, Method::GET, "/prices/KEEL", None).await;
    assert_eq!(one.json()["price_cents"], 987);
    assert!(one.json()["at"].is_u64());
    let none = request(v2.listen, Method::GET, "/prices/NOPE", None).await;
    assert_eq!(none.status, StatusCode::NOT_FOUND);
}

#[tokio::test]
async fn a_role_can_be_slow_failing_or_dead_and_recover() {
    let bank = Bank::direct().await;

    bank.fault("market-data", &json!({ "delay_ms": 300 })).await;
    let start = Instant::now();
    assert_eq!(bank.holdings().await.status, StatusCode::OK);
    assert!(start.elapsed() >= Duration::from_millis(300));

    bank.fault("market-data", &json!({ "fail_ratio": 0.5 })).await;
    let mut failed = 0;
    for _ in 0..10 {
        let answer = bank.holdings().await;
        if answer.status != StatusCode::OK {
            assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{answer:?}");
            failed += 1;
        }
    }
    assert_eq!(failed, 5);
    bank.fault("market-data", &json!({})).await;

    for role in ["orders", "account-transactions", "ledger"] {
        bank.fault(role, &json!({ "fail_ratio": 1.0 })).await;
        assert_eq!(bank.sell("failing").await.status, StatusCode::BAD_GATEWAY, "{role}");
        bank.fault(role, &json!({})).await;
    }

    for role in ["fees", "ledger", "orders", "market-data"] {
        bank.fault(role, &json!({ "dead": true })).await;
        let address = bank.listen(role);
        eventually("nothing listens", async || TcpStream::connect(address).await.is_err()).await;
        let answer =
            if role == "market-data" { bank.holdings().await } else { bank.sell("dead").await };
        assert_eq!(answer.status, StatusCode::BAD_GATEWAY, "{role}: {answer:?}");
        bank.fault(role, &json!({ "dead": false })).await;
        eventually("it lives again", async || TcpStream::connect(address).await.is_ok()).await;
        let answer =
            if role == "market-data" { bank.holdings().await } else { bank.sell("alive").await };
        assert_eq!(answer.status, StatusCode::OK, "{role}: {answer:?}");
    }

    let admin = bank.roles["fees"].admin;
    let wrong = json!({ "fail_ratio": 2 });
    let answer = request(admin, Method::POST, "/admin/fault", Some(&wrong)).await;
    assert_eq!(answer.status, StatusCode::BAD_REQUEST);
}

#[tokio::test]
async fn sigterm_finishes_what_is_in_flight() {
    let mut fees = start(&["fees", "--drain-delay", "0s"]).await;
    let slow = json!({ "delay_ms": 400 });
    request(fees.admin, Method::POST, "/admin/fault", Some(&slow)).await;
    let address = fees.listen;
    let in_flight =
        tokio::spawn(async move { request(address, Method::GET, "/fees/1000", None).await });
    let admin = fees.admin;
    eventually("the request has arrived", async || {
        request(admin, Method::GET, "/admin/stats", None).await.json()["in_flight"] == 1
    })
    .await;
    signal(&fees.child, Signal::TERM);
    assert_eq!(in_flight.await.unwrap().status, StatusCode::OK);
    let exit = tokio::time::timeout(LIMIT, fees.child.wait()).await.unwrap().unwrap();
    assert!(exit.success(), "{exit}");
}

#[tokio::test]
async fn after_sigterm_late_callers_are_served_for_the_drain_delay() {
    let mut fees = start(&["fees", "--drain-delay", "2s"]).await;
    signal(&fees.child, Signal::TERM);
    assert_eq!(request(fees.listen, Method::GET, "/fees/1", None).await.status, StatusCode::OK);
    let exit = tokio::time::timeout(LIMIT, fees.child.wait()).await.unwrap().unwrap();
    assert!(exit.success(), "{exit}");
    assert!(TcpStream::connect(fees.listen).await.is_err());
}

#[tokio::test]
async fn the_load_reports_every_second_every_failure_and_a_summary() {
    let bank = Bank::direct().await;
    let gateway = bank.listen("gateway").to_string();
    let load = command(&["load", "--gateway", &gateway, "--rate", "100", "--for", "3s"]);
    let lines = output(load).await;
    let summary = &lines.last().unwrap()["summary"];
    assert_eq!(summary["sent"], 300, "{summary}");
    assert_eq!(summary["completed"], 300);
    assert_eq!(summary["failed"], 0);
    assert_eq!(summary["versions"], json!({ "v1": 240 }));
    assert_eq!(summary["sells"]["sent"], 60);
    assert_eq!(summary["sells"]["operation_ids"].as_array().unwrap().len(), 60);
    assert!(summary["latency_ms"]["p50"].as_f64().unwrap() > 0.0);
    assert!(lines.iter().filter(|line| line["second"].is_u64()).count() >= 3);
    assert_eq!(bank.stats("ledger").await["operations"], 60);
    assert_eq!(bank.stats("ledger").await["duplicates"], 0);

    bank.fault("orders", &json!({ "dead": true })).await;
    let load = command(&["load", "--gateway", &gateway, "--rate", "50", "--for", "1s"]);
    let lines = output(load).await;
    let summary = &lines.last().unwrap()["summary"];
    assert_eq!(summary["failed"], 10, "{summary}");
    assert_eq!(summary["by_reason"], json!({ "502 -": 10 }));
    let failure = &lines.iter().find(|line| line["failure"].is_object()).unwrap()["failure"];
    assert_eq!(failure["kind"], "sell");
    assert!(failure["operation_id"].is_string() && failure["ended_ms"].is_u64(), "{failure}");
}

#[tokio::test]
async fn no_process_outlives_its_parent_if_told_so() {
    let mut shell = tokio::process::Command::new("sh");
    shell.args(["-c", "\"$0\" --exit-with-parent fees & wait", env!("CARGO_BIN_EXE_simplebank")]);
    shell.stdout(std::process::Stdio::piped()).kill_on_drop(true);
    let mut shell = shell.spawn().unwrap();
    let mut lines = {
        use tokio::io::{AsyncBufReadExt, BufReader};
        BufReader::new(shell.stdout.take().unwrap()).lines()
    };
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
    let said: Value = serde_json::from_str(&line).unwrap();
    let address: std::net::SocketAddr = said["listen"].as_str().unwrap().parse().unwrap();
    assert!(TcpStream::connect(address).await.is_ok());
    shell.kill().await.unwrap();
    eventually("it is gone", async || TcpStream::connect(address).await.is_err()).await;
}

/// All lines of a process that ends by itself.
async fn output(mut command: tokio::process::Command) -> Vec<Value> {
    let output = tokio::time::timeout(LIMIT, command.output()).await.unwrap().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}
