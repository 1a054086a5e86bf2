//! `outrigger upgrade`: another version of the proxy in pods that run, while their apps go on.
//!
//! What is done to each of them is in [`outrigger_upgrade`], which the control plane does as well.

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::Args;
use futures::StreamExt;
use k8s_openapi::api::core::v1::Pod;
use kube::api::ListParams;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client, Config};
use outrigger_upgrade::{Step, name, quoted, replace, step};

/// How long the API server may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(5);

/// Replace the proxies of running pods, one after another, without restarting their apps.
///
/// It stops at the first pod that does not come back, and says how to go back. Pods that are made later get the
/// image that the injector knows: upgrade the chart first.
#[derive(Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  outrigger upgrade --image outrigger.dev/proxy:0.2.0 --namespace bank --dry-run\n  outrigger upgrade --image outrigger.dev/proxy:0.2.0 --all-namespaces --at-once 3\n\nDocs: docs/upgrade.md"
)]
pub(crate) struct Options {
    /// Image of the new proxy
    #[arg(long)]
    image: String,

    /// Pods of this namespace
    #[arg(short, long, required_unless_present = "all_namespaces")]
    namespace: Option<String>,

    /// Pods of all namespaces
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,

    /// Only pods with these labels, as in app=orders
    #[arg(short = 'l', long, value_name = "LABELS")]
    selector: Option<String>,

    /// Pods upgraded at the same time
    #[arg(long, default_value_t = 1, value_name = "PODS", value_parser = clap::value_parser!(u16).range(1..=100))]
    at_once: u16,

    /// Timeout of one pod, in seconds
    #[arg(long, default_value_t = 120, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(5..=3600))]
    timeout: u64,

    /// Only show what would be done
    #[arg(long)]
    dry_run: bool,

    /// Kubeconfig file. Unset: KUBECONFIG or ~/.kube/config
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,

    /// Another context of that file than its current one
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

pub(crate) fn run(options: &Options) -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let done = match runtime {
        Ok(runtime) => runtime.block_on(upgrade(options)),
        Err(error) => Err(error.to_string()),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            let _ = writeln!(io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}

async fn upgrade(options: &Options) -> Result<(), String> {
    let client = client(options).await?;
    let pods = match &options.namespace {
        Some(namespace) => Api::<Pod>::namespaced(client.clone(), namespace),
        None => Api::<Pod>::all(client.clone()),
    };
    let mut params = ListParams::default();
    params.label_selector.clone_from(&options.selector);
    let pods = pods.list(&params).await.map_err(|error| error.to_string())?;
    let mut steps = Vec::new();
    for pod in &pods {
        match step(pod, &options.image) {
            Ok(step) => steps.push(step),
            Err(Some(why)) => say(&format!("{}: skipped: {why}", name(pod))),
            Err(None) => {}
        }
    }
    if steps.is_empty() {
        say(&format!("no pod has a proxy of another image than {}", options.image));
        return Ok(());
    }
    let total = steps.len();
    if options.dry_run {
        for step in &steps {
            let before = quoted(&step.image);
            say(&format!("{}: {before} -> {}", step.name(), options.image));
        }
        say(&format!("{total} pods would be upgraded"));
        return Ok(());
    }
    let limit = Duration::from_secs(options.timeout);
    let one = async |step: Step| match replace(&client, &step, &options.image, limit).await {
        Ok(took) => Ok((step, took)),
        Err(why) => Err((step, why)),
    };
    let mut done = futures::stream::iter(steps).map(one).buffer_unordered(options.at_once.into());
    let mut count = 0;
    // Dropped at the first that fails, it begins no other.
    while let Some(result) = done.next().await {
        let (step, took) = result.map_err(|(step, why)| stopped(&step, &why, count, total))?;
        count += 1;
        let Some(took) = took else {
            say(&format!("[{count}/{total}] {}: skipped: the pod has been replaced", step.name()));
            continue;
        };
        let seconds = took.as_secs_f64();
        say(&format!("[{count}/{total}] {}: ready after {seconds:.1} s", step.name()));
    }
    Ok(())
}

fn stopped(step: &Step, why: &str, done: usize, total: usize) -> String {
    let (name, undo, image) = (step.name(), step.undo(), quoted(&step.image));
    format!(
        "{name}: {why}\n{done} of {total} pods have the new proxy; the upgrade has stopped. To give this \
         pod its old proxy back, run\n  {undo}\nand for those that are ready \
         `outrigger upgrade --image {image}`"
    )
}

async fn client(options: &Options) -> Result<Client, String> {
    let wanted = KubeConfigOptions { context: options.context.clone(), ..Default::default() };
    let config = match &options.kubeconfig {
        Some(path) => {
            let file = Kubeconfig::read_from(path);
            let file = file.map_err(|error| format!("{}: {error}", path.display()))?;
            Config::from_custom_kubeconfig(file, &wanted).await.map_err(|error| error.to_string())
        }
        None if options.context.is_some() => {
            Config::from_kubeconfig(&wanted).await.map_err(|error| error.to_string())
        }
        None => Config::infer().await.map_err(|error| error.to_string()),
    };
    let mut config = config.map_err(|error| format!("no cluster was found: {error}"))?;
    config.connect_timeout = Some(CONNECT);
    Client::try_from(config).map_err(|error| error.to_string())
}

fn say(line: &str) {
    // Nobody may be listening.
    let _ = writeln!(io::stdout(), "{line}");
}
