//! An issuing certificate given by the user: three PEM files, or a Secret that holds the same, read again every
//! second.
//!
//! A broken pair changes nothing. A sound one takes effect when it is safe: a new root at once, a
//! new issuing root when every proxy trusts it, and a root that is no longer among those given goes
//! when nobody needs it any more.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use outrigger_core::identity::{SpiffeId, TrustDomain};
use rcgen::KeyPair;
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;

use super::issue::Issuer;
use super::root::{Root, RootId, authority_validity};
use super::rotation::Refusal;
use super::store::StoredTrust;
use super::{Authority, AuthorityState, InForce, Issuing, verify};
use crate::store::cluster::ClusterStore;
use crate::sync::lock;

/// How often they are looked at. Secrets mounted by Kubernetes change by renamed links, which
/// reading notices and watching may not.
const LOOK: Duration = Duration::from_secs(1);
/// Bytes of one file.
const MAX_FILE: u64 = 1024 * 1024;
/// How long the certificate lives that is made to see whether the files fit together.
const PROBE: Duration = Duration::from_secs(60);

/// Where the user's issuing certificate is.
#[derive(Clone, Debug)]
pub enum IssuerSource {
    Files(CaFiles),
    Secret(CaSecret),
}

#[derive(Clone, Debug)]
pub struct CaFiles {
    /// The issuing certificate, then whatever lies between it and the root.
    pub certificate: PathBuf,
    pub key: PathBuf,
    /// One root or more.
    pub root: PathBuf,
}

/// A Secret of the control plane's own namespace, as cert-manager writes it.
#[derive(Clone, Debug)]
pub struct CaSecret {
    pub cluster: Arc<ClusterStore>,
    pub name: String,
}

/// What is there, not looked at yet.
struct Pems {
    certificate: Pem,
    key: Pem,
    root: Pem,
}

struct Pem {
    /// For people.
    place: String,
    text: String,
}

/// What the user has given.
#[derive(Debug)]
pub(super) struct GivenIssuer {
    roots: Vec<Arc<Root>>,
    issuer: Arc<Issuer>,
}

impl IssuerSource {
    /// Reads everything and checks that it fits together; an error names the file, or the Secret and its key.
    pub(super) fn load(
        &self,
        domain: &TrustDomain,
        now: SystemTime,
    ) -> Result<GivenIssuer, String> {
        let pems = match self {
            Self::Files(files) => files.read()?,
            Self::Secret(secret) => secret.read()?,
        };
        pems.check(domain, now)
    }

    /// For people.
    fn what(&self) -> &'static str {
        match self {
            Self::Files(_) => "files",
            Self::Secret(_) => "Secret",
        }
    }
}

impl CaFiles {
    fn read(&self) -> Result<Pems, String> {
        Ok(Pems {
            certificate: read(&self.certificate)?,
            root: read(&self.root)?,
            key: read(&self.key)?,
        })
    }
}

impl CaSecret {
    fn read(&self) -> Result<Pems, String> {
        let place = self.cluster.secret_place(&self.name);
        let found = self.cluster.secret(&self.name).map_err(|error| error.to_string())?;
        let mut data = found.ok_or_else(|| format!("{place} is not there"))?;
        let mut take = |key: &str| {
            let place = format!("{place}: {key}");
            let bytes = data.remove(key).ok_or_else(|| format!("{place} is not there"))?;
            let text = String::from_utf8(bytes).map_err(|_| format!("{place} is not PEM"))?;
            Ok::<_, String>(Pem { place, text })
        };
        Ok(Pems { certificate: take("tls.crt")?, root: take("ca.crt")?, key: take("tls.key")? })
    }
}

impl Pems {
    fn check(&self, domain: &TrustDomain, now: SystemTime) -> Result<GivenIssuer, String> {
        let roots = self.root.certificates()?.into_iter().map(|root| Root::new(root, None));
        let roots: Result<Vec<_>, _> = roots.map(|root| root.map(Arc::new)).collect();
        let roots = roots.map_err(|e| format!("{}: {e}", self.root.place))?;
        let chain = self.certificate.certificates()?;
        let at = |problem: String| format!("{}: {problem}", self.certificate.place);
        let mut not_after = None;
        for certificate in &chain {
            let (_, end) = authority_validity(certificate).map_err(at)?;
            not_after = Some(not_after.map_or(end, |other: SystemTime| other.min(end)));
        }
        let (Some(issuing), Some(not_after)) = (chain.first().cloned(), not_after) else {
            return Err(at("holds no certificate".to_owned()));
        };
        // A root that issues itself, as cert-manager's self-signed ones do, is no part of the way to it.
        let between = chain.into_iter().filter(|link| roots.iter().all(|r| r.certificate != *link));
        let between: Vec<_> = between.collect();
        // A certificate of its own shows whether everything fits: signatures, uses, times, lengths.
        let anywhere =
            roots.first().ok_or_else(|| format!("{}: holds no certificate", self.root.place))?;
        let issuer = |root, end| {
            Issuer::new(&issuing, between.clone(), &self.key.text, root, end).map_err(|problem| {
                format!("{} and {}: {problem}", self.certificate.place, self.key.place)
            })
        };
        let probe = KeyPair::generate().map_err(|error| error.to_string())?;
        let id = SpiffeId::control_plane(domain);
        let leaf = issuer(anywhere.id, not_after)?.leaf(&id, &probe, PROBE, now);
        let leaf = leaf.map_err(|error| at(error.to_string()))?;
        let verified = verify::client(&leaf.chain, domain, &roots, now)
            .map_err(|error| at(format!("does not lead to {}: {error}", self.root.place)))?;
        let root = roots.iter().find(|root| root.id == verified.root);
        let end = root.map_or(not_after, |root| root.not_after.min(not_after));
        Ok(GivenIssuer { issuer: Arc::new(issuer(verified.root, end)?), roots })
    }
}

