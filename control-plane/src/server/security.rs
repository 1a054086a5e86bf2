//! What a mesh with identities has more: the authority, TLS with the control plane's own certificate, and the
//! webhook server, whose certificate is under the same roots.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use kube::Client;
use tokio::task::JoinHandle;

use super::{StartError, bind};
use crate::admission::{Webhook, WebhookBundle};
use crate::ca::Authority;
use crate::ca::own::{OwnCertificate, Subject};
use crate::connection::Tls;
use crate::control;
use crate::metrics::Metrics;
use crate::options::{Mtls, Options, Switch};
use crate::publish::Publisher;
use crate::replica::Replica;
use crate::store::cluster::ClusterStore;

/// What a mesh with identities has more.
#[derive(Debug)]
pub(super) struct ServerSecurity {
    /// Where the commands of `trust` come in, if anywhere.
    pub(super) state_dir: Option<PathBuf>,
    pub(super) replica: Arc<Replica>,
    pub(super) authority: Arc<Authority>,
    pub(super) own: Arc<OwnCertificate>,
    pub(super) tls: Tls,
}

impl ServerSecurity {
    /// `None` in a mesh without identities.
    pub(super) fn open(
        options: &Options,
        replica: Option<&Arc<Replica>>,
        cluster: Option<&Arc<ClusterStore>>,
    ) -> Result<Option<Self>, StartError> {
        if options.identity == Switch::Off {
            tracing::warn!(
                "--identity off: everything is plaintext, and a proxy is taken for who it says to be"
            );
            return match options.mtls {
                Mtls::Permissive => Ok(None),
                Mtls::Strict => Err(StartError::StrictWithoutIdentity),
            };
        }
        let state_dir = options.state_dir.clone();
        let replica = replica.ok_or(StartError::NoStateDir)?.clone();
        let authority = Authority::open(
            replica.clone(),
            options.trust_domain.clone(),
            options.certificate_lifetime,
            options.issuer.source(cluster),
        );
        let authority = authority.map_err(|error| StartError::Authority(error.to_string()))?;
        let authority = Arc::new(authority);
        let own = Arc::new(
            OwnCertificate::new(&authority, Subject::ControlPlane)
                .map_err(StartError::Authority)?,
        );
        let tls = Tls::new(authority.clone(), own.clone()).map_err(StartError::Authority)?;
        Ok(Some(Self { state_dir, replica, authority, own, tls }))
    }

    /// Starts the webhook server, with a certificate of its own, and what tells the API server of the roots.
    pub(super) fn webhook(
        &self,
        options: &Options,
        address: SocketAddr,
        client: &Client,
        webhook: Webhook,
    ) -> Result<[JoinHandle<()>; 3], StartError> {
        let host = options.pods.host.clone().unwrap_or_default();
        let authority = self.authority.clone();
        let own = OwnCertificate::new(&authority, Subject::Host(host));
        let own = Arc::new(own.map_err(StartError::Webhook)?);
        let listener = bind("--webhook", address)?;
        let renewed = own.clone().run(authority.clone(), webhook.metrics.clone());
        let serve = webhook.serve(listener, own).map_err(StartError::Webhook)?;
        let name = options.pods.configuration.clone();
        let bundle = WebhookBundle { client: client.clone(), authority, name };
        Ok([tokio::spawn(renewed), tokio::spawn(serve), tokio::spawn(bundle.run())])
    }

    pub(super) fn publish(&self, publisher: &Publisher) {
        let bundle = self.authority.in_force().bundle.clone();
        publisher.commit(|index| index.set_trust(bundle));
    }

    /// Starts everything that goes on beside the gRPC server.
    pub(super) fn run(
        &self,
        publisher: &Arc<Publisher>,
        metrics: &Arc<Metrics>,
    ) -> Result<Vec<JoinHandle<()>>, StartError> {
        let control = match &self.state_dir {
            Some(folder) => {
                let path = folder.join(control::socket(&self.replica.name));
                let listener = control::bind(folder, &self.replica.name)
                    .map_err(|error| StartError::Control { path, error })?;
                Some(tokio::spawn(control::serve(listener, self.authority.clone())))
            }
            None => None,
        };
        let (authority, publisher) = (self.authority.clone(), publisher.clone());
        let mut changes = authority.changes();
        let publishing = async move {
            while changes.changed().await.is_ok() {
                let bundle = changes.borrow_and_update().bundle.clone();
                publisher.commit(|index| index.set_trust(bundle));
            }
        };
        let mut tasks = vec![
            tokio::spawn(publishing),
            tokio::spawn(self.authority.ledger.clone().run()),
            tokio::spawn(self.authority.clone().follow_others()),
            tokio::spawn(self.authority.clone().follow_given()),
            tokio::spawn(self.own.clone().run(self.authority.clone(), metrics.clone())),
        ];
        tasks.extend(control);
        Ok(tasks)
    }
}
