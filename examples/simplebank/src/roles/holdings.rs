//! What an account holds and what it is worth, from two services asked at once.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::{Path, State};
use axum::routing::get;
use axum::{Json, Router};
use http::HeaderMap;
use serde_json::{Value, json};

use crate::call::{CallError, Caller};
use crate::context::Context;

struct Holdings {
    caller: Caller,
    transactions: String,
    market_data: String,
}

pub(super) fn router(caller: Caller, transactions: String, market_data: String) -> Router {
    Router::new().route("/holdings/{account}", get(holdings_of)).with_state(Arc::new(Holdings {
        caller,
        transactions,
        market_data,
    }))
}

async fn holdings_of(
    State(holdings): State<Arc<Holdings>>,
    Path(account): Path<String>,
    headers: HeaderMap,
) -> Result<Json<Value>, CallError> {
    let context = Context::of(&headers);
    let path = format!("/transactions/{account}");
    let (transactions, market) = tokio::try_join!(
        holdings.caller.get(&context, &holdings.transactions, &path),
        holdings.caller.get(&context, &holdings.market_data, "/prices"),
    )?;
    let mut shares: BTreeMap<&str, u64> = BTreeMap::new();
    for transaction in transactions["transactions"].as_array().into_iter().flatten() {
        if let (Some(symbol), Some(count)) =
            (transaction["symbol"].as_str(), transaction["shares"].as_u64())
        {
            *shares.entry(symbol).or_default() += count;
        }
    }
    let value: u64 = shares
        .iter()
        .map(|(symbol, count)| count * market["prices"][symbol].as_u64().unwrap_or(0))
        .sum();
    Ok(Json(json!({
        "account": account,
        "shares": shares,
        "value_cents": value,
        "market_data": market["version"],
    })))
}
