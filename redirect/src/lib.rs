//! The redirection of a pod's traffic to its proxy: what the rules are, how they are put in force, and the proof.
//!
//! `outrigger-proxy init` and the CNI plugin both do it by this crate. [`Redirection`] are the settings of a pod,
//! [`Ruleset`] the rules that they make, [`apply`] and [`remove`] change the network namespace of the calling
//! thread, by `nft`, or by `iptables-restore` where the kernel has no nf_tables. [`verify`] makes a connection and
//! looks where it ends. Nothing here knows of Kubernetes.

mod ruleset;
pub mod verify;

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use clap::{Args, ValueEnum};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

pub use ruleset::{Network, Ruleset};

/// What is redirected, as flags: those of `outrigger-proxy init`, which the injector writes into each pod.
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Redirection {
    /// Port of the proxy for what the app sends
    #[arg(long, env = "OUTRIGGER_INIT_OUTBOUND_PORT", default_value_t = 4740, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub outbound_port: u16,

    /// Port of the proxy for what the app gets
    #[arg(long, env = "OUTRIGGER_INIT_INBOUND_PORT", default_value_t = 4743, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub inbound_port: u16,

    /// Port of the proxy's admin server, which is reached directly
    #[arg(long, env = "OUTRIGGER_INIT_ADMIN_PORT", default_value_t = 4791, value_name = "PORT", value_parser = clap::value_parser!(u16).range(1..))]
    pub admin_port: u16,

    /// User id of the proxy, whose own traffic goes where it wants to
    #[arg(long, env = "OUTRIGGER_INIT_UID", default_value_t = 4740, value_name = "UID", value_parser = clap::value_parser!(u32).range(1..))]
    pub uid: u32,

    /// Ports of the app that callers reach directly
    #[arg(
        long,
        env = "OUTRIGGER_INIT_SKIP_INBOUND_PORTS",
        value_name = "PORT,...",
        value_delimiter = ','
    )]
    pub skip_inbound_ports: Vec<u16>,

    /// Ports that the app reaches directly, wherever they are
    #[arg(
        long,
        env = "OUTRIGGER_INIT_SKIP_OUTBOUND_PORTS",
        value_name = "PORT,...",
        value_delimiter = ','
    )]
    pub skip_outbound_ports: Vec<u16>,

    /// Networks that the app reaches directly, as in 169.254.0.0/16 or fd00:ec2::/32
    #[arg(
        long,
        env = "OUTRIGGER_INIT_SKIP_OUTBOUND_NETWORKS",
        value_name = "ADDRESS/BITS,...",
        value_delimiter = ','
    )]
    pub skip_outbound_networks: Vec<Network>,
}

impl Redirection {
    pub fn ruleset(&self) -> Ruleset {
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
}

/// What carries the rules.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Backend {
    Auto,
    Nftables,
    Iptables,
}

/// Why rules are not in force.
#[derive(Debug, thiserror::Error)]
pub enum RedirectError {
    #[error("{program} is not installed here")]
    Missing { program: &'static str },
    #[error("{program}: {error}")]
    Run { program: &'static str, error: io::Error },
    #[error("{program} refused the rules: {message}{}", hint(message))]
    Refused { program: &'static str, message: String },
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

/// Puts the rules in force in this thread's network namespace, instead of those that were there before. What carries
/// them: never [`Backend::Auto`].
///
/// # Errors
/// If neither program is there, or it refuses; with nftables nothing has changed then.
pub fn apply(rules: &Ruleset, backend: Backend) -> Result<Backend, RedirectError> {
    let backend = choose(backend)?;
    match backend {
        Backend::Iptables => iptables(Some(rules))?,
        _ => feed("nft", &["-f", "-"], &rules.nftables())?,
    }
    Ok(backend)
}

/// Takes the rules away, if there are any.
///
/// # Errors
/// As [`apply`].
pub fn remove(backend: Backend) -> Result<(), RedirectError> {
    match choose(backend)? {
        Backend::Iptables => iptables(None),
        _ => feed("nft", &["-f", "-"], &Ruleset::remove_nftables()),
    }
}

/// Whether rules are in force in this thread's network namespace, by either program.
///
/// # Errors
/// If neither program can say.
pub fn is_applied() -> Result<bool, RedirectError> {
    let listed = feed("nft", &["list", "table", "inet", "outrigger"], "");
    let by_nft = match listed {
        Ok(()) => return Ok(true),
        Err(RedirectError::Refused { message, .. })
            if message.contains("No such file or directory") =>
        {
            Ok(false)
        }
        Err(error) => Err(error),
    };
    match feed("iptables", &Ruleset::LIST_IPTABLES, "") {
        Ok(()) => Ok(true),
        // It has no such chain.
        Err(RedirectError::Refused { .. }) => Ok(false),
        Err(_) => by_nft,
    }
}

/// This thread, and the programs that it starts, work in that network namespace from here on.
///
/// # Errors
/// If it is none, or this process lacks the capability SYS_ADMIN.
pub fn enter(namespace: BorrowedFd<'_>) -> io::Result<()> {
    Ok(move_into_link_name_space(namespace, Some(LinkNameSpaceType::Network))?)
}

/// [`enter`] by path, as in `/proc/4711/ns/net`.
///
/// # Errors
/// As [`enter`].
pub fn enter_path(path: &Path) -> io::Result<()> {
    enter(File::open(path)?.as_fd())
}

fn choose(backend: Backend) -> Result<Backend, RedirectError> {
    if backend != Backend::Auto {
        return Ok(backend);
    }
    // Adding what is there already does nothing, and tells whether the kernel takes it.
    let probe = "add table inet outrigger_probe\ndelete table inet outrigger_probe\n";
    match feed("nft", &["-f", "-"], probe) {
        Ok(()) => Ok(Backend::Nftables),
        // It is the permission that is missing, and not nf_tables.
        Err(error @ RedirectError::Refused { .. })
            if !hint(&error.to_string()).is_empty() || !has("iptables-restore") =>
        {
            Err(error)
        }
        Err(_) if has("iptables-restore") => Ok(Backend::Iptables),
        Err(error) => Err(error),
    }
}

/// Both families; one that the kernel does not have is left out. Without rules it takes away what is there.
fn iptables(rules: Option<&Ruleset>) -> Result<(), RedirectError> {
    let families =
        [("iptables", "iptables-restore", false), ("ip6tables", "ip6tables-restore", true)];
    for (program, restore, is_v6) in families {
        // Of this thread: its namespace need not be the process's.
        if is_v6 && !Path::new("/proc/thread-self/net/if_inet6").exists() {
            continue;
        }
        for arguments in Ruleset::unhook_iptables() {
            // They may not be there.
            let _ = feed(program, &arguments, "");
        }
        if let Some(rules) = rules {
            feed(restore, &["--noflush", "--wait"], &rules.iptables(is_v6))?;
        }
    }
    Ok(())
}

fn has(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version").stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}

/// Runs a program to its end with `input` before it.
fn feed(program: &'static str, arguments: &[&str], input: &str) -> Result<(), RedirectError> {
    let failed = |error: io::Error| match error.kind() {
        io::ErrorKind::NotFound => RedirectError::Missing { program },
        _ => RedirectError::Run { program, error },
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
    Err(RedirectError::Refused { program, message })
}
