//! `outrigger-proxy init`: sends a pod's traffic through its proxy, and proves that it does.
//!
//! Runs once, before the app, in the pod's network namespace and with the capability NET_ADMIN. The rules and the
//! proof are the crate `redirect`'s, which the CNI plugin has too; this is its command line.

use std::fmt;
use std::io::{self, Write};

use clap::Args;
use outrigger_redirect::verify::{self, VerifyError};
use outrigger_redirect::{Backend, RedirectError, Redirection, apply, enter_path, remove};

/// Redirect the traffic of this pod, or of another network namespace, to its proxy.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  outrigger-proxy init                                   put the rules in force and prove them\n  outrigger-proxy init --dry-run --skip-outbound-ports 3306   show them\n  outrigger-proxy init --check                           is the traffic of this pod redirected?\n  outrigger-proxy init --remove                          as if it had never been there\n\nDocs: docs/redirection.md"
)]
pub struct Init {
    #[command(flatten)]
    redirection: Redirection,

    /// What carries the rules; auto takes nftables where the kernel and the nft program are there
    #[arg(long, env = "OUTRIGGER_INIT_BACKEND", value_enum, default_value_t = Backend::Auto)]
    backend: Backend,

    /// The network namespace to work in, as in /proc/4711/ns/net; its own one unless set
    #[arg(long, value_name = "FILE")]
    netns: Option<std::path::PathBuf>,

    /// Print the rules, and change nothing
    #[arg(long, conflicts_with_all = ["remove", "check"])]
    dry_run: bool,

    /// Take the rules away
    #[arg(long, conflicts_with = "check")]
    remove: bool,

    /// Change nothing, and tell whether what this user sends is redirected
    #[arg(long)]
    check: bool,
}

/// Why traffic is not redirected.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("--netns: {path}: {error}")]
    Namespace { path: String, error: io::Error },
    #[error(transparent)]
    Redirect(#[from] RedirectError),
    #[error(transparent)]
    Verify(#[from] VerifyError),
}

impl Init {
    /// Does what the flags say, and tells it on standard output.
    pub fn run(&self) -> Result<(), InitError> {
        if let Some(path) = &self.netns {
            enter_path(path).map_err(|error| InitError::Namespace {
                path: path.display().to_string(),
                error,
            })?;
        }
        let rules = self.redirection.ruleset();
        if self.dry_run {
            say(match self.backend {
                Backend::Iptables => Rules(rules.iptables(true), Some(rules.iptables(false))),
                Backend::Auto | Backend::Nftables => Rules(rules.nftables(), None),
            });
            return Ok(());
        }
        if self.remove {
            remove(self.backend)?;
            say("the rules are removed\n");
            return Ok(());
        }
        let how = match self.check {
            true => "redirected",
            false if apply(&rules, self.backend)? == Backend::Iptables => "redirected by iptables",
            false => "redirected by nftables",
        };
        let proven = verify::outbound(self.redirection.outbound_port)?;
        say(format_args!("{how}: {proven}\n"));
        Ok(())
    }
}

struct Rules(String, Option<String>);

impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.1 {
            None => f.write_str(&self.0),
            Some(v4) => write!(f, "# iptables-restore\n{v4}# ip6tables-restore\n{}", self.0),
        }
    }
}

fn say(text: impl fmt::Display) {
    // Nobody may be listening.
    let _ = write!(io::stdout(), "{text}");
}
