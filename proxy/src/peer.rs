//! Where an accepted connection comes from and what that already decides. Header trust and header
//! stripping ask only for the [`Peer`].

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;

use crate::accept::Slot;
use crate::metrics::Direction;
use crate::store::Dialed;

/// The other end of an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// This proxy's own app.
    App,
    /// Another proxy of the mesh. It is believed for now: it proves nothing.
    Mesh,
    /// Anybody else.
    Outside,
}

/// What is known of a connection when it is accepted.
#[derive(Clone)]
pub struct Origin {
    pub direction: Direction,
    pub peer: Peer,
    pub remote: SocketAddr,
    pub fixed: Fixed,
    /// The connection's place under the limit, held by everything that came of it.
    pub slot: Rc<Slot>,
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
