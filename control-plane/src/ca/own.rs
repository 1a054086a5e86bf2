//! The control plane's own certificate, and alarms before anything of the authority ends.

use std::fmt;
use std::sync::{Arc, RwLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use outrigger_core::identity::SpiffeId;
use rcgen::KeyPair;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls_pki_types::PrivateKeyDer;

use super::issue::Leaf;
use super::{Authority, InForce};
use crate::metrics::{Metrics, RootLabel};

/// The own certificate is renewed when this share of its life is over.
const RENEW_AT: f64 = 2.0 / 3.0;
/// Pause after a renewal that failed.
const AGAIN: Duration = Duration::from_secs(10);
/// Alarms are looked at so often.
const LOOK: Duration = Duration::from_secs(60);
/// An authority's certificate gives alarm when it has this much left, or a sixth of its life if
/// that is less: time for a rotation by people.
const ALARM: Duration = Duration::from_secs(30 * 24 * 3600);
/// How long the same alarm is not repeated.
const REPEAT: Duration = Duration::from_secs(3600);

/// Who a server says it is.
#[derive(Clone, Debug)]
pub enum Subject {
    /// The control plane, to proxies.
    ControlPlane,
    /// A host name, to the API server of a cluster.
    Host(String),
}

/// What a TLS server shows.
pub struct OwnCertificate {
    subject: Subject,
    current: RwLock<Current>,
}

#[derive(Clone)]
struct Current {
    key: Arc<CertifiedKey>,
    leaf: Leaf,
}

impl OwnCertificate {
    pub fn new(authority: &Authority, subject: Subject) -> Result<Self, String> {
        let current = make(authority, &subject, &authority.in_force())?;
        Ok(Self { current: RwLock::new(current), subject })
    }

    pub fn not_after(&self) -> SystemTime {
        self.read().leaf.not_after
    }

    /// Keeps the certificate fresh, and under the issuing root.
    pub async fn run(self: Arc<Self>, authority: Arc<Authority>, metrics: Arc<Metrics>) {
        let mut changes = authority.changes();
        let mut next_look = tokio::time::Instant::now();
        let mut last_alarm = None;
        loop {
            if tokio::time::Instant::now() >= next_look {
                next_look = tokio::time::Instant::now() + LOOK.min(self.half_life());
                if let Subject::ControlPlane = self.subject {
                    self.watch_ends(&authority.in_force(), &metrics, &mut last_alarm);
                }
            }
            let renewal = tokio::time::sleep(self.until_renewal());
            tokio::select! {
                () = renewal => {}
                changed = changes.changed() => if changed.is_err() { return },
                () = tokio::time::sleep_until(next_look) => continue,
            }
            let in_force = changes.borrow_and_update().clone();
            match make(&authority, &self.subject, &in_force) {
                Ok(new) => {
                    tracing::info!(
                        root = %new.leaf.root, not_after = super::ledger::shown(new.leaf.not_after),
                        subject = ?self.subject,
                        "the control plane has a new certificate"
                    );
                    *self.current.write().unwrap_or_else(std::sync::PoisonError::into_inner) = new;
                }
                Err(error) => {
                    tracing::error!(error, "the control plane could not renew its certificate");
                    tokio::time::sleep(AGAIN.min(self.half_life())).await;
                }
            }
            next_look = tokio::time::Instant::now();
        }
    }

    fn until_renewal(&self) -> Duration {
        let leaf = &self.read().leaf;
        let life = leaf.not_after.duration_since(leaf.not_before).unwrap_or_default();
        let at = leaf.not_before + life.mul_f64(RENEW_AT);
        at.duration_since(SystemTime::now()).unwrap_or_default()
    }

    fn half_life(&self) -> Duration {
        let leaf = &self.read().leaf;
        leaf.not_after.duration_since(leaf.not_before).unwrap_or_default() / 2
    }

    /// Numbers and alarms.
    fn watch_ends(
        &self,
        in_force: &InForce,
        metrics: &Metrics,
        last_alarm: &mut Option<tokio::time::Instant>,
    ) {
        let now = SystemTime::now();
        let leaf = self.read().leaf.clone();
        metrics.certificate_expiry.set(timestamp(leaf.not_after));
        metrics.ca_expiry.set(timestamp(in_force.issuer.not_after));
        metrics.root_expiry.clear();
        for root in &in_force.roots {
            let label = RootLabel {
                root: root.id.to_string(),
                issuing: (root.id == in_force.issuer.root).to_string(),
            };
            metrics.root_expiry.get_or_create(&label).set(timestamp(root.not_after));
        }
        if last_alarm.is_some_and(|at| at.elapsed() < REPEAT) {
            return;
        }
        let life = leaf.not_after.duration_since(leaf.not_before).unwrap_or_default();
        let own = ("the control plane's own certificate".to_owned(), leaf.not_after, life / 6);
        let issuer = ("the issuing certificate".to_owned(), in_force.issuer.not_after, ALARM);
        let roots = in_force.roots.iter().map(|root| {
            let life = root.not_after.duration_since(root.not_before).unwrap_or_default();
            (format!("root {}", root.id), root.not_after, ALARM.min(life / 6))
        });
        for (what, end, early) in [own, issuer].into_iter().chain(roots) {
            let not_after = super::ledger::shown(end);
            if end <= now {
                tracing::error!(what, not_after, "has expired");
            } else if end <= now + early {
                tracing::warn!(what, not_after, "expires soon");
            } else {
                continue;
            }
            *last_alarm = Some(tokio::time::Instant::now());
        }
    }

    fn read(&self) -> std::sync::RwLockReadGuard<'_, Current> {
        self.current.read().unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

impl ResolvesServerCert for OwnCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.read().key.clone())
    }
}

impl fmt::Debug for OwnCertificate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("OwnCertificate")
    }
}

fn make(authority: &Authority, subject: &Subject, in_force: &InForce) -> Result<Current, String> {
    let key = KeyPair::generate().map_err(|error| error.to_string())?;
    let (issuer, lifetime, now) = (&in_force.issuer, authority.lifetime, SystemTime::now());
    let leaf = match subject {
        Subject::ControlPlane => {
            let id = SpiffeId::control_plane(&authority.trust_domain);
            issuer.leaf(&id, &key, lifetime, now)
        }
        Subject::Host(host) => issuer.server_leaf(host, &key, lifetime, now),
    };
    let leaf = leaf.map_err(|error| error.to_string())?;
    let der = PrivateKeyDer::try_from(key.serialize_der()).map_err(str::to_owned)?;
    let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der);
    let key = CertifiedKey::new(leaf.chain.clone(), key.map_err(|error| error.to_string())?);
    Ok(Current { key: Arc::new(key), leaf })
}

fn timestamp(time: SystemTime) -> i64 {
    let since = time.duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}
