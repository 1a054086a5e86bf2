//! The outside world: trades at the listed price.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::State;
use axum::routing::post;
use axum::{Json, Router};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::price;

pub(super) fn router() -> Router {
    Router::new().route("/trades", post(trade)).with_state(Arc::new(AtomicU64::new(1)))
}

#[derive(Deserialize)]
struct Trade {
    symbol: String,
    shares: u32,
}

async fn trade(
    State(next): State<Arc<AtomicU64>>,
    Json(trade): Json<Trade>,
) -> Result<Json<Value>, (StatusCode, String)> {
    let no_symbol = || (StatusCode::NOT_FOUND, format!("no such symbol: {}\n", trade.symbol));
    let price_cents = price(&trade.symbol).ok_or_else(no_symbol)?;
    let number = next.fetch_add(1, Ordering::Relaxed);
    Ok(Json(json!({
        "order_id": format!("trade-{number}"),
        "symbol": trade.symbol,
        "shares": trade.shares,
        "price_cents": price_cents,
    })))
}
