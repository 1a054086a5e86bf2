//! `outrigger-proxy init`: sends a pod's traffic through its proxy, and proves that it does.
//!
//! Runs once, before the app, in the pod's network namespace and with the capability NET_ADMIN. What is to be
//! redirected is in [`ruleset`]; it is put in force as a whole by `nft`, or by `iptables-restore` where the kernel
//! has no nf_tables. [`verify`] makes a connection and looks where it ends.

mod ruleset;
mod verify;

use std::fmt;
use std::io::{self, Write};
use std::net::IpAddr;
use std::process::{Command, Stdio};

use clap::{Args, ValueEnum};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use ruleset::{Network, Ruleset};

/// Redirect the traffic of this pod, or of another network namespace, to its proxy.
#[derive(Clone, Debug, Args)]
#[command(
    after_help = "EXAMPLES:\n  outrigger-proxy init                                   put the rules in force and prove them\n  outrigger-proxy init --dry-run --skip-outbound-ports 3306   show them\n  outrigger-proxy init --check                           is the traffic of this pod redirected?\n  outrigger-proxy init --remove                          as if it had never been there\n\nDocs: docs/redirection.md"
)]
pub struct Init {
    /// Port of the proxy for what the app sends
    #[arg(long, env = "OUTRIGGER_INIT_OUTBOUND_PORT", default_value_t = 4740, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    outbound_port: u16,

    /// Port of the proxy for what the app gets
    #[arg(long, env = "OUTRIGGER_INIT_INBOUND_PORT", default_value_t = 4743, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    inbound_port: u16,

    /// Port of the proxy's admin server, which is reached directly
    #[arg(long, env = "OUTRIGGER_INIT_ADMIN_PORT", default_value_t = 4791, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    admin_port: u16,

    /// User id of the proxy, whose own traffic goes where it wants to
    #[arg(long, env = "OUTRIGGER_INIT_UID", default_value_t = 4740, value_name = "UID", value_parser = clap::value_parser!(u32).range(1..))]
    uid: u32,

    /// Ports of the app that callers reach directly
    #[arg(
        long,
        env = "OUTRIGGER_INIT_SKIP_INBOUND_PORTS",
        value_name = "PORT,...",
        value_delimiter = ','
    )]
    skip_inbound_ports: Vec<u16>,

    /// Ports that the app reaches directly, wherever they are
    #[arg(
        long,
        env = "OUTRIGGER_INIT_SKIP_OUTBOUND_PORTS",
        value_name = "PORT,...",
        value_delimiter = ','
    )]
    skip_outbound_ports: Vec<u16>,

    /// Networks that the app reaches directly, as in 169.254.0.0/16 or fd00:ec2::/32
    #[arg(
        long,
        env = "OUTRIGGER_INIT_SKIP_OUTBOUND_NETWORKS",
        value_name = "ADDRESS/BITS,...",
        value_delimiter = ','
    )]
    skip_outbound_networks: Vec<Network>,

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

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Backend {
    Auto,
    Nftables,
    Iptables,
}

