//! Where an accepted connection comes from and what that already decides. Header trust and header
//! stripping ask only for the [`Peer`].

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use http::HeaderValue;
use outrigger_core::balance::hash;
use outrigger_core::identity::SpiffeId;

use crate::accept::Slot;
use crate::metrics::{Direction, Label, Metrics};
use crate::store::Dialed;
use crate::tls::handshake::Proof;

/// The other end of an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// This proxy's own app.
    App,
    /// Another proxy of the mesh: with a [`MeshCaller`], or, in a mesh without identities, because it
    /// says so.
    Mesh,
    /// Anybody else.
    Outside,
}

/// A caller that has proved who it is.
#[derive(Debug)]
pub struct MeshCaller {
    pub proof: Proof,
    /// `namespace/service-account`, as metrics name it.
    pub label: Label,
    /// A hash of the identity.
    pub key: u64,
    /// For the app, where it is to be told.
    pub forwarded: Option<HeaderValue>,
}

impl MeshCaller {
    /// `own`: the server's id, where the app is to be told.
    pub fn new(proof: Proof, metrics: &Metrics, own: Option<&SpiffeId>) -> Self {
        let label = metrics.label(&proof.id.workload());
        let forwarded =
            own.and_then(|own| HeaderValue::try_from(format!("By={own};URI={}", proof.id)).ok());
        let key = hash(proof.id.to_string().as_bytes());
        Self { proof, label, key, forwarded }
    }
}

/// What is known of a connection when it is accepted.
#[derive(Clone)]
pub struct Origin {
    pub direction: Direction,
    pub peer: Peer,
    /// With [`Peer::Mesh`] alone.
    pub caller: Option<Rc<MeshCaller>>,
    pub remote: SocketAddr,
    pub fixed: Fixed,
    /// It is the inside of a CONNECT of the app's.
    pub tunnel: Option<ConnectTunnel>,
    /// The connection's place under the limit, held by everything that came of it.
    pub slot: Rc<Slot>,
}

/// The inside of a CONNECT.
#[derive(Clone, Copy)]
pub struct ConnectTunnel {
    /// The deadline that the CONNECT brought.
    pub until: Option<Instant>,
}

/// Where everything on a connection goes, whatever its requests say.
#[derive(Clone)]
pub enum Fixed {
    /// Each request's authority decides.
    Nothing,
    /// Redirected or listened for: the destination that was dialled.
    Destination(Arc<Dialed>),
    /// Inbound, redirected: the app's own address.
    App(SocketAddr),
}
