//! Who may be at the other end of an accepted connection. Header trust and header stripping ask for nothing else.

/// The other end of an accepted connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Peer {
    /// This proxy's own app.
    App,
    /// Another proxy of the mesh: with a [`crate::tls::caller::MeshCaller`], or, in a mesh without identities, because it
    /// says so.
    Mesh,
    /// Anybody else.
    Outside,
}
