//! TLS between proxies: who is trusted, and how two of them come to a connection.
//!
//! [`verify`] is the one place where a chain is judged; everything else asks it: the verifiers of a
//! full handshake, the check of a resumed one, the review of open connections. [`credentials`] holds
//! the compiled configurations, [`sessions`] what makes a later handshake cheaper, [`handshake`] the
//! handshakes themselves. [`outside`] is another matter: plain TLS to what is not of the mesh. Where
//! certificates come from is [`crate::tls::identity`]'s business.

pub mod caller;
pub mod credentials;
pub mod handshake;
pub mod identity;
pub mod outside;
pub mod pace;
pub mod sessions;
pub mod verify;

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{SystemTime, UNIX_EPOCH};

use outrigger_core::config::OutsideTls;
use outrigger_core::identity::SpiffeId;
use outside::Outside;
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};

use crate::base::sync::lock;

/// ALPN of the hop, preferred first. The second is for peers that know HTTP/2 alone.
pub const ALPN: [&[u8]; 2] = [b"outrigger/1", b"h2"];

/// Seconds since 1970, as certificates count them.
pub fn unix_now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

/// The cryptography of every connection. The hybrid key exchange comes first, so that what is
/// recorded today stays secret when X25519 alone no longer would. AES-128 comes before AES-256: it is
/// as strong as the P-256 keys that connections rest on, and processors have instructions for its
/// SHA-256 and none for SHA-384, which took a fifth of a handshake.
pub fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    let made = PROVIDER.get_or_init(|| {
        let kx_groups = vec![kx_group::X25519MLKEM768, kx_group::X25519, kx_group::SECP256R1];
        let cipher_suites = vec![
            cipher_suite::TLS13_AES_128_GCM_SHA256,
            cipher_suite::TLS13_AES_256_GCM_SHA384,
            cipher_suite::TLS13_CHACHA20_POLY1305_SHA256,
        ];
        Arc::new(CryptoProvider { kx_groups, cipher_suites, ..default_provider() })
    });
    Arc::clone(made)
}

/// What an endpoint must prove, as a number that pools can be keyed by: an identity of the mesh, or a
/// name outside it.
///
/// Only configuration makes them, so the tables grow with what was ever seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Expected(u32);

impl Expected {
    /// The endpoint's identity is not known.
    pub const NONE: Self = Self(0);
    /// Marks those outside.
    const OUTSIDE: u32 = 1 << 31;

    /// A name outside, proved in plain TLS.
    pub fn outside(tls: &Arc<OutsideTls>) -> Self {
        let mut known = lock(outside_table());
        let at = known.iter().position(|one| one.is_for(tls)).unwrap_or_else(|| {
            known.push(Arc::new(Outside::new(Arc::clone(tls))));
            known.len() - 1
        });
        Self(Self::OUTSIDE | at as u32)
    }

    /// Whether TLS is begun with somebody who is not of the mesh.
    pub fn is_outside(self) -> bool {
        self.0 & Self::OUTSIDE != 0
    }

    pub(crate) fn named_outside(self) -> Option<Arc<Outside>> {
        let at = self.is_outside().then_some((self.0 & !Self::OUTSIDE) as usize)?;
        lock(outside_table()).get(at).cloned()
    }

    pub fn of(id: Option<&SpiffeId>) -> Self {
        let Some(id) = id else { return Self::NONE };
        let mut table = lock(table());
        if let Some(number) = table.numbers.get(id) {
            return Self(*number);
        }
        table.ids.push(id.clone());
        let number = table.ids.len() as u32;
        table.numbers.insert(id.clone(), number);
        Self(number)
    }

    pub fn id(self) -> Option<SpiffeId> {
        let at = (self.0 as usize).checked_sub(1)?;
        lock(table()).ids.get(at).cloned()
    }
}

fn outside_table() -> &'static Mutex<Vec<Arc<Outside>>> {
    static TABLE: OnceLock<Mutex<Vec<Arc<Outside>>>> = OnceLock::new();
    TABLE.get_or_init(Mutex::default)
}

#[derive(Default)]
struct Table {
    numbers: HashMap<SpiffeId, u32>,
    ids: Vec<SpiffeId>,
}

fn table() -> &'static Mutex<Table> {
    static TABLE: OnceLock<Mutex<Table>> = OnceLock::new();
    TABLE.get_or_init(Mutex::default)
}

/// Lower-case hexadecimal, as hashes of roots are shown.
pub fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(2 * bytes.len()), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

#[cfg(test)]
pub(crate) mod testing;
