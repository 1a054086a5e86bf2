//! `/tap` of the admin server: opens a tap, and shows what comes as one JSON object a line.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, Query, RawQuery, State};
use axum::http::header::{AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, StatusCode};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use kube::Client;
use outrigger_core::error::FieldError;
use outrigger_core::name::check_label;
use outrigger_core::reason::Reason;
use outrigger_core::tap::{StatusFilter, Tap, TapFilter};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::MissedTickBehavior;
use tokio_stream::wrappers::ReceiverStream;

use super::authorize::{Authorizer, Denied};
use crate::graph::taps::{OpenTap, TapTarget};
use crate::graph::{GivenAway, Graph};
use crate::options::{Options, parse_duration};
use crate::token::Tokens;

/// How long a tap lasts that does not say, and at most.
const LASTS: Duration = Duration::from_secs(300);
const LONGEST: Duration = Duration::from_secs(3_600);
/// How soon, and then how often, it is said how many proxies a tap has reached.
const FIRST_STATE: Duration = Duration::from_millis(300);
const STATE: Duration = Duration::from_secs(2);
/// Requests that each proxy shows within a second unless said.
const PER_SECOND: u32 = 100;
/// Lines between the tap and the connection.
const QUEUE: usize = 16;

/// What `/tap` needs.
#[derive(Clone, Debug)]
pub struct TapServer {
    pub graph: Arc<Graph>,
    pub authorizer: Arc<Authorizer>,
    /// Headers that may be shown.
    pub headers: Arc<HashSet<HeaderName>>,
}

impl TapServer {
    /// `client`: of a cluster that says who may see what.
    pub fn new(
        options: &Options,
        client: Option<Client>,
        tokens: Option<Arc<Tokens>>,
        graph: Arc<Graph>,
    ) -> Self {
        let authorizer = Arc::new(Authorizer::new(client, tokens));
        let headers = options.telemetry.tap_headers.iter().cloned().collect();
        Self { graph, authorizer, headers: Arc::new(headers) }
    }
}

/// What is asked for; every text as it is written in `outrigger tap --help`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TapQuery {
    namespace: String,
    workload: Option<String>,
    direction: Option<String>,
    service: Option<String>,
    peer: Option<String>,
    method: Option<String>,
    path: Option<String>,
    status: Option<String>,
    reason: Option<String>,
    slower_than: Option<String>,
    /// With commas between them.
    headers: Option<String>,
    max_per_second: Option<u32>,
    #[serde(rename = "for")]
    lasts: Option<String>,
}

impl IntoResponse for Denied {
    fn into_response(self) -> Response {
        let text = axum::Json(json!({ "error": self.why }));
        (self.status, text).into_response()
    }
}

/// Opens a tap.
pub async fn tap(
    State(server): State<TapServer>,
    ConnectInfo(peer): ConnectInfo<SocketAddr>,
    RawQuery(asked): RawQuery,
    query: Result<Query<TapQuery>, QueryRejection>,
    headers: HeaderMap,
) -> Result<Response, Denied> {
    if !peer.ip().to_canonical().is_loopback() {
        let why = "taps are shown on loopback alone, since the token is not encrypted on its way: \
                   use `kubectl port-forward`, or `ssh -L`";
        return Err(Denied::new(StatusCode::FORBIDDEN, why));
    }
    let bad = |why: String| Denied::new(StatusCode::BAD_REQUEST, why);
    let Query(query) = query.map_err(|rejection| bad(rejection.body_text()))?;
    check_label(&query.namespace).map_err(|error| bad(error.under("namespace").to_string()))?;
    let token = headers.get(AUTHORIZATION).and_then(|value| value.to_str().ok());
    let token = token.and_then(|value| value.strip_prefix("Bearer "));
    let user = server.authorizer.authorize(token, &query.namespace).await?;
    let (target, tap, lasts) = read(query, &server.headers).map_err(|e| bad(e.to_string()))?;
    let given_away = server.graph.given_away().map_err(|_| {
        let keeper = server.graph.keeper().unwrap_or_else(|| "another replica".to_owned());
        let why = format!("proxies report to {keeper}: ask that one");
        Denied::new(StatusCode::SERVICE_UNAVAILABLE, why)
    })?;
    let asked = asked.unwrap_or_default();
    let open = server.graph.taps.open(target, tap).ok_or_else(|| {
        Denied::new(
            StatusCode::TOO_MANY_REQUESTS,
            "too many taps are open, of this namespace or of all: try again later",
        )
    })?;
    tracing::info!(user, asked, "a tap is opened");
    let (out, body) = mpsc::channel(QUEUE);
    tokio::spawn(async move {
        show(open, lasts, given_away, &out).await;
        tracing::info!(user, asked, "a tap is closed");
    });
    let headers = [(CONTENT_TYPE, "application/x-ndjson"), (CACHE_CONTROL, "no-store")];
    Ok((headers, Body::from_stream(ReceiverStream::new(body))).into_response())
}

