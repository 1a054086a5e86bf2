//! `outrigger`: the command line of the mesh. See `outrigger --help`.

mod inject;
mod input;
mod tap;
mod upgrade;
mod write;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// The command line of an Outrigger mesh.
#[derive(Debug, Parser)]
#[command(name = "outrigger", version)]
struct Options {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Inject(Box<inject::Options>),
    Upgrade(Box<upgrade::Options>),
    Tap(Box<tap::Options>),
}

fn main() -> ExitCode {
    match Options::parse().command {
        Command::Inject(options) => inject::run(&options),
        Command::Upgrade(options) => upgrade::run(&options),
        Command::Tap(options) => tap::run(&options),
    }
}
