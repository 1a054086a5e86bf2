//! `outrigger-proxy`: the sidecar. See `outrigger-proxy --help` and docs/life-of-a-request.md.

use std::io::{self, Write};
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use outrigger_logging::{LAST_WORDS, Log, say_last};
use outrigger_proxy::base::memory::Allocator;
use outrigger_proxy::base::settings::Settings;
use outrigger_proxy::init::Init;
use outrigger_proxy::observe::metrics::table::page;
use outrigger_proxy::ready::ReadyOptions;
use outrigger_proxy::run;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, reload};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

#[derive(Debug, Parser)]
#[command(args_conflicts_with_subcommands = true)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    settings: Settings,
}

#[derive(Debug, Subcommand)]
enum Command {
    Init(Init),
    Ready(ReadyOptions),
    /// List every metric, as Markdown.
    Metrics,
}

fn main() -> ExitCode {
    let Cli { command, settings } = Cli::parse();
    let done = match command {
        Some(Command::Init(init)) => Some(init.run().map_err(|error| error.to_string())),
        Some(Command::Ready(ready)) => Some(ready.run()),
        Some(Command::Metrics) => {
            Some(io::stdout().write_all(page().as_bytes()).map_err(|error| error.to_string()))
        }
        None => None,
    };
    if let Some(done) = done {
        return match done {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                say_last(format!("error: {error}"));
                ExitCode::FAILURE
            }
        };
    }
    let filter = match EnvFilter::try_new(&settings.log) {
        Ok(filter) => filter,
        Err(error) => {
            say_last(format!("error: --log {:?}: {error}", settings.log));
            return ExitCode::from(2);
        }
    };
    let log = match Log::stdout() {
        Ok(log) => log,
        Err(error) => {
            say_last(format!("error: standard output: {error}"));
            return ExitCode::FAILURE;
        }
    };
    let (filter, handle) = reload::Layer::new(filter);
    // Its own errors would go to standard error, on whatever thread has them.
    let events = fmt::layer().json().flatten_event(true).log_internal_errors(false);
    tracing_subscriber::registry().with(filter).with(events.with_writer(log.clone())).init();
    let ended = run::run(settings, log.clone(), handle);
    log.flush(LAST_WORDS);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say_last(format!("error: {error}"));
            ExitCode::FAILURE
        }
    }
}