type Line = Result<Bytes, Infallible>;

/// Passes lines on until the time is over or nobody reads any more. A reader who does not read has the time of the
/// tap, and no more lines than fit.
async fn show(
    mut open: OpenTap,
    lasts: Duration,
    mut given_away: GivenAway,
    out: &mpsc::Sender<Line>,
) {
    let end = tokio::time::sleep(lasts);
    tokio::pin!(end);
    let mut states = tokio::time::interval_at(tokio::time::Instant::now() + FIRST_STATE, STATE);
    states.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let state = |open: &OpenTap| json!({ "proxies": open.active.proxies(), "not_shown": open.active.not_shown() });
    let ended = loop {
        let next = async {
            tokio::select! {
                Some(line) = open.lines.recv() => line,
                _ = states.tick() => line(&state(&open)),
            }
        };
        let passed = async {
            let next = next.await;
            out.send(Ok(next)).await
        };
        tokio::select! {
            passed = passed => if passed.is_err() { return },
            () = &mut end => break "its time is over",
            () = given_away.wait() => break "proxies report to another replica now",
            () = out.closed() => return,
        }
    };
    let mut last = state(&open);
    last["ended"] = json!(ended);
    // Proxies stop at once, however long it takes until somebody reads this.
    drop(open);
    let _ = tokio::time::timeout(STATE, out.send(Ok(line(&last)))).await;
}

fn line(value: &Value) -> Bytes {
    format!("{value}\n").into()
}

/// Reads what is asked for.
fn read(
    query: TapQuery,
    allowed: &HashSet<HeaderName>,
) -> Result<(TapTarget, Tap, Duration), FieldError> {
    let duration = |name: &str, text: Option<String>| {
        text.map(|text| parse_duration(&text).map_err(|why| FieldError::at(name, why))).transpose()
    };
    let status = query.status.map(|text| {
        let wrong = || FieldError::at("status", format!("{text:?} is neither as 503 nor as 5xx"));
        StatusFilter::parse(&text).ok_or_else(wrong)
    });
    let reason = query.reason.map(|word| {
        let wrong = || FieldError::at("reason", format!("{word:?} is no reason (docs/reasons.md)"));
        Reason::from_word(&word).ok_or_else(wrong)
    });
    let names = query.headers.iter().flat_map(|all| all.split(','));
    let headers = names.map(|name| header(name.trim(), allowed));
    let tap = Tap {
        id: 0,
        filter: TapFilter {
            direction: query.direction,
            service: query.service,
            peer: query.peer,
            method: query.method.map(|method| method.to_ascii_uppercase()),
            path: query.path,
            status: status.transpose()?,
            reason: reason.transpose()?,
            slower_than: duration("slower_than", query.slower_than)?,
        },
        max_per_second: query.max_per_second.unwrap_or(PER_SECOND),
        headers: headers.collect::<Result<_, _>>()?,
    };
    tap.check()?;
    if query.workload.as_ref().is_some_and(String::is_empty) {
        return Err(FieldError::at("workload", "is empty: leave it out for all of the namespace"));
    }
    let lasts = duration("for", query.lasts)?.unwrap_or(LASTS);
    if lasts.is_zero() || lasts > LONGEST {
        return Err(FieldError::at("for", "must be more than nothing and at most 1h"));
    }
    Ok((TapTarget { namespace: query.namespace, workload: query.workload }, tap, lasts))
}

fn header(name: &str, allowed: &HashSet<HeaderName>) -> Result<HeaderName, FieldError> {
    let parsed = name.parse::<HeaderName>().ok();
    parsed.filter(|name| allowed.contains(name)).ok_or_else(|| {
        let mut shown: Vec<_> = allowed.iter().map(HeaderName::as_str).collect();
        shown.sort_unstable();
        let why = format!(
            "{name:?} is not among those that --tap-headers of the control plane lets taps show: {}",
            shown.join(", ")
        );
        FieldError::at("headers", why)
    })
}
