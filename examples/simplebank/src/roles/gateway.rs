//! The front door: HTTP outside, HTTP and gRPC inside.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use axum::extract::{Path, State};
use axum::response::IntoResponse;
use axum::routing::{get, post};
use axum::{Json, Router};
use http::HeaderMap;
use serde::Deserialize;
use serde_json::{Value, json};
use tonic::transport::Channel;

use crate::call::{CallError, Caller};
use crate::context::{Context, OPERATION_ID};
use crate::generated::SellRequest;
use crate::generated::orders_client::OrdersClient;
use crate::spans::Spans;

struct Gateway {
    caller: Caller,
    holdings: String,
    orders_name: String,
    orders: OrdersClient<Channel>,
    next_operation: AtomicU64,
    spans: Option<Spans>,
}

pub(super) fn router(
    caller: Caller,
    holdings: String,
    orders: &str,
    spans: Option<Spans>,
) -> Result<Router, CallError> {
    let gateway = Gateway {
        orders: OrdersClient::new(caller.grpc(orders)?),
        orders_name: orders.to_owned(),
        caller,
        holdings,
        next_operation: AtomicU64::new(1),
        spans,
    };
    Ok(Router::new()
        .route("/holdings/{account}", get(holdings_of))
        .route("/shares/sell", post(sell))
        .with_state(Arc::new(gateway)))
}

async fn holdings_of(
    State(gateway): State<Arc<Gateway>>,
    Path(account): Path<String>,
    mut headers: HeaderMap,
) -> Result<Json<Value>, CallError> {
    let _span = gateway.spans.as_ref().map(|spans| spans.begin("holdings", &mut headers));
    let path = format!("/holdings/{account}");
    gateway.caller.get(&Context::of(&headers), &gateway.holdings, &path).await.map(Json)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Sale {
    account: String,
    symbol: String,
    shares: u32,
}

async fn sell(
    State(gateway): State<Arc<Gateway>>,
    mut headers: HeaderMap,
    Json(sale): Json<Sale>,
) -> Result<impl IntoResponse, CallError> {
    let _span = gateway.spans.as_ref().map(|spans| spans.begin("sell shares", &mut headers));
    let mut context = Context::of(&headers);
    let operation_id = context.ensure_operation_id(|| {
        let number = gateway.next_operation.fetch_add(1, Ordering::Relaxed);
        format!("gateway-{}-{number}", std::process::id())
    });
    let mut request = tonic::Request::new(SellRequest {
        operation_id: operation_id.clone(),
        account: sale.account,
        symbol: sale.symbol,
        shares: sale.shares,
    });
    context.apply(request.metadata_mut().as_mut());
    let sold = gateway.orders.clone().sell(request).await.map_err(|status| CallError::Grpc {
        callee: gateway.orders_name.clone(),
        status: Box::new(status),
    })?;
    let sold = sold.into_inner();
    let body = json!({
        "operation_id": operation_id,
        "order_id": sold.order_id,
        "price_cents": sold.price_cents,
        "fee_cents": sold.fee_cents,
        "booked_cents": sold.booked_cents,
        "ledger_entry": sold.ledger_entry,
    });
    Ok(([(OPERATION_ID, operation_id)], Json(body)))
}
