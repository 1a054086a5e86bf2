//! Who this proxy is: its key and certificate, the roots it trusts, and how both stay current.
//!
//! [`Identity`] is what everybody asks; [`crate::mesh::renew`] keeps it alive, [`crate::mesh::certify`] talks to the control
//! plane, [`disk`] is the copy that survives a restart. What is done with it is [`crate::tls`]'s
//! business. Whatever fails here, the last good certificate is used until its end.

pub mod disk;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use disk::{DiskCopy, SavedIdentity};
use outrigger_core::config::TrustBundle;
use outrigger_core::error::FieldError;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use serde_json::{Value, json};
use tokio::sync::watch;
use tracing::{info, warn};

use crate::base::disk::read;
use crate::base::settings::Settings;
use crate::base::sync::lock;
use crate::tls::credentials::{ClientCredentials, Credentials, Unusable};
use crate::tls::verify::{RequiredIdentity, Trust};
use crate::tls::{hex, unix_now};

/// Namespace, account, and where things are kept.
pub struct Identity {
    namespace: String,
    service_account: String,
    pub(crate) node: String,
    trust_bundle: PathBuf,
    copy: Option<DiskCopy>,
    current: ArcSwapOption<Credentials>,
    trust: ArcSwapOption<Trust>,
    /// Counts changes of the certificate or of the bundle.
    changed: watch::Sender<u64>,
    held: Mutex<KeyMaterial>,
    pub(crate) counts: IdentityCounts,
}

/// What [`Credentials`] are made of.
#[derive(Default)]
struct KeyMaterial {
    key: Vec<u8>,
    chain: Vec<CertificateDer<'static>>,
    bundle: Option<TrustBundle>,
    /// The bundle came by discovery, which is told of every change; a later answer to Certify is not
    /// newer.
    discovered: bool,
    /// When the certificate came, in seconds since 1970.
    since: u64,
    last_error: Option<String>,
}

/// For the metrics.
#[derive(Default)]
pub struct IdentityCounts {
    /// In seconds since 1970; 0: there is no certificate.
    pub certificate_expiry: AtomicU64,
    pub renewals_succeeded: AtomicU64,
    pub renewals_failed: AtomicU64,
    pub accepted_full: AtomicU64,
    pub accepted_resumed: AtomicU64,
    pub accept_failed: AtomicU64,
    pub connected_full: AtomicU64,
    pub connected_resumed: AtomicU64,
    pub connect_failed: AtomicU64,
    /// Connections and requests let in from callers that prove nothing.
    pub plaintext_inbound: AtomicU64,
    ended: AtomicBool,
}

impl Identity {
    /// None where the control plane is dialled without TLS: then there are no identities.
    pub fn from_settings(settings: &Settings) -> io::Result<Option<Arc<Self>>> {
        let Some(uri) = &settings.control_plane else { return Ok(None) };
        if uri.scheme_str() != Some("https") {
            warn!(
                control_plane = %uri,
                "without identity: calls between proxies are plaintext and prove nothing; an https \
                 address of the control plane turns identity on"
            );
            return Ok(None);
        }
        let wrong = |why: String| io::Error::new(io::ErrorKind::InvalidInput, why);
        let trust_bundle = settings.trust_bundle.clone().ok_or_else(|| {
            wrong(
                "an https --control-plane needs --trust-bundle FILE, the roots to trust".to_owned(),
            )
        })?;
        if settings.token_file.is_none() {
            return Err(wrong("an https --control-plane needs --token-file FILE".to_owned()));
        }
        let copy = match (settings.persist_identity, &settings.state_dir) {
            (false, _) => None,
            (true, Some(dir)) => Some(DiskCopy::new(dir.join("identity"))?),
            (true, None) => {
                return Err(wrong("--persist-identity needs --state-dir".to_owned()));
            }
        };
        let identity = Self {
            namespace: settings.namespace.clone(),
            service_account: settings.service_account.clone(),
            node: settings.uid(),
            trust_bundle,
            copy,
            current: ArcSwapOption::empty(),
            trust: ArcSwapOption::empty(),
            changed: watch::Sender::new(0),
            held: Mutex::default(),
            counts: IdentityCounts::default(),
        };
        let roots = std::fs::read(&identity.trust_bundle);
        parse_roots(&identity.trust_bundle, roots).map_err(wrong)?;
        identity.restore();
        Ok(Some(Arc::new(identity)))
    }

    /// What to prove with now, or why there is nothing.
    pub fn current(&self) -> Result<Arc<Credentials>, String> {
        let current = self.current.load_full();
        match current {
            Some(current) if !current.ended(unix_now()) => Ok(current),
            _ => Err(self.problem().unwrap_or_else(|| "no certificate".to_owned())),
        }
    }

    /// The bundle in force.
    pub fn trust(&self) -> Option<Arc<Trust>> {
        self.trust.load_full()
    }

