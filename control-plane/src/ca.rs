//! The certificate authority: which roots the mesh believes in, under which it issues, and to whom
//! it has issued.
//!
//! The authority's root is made by itself ([`root`], kept by [`store`]), or its issuing certificate
//! is given by the user ([`files`]). [`Authority`] holds what is in force; everybody else takes
//! [`InForce`] as a whole and waits for the next. [`rotation`] holds the steps that change it,
//! [`ledger`] who would be hurt by one. [`csr`] reads untrusted input, [`issue`] makes
//! certificates, [`verify`] checks them, [`own`] keeps the control plane's own. There is no network
//! here: see [`crate::identity`] and [`crate::connection`].

pub mod csr;
pub mod files;
pub mod issue;
pub mod ledger;
pub mod own;
pub mod root;
pub mod rotation;
mod store;
pub mod verify;

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime};

use outrigger_core::config::TrustBundle;
use outrigger_core::identity::{SpiffeId, TrustDomain};
use outrigger_proto::convert;
use prost::Message;
use rustls_pki_types::CertificateDer;
use tokio::sync::watch;

use crate::grant::Grant;
use crate::sync::lock;
use csr::PublicKey;
use files::CaFiles;
use issue::{IssueError, Issuer, Leaf};
use ledger::{Ledger, Node, NodeId};
use root::{Root, RootId};
use verify::{Verified, VerifyError};

/// Bundles of the past that an acknowledgement may still name.
const HISTORY: usize = 64;

#[derive(Debug)]
pub struct Authority {
    pub trust_domain: TrustDomain,
    pub ledger: Arc<Ledger>,
    state_dir: PathBuf,
    lifetime: Duration,
    files: Option<CaFiles>,
    state: Mutex<State>,
    in_force: watch::Sender<Arc<InForce>>,
}

#[derive(Debug)]
struct State {
    /// Version of each bundle and its roots.
    history: VecDeque<(String, Vec<RootId>)>,
    /// What the user's files ask for and what is not done yet, or what is wrong with them.
    held: Option<String>,
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
}

impl Authority {
    /// Opens the authority in the state directory, or makes one.
    pub fn open(
        state_dir: &Path,
        trust_domain: TrustDomain,
        lifetime: Duration,
        files: Option<CaFiles>,
    ) -> io::Result<Self> {
        let wrong = |problem: String| io::Error::new(io::ErrorKind::InvalidData, problem);
        let now = SystemTime::now();
        let stored = store::read(state_dir, &trust_domain)?;
        let (roots, issuer) = match &files {
            Some(files) => {
                let given = files.load(&trust_domain, now).map_err(wrong)?;
                given.beside(stored)
            }
            None => own_issuer(stored, &trust_domain, now).map_err(wrong)?,
        };
        let in_force = Arc::new(InForce::new(&trust_domain, roots, issuer));
        let authority = Self {
            trust_domain,
            ledger: Ledger::open(state_dir, lifetime, now)?,
            state_dir: state_dir.to_owned(),
            lifetime,
            files,
            state: Mutex::new(State { history: VecDeque::new(), held: None }),
            in_force: watch::Sender::new(in_force.clone()),
        };
        authority.put_in_force(&mut authority.lock(), in_force)?;
        Ok(authority)
    }

    pub fn in_force(&self) -> Arc<InForce> {
        self.in_force.borrow().clone()
    }

    /// Tells when something else is in force.
    pub fn changes(&self) -> watch::Receiver<Arc<InForce>> {
        self.in_force.subscribe()
    }

    /// Issues a certificate for a node and notes it.
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
        let noted = Node { root, not_after, bundle: None };
        if !self.ledger.record(node_id, &noted, now) {
            return Err(CertifyError::TooManyNodes);
        }
        Ok((leaf, in_force))
    }

    /// Verifies a client's chain under what is in force now.
    pub fn verify(&self, chain: &[CertificateDer<'_>]) -> Result<Verified, VerifyError> {
        let in_force = self.in_force();
        verify::client(chain, &self.trust_domain, &in_force.roots, SystemTime::now())
    }

    /// The roots of a bundle of this process.
    pub fn roots_of(&self, version: &str) -> Option<Vec<RootId>> {
        let state = self.lock();
        let found = state.history.iter().find(|(known, _)| known == version);
        found.map(|(_, roots)| roots.clone())
    }

    /// What the user's files ask for and what is not done, and why.
    pub fn held(&self) -> Option<String> {
        self.lock().held.clone()
    }

    /// Writes the new state, then tells everybody.
    fn put_in_force(&self, state: &mut State, new: Arc<InForce>) -> io::Result<()> {
        store::write(&self.state_dir, &self.trust_domain, &new.roots, new.issuer.root)?;
        store::write_bundle(&self.state_dir, &new.roots)?;
        let roots = new.roots.iter().map(|root| root.id).collect();
        state.history.retain(|(version, _)| *version != new.version);
        state.history.push_back((new.version.clone(), roots));
        if state.history.len() > HISTORY {
            state.history.pop_front();
        }
        self.in_force.send_replace(new);
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
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

/// The issuer of an authority that has its own roots.
fn own_issuer(
    stored: Option<store::Stored>,
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
