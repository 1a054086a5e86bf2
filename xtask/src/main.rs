//! Tasks of the repository: `cargo xtask <task>`.
//!
//! Depends on no crate of the workspace, so that it builds in seconds and can check the others
//! even when they do not build.

#![expect(clippy::print_stderr, reason = "a task talks to the person who runs it")]

mod demo;
mod workspace;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", about = "Tasks of the repository")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Run a small bank through the mesh, take parts of it away, and judge what fails.
    Demo(demo::Options),
}

fn main() -> ExitCode {
    match Cli::parse().task {
        Task::Demo(options) => demo::run(&options),
    }
}
