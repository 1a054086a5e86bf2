//! `outrigger-control-plane`: the command line around [`outrigger_control_plane::server`].

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::Parser;
use outrigger_control_plane::check;
use outrigger_control_plane::cluster::definitions::{self, Remove};
use outrigger_control_plane::crds;
use outrigger_control_plane::options::{
    Cli, ClusterOptions, Command, Options, TokenOptions, TrustStep,
};
use outrigger_control_plane::problems::Severity;
use outrigger_control_plane::server;
use outrigger_control_plane::token::Tokens;
use outrigger_core::address::LocalEndpoints;
use outrigger_core::identity;
use outrigger_logging::{LAST_WORDS, Log, say_last};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// How often it is checked whether the parent process is still there.
const PARENT_CHECK: Duration = Duration::from_millis(250);

fn main() -> ExitCode {
    let cli = Cli::parse();
    let result = match cli.command {
        None => run(cli.options),
        Some(Command::Token(options)) => token(&options),
        Some(Command::Trust { step }) => trust(&step),
        Some(Command::Check { paths, strict, local_endpoints }) => {
            check(&paths, strict, local_endpoints.of(true))
        }
        Some(Command::Crds { apply: false, remove: None, repository, .. }) => {
            crds(repository.as_deref())
        }
        Some(Command::Crds { remove, cluster, .. }) => definitions(remove, &cluster),
    };
    match result {
        Ok(code) => code,
        Err(error) => {
            say_last(format!("outrigger-control-plane: {error}"));
            ExitCode::FAILURE
        }
    }
}

/// An error that ends the program, as text for a person.
type Fatal = String;

fn run(options: Options) -> Result<ExitCode, Fatal> {
    let filter = EnvFilter::try_new(&options.log).map_err(|error| format!("--log: {error}"))?;
    let log = Log::stdout().map_err(|error| format!("standard output: {error}"))?;
    // Its own errors would go to standard error, on whatever thread has them.
    let events = tracing_subscriber::fmt().json().flatten_event(true).log_internal_errors(false);
    events.with_env_filter(filter).with_writer(log.clone()).init();
    let ended = serve(options, log.clone());
    log.flush(LAST_WORDS);
    ended
}

fn serve(options: Options, log: Log) -> Result<ExitCode, Fatal> {
    let parent = options.exit_with_parent.then(std::os::unix::process::parent_id);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("could not start: {error}"))?;
    let ended = runtime.block_on(async {
        let server = server::start(options, log).await.map_err(|error| error.to_string())?;
        let why = stop_signal(parent).await.map_err(|error| format!("signals: {error}"))?;
        tracing::info!(why, "stopping");
        server.stop().await;
        Ok(ExitCode::SUCCESS)
    });
    runtime.shutdown_timeout(LAST_WORDS);
    ended
}

/// Waits for a reason to stop, and names it.
async fn stop_signal(parent: Option<u32>) -> std::io::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let orphaned = async {
        match parent {
            Some(parent) => {
                while std::os::unix::process::parent_id() == parent {
                    tokio::time::sleep(PARENT_CHECK).await;
                }
            }
            None => std::future::pending().await,
        }
    };
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
        () = orphaned => "the parent process ended",
    })
}

fn token(options: &TokenOptions) -> Result<ExitCode, Fatal> {
    for (flag, value) in
        [("--namespace", &options.namespace), ("--service-account", &options.service_account)]
    {
        outrigger_core::name::check_label(value).map_err(|error| format!("{flag}: {error}"))?;
    }
    let (namespace, account) = (&options.namespace, &options.service_account);
    if identity::is_control_plane(namespace, account) {
        return Err(format!("{namespace}/{account} is the control plane's own identity"));
    }
    let grant = options.grant();
    grant.validate().map_err(|error| format!("the token cannot be bound to that: {error}"))?;
    let directory = options.state_dir.display();
    let tokens = Tokens::open(&options.state_dir)
        .map_err(|error| format!("--state-dir: {directory}: {error}"))?;
    let token = match options.tap {
        true => tokens.issue_tap(namespace, options.ttl),
        false => tokens.issue(namespace, account, grant, options.ttl),
    };
    print(&token.map_err(|error| format!("could not sign the token: {error}"))?)
}

/// Asks the running control plane; a refusal goes to stderr.
fn trust(step: &TrustStep) -> Result<ExitCode, Fatal> {
    print(outrigger_control_plane::trust::ask(step)?.trim_end())
}

fn check(paths: &[PathBuf], strict: bool, local: LocalEndpoints) -> Result<ExitCode, Fatal> {
    let checked = check::check(paths, local)?;
    print(&checked.to_string())?;
    let wrong =
        checked.count(Severity::Error) + usize::from(strict) * checked.count(Severity::Warning);
    Ok(if wrong > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn crds(repository: Option<&Path>) -> Result<ExitCode, Fatal> {
    let Some(repository) = repository else {
        return print(crds::yaml()?.trim_end());
    };
    for (path, text) in crds::files()? {
        let path = repository.join(path);
        let folder = path.parent().unwrap_or(repository);
        std::fs::create_dir_all(folder)
            .and_then(|()| std::fs::write(&path, text))
            .map_err(|error| format!("{}: {error}", path.display()))?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Changes which kinds a cluster knows.
fn definitions(remove: Option<Remove>, options: &ClusterOptions) -> Result<ExitCode, Fatal> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.map_err(|error| format!("could not start: {error}"))?;
    let said = runtime.block_on(async {
        let client = options.cluster().client().await.map_err(|error| error.to_string())?;
        let namespace = options.kube_namespace.clone().unwrap_or_default();
        match remove {
            Some(how) => definitions::remove(&client, &namespace, how).await,
            None => definitions::apply(&client).await,
        }
        .map_err(|error| error.to_string())
    })?;
    print(&said.join("\n"))
}

fn print(text: &str) -> Result<ExitCode, Fatal> {
    writeln!(std::io::stdout(), "{text}").map_err(|error| format!("stdout: {error}"))?;
    Ok(ExitCode::SUCCESS)
}
