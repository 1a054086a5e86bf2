//! Tasks of the repository: `cargo xtask <task>`.
//!
//! Depends on no crate of the workspace, so that it builds in seconds and can check the others
//! even when they do not build.

#![expect(clippy::print_stderr, reason = "a task talks to the person who runs it")]

mod ci;
mod cluster;
mod codegen;
mod demo;
mod dist;
mod images;
mod test;
mod tidy;
mod workspace;

use std::os::unix::process::CommandExt;
use std::process::{Command, ExitCode};

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
    /// Run every test that can run on this machine.
    Test(test::Options),
    /// Measure the proxy beside its peers, and the control plane; arguments go to the bench (`cargo xtask bench --help`).
    #[command(disable_help_flag = true)]
    Bench {
        #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "ARGUMENTS")]
        arguments: Vec<String>,
    },
    /// Check the rules of the repository that a compiler does not check.
    Tidy,
    /// Generate the wire types from their .proto files, and CRDs with their reference from the kinds.
    Codegen(codegen::Options),
    /// Build a release archive under target/dist: static programs, checksums, bills of materials.
    Dist(dist::Options),
    /// Build container images under target/images, without a daemon.
    Images(images::Options),
    /// Run the bank in the cluster that KUBECONFIG names, and judge what fails (`cargo xtask cluster --help` tells how).
    Cluster(cluster::Options),
    /// Everything that must hold before a change is taken.
    Ci,
}

fn main() -> ExitCode {
    match Cli::parse().task {
        Task::Demo(options) => demo::run(&options),
        Task::Test(options) => test::run(&options),
        Task::Bench { arguments } => bench(&arguments),
        Task::Tidy => tidy::run(),
        Task::Codegen(options) => codegen::run(&options),
        Task::Dist(options) => dist::run(&options),
        Task::Images(options) => images::run(&options),
        Task::Cluster(options) => cluster::run(&options),
        Task::Ci => ci::run(),
    }
}

/// What is measured is built as it ships, the control plane apart: built with the proxy, each would have
/// features of dependencies that only the other needs. Then the bench becomes this very process.
fn bench(arguments: &[String]) -> ExitCode {
    let measured = ["outrigger-bench", "outrigger-proxy"];
    let built = workspace::build(&["outrigger-control-plane"], &["--release"])
        .and_then(|_| workspace::build(&measured, &["--release"]));
    let error = match built {
        Ok(programs) => match programs.get("outrigger-bench") {
            Some(program) => {
                Command::new(program).args(arguments).current_dir(workspace::root()).exec()
            }
            None => std::io::Error::other("outrigger-bench was not built"),
        },
        Err(error) => error,
    };
    eprintln!("bench: {error}");
    ExitCode::FAILURE
}
