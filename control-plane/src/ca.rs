//! The certificate authority: which roots the mesh trusts, under which it issues, and to whom
//! it has issued.
//!
//! The authority's root is made by itself ([`root`], kept by [`store`]), or its issuing certificate
//! is given by the user ([`files`]). [`Authority`] holds what is in force; everybody else takes
//! [`InForce`] as a whole and waits for the next. [`rotation`] holds the steps that change it,
//! [`follow`] takes over those of other replicas, [`ledger`] knows who would be hurt by one. [`csr`] reads untrusted input, [`issue`] makes
//! certificates, [`verify`] checks them, [`own`] keeps the control plane's own. There is no network
//! here: see [`crate::identity`] and [`crate::connection`].

pub mod csr;
pub mod files;
mod follow;
pub mod issue;
pub mod ledger;
pub mod own;
pub mod root;
pub mod rotation;
mod store;
pub mod verify;

use std::collections::VecDeque;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use outrigger_core::config::TrustBundle;
use outrigger_core::identity::{SpiffeId, TrustDomain};
use outrigger_proto::convert;
use prost::Message;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::grant::Grant;
use crate::replica::Replica;
use crate::store::{StoreError, Version};
use crate::sync::lock;
use csr::PublicKey;
use files::IssuerSource;
use issue::{IssueError, Issuer, Leaf};
use ledger::{Ledger, NodeId};
use root::{Root, RootId};
use verify::{Verified, VerifyError};

/// Bundles of the past that an acknowledgement may still name.
const HISTORY: usize = 64;
/// Attempts to open a store that other replicas open at the same time.
const MAX_ATTEMPTS: usize = 10;

#[derive(Debug)]
pub struct Authority {
    pub trust_domain: TrustDomain,
    pub ledger: Arc<Ledger>,
    replica: Arc<Replica>,
    lifetime: Duration,
    source: Option<IssuerSource>,
    /// Held across what the store is asked, which may be far away: never locked where others are served.
    state: Mutex<AuthorityState>,
    /// Version of each bundle and its roots.
    history: Mutex<VecDeque<(String, Vec<RootId>)>>,
    /// What the user's certificates ask for and what is not done yet, or what is wrong with them.
    held: Mutex<Option<String>>,
    in_force: watch::Sender<Arc<InForce>>,
}

#[derive(Debug)]
struct AuthorityState {
    /// Of the document of roots that is in force.
    version: Option<Version>,
    /// Roots that the user gives.
    wanted: Vec<RootId>,
    /// Why the roots in the store could not be taken over.
    problem: Option<String>,
}

/// Roots and issuer at one moment.
#[derive(Debug)]
pub struct InForce {
    /// The issuing one first.
    pub roots: Vec<Arc<Root>>,
    pub issuer: Arc<Issuer>,
    pub bundle: TrustBundle,
    /// The bundle's version as a resource.
    pub version: String,
}

/// Why a certificate was not issued.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertifyError {
    #[error("this identity has too many nodes: does a proxy make up a new name at each start?")]
    TooManyNodes,
    #[error(transparent)]
    Issue(#[from] IssueError),
    /// Another replica is, or has been, at the roots.
    #[error("the certificate could not be confirmed: {0}: ask again")]
    Unconfirmed(String),
}

impl Authority {
    /// Opens the authority in the store, or makes one. Of several that do so at once one is first, and the
    /// others take what it has made.
    pub fn open(
        replica: Arc<Replica>,
        trust_domain: TrustDomain,
        lifetime: Duration,
        source: Option<IssuerSource>,
    ) -> io::Result<Self> {
        let ledger = Ledger::open(replica.clone(), lifetime, SystemTime::now())?;
        let mut attempts = 0;
        let (in_force, state) = loop {
            attempts += 1;
            let (in_force, mut state) = begin(&replica, &trust_domain, source.as_ref())?;
            let (roots, issuing) = (&in_force.roots, in_force.issuer.root);
            let before = state.version.take();
            match store::write(&*replica.store, &trust_domain, roots, issuing, before.as_ref()) {
                Ok(version) => {
                    break (in_force, AuthorityState { version: Some(version), ..state });
                }
                Err(error) if error.is_conflict() && attempts < MAX_ATTEMPTS => {}
                Err(error) => return Err(error.into()),
            }
        };
        store::write_bundle(&*replica.store, &in_force.roots)?;
        let in_force = Arc::new(in_force);
        let authority = Self {
            trust_domain,
            ledger,
            replica,
            lifetime,
            source,
            state: Mutex::new(state),
            history: Mutex::default(),
            held: Mutex::default(),
            in_force: watch::Sender::new(in_force.clone()),
        };
        authority.announce(in_force);
        authority.stand(&authority.lock());
        authority.ledger.flush();
        Ok(authority)
    }

    pub fn in_force(&self) -> Arc<InForce> {
        self.in_force.borrow().clone()
    }

    /// Tells when something else is in force.
    pub fn changes(&self) -> watch::Receiver<Arc<InForce>> {
        self.in_force.subscribe()
    }

