//! Taking over roots and issuer that another replica has put in force, and certificates that are handed out
//! between the steps of others.

use std::io;
use std::sync::Arc;

use super::issue::Issuer;
use super::ledger::ReplicaTrust;
use super::root::RootId;
use super::rotation::LEASE;
use super::{Authority, AuthorityState, CertifyError, InForce, store};

impl Authority {
    /// Follows what other replicas do to the roots, and what they write of their proxies.
    pub async fn follow_others(self: Arc<Self>) {
        loop {
            tokio::time::sleep(self.replica.timing.poll).await;
            let authority = self.clone();
            let _ = tokio::task::spawn_blocking(move || authority.look()).await;
        }
    }

    /// Takes over roots, and reads what other replicas have issued and who is connected to them.
    pub fn look(&self) {
        {
            let mut state = self.lock();
            let problem = self.take_over(&mut state).err().map(|error| error.to_string());
            // Said once, not every second.
            if let Some(problem) = problem.as_ref().filter(|_| problem != state.problem) {
                tracing::error!(
                    problem,
                    "could not take over the roots; those of before stay in force"
                );
            }
            state.problem = problem;
        }
        if let Err(error) = self.ledger.refresh() {
            tracing::error!(%error, "could not read what other replicas have issued");
        }
    }

    /// Puts in force what is in the store, if that is something else.
    pub(super) fn take_over(&self, state: &mut AuthorityState) -> io::Result<()> {
        let version = self.replica.store.version(&store::roots())?;
        if version.is_some() && version == state.version {
            return Ok(());
        }
        let before = self.in_force();
        let Some(stored) = store::read(&*self.replica.store, &self.trust_domain)? else {
            let place = self.replica.store.place(&store::roots());
            tracing::error!(place, "the roots were removed while they are in force: put back");
            state.version = None;
            self.write(state, &before)?;
            self.stand(state);
            return Ok(());
        };
        let issuer = match stored.roots.iter().find(|root| root.id == stored.issuing) {
            Some(root) if root.id != before.issuer.root && self.source.is_none() => {
                let problem = |problem| io::Error::new(io::ErrorKind::InvalidData, problem);
                Arc::new(Issuer::from_root(root).map_err(problem)?)
            }
            // A replica that is given an issuing certificate issues as that says.
            _ => before.issuer.clone(),
        };
        let mut roots = stored.roots;
        if roots.iter().all(|root| root.id != issuer.root) {
            roots.extend(before.root(issuer.root).cloned());
        }
        let new = InForce::new(&self.trust_domain, roots, issuer);
        state.version = Some(stored.version);
        if new.version != before.version {
            tracing::info!(issuing = %new.issuer.root, roots = new.roots.len(), "took over the roots");
            self.announce(Arc::new(new));
        }
        self.stand(state);
        Ok(())
    }

    /// Whether a certificate that was issued under `root`, and noted, may be handed out: whether every step of
    /// another replica has seen it or will. Otherwise the client should ask again.
    ///
    /// The certificate is in the store by now. A step takes its lease first and reads the ledger then, so
    /// either the step finds the certificate or this finds the lease, or what the step has done.
    pub fn confirm(&self, root: RootId) -> Result<(), CertifyError> {
        if !self.ledger.has_others() {
            return Ok(());
        }
        if self.ledger.is_unwritten() {
            return Err(CertifyError::Unconfirmed("it could not be written down".to_owned()));
        }
        let unconfirmed =
            |error: &dyn std::fmt::Display| CertifyError::Unconfirmed(error.to_string());
        let held = self.replica.store.holder(LEASE).map_err(|error| unconfirmed(&error))?;
        if let Some(held) = held.filter(|held| held.holder != self.replica.name.as_str()) {
            let problem = format!("replica {} is changing the roots", held.holder);
            return Err(CertifyError::Unconfirmed(problem));
        }
        self.take_over(&mut self.lock()).map_err(|error| unconfirmed(&error))?;
        match self.in_force().root(root) {
            Some(_) => Ok(()),
            None => Err(unconfirmed(&format_args!("root {root} has just been removed"))),
        }
    }

    /// Says to other replicas what is in force here.
    pub(super) fn stand(&self, state: &AuthorityState) {
        let issuing = Some(self.in_force().issuer.root);
        let (roots, wanted) = (state.version.clone(), state.wanted.clone());
        self.ledger.stand(ReplicaTrust { roots, issuing, wanted });
    }
}
