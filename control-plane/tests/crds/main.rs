//! The CRDs: examples pass them, wrong objects do not, and the message names the field.
//!
//! Without a cluster the schemas are asked, as far as a schema alone can tell ([`structural`]). Rules in CEL are asked
//! of a real API server, where `OUTRIGGER_TEST_KUBECONFIG` names the kubeconfig of one ([`cluster`]): the CRDs are
//! applied there and stay, everything else is a dry run.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod cluster;
mod examples;
#[allow(dead_code, reason = "other tests use the rest of it")]
#[path = "../it/manifests.rs"]
mod manifests;
mod schema;
mod structural;
mod wrong;

use std::sync::LazyLock;

use outrigger_control_plane::crds::{self, Crd};
use serde_json::Value;

static CRDS: LazyLock<Vec<Crd>> = LazyLock::new(crds::all);

/// The CRD of an object of ours.
fn crd_of(object: &Value) -> &'static Crd {
    let kind = object["kind"].as_str().unwrap_or_default();
    CRDS.iter().find(|crd| crd.kind == kind).unwrap_or_else(|| panic!("there is no CRD of {kind}"))
}
