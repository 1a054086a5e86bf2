//! A service that calls others and answers what it is answered: what stories are built of. It forwards
//! `x-request-id` and nothing else, and tries again at once, as often as it is told.

use std::sync::Arc;

use axum::extract::{Request, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Extension, Json, Router};
use bytes::Bytes;
use http::{Method, StatusCode};
use serde_json::json;

use crate::call::{CallError, Caller, PROXY_STATUS};
use crate::context::Context;
use crate::control::Control;

struct Tier {
    caller: Caller,
    routes: Vec<(String, String)>,
}

pub(super) fn router(caller: Caller, routes: Vec<(String, String)>) -> Router {
    Router::new().fallback(get(answer)).with_state(Arc::new(Tier { caller, routes }))
}

/// One with a fixed number of workers is like most servers that have threads for them: it does not notice
/// that a caller has left, and works on.
async fn answer(
    State(tier): State<Arc<Tier>>,
    Extension(control): Extension<Arc<Control>>,
    request: Request,
) -> Response {
    if !control.has_workers() {
        return work(&tier, &control, request).await;
    }
    let working = tokio::spawn(async move { work(&tier, &control, request).await });
    working.await.unwrap_or_else(|_| StatusCode::INTERNAL_SERVER_ERROR.into_response())
}

async fn work(tier: &Tier, control: &Arc<Control>, request: Request) -> Response {
    let _worker = control.worker().await;
    let path = request.uri().path();
    let Some((_, callee)) = tier.routes.iter().find(|(route, _)| route == path) else {
        let left = request.headers().get("x-deadline").and_then(|value| value.to_str().ok());
        return Json(json!({ "deadline_left_ms": left })).into_response();
    };
    let context = Context::request_id_of(request.headers());
    let mut retries = control.retries();
    loop {
        let answer = tier.caller.send(&context, Method::GET, callee, path, Bytes::new()).await;
        let failed = answer.as_ref().map_or(true, |response| response.status().is_server_error());
        if !failed || retries == 0 {
            return passed_on(answer);
        }
        retries -= 1;
    }
}

/// Status, reason and body as they came.
fn passed_on(answer: Result<http::Response<Bytes>, CallError>) -> Response {
    let response = match answer {
        Ok(response) => response,
        Err(error) => return error.into_response(),
    };
    let reason = response.headers().get(PROXY_STATUS).cloned();
    let mut passed = (response.status(), response.into_body()).into_response();
    if let Some(reason) = reason {
        passed.headers_mut().insert(PROXY_STATUS, reason);
    }
    passed
}
