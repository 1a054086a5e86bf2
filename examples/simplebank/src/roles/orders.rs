//! Sells shares: the fee, the trade, then the booking.

use axum::Router;
use serde_json::{Value, json};
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::call::{CallError, Caller};
use crate::context::Context;
use crate::generated::account_transactions_client::AccountTransactionsClient;
use crate::generated::orders_server::{Orders, OrdersServer};
use crate::generated::{BookRequest, SellRequest, SellResponse};

struct Desk {
    caller: Caller,
    account_transactions_name: String,
    account_transactions: AccountTransactionsClient<Channel>,
    fees: String,
    market: String,
}

pub(super) fn router(
    caller: Caller,
    account_transactions: &str,
    fees: String,
    market: String,
) -> Result<Router, CallError> {
    let channel = caller.grpc(account_transactions)?;
    let desk = Desk {
        caller,
        account_transactions_name: account_transactions.to_owned(),
        account_transactions: AccountTransactionsClient::new(channel),
        fees,
        market,
    };
    Ok(tonic::service::Routes::new(OrdersServer::new(desk)).into_axum_router())
}

#[tonic::async_trait]
impl Orders for Desk {
    async fn sell(&self, request: Request<SellRequest>) -> Result<Response<SellResponse>, Status> {
        let context = Context::of(request.metadata().as_ref());
        let sale = request.into_inner();
        if sale.shares == 0 {
            return Err(Status::invalid_argument("shares must be at least 1"));
        }
        self.settle(&context, sale).await.map(Response::new).map_err(CallError::into_status)
    }
}

impl Desk {
    async fn settle(
        &self,
        context: &Context,
        sale: SellRequest,
    ) -> Result<SellResponse, CallError> {
        let order = json!({ "symbol": sale.symbol, "shares": sale.shares });
        let trade = self.caller.post(context, &self.market, "/orders", &order).await?;
        let price_cents = number(&self.market, &trade, "price_cents")?;
        let total = price_cents.saturating_mul(sale.shares.into());

        let fee = self.caller.get(context, &self.fees, &format!("/fees/{total}")).await?;
        let fee_cents = number(&self.fees, &fee, "fee_cents")?;
        let booked_cents = total.saturating_sub(fee_cents);

        let mut booking = Request::new(BookRequest {
            operation_id: sale.operation_id,
            account: sale.account,
            amount_cents: booked_cents,
        });
        context.apply(booking.metadata_mut().as_mut());
        let booked = self.account_transactions.clone().book(booking).await;
        let booked = booked.map_err(|status| CallError::Grpc {
            callee: self.account_transactions_name.clone(),
            status: Box::new(status),
        })?;
        Ok(SellResponse {
            order_id: trade["order_id"].as_str().unwrap_or_default().to_owned(),
            price_cents,
            fee_cents,
            booked_cents,
            ledger_entry: booked.into_inner().ledger_entry,
        })
    }
}

fn number(callee: &str, answer: &Value, field: &str) -> Result<u64, CallError> {
    answer[field].as_u64().ok_or_else(|| CallError::Nonsense {
        callee: callee.to_owned(),
        problem: format!("{field} is missing"),
    })
}
