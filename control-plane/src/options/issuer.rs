//! The flags about an issuing certificate of the user.

use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;

use crate::ca::files::{CaFiles, CaSecret, IssuerSource};
use crate::store::cluster::ClusterStore;

#[derive(Clone, Debug, Args)]
pub struct IssuerOptions {
    /// Issue under this certificate instead of a generated root: PEM, the issuing certificate first, then the
    /// intermediates, without the root. Reloaded when it changes.
    #[arg(
        long,
        env = "OUTRIGGER_CA_CERTIFICATE",
        value_name = "FILE",
        requires_all = ["ca_key", "ca_root"]
    )]
    pub ca_certificate: Option<PathBuf>,

    /// The key of --ca-certificate, in PEM.
    #[arg(
        long,
        env = "OUTRIGGER_CA_KEY",
        value_name = "FILE",
        requires_all = ["ca_certificate", "ca_root"]
    )]
    pub ca_key: Option<PathBuf>,

    /// The root of --ca-certificate, in PEM; during a rotation several.
    #[arg(
        long,
        env = "OUTRIGGER_CA_ROOT",
        value_name = "FILE",
        requires_all = ["ca_certificate", "ca_key"]
    )]
    pub ca_root: Option<PathBuf>,

    /// The same from a Secret in the control plane's namespace, as cert-manager writes it: tls.crt, tls.key and
    /// ca.crt. Reloaded when it changes.
    #[arg(
        long,
        env = "OUTRIGGER_ISSUER_SECRET",
        value_name = "NAME",
        requires = "kubernetes",
        conflicts_with = "ca_certificate"
    )]
    pub issuer_secret: Option<String>,
}

impl IssuerOptions {
    /// Where the user's issuing certificate is, if there is one.
    pub fn source(&self, cluster: Option<&Arc<ClusterStore>>) -> Option<IssuerSource> {
        if let (Some(name), Some(cluster)) = (self.issuer_secret.clone(), cluster.cloned()) {
            return Some(IssuerSource::Secret(CaSecret { cluster, name }));
        }
        // The three flags come together or not at all.
        let files = CaFiles {
            certificate: self.ca_certificate.clone()?,
            key: self.ca_key.clone()?,
            root: self.ca_root.clone()?,
        };
        Some(IssuerSource::Files(files))
    }
}
