//! What makes a later handshake cheaper, and never outlives the proof it rests on.
//!
//! One [`Sessions`] belongs to one expected identity under one own certificate and one bundle; it is
//! dropped with them. Either side looks at the peer's chain again after each resumption
//! ([`crate::tls::handshake`]), so a ticket saves work and proves nothing.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex};

use rustls::NamedGroup;
use rustls::client::{ClientSessionStore, Tls12ClientSessionValue, Tls13ClientSessionValue};
use rustls::pki_types::ServerName;
use rustls::server::ProducesTickets;

use crate::base::sync::lock;
use crate::tls::unix_now;

/// Longest life of a ticket, in seconds: a stolen one is of no use for longer.
pub const MAX_TICKET_LIFE: u64 = 3_600;
/// Tickets kept per called proxy: each serves one connection, and each connection brings one.
const MAX_TICKETS: usize = 4;
/// Called proxies remembered per identity; then all are forgotten.
const MAX_PEERS: usize = 1_024;

/// The caller's tickets for proxies of one identity.
pub struct Sessions {
    /// End of the own certificate, in seconds since 1970.
    own_end: u64,
    peers: Mutex<HashMap<ServerName<'static>, PeerSessions>>,
}

#[derive(Default)]
struct PeerSessions {
    /// End of its certificate.
    end: u64,
    group: Option<NamedGroup>,
    /// With the time each was received, the oldest first.
    tickets: VecDeque<(u64, Tls13ClientSessionValue)>,
}

impl Sessions {
    pub fn new(own_end: u64) -> Self {
        Self { own_end, peers: Mutex::default() }
    }

    /// The called proxy has proved itself with a certificate that ends at `end`.
    pub fn proved(&self, name: &ServerName<'static>, end: u64) {
        let mut peers = lock(&self.peers);
        if peers.len() >= MAX_PEERS && !peers.contains_key(name) {
            peers.clear();
        }
        peers.entry(name.clone()).or_default().end = end;
    }

    /// Its tickets lead to a proof that no longer holds.
    pub fn forget(&self, name: &ServerName<'static>) {
        lock(&self.peers).remove(name);
    }

    fn usable(&self, peer: &PeerSessions, received: u64, now: u64) -> bool {
        now < peer.end && now < self.own_end && now < received.saturating_add(MAX_TICKET_LIFE)
    }
}

impl ClientSessionStore for Sessions {
    fn set_kx_hint(&self, name: ServerName<'static>, group: NamedGroup) {
        if let Some(peer) = lock(&self.peers).get_mut(&name) {
            peer.group = Some(group);
        }
    }

    fn kx_hint(&self, name: &ServerName<'_>) -> Option<NamedGroup> {
        lock(&self.peers).get(name).and_then(|peer| peer.group)
    }

    fn set_tls12_session(&self, _: ServerName<'static>, _: Tls12ClientSessionValue) {}

    fn tls12_session(&self, _: &ServerName<'_>) -> Option<Tls12ClientSessionValue> {
        None
    }

    fn remove_tls12_session(&self, _: &ServerName<'static>) {}

    fn insert_tls13_ticket(&self, name: ServerName<'static>, ticket: Tls13ClientSessionValue) {
        // Unknown: nothing was proved, so there is nothing to resume.
        let mut peers = lock(&self.peers);
        let Some(peer) = peers.get_mut(&name) else { return };
        if peer.tickets.len() >= MAX_TICKETS {
            peer.tickets.pop_front();
        }
        peer.tickets.push_back((unix_now(), ticket));
    }

    fn take_tls13_ticket(&self, name: &ServerName<'static>) -> Option<Tls13ClientSessionValue> {
        let mut peers = lock(&self.peers);
        let peer = peers.get_mut(name)?;
        let now = unix_now();
        while let Some((received, ticket)) = peer.tickets.pop_back() {
            if self.usable(peer, received, now) {
                return Some(ticket);
            }
        }
        None
    }
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Sessions")
    }
}

/// Makes and reads tickets of the server side: rustls's own cipher, with a life of ours.
#[derive(Debug)]
pub struct Tickets {
    cipher: Arc<dyn ProducesTickets>,
    own_end: u64,
    now: fn() -> u64,
}

impl Tickets {
    /// With fresh keys, so that no older ticket is understood.
    pub fn new(own_end: u64) -> Result<Self, rustls::Error> {
        let cipher = rustls::crypto::aws_lc_rs::Ticketer::new()?;
        Ok(Self { cipher, own_end, now: unix_now })
    }

    #[cfg(test)]
    pub(crate) fn at(own_end: u64, now: fn() -> u64) -> Self {
        Self { now, ..Self::new(own_end).unwrap() }
    }
}

const STAMP: usize = size_of::<u64>();

impl ProducesTickets for Tickets {
    fn enabled(&self) -> bool {
        true
    }

    fn lifetime(&self) -> u32 {
        let left = self.own_end.saturating_sub((self.now)());
        u32::try_from(left.min(MAX_TICKET_LIFE)).unwrap_or(0)
    }

    fn encrypt(&self, plain: &[u8]) -> Option<Vec<u8>> {
        let mut stamped = (self.now)().to_be_bytes().to_vec();
        stamped.extend_from_slice(plain);
        self.cipher.encrypt(&stamped)
    }

    fn decrypt(&self, cipher: &[u8]) -> Option<Vec<u8>> {
        let mut stamped = self.cipher.decrypt(cipher)?;
        let issued = u64::from_be_bytes(stamped.get(..STAMP)?.try_into().ok()?);
        let now = (self.now)();
        let fresh = now < self.own_end && now < issued.saturating_add(MAX_TICKET_LIFE);
        fresh.then(|| stamped.split_off(STAMP))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

    use super::*;

    static NOW: AtomicU64 = AtomicU64::new(1_000);

    #[test]
    fn a_ticket_lives_an_hour_and_never_past_the_certificate() {
        let now = || NOW.load(Relaxed);
        let tickets = Tickets::at(100_000, now);
        let ticket = tickets.encrypt(b"session").unwrap();
        assert_eq!(tickets.lifetime(), 3_600);
        NOW.store(1_000 + 3_599, Relaxed);
        assert_eq!(tickets.decrypt(&ticket).as_deref(), Some(&b"session"[..]));
        NOW.store(1_000 + 3_600, Relaxed);
        assert_eq!(tickets.decrypt(&ticket), None);

        NOW.store(1_000, Relaxed);
        let ending = Tickets::at(1_010, now);
        let ticket = ending.encrypt(b"session").unwrap();
        assert_eq!(ending.lifetime(), 10);
        NOW.store(1_010, Relaxed);
        assert_eq!(ending.decrypt(&ticket), None);
        assert_eq!(ending.lifetime(), 0);
        assert_eq!(ending.decrypt(b"rubbish"), None);
        // Other keys: a certificate or bundle has changed.
        NOW.store(1_000, Relaxed);
        assert_eq!(Tickets::at(100_000, now).decrypt(&ticket), None);
    }
}
