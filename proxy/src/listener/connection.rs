//! An HTTP connection that somebody opened to this proxy, as its requests see it.

use std::cell::Cell;
use std::net::{IpAddr, SocketAddr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use futures::future::LocalBoxFuture;
use http::HeaderMap;
use http::header::{HeaderName, HeaderValue};
use http::request::Parts;
use outrigger_core::config::Protocol;

use crate::base::peer::Peer;
use crate::listener::role::{Listener, ListenerLimits, ListenerRole};
use crate::listener::slot::Slot;
use crate::observe::metrics::{Label, add};
use crate::proxy::connections::{Address, ConnectionTrust, Registered};
use crate::proxy::worker::Worker;
use crate::tls::caller::MeshCaller;
use crate::upstream::fixed::Fixed;
use crate::upstream::store::Resolution;
use crate::wire::headers::CLIENT_CERT;
use crate::wire::hop::LastHop;
use crate::wire::http1::Link;
use crate::wire::watch::ConnectionWatch;

/// What serves a connection to its end once its protocol is known, in a future of its own: a connection should not carry
/// for life what it took to find that out. None: it is over.
pub type ServingFuture = Option<LocalBoxFuture<'static, ()>>;

/// An HTTP connection that somebody opened to this proxy.
pub struct Connection {
    pub worker: Rc<Worker>,
    pub listener: Arc<Listener>,
    /// Fixed at accept, except that in a mesh without identities an inbound connection becomes a mesh
    /// peer with its first request's hop header.
    pub peer: Cell<Peer>,
    /// Who has proved to call.
    pub caller: Option<Rc<MeshCaller>>,
    pub remote: SocketAddr,
    pub fixed: Fixed,
    pub slot: Rc<Slot>,
    /// `Http1` or `Http2`.
    pub protocol: Protocol,
    pub(crate) watch: Arc<ConnectionWatch>,
    /// Of HTTP/1.1, where one exchange follows the other.
    pub(crate) link: Option<Link>,
    pub(crate) last_hop: LastHop,
}

impl Connection {
    /// Whether another proxy has opened it, which speaks for many: who has proved to be one, or without
    /// identities anyone who comes to the hop's own port.
    pub(crate) fn is_hop(&self) -> bool {
        match &self.worker.proxy.identity {
            Some(_) => self.peer.get() == Peer::Mesh,
            None => self.listener.role == ListenerRole::Mesh,
        }
    }

    /// Whether its requests may go to somebody who speaks HTTP/1.1, as far as that is known before they come:
    /// between proxies header names have no case.
    pub(crate) fn may_reach_http1(&self) -> bool {
        let Fixed::Destination(dialed) = &self.fixed else { return true };
        match dialed.decided() {
            Some(Resolution::Found(live)) => !live.backends.iter().all(|one| one.has_mesh()),
            _ => true,
        }
    }

    /// The peer speaks as proxies do. That is trusted only where nobody could prove it.
    pub fn claims_to_be_mesh(&self) {
        match &self.worker.proxy.identity {
            None => self.peer.set(Peer::Mesh),
            Some(identity) if self.peer.get() == Peer::Outside => {
                add(&identity.counts().plaintext_inbound, 1);
            }
            Some(_) => {}
        }
    }

    /// Whether the other end is a proxy that passes upgrades on in the mesh's own words.
    pub fn takes_hop_upgrades(&self) -> bool {
        let trusted = self.peer.get() == Peer::Mesh || self.worker.proxy.identity.is_none();
        self.listener.role == ListenerRole::Mesh && trusted
    }

    /// The `peer` label of what the other end asks for.
    pub fn caller_label(&self) -> Label {
        self.caller.as_ref().map_or(Label::UNKNOWN, |caller| caller.label.get())
    }

    /// Equal for two connections only if one caller opened both: by identity, and where nobody has one by
    /// address.
    pub fn caller_key(&self) -> u64 {
        match (&self.caller, self.remote.ip()) {
            (Some(caller), _) => caller.key,
            (None, IpAddr::V4(ip)) => ip.to_bits().into(),
            (None, IpAddr::V6(ip)) => (ip.to_bits() ^ (ip.to_bits() >> 64)) as u64,
        }
    }

    /// Tells the app who called, where it is to be told.
    pub fn forward_caller(&self, headers: &mut HeaderMap) {
        if let Some(caller) = &self.caller
            && let Some(forwarded) = &caller.forwarded
        {
            headers.insert(CLIENT_CERT, forwarded.clone());
        }
    }

    /// Whether a request's headers are within `--max-header-bytes`, counted as HTTP/2 does (RFC 9113
    /// section 6.5.2). HTTP/1.1's are counted as they are read.
    pub fn takes_headers(&self, head: &Parts) -> bool {
        let limit = self.worker.proxy.settings.max_header_bytes as usize;
        let field =
            |(name, value): (&HeaderName, &HeaderValue)| name.as_str().len() + value.len() + 32;
        let target = head.uri.path_and_query().map_or(0, |target| target.as_str().len());
        self.protocol != Protocol::Http2
            || target + head.headers.iter().map(field).sum::<usize>() <= limit
    }

    /// Registers a stream of bytes that came out of this connection, for one of the app's ports, so that its
    /// right to stay is looked at whenever the connection's would be.
    /// `opaque`: it was never a request.
    pub fn enter_stream(&self, port: u16, opaque: bool) -> Registered {
        let trust = ConnectionTrust {
            peer: self.peer.get(),
            caller: self.caller.clone(),
            remote: self.remote.ip(),
            port: Some(port),
            opaque,
            address: Address::default(),
        };
        let watch = ConnectionWatch::new(true);
        watch.request_began();
        let ListenerLimits { ends, idle, .. } = self.listener.limits;
        self.worker.connections.enter((ends, idle), watch, trust)
    }

    /// Whether everything on it goes to one destination, to which the app speaks as it likes.
    pub fn is_bound(&self) -> bool {
        matches!(self.fixed, Fixed::Destination(_))
    }

    pub fn request_began(&self) {
        self.watch.request_began();
        self.worker.load.streams.fetch_add(1, Relaxed);
    }

    pub fn request_ended(&self) {
        if let Some(link) = &self.link {
            link.over();
        }
        self.watch.request_ended();
        self.worker.load.streams.fetch_sub(1, Relaxed);
    }
}
