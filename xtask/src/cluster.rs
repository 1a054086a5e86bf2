//! `cargo xtask cluster`: the bank in a real cluster, meshed, under load, and judged as the demo is.
//!
//! [`images`] brings the images to the nodes, [`kubectl`] talks to the cluster, [`bank`] installs and removes,
//! [`steps`] says what is done and what must hold.

mod bank;
mod images;
mod kubectl;
mod steps;

use std::io;
use std::process::ExitCode;
use std::time::Instant;

use clap::{Args, ValueEnum};

use crate::demo;
use bank::Bank;
use images::Place;
use kubectl::Kubectl;

/// Where the images come from, where they go, and what stays.
#[derive(Debug, Args)]
#[command(after_long_help = TEACHING)]
pub(crate) struct Options {
    /// Put the images onto the nodes: kind[=CLUSTER], k3d[=CLUSTER] or containerd=SOCKET, several separated by commas.
    #[arg(long, value_name = "WHERE", value_delimiter = ',', value_parser = images::place)]
    load: Vec<Place>,
    /// Name the images PREFIX/proxy and so on, and push them with docker or podman, whichever is there.
    #[arg(long, value_name = "PREFIX", conflicts_with = "load")]
    push: Option<String>,
    /// Take the archives that are under target/images already.
    #[arg(long, conflicts_with = "push")]
    built: bool,
    /// How the traffic of the bank's pods comes to their proxies. In the modes cni and env the namespace enforces
    /// PodSecurity `restricted`; cni needs a mesh that was installed with `cni.enabled`.
    #[arg(long, value_enum, default_value_t = Mode::Init)]
    mode: Mode,
    /// Requests per second that the load generator sends.
    #[arg(long, default_value_t = 60, value_parser = clap::value_parser!(u32).range(10..=2000))]
    rate: u32,
    /// Leave the mesh and the bank in the cluster.
    #[arg(long)]
    keep: bool,
}

/// As the annotation `outrigger.dev/mode` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Init,
    Cni,
    Env,
}

impl Mode {
    fn as_str(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Cni => "cni",
            Self::Env => "env",
        }
    }
}

const TEACHING: &str = "\
It needs kubectl and helm in PATH, KUBECONFIG (or ~/.kube/config) with the rights of an administrator, the definitions of
the Gateway API in the cluster, and nobody else's namespace `bank`. What it does, step by step:

  1. builds the images (cargo xtask images) and brings them to the cluster
  2. helm install outrigger charts/outrigger --namespace outrigger-system --wait (if it is there already, it is used
     as it is and stays)
  3. kubectl apply of examples/simplebank/cluster/bank.yaml, with strict mTLS for all of it
  4. sends load from a pod in the mesh, and meanwhile: a pod without proxy is refused, a Job runs to its end,
     30 % of market-data move to v2, three services roll, a pod of orders is killed, and the control plane too
  5. prints what was sent and what failed in each step, and removes everything

  cargo xtask cluster --load kind                        # a cluster of kind, named kind
  cargo xtask cluster --load k3d=dev
  cargo xtask cluster --load containerd=/run/a.sock,containerd=/run/b.sock
  cargo xtask cluster --push registry.example.com/me     # anything that pulls from a registry
  cargo xtask cluster                                    # the nodes have the images already
  cargo xtask cluster --mode env                         # apps are told of their proxies, nothing is redirected

It exits with 0 if everything held.";

pub(crate) fn run(options: &Options) -> ExitCode {
    // From here on Ctrl-C ends the step, and what was made is removed.
    let watched = demo::signals();
    match watched.and_then(|stop| play(options, &stop)) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("cluster: {error}");
            ExitCode::FAILURE
        }
    }
}

fn play(options: &Options, stop: &demo::Stop) -> io::Result<bool> {
    let kubectl = Kubectl::new()?;
    let installed = bank::check(&kubectl)?;
    let images = images::provide(&options.load, options.push.as_deref(), options.built)?;
    let began = Instant::now();
    let bank = Bank { kubectl: &kubectl, images: &images, installed, mode: options.mode };
    let held = bank.install().and_then(|()| {
        eprintln!("the bank is meshed and ready after {:.0} s", began.elapsed().as_secs_f64());
        steps::play(&bank, options.rate, stop)
    });
    if options.keep {
        eprintln!("kept: the namespaces bank and outrigger-system");
        return held;
    }
    let removed = bank.remove();
    let held = held?;
    removed?;
    eprintln!("removed{}", if installed { "; the mesh stays" } else { "; nothing is left" });
    Ok(held)
}