impl Pem {
    fn certificates(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        let all = CertificateDer::pem_slice_iter(self.text.as_bytes());
        let all: Result<Vec<_>, _> = all.collect();
        all.map_err(|error| format!("{}: {error}", self.place))
    }
}

impl GivenIssuer {
    pub(super) fn roots(&self) -> Vec<RootId> {
        self.roots.iter().map(|root| root.id).collect()
    }

    /// What is in force at the start: the roots of before are still trusted, and the issuer of
    /// before goes on until the new one's root is known everywhere, if its key is here.
    pub(super) fn beside(self, stored: Option<StoredTrust>) -> Issuing {
        let Some(stored) = stored else { return (self.roots, self.issuer) };
        let before = stored.roots.iter().find(|root| root.id == stored.issuing);
        let before = before.filter(|root| root.id != self.issuer.root);
        let issuer = before.and_then(|root| Issuer::from_root(root).ok()).map(Arc::new);
        let roots = union(stored.roots, &self.roots);
        (roots, issuer.unwrap_or(self.issuer))
    }
}

impl Authority {
    /// Follows what the user gives, if that is anything.
    pub async fn follow_given(self: Arc<Self>) {
        let Some(source) = self.source.clone() else { return };
        loop {
            tokio::time::sleep(LOOK).await;
            let authority = self.clone();
            let source = source.clone();
            let step = move || authority.take_given(&source, SystemTime::now());
            let _ = tokio::task::spawn_blocking(step).await;
        }
    }

    fn take_given(&self, source: &IssuerSource, now: SystemTime) {
        // A cluster may take long to answer: certificates are issued meanwhile.
        let loaded = source.load(&self.trust_domain, now);
        let mut state = self.lock();
        let held = match loaded {
            Ok(given) => {
                state.wanted = given.roots();
                let held = self.approach(&mut state, &given, now);
                self.stand(&state);
                held.unwrap_or_else(|refusal| Some(refusal.to_string()))
            }
            Err(problem) => Some(format!("{problem}; the last good one stays in force")),
        };
        drop(state);
        let mut before = lock(&self.held);
        if held != *before {
            match &held {
                Some(held) => tracing::error!(problem = held, "the authority's {}", source.what()),
                None => tracing::info!("what the authority's {} give is in force", source.what()),
            }
            *before = held;
        }
    }

    /// Goes as far towards what was given as is safe, and says what is left to do.
    fn approach(
        &self,
        state: &mut AuthorityState,
        given: &GivenIssuer,
        now: SystemTime,
    ) -> Result<Option<String>, Refusal> {
        let is_news = |new: &InForce, before: &InForce| {
            new.version != before.version || !new.issuer.same(&before.issuer)
        };
        let (new, held) = self.plan(state, given, now);
        if !is_news(&new, &self.in_force()) {
            return Ok(held);
        }
        // With what other replicas have done and written until now.
        let lease = self.lease()?;
        self.catch_up(state)?;
        let (new, held) = self.plan(state, given, now);
        if is_news(&new, &self.in_force()) {
            tracing::info!(issuing = %new.issuer.root, roots = new.roots.len(), "new certificates of the authority");
            self.finish(state, &lease, new)?;
        }
        Ok(held)
    }

    /// What can be in force now, and what has to wait.
    fn plan(
        &self,
        state: &AuthorityState,
        given: &GivenIssuer,
        now: SystemTime,
    ) -> (InForce, Option<String>) {
        let mut held = Vec::new();
        let before = self.in_force();
        let mut roots = union(before.roots.clone(), &given.roots);
        let mut issuer = before.issuer.clone();
        if !issuer.same(&given.issuer) {
            let root = given.issuer.root;
            // What has just been added cannot have been acknowledged by anybody.
            let waiting = match issuer.root == root {
                true => Vec::new(),
                false => {
                    let mut waiting = self.ledger.behind(state.version.as_ref());
                    if before.root(root).is_none() && self.ledger.any_alive() {
                        waiting.push("other replicas do not know it yet".to_owned());
                    }
                    waiting.extend(self.ledger.without(root, now, true));
                    waiting
                }
            };
            match waiting.is_empty() {
                true => issuer = given.issuer.clone(),
                false => {
                    held.push(format!("issuing under root {root} waits: {}", waiting.join("; ")));
                }
            }
        }
        roots.retain(|root| {
            if root.id == issuer.root || given.roots.iter().any(|other| other.id == root.id) {
                return true;
            }
            let mut needed = self.ledger.behind(state.version.as_ref());
            needed.extend(self.ledger.under(root.id, now, true));
            if !needed.is_empty() {
                held.push(format!("root {} stays for now: {}", root.id, needed.join("; ")));
            }
            !needed.is_empty()
        });
        let new = InForce::new(&self.trust_domain, roots, issuer);
        (new, (!held.is_empty()).then(|| held.join("; ")))
    }
}

fn union(mut roots: Vec<Arc<Root>>, more: &[Arc<Root>]) -> Vec<Arc<Root>> {
    for root in more {
        if roots.iter().all(|other| other.id != root.id) {
            roots.push(root.clone());
        }
    }
    roots
}

fn read(path: &Path) -> Result<Pem, String> {
    let place = path.display().to_string();
    let at = |problem: String| format!("{place}: {problem}");
    let size = fs::metadata(path).map_err(|error| at(error.to_string()))?.len();
    if size > MAX_FILE {
        return Err(at(format!("has {size} bytes, at most {MAX_FILE} are read")));
    }
    let text = fs::read_to_string(path).map_err(|error| at(error.to_string()))?;
    Ok(Pem { place, text })
}
