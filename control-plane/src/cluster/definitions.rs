//! The definitions of our kinds in a cluster: applied by the version that needs them, and taken away after it.

use std::time::Duration;

use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{
    DeleteParams, DynamicObject, ListParams, Patch, PatchParams, Preconditions, PropagationPolicy,
};
use kube::core::{ApiResource, GroupVersionKind, NamespaceResourceScope};
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;

use crate::crds::{self, Crd};
use crate::store::cluster::MANAGED_BY_US;
use crate::translate::GROUP;

/// Whose fields the definitions are.
const MANAGER: &str = "outrigger-crds";
/// How long the API server may take to serve a kind that was defined.
const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(200);

/// What becomes of the definitions when the mesh leaves a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Remove {
    /// Those go of which there is no object.
    Unused,
    /// All of them stay.
    Keep,
}

type Error = Box<dyn std::error::Error + Send + Sync>;

/// Makes the cluster serve every kind as this version knows it, and says of each that it does.
pub async fn apply(client: &Client) -> Result<Vec<String>, Error> {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let params = PatchParams::apply(MANAGER).force();
    let mut said = Vec::new();
    for crd in crds::all() {
        let name = name(&crd);
        let before = api.get_opt(&name).await?.and_then(|before| before.resource_version());
        let applied = api.patch(&name, &params, &Patch::Apply(&crd.definition)).await?;
        let what = match before {
            None => "created",
            Some(before) if Some(&before) == applied.resource_version().as_ref() => "unchanged",
            Some(_) => "updated",
        };
        established(&api, &name).await?;
        said.push(format!("{name} {what}"));
    }
    Ok(said)
}

async fn established(api: &Api<CustomResourceDefinition>, name: &str) -> Result<(), Error> {
    let is_served = |crd: &CustomResourceDefinition| {
        let conditions = crd.status.iter().filter_map(|status| status.conditions.as_ref());
        let mut conditions = conditions.flatten();
        conditions.any(|condition| condition.type_ == "Established" && condition.status == "True")
    };
    let served = async {
        while !is_served(&api.get(name).await?) {
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    };
    match tokio::time::timeout(LIMIT, served).await {
        Ok(served) => served,
        Err(_) => Err(format!("{name} was applied and is not served after {LIMIT:?}").into()),
    }
}

/// Takes away what the control plane has kept in its namespace and, if so wished, definitions that nobody uses.
pub async fn remove(client: &Client, namespace: &str, how: Remove) -> Result<Vec<String>, Error> {
    let mut said = kept::<Secret>(client, namespace).await?;
    said.extend(kept::<ConfigMap>(client, namespace).await?);
    said.extend(kept::<Lease>(client, namespace).await?);
    if how == Remove::Keep {
        return Ok(said);
    }
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    for crd in crds::all() {
        let name = name(&crd);
        let Some(found) = api.get_opt(&name).await? else { continue };
        let kind = GroupVersionKind::gvk(GROUP, "v1alpha1", &crd.kind);
        let resource = ApiResource::from_gvk_with_plural(&kind, &crd.plural);
        let objects = Api::<DynamicObject>::all_with(client.clone(), &resource);
        if !objects.list(&ListParams::default().limit(1)).await?.items.is_empty() {
            said.push(format!("{name} stays: there are objects of it"));
            continue;
        }
        let version = found.resource_version();
        let preconditions = Some(Preconditions { resource_version: version, uid: found.uid() });
        let params = DeleteParams { preconditions, ..DeleteParams::default() };
        api.delete(&name, &params).await?;
        said.push(format!("{name} removed"));
    }
    Ok(said)
}

/// Removes what is marked as ours.
async fn kept<K>(client: &Client, namespace: &str) -> Result<Vec<String>, Error>
where
    K: Resource<Scope = NamespaceResourceScope, DynamicType = ()>
        + Clone
        + DeserializeOwned
        + std::fmt::Debug,
{
    let api = Api::<K>::namespaced(client.clone(), namespace);
    let kind = K::kind(&());
    let mut said = Vec::new();
    for object in api.list(&ListParams::default().labels(MANAGED_BY_US)).await? {
        let name = object.name_any();
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default()
        };
        match api.delete(&name, &params).await {
            Ok(_) => said.push(format!("{kind} {namespace}/{name} removed")),
            Err(kube::Error::Api(status)) if status.code == 404 => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(said)
}

fn name(crd: &Crd) -> String {
    format!("{}.{GROUP}", crd.plural)
}