    /// Changes with the certificate and with the bundle.
    pub fn generation(&self) -> u64 {
        *self.changed.borrow()
    }

    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changed.subscribe()
    }

    pub fn counts(&self) -> &IdentityCounts {
        &self.counts
    }

    /// Why this proxy can prove nothing, if it cannot.
    pub fn problem(&self) -> Option<String> {
        let held = lock(&self.held);
        let why = || match &held.last_error {
            Some(error) => format!("; the last attempt: {error}"),
            None => "; none has been asked for yet".to_owned(),
        };
        match &*self.current.load() {
            None if held.chain.is_empty() => Some(format!("no certificate{}", why())),
            None => Some(format!("the certificate cannot be used{}", why())),
            Some(current) => {
                let now = unix_now();
                current.ended(now).then(|| {
                    let ago = now.saturating_sub(current.not_after);
                    format!("the certificate expired {ago} s ago{}", why())
                })
            }
        }
    }

    /// Puts a new certificate in force. `bundle`: what came with it.
    pub fn install(
        &self,
        key: Vec<u8>,
        chain: Vec<CertificateDer<'static>>,
        bundle: TrustBundle,
        since: u64,
    ) -> Result<(), Unusable> {
        let mut held = lock(&self.held);
        let kept = held.bundle.clone().filter(|_| held.discovered);
        let bundle = kept.unwrap_or(bundle);
        let trust = self.trust_of(&held, &bundle)?;
        let made = self.compile(&key, &chain, &trust)?;
        (held.key, held.chain, held.since) = (key, chain, since);
        held.bundle = Some(bundle);
        held.last_error = None;
        self.put(&mut held, Some(Arc::new(made)), trust);
        Ok(())
    }

    /// The control plane distributes another bundle.
    pub fn set_bundle(&self, bundle: &TrustBundle) -> Result<(), FieldError> {
        let mut held = lock(&self.held);
        held.discovered = true;
        if held.bundle.as_ref() == Some(bundle) {
            return Ok(());
        }
        let trust = Arc::new(Trust::new(bundle)?);
        held.bundle = Some(bundle.clone());
        let made = (!held.chain.is_empty())
            .then(|| self.compile(&held.key, &held.chain, &trust))
            .transpose();
        let made = match made {
            Ok(made) => made.map(Arc::new),
            Err(error) => {
                held.last_error = Some(error.to_string());
                self.current.load_full()
            }
        };
        info!(roots = bundle.roots.len(), "another trust bundle is in force");
        self.put(&mut held, made, trust);
        Ok(())
    }

    fn trust_of(&self, held: &KeyMaterial, bundle: &TrustBundle) -> Result<Arc<Trust>, Unusable> {
        if held.bundle.as_ref() == Some(bundle)
            && let Some(trust) = self.trust()
        {
            return Ok(trust);
        }
        let trust = Trust::new(bundle)
            .map_err(|e| Unusable::Tls(rustls::Error::General(format!("the trust bundle: {e}"))))?;
        Ok(Arc::new(trust))
    }

    fn compile(
        &self,
        key: &[u8],
        chain: &[CertificateDer<'static>],
        trust: &Arc<Trust>,
    ) -> Result<Credentials, Unusable> {
        let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.to_vec()));
        let id = (self.namespace.as_str(), self.service_account.as_str());
        Credentials::new(chain, key, Arc::clone(trust), id)
    }

    /// The trust first, so that nobody is judged by an older one than their own certificate's.
    fn put(&self, held: &mut KeyMaterial, made: Option<Arc<Credentials>>, trust: Arc<Trust>) {
        self.trust.store(Some(trust));
        if let Some(made) = &made {
            self.counts.certificate_expiry.store(made.not_after, Relaxed);
        }
        self.current.store(made);
        self.persist(held);
        self.changed.send_modify(|generation| *generation += 1);
    }

    fn persist(&self, held: &KeyMaterial) {
        let (Some(copy), Some(bundle)) = (&self.copy, &held.bundle) else { return };
        if !held.chain.is_empty() {
            copy.store(SavedIdentity::new(&held.key, &held.chain, bundle, held.since));
        }
    }

    /// Waits until the copy on disk, if any, is the newest, at most for `limit`; whether it is.
    pub async fn persisted(&self, limit: Duration) -> bool {
        match &self.copy {
            Some(copy) => copy.finish(limit).await,
            None => true,
        }
    }

    /// From the disk copy, if there is one that still holds.
    fn restore(&self) {
        let Some(kept) = self.copy.as_ref().and_then(DiskCopy::load) else { return };
        let ended = kept.since;
        match kept.parts() {
            Ok((key, chain, bundle)) => match self.install(key, chain, bundle, ended) {
                Ok(()) => info!("restored the identity from disk"),
                Err(error) => warn!(%error, "cannot use the identity on disk, starting without"),
            },
            Err(error) => warn!(%error, "cannot use the identity on disk, starting without"),
        }
    }

    /// When the certificate in force should be renewed, as a share of its life. None: at once.
    pub(crate) fn due(&self, share: f64) -> Option<u64> {
        let current = self.current.load_full()?;
        // Not `clamp`, which panics: what signed the certificate may have its end before its beginning.
        let since = lock(&self.held).since.max(current.not_before).min(current.not_after);
        let life = current.not_after - since;
        Some(since + (life as f64 * share) as u64)
    }

    /// The certificate was issued under another root than the one that issues now.
    pub(crate) fn outdated(&self) -> bool {
        let Some(current) = self.current.load_full() else { return false };
        current.trust.issuing.is_some() && current.root != current.trust.issuing
    }

    pub(crate) fn failed(&self, why: &str) {
        lock(&self.held).last_error = Some(why.to_owned());
    }

    /// Says so while the end of the certificate comes near, once per step.
    pub(crate) fn alarm(&self, warned: &mut bool) {
        let Some(current) = self.current.load_full() else { return };
        let now = unix_now();
        let left = current.not_after.saturating_sub(now);
        let life = current.not_after.saturating_sub(current.not_before).max(1);
        let ended = current.ended(now);
        if ended && !self.counts.ended.swap(true, Relaxed) {
            let why = self.problem().unwrap_or_default();
            tracing::error!(id = %current.id, why, "the certificate has expired: calls between proxies fail until it is renewed");
        }
        if !ended {
            self.counts.ended.store(false, Relaxed);
        }
        let near = left * 6 < life;
        if near && !ended && !*warned {
            let why = lock(&self.held).last_error.clone().unwrap_or_default();
            warn!(id = %current.id, seconds_left = left, why, "the certificate expires soon and could not be renewed");
        }
        *warned = near;
    }

    async fn file_roots(&self) -> Result<Vec<CertificateDer<'static>>, String> {
        parse_roots(&self.trust_bundle, read(&self.trust_bundle).await)
    }

    /// The configuration for calling the control plane: trusted are the file's roots and those it
    /// has distributed since. `own`: as whom.
    pub async fn control_plane(
        &self,
        own: Option<&Credentials>,
    ) -> Result<ClientCredentials, String> {
        let mut roots: Vec<Vec<u8>> =
            self.file_roots().await?.into_iter().map(|root| root.to_vec()).collect();
        let mut domain = None;
        if let Some(bundle) = &lock(&self.held).bundle {
            roots.extend(bundle.roots.iter().cloned());
            domain = Some(bundle.trust_domain.clone());
        }
        let mut trust =
            Trust::of_roots(roots.iter().map(Vec::as_slice)).map_err(|e| e.to_string())?;
        trust.domain = domain;
        ClientCredentials::new(own, Arc::new(trust), RequiredIdentity::ControlPlane, &[b"h2"])
            .map_err(|e| e.to_string())
    }

    /// Completes when another certificate than now is in force.
    pub async fn renewed(&self) {
        let mut changed = self.subscribe();
        let leaf = |identity: &Self| identity.current.load().as_ref().map(|own| own.leaf);
        let before = leaf(self);
        while leaf(self) == before {
            // The sender lives as long as `self`.
            let _ = changed.changed().await;
        }
    }

    /// Waits until there is a certificate that is valid now.
    pub async fn available(&self, limit: Duration) -> Result<Arc<Credentials>, String> {
        let mut changed = self.subscribe();
        let wait = async {
            loop {
                if let Ok(current) = self.current() {
                    return current;
                }
                // The sender lives as long as `self`.
                let _ = changed.changed().await;
            }
        };
        match tokio::time::timeout(limit, wait).await {
            Ok(current) => Ok(current),
            Err(_) => self.current(),
        }
    }

    /// For the admin server.
    pub fn describe(&self) -> Value {
        let held = lock(&self.held);
        let current = self.current.load_full();
        let roots =
            self.trust().map(|trust| trust.roots.iter().map(|r| hex(r)).collect::<Vec<_>>());
        let now = unix_now();
        json!({
            "id": current.as_ref().map(|c| c.id.as_str().to_owned()),
            "notBefore": current.as_ref().map(|c| c.not_before),
            "notAfter": current.as_ref().map(|c| c.not_after),
            "secondsLeft": current.as_ref().map(|c| c.not_after.saturating_sub(now)),
            "root": current.as_ref().and_then(|c| c.root).map(|root| hex(&root)),
            "trustDomain": held.bundle.as_ref().map(|b| b.trust_domain.to_string()),
            "roots": roots,
            "issuingRoot": held.bundle.as_ref().map(|b| hex(&b.issuing_root)),
            "renewals": self.counts.renewals_succeeded.load(Relaxed),
            "failedRenewals": self.counts.renewals_failed.load(Relaxed),
            "lastError": held.last_error,
            "persisted": self.copy.as_ref().is_some_and(DiskCopy::is_good),
        })
    }
}

fn parse_roots(
    path: &Path,
    read: io::Result<Vec<u8>>,
) -> Result<Vec<CertificateDer<'static>>, String> {
    let named = |why: String| format!("--trust-bundle {}: {why}", path.display());
    let pem = read.map_err(|e| named(e.to_string()))?;
    let roots: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let roots = roots.map_err(|e| named(e.to_string()))?;
    if roots.is_empty() {
        return Err(named("it contains no PEM certificate".to_owned()));
    }
    Ok(roots)
}

#[cfg(test)]
mod tests;
