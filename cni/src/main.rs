//! `outrigger-cni`: redirects pods to their proxies from outside, so that they need no capability.
//!
//! One program in two places. On the node the container runtime calls it for each pod ([`plugin`]); in the DaemonSet
//! `outrigger-cni install` puts it there and keeps it there ([`installer`], [`confdir`], [`conflist`]), and does the
//! work for it: it knows the node's pods ([`pods`]), answers the plugin over a socket ([`server`], [`wire`]), works in
//! the pods' network namespaces ([`namespaces`]) and finds those that were missed ([`repair`]). docs/cni.md is
//! the page for users.

mod confdir;
mod conflist;
mod daemon;
mod http;
mod installer;
mod metrics;
mod namespaces;
mod owner;
mod plugin;
mod pods;
mod repair;
mod server;
mod wire;

use std::io::Write;
use std::process::ExitCode;

use clap::{Parser, Subcommand};
use outrigger_logging::{LAST_WORDS, Log, say_last};
use tracing_subscriber::EnvFilter;

/// Redirects pods to their proxies from outside, on each node.
#[derive(Debug, Parser)]
#[command(
    name = "outrigger-cni",
    version,
    after_help = "With CNI_COMMAND in its environment it is the CNI plugin.\n\nDocs: docs/cni.md"
)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Install(Box<daemon::Install>),
    /// Take the plugin out of this node, as if it had never been there
    Uninstall(daemon::Folders),
}

fn main() -> ExitCode {
    if let Ok(command) = std::env::var("CNI_COMMAND") {
        return plugin::run(&command);
    }
    let done = match Options::parse().command {
        Command::Install(options) => install(*options),
        Command::Uninstall(folders) => uninstall(folders),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say_last(format!("outrigger-cni: {error}"));
            ExitCode::FAILURE
        }
    }
}

fn install(options: daemon::Install) -> Result<(), String> {
    let filter = EnvFilter::try_new(&options.log).map_err(|error| format!("--log: {error}"))?;
    let log = Log::stdout().map_err(|error| format!("standard output: {error}"))?;
    let events = tracing_subscriber::fmt().json().flatten_event(true).log_internal_errors(false);
    events.with_env_filter(filter).with_writer(log.clone()).init();
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let runtime = runtime.map_err(|error| format!("could not start: {error}"))?;
    let ended = runtime.block_on(daemon::run(options));
    runtime.shutdown_timeout(LAST_WORDS);
    log.flush(LAST_WORDS);
    ended
}

fn uninstall(folders: daemon::Folders) -> Result<(), String> {
    let installation = folders.installation("");
    let had = installation.take_out().map_err(|error| error.to_string())?;
    installation.remove_program().map_err(|error| error.to_string())?;
    let said = match had[..] {
        [] => "the plugin was in no network configuration".to_owned(),
        _ => format!("the plugin is taken out of {}", had.join(", ")),
    };
    writeln!(std::io::stdout(), "{said}").map_err(|error| format!("stdout: {error}"))
}
