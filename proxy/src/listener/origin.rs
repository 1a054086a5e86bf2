//! Where an accepted connection comes from and what that already decides. Header trust and header
//! stripping ask only for the [`Peer`].

use std::cell::Cell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use crate::base::peer::Peer;
use crate::listener::role::Listener;
use crate::listener::slot::Slot;
use crate::proxy::connections::{Address, ConnectionTrust};
use crate::tls::caller::MeshCaller;
use crate::upstream::fixed::Fixed;

/// What is known of a connection when it is accepted.
#[derive(Clone)]
pub struct Origin {
    pub listener: Arc<Listener>,
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

impl ConnectionTrust {
    pub fn of(origin: &Origin) -> Self {
        let port = match &origin.fixed {
            Fixed::App(address) => Some(address.port()),
            Fixed::Nothing | Fixed::Destination(_) => None,
        };
        let dialed = match &origin.fixed {
            Fixed::Destination(dialed) => Some(Arc::clone(dialed)),
            Fixed::Nothing | Fixed::App(_) => None,
        };
        let found = Cell::new(dialed.as_ref().is_some_and(|dialed| dialed.is_found()));
        let address = Address { dialed, found };
        let (caller, remote) = (origin.caller.clone(), origin.remote.ip());
        Self { peer: origin.peer, caller, remote, port, opaque: false, address }
    }

    pub fn of_stream(origin: &Origin) -> Self {
        Self { opaque: true, ..Self::of(origin) }
    }
}
