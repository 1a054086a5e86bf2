//! Where everything on a connection goes.

use std::net::SocketAddr;
use std::sync::Arc;

use crate::upstream::store::Dialed;

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
