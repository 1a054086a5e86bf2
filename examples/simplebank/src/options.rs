//! The command line. `--help` of each role prints it; the README explains it.

use std::net::SocketAddr;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "simplebank", version, about = "A small bank of services that call each other")]
pub(crate) struct Options {
    /// Die when the process that started this one dies.
    #[arg(long, global = true)]
    pub(crate) exit_with_parent: bool,
    #[command(subcommand)]
    pub(crate) role: Role,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Role {
    /// The bank's front door: GET /holdings/{account}, POST /shares/sell.
    Gateway {
        #[command(flatten)]
        common: Common,
        /// Where `holdings` is reached.
        #[arg(long, default_value = "holdings.bank:8000")]
        holdings: String,
        /// Where `orders` is reached.
        #[arg(long, default_value = "orders.bank:9000")]
        orders: String,
        /// Where its own spans go by OTLP over HTTP, as in `http://127.0.0.1:4318`. Unset: it makes none.
        #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
        traces: Option<String>,
    },
    /// What an account holds and what it is worth: GET /holdings/{account}.
    Holdings {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value = "transactions.bank:8000")]
        transactions: String,
        #[arg(long, default_value = "market-data.bank:8000")]
        market_data: String,
    },
    /// Past purchases of an account: GET /transactions/{account}.
    Transactions {
        #[command(flatten)]
        common: Common,
    },
    /// Prices: GET /prices, GET /prices/{symbol}.
    MarketData {
        #[command(flatten)]
        common: Common,
        /// Which version of the service to be.
        #[arg(long, default_value = "v1", value_parser = ["v1", "v2"])]
        version: String,
    },
    /// Sells shares, over gRPC.
    Orders {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value = "account-transactions.bank:9000")]
        account_transactions: String,
        #[arg(long, default_value = "fees.bank:8000")]
        fees: String,
        #[arg(long, default_value = "market.bank:8000")]
        market: String,
    },
    /// Books into the ledger, over gRPC.
    AccountTransactions {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value = "ledger.bank:7000")]
        ledger: String,
    },
    /// What a sale costs: GET /fees/{amount}.
    Fees {
        #[command(flatten)]
        common: Common,
    },
    /// Takes orders to the stock exchange: POST /orders.
    Market {
        #[command(flatten)]
        common: Common,
        #[arg(long, default_value = "stock-exchange.bank:8080")]
        stock_exchange: String,
    },
    /// The outside world: POST /trades.
    StockExchange {
        #[command(flatten)]
        common: Common,
    },
    /// Keeps the books, line by line over TCP, and speaks first.
    Ledger {
        #[command(flatten)]
        common: Common,
    },
    /// Calls what its routes name and answers what it is answered; for stories: GET any path.
    Tier {
        #[command(flatten)]
        common: Common,
        /// Where a path leads, as `/prices=quotes.bank:8000`; a path without route ends here.
        #[arg(long = "route", value_parser = route)]
        routes: Vec<(String, String)>,
    },
    /// Calls the gateway at a steady rate and reports.
    Load(Load),
    /// Calls several services, each at a steady rate, and reports on each.
    Calls(Calls),
}

/// What every service has.
#[derive(Clone, Debug, Args)]
pub(crate) struct Common {
    /// Address to serve on; port 0 takes a free one. The first line on stdout says which.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) listen: SocketAddr,
    /// Address for faults and counters; port 0 takes a free one.
    #[arg(long, default_value = "127.0.0.1:0")]
    pub(crate) admin: SocketAddr,
    #[command(flatten)]
    pub(crate) outbound: Outbound,
    /// After SIGTERM, go on accepting for this long before finishing what is in flight.
    #[arg(long, default_value = "0s", value_parser = duration)]
    pub(crate) drain_delay: Duration,
    /// After that, wait at most this long for requests in flight.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub(crate) drain_limit: Duration,
}

