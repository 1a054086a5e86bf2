//! Takes orders to the stock exchange outside.

use std::sync::Arc;

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use http::HeaderMap;
use serde_json::Value;

use crate::call::{CallError, Caller};
use crate::context::Context;

struct Market {
    caller: Caller,
    stock_exchange: String,
}

pub(super) fn router(caller: Caller, stock_exchange: String) -> Router {
    Router::new()
        .route("/orders", post(order))
        .with_state(Arc::new(Market { caller, stock_exchange }))
}

async fn order(
    State(market): State<Arc<Market>>,
    headers: HeaderMap,
    Json(order): Json<Value>,
) -> Result<Json<Value>, CallError> {
    let context = Context::of(&headers);
    market.caller.post(&context, &market.stock_exchange, "/trades", &order).await.map(Json)
}
