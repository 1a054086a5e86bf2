//! The services of the bank, one file each.

mod account_transactions;
mod fees;
mod gateway;
mod holdings;
pub(crate) mod ledger;
mod market;
mod market_data;
mod orders;
mod stock_exchange;
mod tier;
mod transactions;

use std::error::Error;

use crate::call::{CallError, Caller};
use crate::control::Control;
use crate::options::{Common, Role};
use crate::server::{Service, serve};
use crate::spans::Spans;

/// Runs one service to its end.
pub(crate) async fn run(role: Role) -> Result<(), Box<dyn Error>> {
    let (common, name, version, service) = service(role)?;
    Ok(serve(&common, Control::new(name, &version), service).await?)
}

fn service(role: Role) -> Result<(Common, &'static str, String, Service), CallError> {
    let v1 = || "v1".to_owned();
    let caller = |common: &Common| Caller::new(&common.outbound);
    Ok(match role {
        Role::Gateway { common, holdings, orders, traces } => {
            let spans = traces.map(|address| Spans::start("gateway", &address)).transpose()?;
            let router = gateway::router(caller(&common), holdings, &orders, spans)?;
            (common, "gateway", v1(), Service::Http(router))
        }
        Role::Holdings { common, transactions, market_data } => {
            let router = holdings::router(caller(&common), transactions, market_data);
            (common, "holdings", v1(), Service::Http(router))
        }
        Role::Transactions { common } => {
            (common, "transactions", v1(), Service::Http(transactions::router()))
        }
        Role::MarketData { common, version } => {
            let router = market_data::router(&version);
            (common, "market-data", version, Service::Http(router))
        }
        Role::Orders { common, account_transactions, fees, market } => {
            let router = orders::router(caller(&common), &account_transactions, fees, market)?;
            (common, "orders", v1(), Service::Http(router))
        }
        Role::AccountTransactions { common, ledger } => {
            let router = account_transactions::router(caller(&common), ledger);
            (common, "account-transactions", v1(), Service::Http(router))
        }
        Role::Fees { common } => (common, "fees", v1(), Service::Http(fees::router())),
        Role::Market { common, stock_exchange } => {
            let router = market::router(caller(&common), stock_exchange);
            (common, "market", v1(), Service::Http(router))
        }
        Role::StockExchange { common } => {
            (common, "stock-exchange", v1(), Service::Http(stock_exchange::router()))
        }
        Role::Ledger { common } => (common, "ledger", v1(), Service::Ledger),
        Role::Tier { common, routes } => {
            let router = tier::router(caller(&common), routes);
            (common, "tier", v1(), Service::Http(router))
        }
        Role::Load(_) | Role::Calls(_) => {
            unreachable!("invariant: main runs the load generators itself")
        }
    })
}

/// Prices in cents that every part of the bank agrees on.
const PRICES: [(&str, u64); 4] =
    [("ACME", 12_345), ("HULL", 4_200), ("KEEL", 987), ("MAST", 25_010)];

fn price(symbol: &str) -> Option<u64> {
    PRICES.iter().find(|(name, _)| *name == symbol).map(|(_, cents)| *cents)
}