    /// Issues a certificate for a node and notes it. Blocks while a step of a rotation is taken.
    pub fn certify(
        &self,
        id: &SpiffeId,
        node: &str,
        key: &PublicKey,
        grant: &Grant,
    ) -> Result<(Leaf, Arc<InForce>), CertifyError> {
        // Steps of a rotation look at the ledger: none may come between issuing and noting.
        let _steps = self.lock();
        let now = SystemTime::now();
        let in_force = self.in_force();
        let leaf = in_force.issuer.leaf_with(id, key, grant, self.lifetime, now)?;
        let node_id = NodeId { identity: id.clone(), node: node.to_owned() };
        let (root, not_after) = (leaf.root, leaf.not_after);
        if !self.ledger.record(node_id, root, not_after, now) {
            return Err(CertifyError::TooManyNodes);
        }
        Ok((leaf, in_force))
    }

    /// Verifies a client's chain under what is in force now.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<Verified, VerifyError> {
        let in_force = self.in_force();
        verify::client(chain, &self.trust_domain, &in_force.roots, SystemTime::now())
    }

    /// The roots of a bundle that this process had in force, or that other replicas' proxies have acknowledged.
    pub fn roots_of(&self, version: &str) -> Option<Vec<RootId>> {
        let known = {
            let history = lock(&self.history);
            let found = history.iter().find(|(known, _)| known == version);
            found.map(|(_, roots)| roots.clone())
        };
        known.or_else(|| self.ledger.roots_of(version))
    }

    /// What the user's certificates ask for and what is not done, and why.
    pub fn held(&self) -> Option<String> {
        lock(&self.held).clone()
    }

    /// Writes the new state, then tells everybody.
    fn put_in_force(
        &self,
        state: &mut AuthorityState,
        new: Arc<InForce>,
    ) -> Result<(), StoreError> {
        self.write(state, &new)?;
        self.announce(new);
        self.stand(state);
        Ok(())
    }

    /// Writes roots and issuer, unless another replica has written since.
    fn write(&self, state: &mut AuthorityState, new: &InForce) -> Result<(), StoreError> {
        let (store, before) = (&*self.replica.store, state.version.as_ref());
        let written = store::write(store, &self.trust_domain, &new.roots, new.issuer.root, before)?;
        state.version = Some(written);
        Ok(())
    }

    /// Tells every subscriber in this process, and writes the bundle for operators who start proxies.
    fn announce(&self, new: Arc<InForce>) {
        if let Err(error) = store::write_bundle(&*self.replica.store, &new.roots) {
            tracing::error!(%error, "could not write the trust bundle for new proxies");
        }
        let roots = new.roots.iter().map(|root| root.id).collect();
        {
            let mut history = lock(&self.history);
            history.retain(|(version, _)| *version != new.version);
            history.push_back((new.version.clone(), roots));
            if history.len() > HISTORY {
                history.pop_front();
            }
        }
        self.in_force.send_replace(new);
    }

    fn lock(&self) -> MutexGuard<'_, AuthorityState> {
        lock(&self.state)
    }
}

impl InForce {
    fn new(trust_domain: &TrustDomain, mut roots: Vec<Arc<Root>>, issuer: Arc<Issuer>) -> Self {
        roots.sort_by_key(|root| root.id != issuer.root);
        let bundle = TrustBundle {
            trust_domain: trust_domain.clone(),
            roots: roots.iter().map(|root| root.certificate.to_vec()).collect(),
            issuing_root: issuer.root.bytes(),
        };
        let version = convert::version(&convert::trust::to_wire(&bundle).encode_to_vec());
        Self { roots, issuer, bundle, version }
    }

    pub fn root(&self, id: RootId) -> Option<&Arc<Root>> {
        self.roots.iter().find(|root| root.id == id)
    }
}

type Issuing = (Vec<Arc<Root>>, Arc<Issuer>);

/// What is in force when a process begins: what was before, or something new.
fn begin(
    replica: &Replica,
    trust_domain: &TrustDomain,
    source: Option<&IssuerSource>,
) -> io::Result<(InForce, AuthorityState)> {
    let wrong = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
    let now = SystemTime::now();
    let stored = store::read(&*replica.store, trust_domain)?;
    let version = stored.as_ref().map(|stored| stored.version.clone());
    let mut wanted = Vec::new();
    let (roots, issuer) = match source {
        Some(source) => {
            let given = source.load(trust_domain, now).map_err(wrong)?;
            wanted = given.roots();
            given.beside(stored)
        }
        None => own_issuer(stored, trust_domain, now).map_err(wrong)?,
    };
    let state = AuthorityState { version, wanted, problem: None };
    Ok((InForce::new(trust_domain, roots, issuer), state))
}

/// The issuer of an authority that has its own roots.
fn own_issuer(
    stored: Option<store::StoredTrust>,
    trust_domain: &TrustDomain,
    now: SystemTime,
) -> Result<Issuing, String> {
    let (mut roots, issuing) = match stored {
        Some(stored) => (stored.roots, Some(stored.issuing)),
        None => (Vec::new(), None),
    };
    let usable = |root: &&Arc<Root>| root.has_key() && root.not_after > now;
    let issuing = roots
        .iter()
        .find(|root| Some(root.id) == issuing)
        .filter(usable)
        .or_else(|| roots.iter().find(usable))
        .cloned();
    let issuing = match issuing {
        Some(root) => root,
        None => {
            let root = Arc::new(Root::generate(trust_domain, now)?);
            tracing::info!(root = %root.id, "made a new root of the mesh");
            roots.push(root.clone());
            root
        }
    };
    Ok((roots, Arc::new(Issuer::from_root(&issuing)?)))
}
