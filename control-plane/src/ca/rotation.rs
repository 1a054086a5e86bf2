//! The steps of a rotation of the root: add one everywhere, issue under it, remove the old one.
//!
//! Each step is refused while somebody would be hurt by it, and the refusal names them. Any replica may take
//! one, one at a time: it holds a lease, takes over what others have done, reads what all of them have written
//! of their proxies, and writes if nobody else has written since.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_core::identity::{SpiffeId, TrustDomain};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::issue::Issuer;
use super::root::{Root, RootId};
use super::{Authority, AuthorityState, InForce, verify};
use crate::store::{Lease, StoreError};

/// Held during a step. No certificate is handed out by other replicas meanwhile, so one that is held by a
/// replica that has died must not hold them up for long.
pub(super) const LEASE: &str = "rotation";
const LEASE_LIFETIME: Duration = Duration::from_secs(10);

/// Roots at once: each costs every proxy memory, and a rotation needs two.
const MAX_ROOTS: usize = 16;
/// How long the certificate lives that is made to see whether a pair can issue.
const PROBE: Duration = Duration::from_secs(60);
/// The fewest digits that name a root.
const MIN_DIGITS: usize = 4;

#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    #[error(
        "the roots come with --ca-root or --issuer-secret: change what is there, and the issuing pair with it"
    )]
    Files,
    #[error("there is no root {0}; `trust status` lists them")]
    NoSuchRoot(String),
    #[error("{0} matches several roots: write more digits")]
    Ambiguous(String),
    #[error("there are {MAX_ROOTS} roots, which is the most: remove one first")]
    TooMany,
    #[error("the root is already there")]
    Known,
    #[error("the root {0}")]
    Bad(String),
    #[error("root {0} is the issuing root: issue from another one first")]
    Issues(RootId),
    #[error("root {0} has no key here, so nothing can be issued under it")]
    NoKey(RootId),
    #[error("root {0} has expired")]
    Ended(RootId),
    #[error("{step} root {root} is not safe yet:\n  {}", waiting.join("\n  "))]
    NotYet { step: &'static str, root: RootId, waiting: Vec<String> },
    #[error("another replica is taking a step: {0}: try again")]
    Busy(StoreError),
    #[error("the step took too long: try again")]
    TookTooLong,
    #[error("the store: {0}")]
    Store(#[from] StoreError),
    #[error("the store: {0}")]
    Io(#[from] std::io::Error),
}

impl Authority {
    /// Adds a root that was made elsewhere, in PEM, or makes a new one.
    pub fn add_root(&self, pair: Option<(&str, &str)>) -> Result<RootId, Refusal> {
        let now = SystemTime::now();
        let mut state = self.lock();
        self.own_roots()?;
        let lease = self.lease()?;
        self.catch_up(&mut state)?;
        let root = match pair {
            None => Arc::new(Root::generate(&self.trust_domain, now).map_err(Refusal::Bad)?),
            Some((certificate, key)) => {
                imported(&self.trust_domain, certificate, key).map_err(Refusal::Bad)?
            }
        };
        let id = root.id;
        let before = self.in_force();
        if before.root(id).is_some() {
            return Err(Refusal::Known);
        }
        if before.roots.len() >= MAX_ROOTS {
            return Err(Refusal::TooMany);
        }
        if root.not_after <= now {
            return Err(Refusal::Ended(id));
        }
        let mut roots = before.roots.clone();
        roots.push(root);
        let new = InForce::new(&self.trust_domain, roots, before.issuer.clone());
        self.finish(&mut state, &lease, new)?;
        tracing::info!(root = %id, "a root was added");
        Ok(id)
    }

    /// Issues under another root from now on. Refused until every connected proxy has
    /// acknowledged it, and with `absent_too` every one whose certificate has not ended.
    pub fn issue_from(&self, name: &str, absent_too: bool) -> Result<RootId, Refusal> {
        let now = SystemTime::now();
        let mut state = self.lock();
        self.own_roots()?;
        let lease = self.lease()?;
        self.catch_up(&mut state)?;
        let before = self.in_force();
        let root = find(&before, name)?;
        if root.id == before.issuer.root {
            return Ok(root.id);
        }
        if root.not_after <= now {
            return Err(Refusal::Ended(root.id));
        }
        if !root.has_key() {
            return Err(Refusal::NoKey(root.id));
        }
        let mut waiting = self.ledger.behind(state.version.as_ref());
        waiting.extend(self.ledger.without(root.id, now, absent_too));
        if !waiting.is_empty() {
            return Err(Refusal::NotYet { step: "issuing from", root: root.id, waiting });
        }
        let issuer = Arc::new(Issuer::from_root(root).map_err(Refusal::Bad)?);
        let new = InForce::new(&self.trust_domain, before.roots.clone(), issuer);
        self.finish(&mut state, &lease, new)?;
        tracing::info!(root = %root.id, "certificates are issued under another root");
        Ok(root.id)
    }

    /// Stops trusting a root. Refused for the issuing one, and while a certificate under it is
    /// the newest of a node.
    pub fn remove_root(&self, name: &str, absent_too: bool) -> Result<RootId, Refusal> {
        let now = SystemTime::now();
        let mut state = self.lock();
        self.own_roots()?;
        let lease = self.lease()?;
        self.catch_up(&mut state)?;
        let before = self.in_force();
        let id = find(&before, name)?.id;
        if id == before.issuer.root {
            return Err(Refusal::Issues(id));
        }
        let mut waiting = self.ledger.behind(state.version.as_ref());
        waiting.extend(self.ledger.under(id, now, absent_too));
        if !waiting.is_empty() {
            return Err(Refusal::NotYet { step: "removing", root: id, waiting });
        }
        let roots = before.roots.iter().filter(|root| root.id != id).cloned().collect();
        let new = InForce::new(&self.trust_domain, roots, before.issuer.clone());
        self.finish(&mut state, &lease, new)?;
        tracing::info!(root = %id, "a root was removed");
        Ok(id)
    }

    /// Begins a step: no other replica takes one until the lease is dropped.
    pub(super) fn lease(&self) -> Result<Lease<'_>, Refusal> {
        let (store, holder) = (&*self.replica.store, self.replica.name.as_str());
        Lease::acquire(store, LEASE, holder, LEASE_LIFETIME).map_err(|error| match error {
            // Somebody else took it in the very same moment, or has it.
            StoreError::Leased { .. } | StoreError::Conflict(_) => Refusal::Busy(error),
            StoreError::Io { .. } => Refusal::Store(error),
        })
    }

    /// Takes over what other replicas have done, and what they have written of their proxies.
    pub(super) fn catch_up(&self, state: &mut AuthorityState) -> Result<(), Refusal> {
        self.take_over(state)?;
        self.ledger.refresh()?;
        Ok(())
    }

    /// Puts in force what a step has made.
    pub(super) fn finish(
        &self,
        state: &mut AuthorityState,
        lease: &Lease<'_>,
        new: InForce,
    ) -> Result<(), Refusal> {
        if !lease.is_valid() {
            return Err(Refusal::TookTooLong);
        }
        Ok(self.put_in_force(state, Arc::new(new))?)
    }

    fn own_roots(&self) -> Result<(), Refusal> {
        if self.source.is_some() { Err(Refusal::Files) } else { Ok(()) }
    }
}

/// The root whose id begins so.
fn find<'a>(in_force: &'a InForce, name: &str) -> Result<&'a Arc<Root>, Refusal> {
    let wanted = name.to_ascii_lowercase();
    let mut found = in_force.roots.iter().filter(|root| root.id.full().starts_with(&wanted));
    match (found.next(), found.next()) {
        (Some(root), None) if wanted.len() >= MIN_DIGITS => Ok(root),
        (Some(_), _) => Err(Refusal::Ambiguous(name.to_owned())),
        (None, _) => Err(Refusal::NoSuchRoot(name.to_owned())),
    }
}

/// A pair made elsewhere, proven by a certificate issued with it.
fn imported(domain: &TrustDomain, certificate: &str, key: &str) -> Result<Arc<Root>, String> {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes())
        .map_err(|error| format!("is not a certificate in PEM: {error}"))?;
    let root = Root::new(certificate, Some(key.to_owned()))?;
    let cannot = |problem: String| format!("cannot issue: {problem}");
    let issuer = Issuer::from_root(&root).map_err(cannot)?;
    let (now, probe) = (SystemTime::now(), KeyPair::generate());
    let probe = probe.map_err(|error| cannot(error.to_string()))?;
    let leaf = issuer.leaf(&SpiffeId::control_plane(domain), &probe, PROBE, now);
    let leaf = leaf.map_err(|error| cannot(error.to_string()))?;
    let root = Arc::new(root);
    verify::client(&leaf.chain, domain, std::slice::from_ref(&root), now)
        .map_err(|error| cannot(error.to_string()))?;
    Ok(root)
}