/// Why traffic is not redirected.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    #[error("--netns: {path}: {error}")]
    Namespace { path: String, error: io::Error },
    #[error("{program} is not installed here")]
    Missing { program: &'static str },
    #[error("{program}: {error}")]
    Run { program: &'static str, error: io::Error },
    #[error("{program} refused the rules: {message}{}", hint(message))]
    Refused { program: &'static str, message: String },
    #[error(transparent)]
    Verify(#[from] verify::VerifyError),
}

/// What most people run into.
fn hint(message: &str) -> &'static str {
    match message.contains("Operation not permitted") || message.contains("Permission denied") {
        true => {
            "; it needs the capability NET_ADMIN in the pod's network namespace: where pods may \
             not have it, use the CNI plugin or HTTP_PROXY (docs/redirection.md)"
        }
        false => "",
    }
}

impl Init {
    /// Does what the flags say, and tells it on standard output.
    pub fn run(&self) -> Result<(), InitError> {
        if let Some(path) = &self.netns {
            enter(path).map_err(|error| InitError::Namespace {
                path: path.display().to_string(),
                error,
            })?;
        }
        let rules = self.ruleset();
        if self.dry_run {
            say(match self.backend {
                Backend::Iptables => Rules(rules.iptables(true), Some(rules.iptables(false))),
                Backend::Auto | Backend::Nftables => Rules(rules.nftables(), None),
            });
            return Ok(());
        }
        if self.check {
            let proven = verify::outbound(self.outbound_port)?;
            say(format_args!("redirected: {proven}\n"));
            return Ok(());
        }
        let backend = self.backend()?;
        match (backend, self.remove) {
            (Backend::Iptables, remove) => {
                self.iptables(&rules, remove)?;
            }
            (_, true) => feed("nft", &["-f", "-"], &Ruleset::remove_nftables())?,
            (_, false) => feed("nft", &["-f", "-"], &rules.nftables())?,
        }
        if self.remove {
            say("the rules are removed\n");
            return Ok(());
        }
        let proven = verify::outbound(self.outbound_port)?;
        let name = if backend == Backend::Iptables { "iptables" } else { "nftables" };
        say(format_args!("redirected by {name}: {proven}\n"));
        Ok(())
    }

    fn ruleset(&self) -> Ruleset {
        let mut skip_inbound = self.skip_inbound_ports.clone();
        skip_inbound.extend([self.inbound_port, self.admin_port]);
        Ruleset {
            outbound_port: self.outbound_port,
            inbound_port: self.inbound_port,
            uid: self.uid,
            skip_inbound: skip_inbound.into_iter().collect(),
            skip_outbound: self.skip_outbound_ports.iter().copied().collect(),
            skip_networks: self.skip_outbound_networks.iter().copied().collect(),
        }
    }

    fn backend(&self) -> Result<Backend, InitError> {
        if self.backend != Backend::Auto {
            return Ok(self.backend);
        }
        // Adding what is there already does nothing, and tells whether the kernel takes it.
        let probe = "add table inet outrigger_probe\ndelete table inet outrigger_probe\n";
        match feed("nft", &["-f", "-"], probe) {
            Ok(()) => Ok(Backend::Nftables),
            // It is the permission that is missing, and not nf_tables.
            Err(error @ InitError::Refused { .. })
                if !hint(&error.to_string()).is_empty() || !has("iptables-restore") =>
            {
                Err(error)
            }
            Err(_) if has("iptables-restore") => Ok(Backend::Iptables),
            Err(error) => Err(error),
        }
    }

    /// Both families; one that the kernel does not have is left out.
    fn iptables(&self, rules: &Ruleset, remove: bool) -> Result<(), InitError> {
        let families =
            [("iptables", "iptables-restore", false), ("ip6tables", "ip6tables-restore", true)];
        for (program, restore, is_v6) in families {
            if is_v6 && !std::path::Path::new("/proc/net/if_inet6").exists() {
                continue;
            }
            for arguments in Ruleset::unhook_iptables() {
                // They may not be there.
                let _ = feed(program, &arguments, "");
            }
            if !remove {
                feed(restore, &["--noflush", "--wait"], &rules.iptables(is_v6))?;
            }
        }
        Ok(())
    }
}

/// This thread, and the programs that it starts, work in that namespace from here on.
fn enter(path: &std::path::Path) -> io::Result<()> {
    use std::os::fd::AsFd;
    let file = std::fs::File::open(path)?;
    Ok(move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?)
}

fn has(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs a program to its end with `input` before it.
fn feed(program: &'static str, arguments: &[&str], input: &str) -> Result<(), InitError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => InitError::Missing { program },
        _ => InitError::Run { program, error },
    };
    let mut command = Command::new(program);
    command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.spawn().map_err(failed)?;
    let written = child.stdin.take().map_or(Ok(()), |mut stdin| stdin.write_all(input.as_bytes()));
    let output = child.wait_with_output().map_err(failed)?;
    if output.status.success() {
        return written.map_err(failed);
    }
    let message = String::from_utf8_lossy(&output.stderr).trim().replace('\n', "; ");
    Err(InitError::Refused { program, message })
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

/// The family of an address, as iptables keeps them apart.
fn is_v6(address: IpAddr) -> bool {
    address.is_ipv6()
}
