//! The flags about pods of a cluster: how they prove themselves, and the webhook server, which the API server
//! asks about them and other objects.

use std::net::SocketAddr;
use std::num::NonZeroU16;
use std::path::PathBuf;

use clap::Args;

use crate::cluster::review::AUDIENCE;

#[derive(Clone, Debug, Args)]
pub struct PodOptions {
    /// What the projected service-account tokens are for that pods prove themselves with.
    #[arg(
        long,
        env = "OUTRIGGER_TOKEN_AUDIENCE",
        value_name = "AUDIENCE",
        default_value = AUDIENCE,
        requires = "kubernetes"
    )]
    pub token_audience: String,

    /// Address of the webhook server, which the API server asks about objects before it stores them (HTTPS);
    /// without it nobody is asked, and a wrong object is stored and not put in force.
    #[arg(
        long = "webhook",
        id = "webhook",
        env = "OUTRIGGER_WEBHOOK",
        value_name = "IP:PORT",
        requires_all = ["kubernetes", "webhook_host"]
    )]
    pub address: Option<SocketAddr>,

    /// The name by which the API server calls the webhook: SERVICE.NAMESPACE.svc of its Service.
    #[arg(
        long = "webhook-host",
        id = "webhook_host",
        env = "OUTRIGGER_WEBHOOK_HOST",
        value_name = "HOST"
    )]
    pub host: Option<String>,

    /// What the ValidatingWebhookConfiguration and the MutatingWebhookConfiguration are called that
    /// are given the mesh's roots.
    #[arg(
        long = "webhook-configuration",
        env = "OUTRIGGER_WEBHOOK_CONFIGURATION",
        value_name = "NAME",
        default_value = "outrigger",
        requires = "kubernetes"
    )]
    pub configuration: String,

    /// File with what pods are injected with (JSON: image, controlPlane and more, see docs/injection.md), which
    /// the webhook then does at /inject.
    #[arg(long, env = "OUTRIGGER_INJECT", value_name = "FILE", requires = "webhook")]
    pub inject: Option<PathBuf>,

    /// Replaces proxies of other images than that of --inject in running pods, so many pods at a time, without
    /// restarting their apps; unless set they are named in Events alone, and `outrigger upgrade` replaces them.
    #[arg(long, env = "OUTRIGGER_UPGRADE_PROXIES", value_name = "PODS", requires = "inject")]
    pub upgrade_proxies: Option<NonZeroU16>,
}
