//! `outrigger-proxy`: the sidecar. See `outrigger-proxy --help` and docs/life-of-a-request.md.

use std::process::ExitCode;

use clap::Parser;
use outrigger_proxy::memory::Allocator;
use outrigger_proxy::run;
use outrigger_proxy::settings::Settings;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, fmt, reload};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

fn main() -> ExitCode {
    let settings = Settings::parse();
    let filter = match EnvFilter::try_new(&settings.log) {
        Ok(filter) => filter,
        Err(error) => {
            eprintln!("error: --log {:?}: {error}", settings.log);
            return ExitCode::from(2);
        }
    };
    let (filter, log) = reload::Layer::new(filter);
    tracing_subscriber::registry()
        .with(filter)
        .with(fmt::layer().json().flatten_event(true))
        .init();
    match run::run(settings, log) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
