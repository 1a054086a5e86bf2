//! Past purchases: made up from the account's name, the same every time.

use axum::extract::Path;
use axum::routing::get;
use axum::{Json, Router};
use serde_json::{Value, json};

use super::PRICES;

pub(super) fn router() -> Router {
    Router::new().route("/transactions/{account}", get(transactions_of))
}

async fn transactions_of(Path(account): Path<String>) -> Json<Value> {
    let seed: u64 = account.bytes().map(u64::from).sum();
    let transactions: Vec<_> = PRICES
        .iter()
        .enumerate()
        .map(|(i, (symbol, _))| json!({ "symbol": symbol, "shares": (seed + i as u64) % 7 + 1 }))
        .collect();
    Json(json!({ "account": account, "transactions": transactions }))
}
