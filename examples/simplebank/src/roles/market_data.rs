//! Prices, in two versions of the service: the second also says when.

use std::collections::BTreeMap;
use std::time::{SystemTime, UNIX_EPOCH};

use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use http::{HeaderName, StatusCode};
use serde_json::{Value, json};

use super::{PRICES, price};

#[derive(Clone, Copy, PartialEq)]
enum Version {
    V1,
    V2,
}

pub(super) fn router(version: &str) -> Router {
    let version = if version == "v2" { Version::V2 } else { Version::V1 };
    Router::new().route("/prices", get(all)).route("/prices/{symbol}", get(one)).with_state(version)
}

async fn all(State(version): State<Version>) -> Response {
    let prices: BTreeMap<_, _> = PRICES.into_iter().collect();
    version.answer(json!({ "prices": prices }))
}

async fn one(State(version): State<Version>, Path(symbol): Path<String>) -> Response {
    match price(&symbol) {
        Some(cents) => version.answer(json!({ "symbol": symbol, "price_cents": cents })),
        None => (StatusCode::NOT_FOUND, format!("no such symbol: {symbol}\n")).into_response(),
    }
}

impl Version {
    fn answer(self, mut body: Value) -> Response {
        let name = match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        };
        body["version"] = name.into();
        if self == Self::V2 {
            let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
            body["at"] = now.as_secs().into();
        }
        ([(HeaderName::from_static("x-version"), name)], Json(body)).into_response()
    }
}
