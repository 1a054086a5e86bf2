//! The socket by which the commands of `trust` reach the running control plane.
//!
//! It lies in the state directory, one for each replica, and only its owner can open it, who can
//! read the authority's key anyway. It speaks HTTP, so that `curl --unix-socket` can look at it, too. The
//! client is [`crate::trust`].

use std::fmt::Write as _;
use std::fs::{self, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use axum::extract::State;
use axum::http::StatusCode;
use axum::routing::{get, post};
use axum::{Json, Router};
use serde::{Deserialize, Serialize};
use tokio::net::UnixListener;

use crate::ca::Authority;
use crate::ca::ledger::shown;
use crate::ca::rotation::Refusal;
use crate::replica::ReplicaName;

/// In the state directory.
pub const SOCKET: &str = "control.sock";
/// Of other replicas: `control-NAME.sock`.
const PREFIX: &str = "control-";
const SUFFIX: &str = ".sock";
pub const STATUS: &str = "/trust";
pub const ADD_ROOT: &str = "/trust/add-root";
pub const ISSUE_FROM: &str = "/trust/issue-from";
pub const REMOVE_ROOT: &str = "/trust/remove-root";

/// A root made elsewhere; both are missing for one to be made here.
#[derive(Debug, Default, Serialize, Deserialize)]
pub struct AddRoot {
    pub certificate: Option<String>,
    pub key: Option<String>,
}

/// A step with one root.
#[derive(Debug, Serialize, Deserialize)]
pub struct WithRoot {
    pub root: String,
    pub ignore_absent: bool,
}

/// What a replica's socket is called in the state directory.
pub fn socket(replica: &ReplicaName) -> String {
    match replica.is_default() {
        true => SOCKET.to_owned(),
        false => format!("{PREFIX}{replica}{SUFFIX}"),
    }
}

/// Every replica's socket in the state directory, also one that nobody listens at any more.
pub fn sockets(state_dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(state_dir).into_iter().flatten().flatten();
    let names = entries.filter_map(|entry| entry.file_name().into_string().ok());
    let mut others: Vec<_> = names
        .filter(|name| name.starts_with(PREFIX) && name.ends_with(SUFFIX))
        .map(|name| state_dir.join(name))
        .collect();
    others.sort();
    std::iter::once(state_dir.join(SOCKET)).chain(others).collect()
}

/// Opens the socket. One that an earlier process left behind is replaced.
pub fn bind(state_dir: &Path, replica: &ReplicaName) -> io::Result<UnixListener> {
    let name = socket(replica);
    let temporary = state_dir.join(format!("{name}.new"));
    match fs::remove_file(&temporary) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(&temporary)?;
    // Nobody knows it by its name before its permissions are right.
    fs::set_permissions(&temporary, Permissions::from_mode(0o600))?;
    fs::rename(&temporary, state_dir.join(name))?;
    Ok(listener)
}

pub async fn serve(listener: UnixListener, authority: Arc<Authority>) {
    let app = Router::new()
        .route(STATUS, get(status))
        .route(ADD_ROOT, post(add_root))
        .route(ISSUE_FROM, post(issue_from))
        .route(REMOVE_ROOT, post(remove_root))
        .with_state(authority);
    if let Err(error) = axum::serve(listener, app).await {
        tracing::error!(%error, "the control socket ended");
    }
}

type ControlAnswer = (StatusCode, String);

async fn status(State(authority): State<Arc<Authority>>) -> String {
    // With what other replicas have done until now; a panic in there was said already.
    let look = authority.clone();
    let _ = tokio::task::spawn_blocking(move || look.look()).await;
    let (in_force, now) = (authority.in_force(), SystemTime::now());
    let mut text = format!("trust domain  {}\n", authority.trust_domain);
    // Writing to a string does not fail.
    for root in &in_force.roots {
        let issuing = if root.id == in_force.issuer.root { "  issuing" } else { "" };
        let end = shown(root.not_after);
        let _ = writeln!(text, "root          {}  ends {end}{issuing}", root.id);
    }
    for other in authority.ledger.others() {
        let alive = if other.is_alive { "alive" } else { "away" };
        let current =
            if other.is_current { "has the newest roots" } else { "lacks the newest roots" };
        let (name, connections) = (other.name, other.connections);
        let _ =
            writeln!(text, "replica       {name}  {alive}, {current}, {connections} connections");
    }
    for line in authority.ledger.lines(now) {
        let here = if line.connected { "connected" } else { "absent" };
        let current = line.node.bundle.is_some_and(|bundle| bundle.version == in_force.version);
        let bundle = if current { "has the newest roots" } else { "lacks the newest roots" };
        let (id, root, end) = (line.id, line.node.root, shown(line.node.not_after));
        let _ = writeln!(text, "certificate   {id}  under {root} until {end}  {here}, {bundle}");
    }
    if let Some(held) = authority.held() {
        let _ = writeln!(text, "held          {held}");
    }
    text
}

async fn add_root(
    State(authority): State<Arc<Authority>>,
    Json(AddRoot { certificate, key }): Json<AddRoot>,
) -> ControlAnswer {
    step(move || {
        let pair = certificate.as_deref().zip(key.as_deref());
        let root = authority.add_root(pair)?;
        Ok(format!("{root}\n"))
    })
    .await
}

async fn issue_from(
    State(authority): State<Arc<Authority>>,
    Json(WithRoot { root, ignore_absent }): Json<WithRoot>,
) -> ControlAnswer {
    step(move || {
        let root = authority.issue_from(&root, !ignore_absent)?;
        Ok(format!("certificates are issued under {root} from now on\n"))
    })
    .await
}

async fn remove_root(
    State(authority): State<Arc<Authority>>,
    Json(WithRoot { root, ignore_absent }): Json<WithRoot>,
) -> ControlAnswer {
    step(move || {
        let root = authority.remove_root(&root, !ignore_absent)?;
        Ok(format!("{root} is no longer trusted\n"))
    })
    .await
}

/// Steps write files: not on a thread that serves proxies.
async fn step(step: impl FnOnce() -> Result<String, Refusal> + Send + 'static) -> ControlAnswer {
    match tokio::task::spawn_blocking(step).await {
        Ok(Ok(text)) => (StatusCode::OK, text),
        Ok(Err(refusal)) => (StatusCode::CONFLICT, format!("{refusal}\n")),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")),
    }
}
