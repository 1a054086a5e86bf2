//! What a kubelet asks beside `/live` and `/ready`: whether the app may start, whether a port of it is there, and,
//! before it ends the app, for time. Nothing here changes the proxy.

use std::net::SocketAddr;
use std::time::Duration;

use axum::http::StatusCode;
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::time::{interval, sleep, timeout};

use crate::base::settings::parse_duration;
use crate::proxy::{Phase, Proxy};

/// How long the question whether the proxy has started is kept: less than the 10 s that the injector gives it.
const STARTUP: Duration = Duration::from_secs(8);
/// How often it is looked meanwhile.
const STARTUP_POLL: Duration = Duration::from_millis(10);
/// Longer than any kubelet waits for a probe that is not asked to.
const DIAL: Duration = Duration::from_secs(30);
/// The longest time that somebody may ask for before the app ends.
const MAX_PRE_STOP: Duration = Duration::from_secs(60);

/// Answers in the moment when the proxy is ready, so that nobody has to ask again a second later.
pub async fn started(proxy: &Proxy) -> (StatusCode, String) {
    let ready = async {
        let mut looks = interval(STARTUP_POLL);
        while proxy.not_ready().is_some() {
            looks.tick().await;
        }
    };
    match timeout(STARTUP, ready).await {
        Ok(()) => (StatusCode::OK, "started\n".to_owned()),
        Err(_) => {
            let why = proxy.not_ready().unwrap_or_default();
            (StatusCode::SERVICE_UNAVAILABLE, format!("not started: {why}\n"))
        }
    }
}

#[derive(Debug, Deserialize)]
pub struct PreStop {
    /// As in `5s`, 60 s at most.
    limit: String,
}

/// Answers when callers have had time to hear that this endpoint goes, while the app still serves them; at once
/// where the proxy itself has stopped accepting.
pub async fn pre_stop(proxy: &Proxy, query: &PreStop) -> (StatusCode, String) {
    let limit = match parse_duration(&query.limit) {
        Ok(limit) => limit.min(MAX_PRE_STOP),
        Err(why) => return (StatusCode::BAD_REQUEST, format!("limit: {why}\n")),
    };
    tokio::select! {
        () = sleep(limit) => {}
        () = proxy.lifecycle.reached(Phase::Finishing) => {}
    }
    (StatusCode::OK, "the app may end\n".to_owned())
}

/// Whether the app takes connections on a port: a kubelet that dialled it would only find this proxy. Of ports
/// alone that `--probe` names, so that nobody learns more than the kubelet.
pub async fn probe_tcp(proxy: &Proxy, port: u16) -> (StatusCode, String) {
    let settings = &proxy.settings;
    if !settings.probes.iter().any(|probe| probe.port == port && probe.path.is_empty()) {
        return (StatusCode::NOT_FOUND, format!("no --probe names the port {port}\n"));
    }
    let address = SocketAddr::new(settings.app_address, port);
    let failed = match timeout(DIAL, TcpStream::connect(address)).await {
        Ok(Ok(_)) => return (StatusCode::OK, "open\n".to_owned()),
        Ok(Err(error)) => error.to_string(),
        Err(_) => format!("no answer in {DIAL:?}"),
    };
    (StatusCode::SERVICE_UNAVAILABLE, format!("{address}: {failed}\n"))
}
