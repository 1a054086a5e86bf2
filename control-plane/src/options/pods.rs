//! The flags about pods of a cluster: how they prove themselves, and the webhook server, which the API server
//! asks about them and other objects.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;

use clap::Args;

use crate::cluster::review::AUDIENCE;

#[derive(Clone, Debug, Args)]
pub struct PodOptions {
    /// Audience of the projected service-account tokens that pods authenticate with.
    #[arg(
        long,
        env = "OUTRIGGER_TOKEN_AUDIENCE",
        value_name = "AUDIENCE",
        default_value = AUDIENCE,
        requires = "kubernetes"
    )]
    pub token_audience: String,

    /// Address of the admission webhook server (HTTPS). Unset: there is no admission, and an invalid object is stored
    /// and not put in force.
    #[arg(
        long = "webhook",
        id = "webhook",
        env = "OUTRIGGER_WEBHOOK",
        value_name = "IP:PORT",
        requires_all = ["kubernetes", "webhook_host"]
    )]
    pub address: Option<SocketAddr>,

    /// Host name by which the API server calls the webhook: SERVICE.NAMESPACE.svc of its Service.
    #[arg(
        long = "webhook-host",
        id = "webhook_host",
        env = "OUTRIGGER_WEBHOOK_HOST",
        value_name = "HOST"
    )]
    pub host: Option<String>,

    /// Name of the ValidatingWebhookConfiguration and the MutatingWebhookConfiguration that get the mesh's roots.
    #[arg(
        long = "webhook-configuration",
        env = "OUTRIGGER_WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        default_value = "outrigger",
        requires = "kubernetes"
    )]
    pub configuration: String,

    /// File with the injection settings (JSON: image, controlPlane and more, see docs/injection.md); enables
    /// injection by the webhook, at /inject.
    #[arg(long, env = "OUTRIGGER_INJECT", value_name = "FILE", requires = "webhook")]
    pub inject: Option<PathBuf>,

    /// Upgrades outdated proxies of running pods to the image of --inject, this many pods at a time, without
    /// restarting their apps. Unset: outdated proxies are only reported in Events, and `outrigger upgrade` upgrades
    /// them.
    #[arg(long, env = "OUTRIGGER_UPGRADE_PROXIES", value_name = "PODS", requires = "inject")]
    pub upgrade_proxies: Option<NonZeroU16>,
}
