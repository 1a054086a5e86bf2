//! Books into the ledger: gRPC on one side, lines over TCP on the other.

use axum::Router;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt};
use tonic::{Request, Response, Status};

use crate::call::{CallError, Caller};
use crate::generated::account_transactions_server::{
    AccountTransactions, AccountTransactionsServer,
};
use crate::generated::{BookRequest, BookResponse};

struct Clerk {
    caller: Caller,
    ledger: String,
}

pub(super) fn router(caller: Caller, ledger: String) -> Router {
    let clerk = AccountTransactionsServer::new(Clerk { caller, ledger });
    tonic::service::Routes::new(clerk).into_axum_router()
}

#[tonic::async_trait]
impl AccountTransactions for Clerk {
    async fn book(&self, request: Request<BookRequest>) -> Result<Response<BookResponse>, Status> {
        let booking = request.into_inner();
        let words = [&booking.operation_id, &booking.account];
        if words.iter().any(|word| word.is_empty() || word.contains(char::is_whitespace)) {
            return Err(Status::invalid_argument("operation id and account must be one word each"));
        }
        let ledger_entry = self.write_down(&booking).await.map_err(CallError::into_status)?;
        Ok(Response::new(BookResponse { ledger_entry }))
    }
}

impl Clerk {
    /// Waits for the greeting, then sends one line and reads one.
    async fn write_down(&self, booking: &BookRequest) -> Result<u64, CallError> {
        let mut stream = self.caller.tcp(&self.ledger).await?;
        let transport = |error: std::io::Error| CallError::Transport {
            callee: self.ledger.clone(),
            error: error.to_string(),
        };
        let nonsense =
            |problem: String| CallError::Nonsense { callee: self.ledger.clone(), problem };
        let mut line = String::new();
        stream.read_line(&mut line).await.map_err(transport)?;
        if !line.starts_with(super::ledger::GREETING) {
            return Err(nonsense(format!("{line:?} is no greeting")));
        }
        let BookRequest { operation_id, account, amount_cents } = booking;
        let request = format!("BOOK {operation_id} {account} {amount_cents}\n");
        stream.write_all(request.as_bytes()).await.map_err(transport)?;
        line.clear();
        stream.read_line(&mut line).await.map_err(transport)?;
        let entry = line.trim_end().strip_prefix("OK ").and_then(|number| number.parse().ok());
        entry.ok_or_else(|| nonsense(format!("{line:?} in answer to a booking")))
    }
}