/// How other services are reached.
#[derive(Clone, Debug, Args)]
pub(crate) struct Outbound {
    /// Forward proxy for all calls, as `host:port` or `http://host:port`; empty: none.
    #[arg(long, env = "HTTP_PROXY", default_value = "")]
    pub(crate) proxy: String,
    /// Longest time for one call.
    #[arg(long, default_value = "10s", value_parser = duration)]
    pub(crate) timeout: Duration,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Load {
    #[command(flatten)]
    pub(crate) outbound: Outbound,
    /// Where the gateway is reached.
    #[arg(long, default_value = "gateway.bank:8000")]
    pub(crate) gateway: String,
    /// Requests per second, sent at fixed moments whether or not answers come back.
    #[arg(long, default_value_t = 50)]
    pub(crate) rate: u32,
    /// How long; without it until SIGINT or SIGTERM.
    #[arg(long = "for", value_parser = duration)]
    pub(crate) duration: Option<Duration>,
    /// Percentage of the requests that sell shares; the others read holdings.
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=100))]
    pub(crate) sells: u32,
    /// Number of accounts that take turns.
    #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    pub(crate) accounts: u32,
}

#[derive(Clone, Debug, Args)]
pub(crate) struct Calls {
    #[command(flatten)]
    pub(crate) outbound: Outbound,
    /// What is called and how often a second, as `prices=gateway.bank:8000/prices@100`.
    #[arg(long = "call", required = true, value_parser = call)]
    pub(crate) calls: Vec<Call>,
    /// How long.
    #[arg(long = "for", value_parser = duration)]
    pub(crate) duration: Duration,
}

/// One line of calls.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Call {
    pub(crate) name: String,
    pub(crate) callee: String,
    pub(crate) path: String,
    pub(crate) per_second: f64,
}

fn route(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((path, callee)) if path.starts_with('/') => Ok((path.to_owned(), callee.to_owned())),
        _ => Err(format!("{text:?} is not PATH=HOST:PORT")),
    }
}

fn call(text: &str) -> Result<Call, String> {
    let parts = || {
        let (name, rest) = text.split_once('=')?;
        let (url, rate) = rest.rsplit_once('@')?;
        let (callee, path) = url.split_once('/')?;
        let per_second: f64 = rate.parse().ok().filter(|rate| (0.1..=1e5).contains(rate))?;
        let (name, callee, path) = (name.to_owned(), callee.to_owned(), format!("/{path}"));
        Some(Call { name, callee, path, per_second })
    };
    parts().ok_or_else(|| format!("{text:?} is not NAME=HOST:PORT/PATH@RATE"))
}

/// `250ms`, `5s`, `2m`.
pub(crate) fn duration(text: &str) -> Result<Duration, String> {
    let at = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (number, unit) = text.split_at(at);
    let number: u64 =
        number.parse().map_err(|_| format!("{text:?} does not begin with a number"))?;
    match unit {
        "ms" => Ok(Duration::from_millis(number)),
        "s" => Ok(Duration::from_secs(number)),
        "m" => Ok(Duration::from_secs(number.saturating_mul(60))),
        _ => Err(format!("{text:?} needs a unit: ms, s or m")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Options::command().debug_assert();
    }

    #[test]
    fn calls_name_what_where_and_how_often() {
        let got = call("prices=gateway.bank:8000/prices@12.5").unwrap();
        assert_eq!((got.name.as_str(), got.callee.as_str()), ("prices", "gateway.bank:8000"));
        assert_eq!((got.path.as_str(), got.per_second), ("/prices", 12.5));
        assert!(call("gateway.bank:8000/prices@12").is_err());
        assert!(call("a=gateway.bank:8000/prices@0").is_err());
        assert!(route("/a=b:1").is_ok() && route("a=b:1").is_err());
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(duration("250ms"), Ok(Duration::from_millis(250)));
        assert_eq!(duration("2m"), Ok(Duration::from_secs(120)));
        assert!(duration("5").is_err() && duration("s").is_err() && duration("-1s").is_err());
    }
}
