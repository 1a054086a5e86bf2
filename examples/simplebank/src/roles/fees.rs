//! What a sale costs.

use axum::extract::Path;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

pub(super) fn router() -> Router {
    Router::new().route("/fees/{amount}", get(fee))
}

/// A tenth of a percent, at least one unit.
async fn fee(Path(amount): Path<u64>) -> Json<Value> {
    Json(json!({ "amount_cents": amount, "fee_cents": (amount / 1_000).max(100) }))
}
