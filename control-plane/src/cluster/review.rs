//! Who a pod is: its projected service-account token, reviewed by the API server (TokenReview), and the pod that
//! the token is bound to.
//!
//! The API server says whether a token is genuine, for us, not expired, and bound to a pod that exists. Then
//! that pod must run under the account, and the request must come from one of its addresses: a token that was
//! stolen is of no use elsewhere. What the token's owner says itself counts for nothing.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::authentication::v1::{
    TokenReview, TokenReviewSpec, TokenReviewStatus, UserInfo,
};
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use kube::core::{ApiResource, Object};
use outrigger_core::address::LocalEndpoints;
use tokio::sync::Semaphore;

use crate::grant::Grant;
use crate::object::Workload;
use crate::publish::Publisher;
use crate::translate::Report;
use crate::translate::pod::{self, PodSpec, PodStatus};

/// What a pod's token is for unless a flag says otherwise.
pub const AUDIENCE: &str = "outrigger.dev";
/// How long the API server may take.
const LIMIT: Duration = Duration::from_secs(5);
/// How long a pod is waited for that has no address yet, and how often it is looked at.
const ADDRESS: Duration = Duration::from_secs(3);
const LOOK: Duration = Duration::from_millis(100);
/// Reviews at one time: more wait, and cost the API server nothing.
const AT_ONCE: usize = 16;
/// Bytes of a token; those of Kubernetes have about a thousand.
const MAX_TOKEN: usize = 8 * 1024;
/// Keys of what the API server says of a token's owner.
const POD_NAME: &str = "authentication.kubernetes.io/pod-name";
const POD_UID: &str = "authentication.kubernetes.io/pod-uid";
const ACCOUNT: &str = "system:serviceaccount:";

/// Why a token gives no identity. Whatever is in it, the token itself is never repeated.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum ReviewError {
    #[error("the token is no service-account token of this cluster: {0}")]
    Refused(String),
    #[error("the token is for {0} and not for a service account")]
    NoAccount(String),
    #[error("the token is bound to no pod: it must be projected into the pod that uses it")]
    NoPod,
    #[error("the token's pod {0} has no address yet")]
    NoAddress(String),
    #[error("the token's pod {0} is not there, or has ended")]
    PodGone(String),
    #[error("the token's pod {0} has been replaced by another one of the same name")]
    OtherPod(String),
    #[error("the token's pod {pod} runs as {runs_as} and not as {account}")]
    OtherAccount { pod: String, runs_as: String, account: String },
    #[error("the token's pod {pod} is at {addresses} and not at {peer}")]
    Elsewhere { pod: String, addresses: String, peer: IpAddr },
    #[error("the API server could not be asked about the token: {0}")]
    Unavailable(String),
}

impl ReviewError {
    /// Asking again later may help.
    pub fn is_passing(&self) -> bool {
        matches!(self, Self::Unavailable(_) | Self::PodGone(_))
    }
}

/// What a token has proven.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PodProof {
    pub namespace: String,
    pub service_account: String,
    /// Binds a certificate to the pod.
    pub grant: Grant,
}

pub struct Reviewer {
    reviews: Api<TokenReview>,
    client: Client,
    publisher: Arc<Publisher>,
    audience: String,
    turns: Semaphore,
}

impl std::fmt::Debug for Reviewer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reviewer")
    }
}

/// What the API server says of a genuine token.
#[derive(Debug, PartialEq, Eq)]
struct Owner {
    namespace: String,
    account: String,
    pod: String,
    uid: String,
}

impl Reviewer {
    pub fn new(client: Client, publisher: Arc<Publisher>, audience: String) -> Self {
        let reviews = Api::all(client.clone());
        Self { reviews, client, publisher, audience, turns: Semaphore::new(AT_ONCE) }
    }

    /// Finds out whose token it is that came from `peer`.
    pub async fn review(&self, token: &str, peer: IpAddr) -> Result<PodProof, ReviewError> {
        if token.len() > MAX_TOKEN || token.split('.').count() != 3 {
            return Err(ReviewError::Refused("it is not a JSON Web Token".to_owned()));
        }
        let owner = owner(self.ask(token).await?, &self.audience)?;
        let pod = self.pod(&owner).await?;
        check(&owner, &pod, peer)?;
        let grant = Grant { workloads: vec![owner.pod], pod: Some(owner.uid), ..Grant::default() };
        Ok(PodProof { namespace: owner.namespace, service_account: owner.account, grant })
    }

    /// Whether the pod that a certificate was issued to is still there, and is who asks: then it may have
    /// another one without a token.
    pub fn renew(&self, uid: &str, peer: IpAddr) -> Result<(), ReviewError> {
        let view = self.publisher.view();
        let pod = view.index.pod(uid).ok_or_else(|| ReviewError::PodGone(uid.to_owned()))?;
        is_at(pod, peer)
    }

    async fn ask(&self, token: &str) -> Result<TokenReviewStatus, ReviewError> {
        let spec = TokenReviewSpec {
            token: Some(token.to_owned()),
            audiences: Some(vec![self.audience.clone()]),
        };
        let review = TokenReview { metadata: ObjectMeta::default(), spec, status: None };
        let unavailable =
            |error: &dyn std::fmt::Display| ReviewError::Unavailable(error.to_string());
        let asked = async {
            // It is never closed.
            let _turn = self.turns.acquire().await;
            self.reviews.create(&PostParams::default(), &review).await
        };
        let answer = tokio::time::timeout(LIMIT, asked).await;
        let answer = answer.map_err(|_| unavailable(&"it does not answer"))?;
        let answer = answer.map_err(|error| unavailable(&error))?;
        answer.status.ok_or_else(|| unavailable(&"it has not said anything"))
    }

    /// The pod, once it has an address: the kubelet tells it at about the time at which the first container runs,
    /// and who has to come again is later than who waits.
    async fn pod(&self, owner: &Owner) -> Result<Workload, ReviewError> {
        let mut waited = Duration::ZERO;
        loop {
            let asked = self.ask_for_pod(owner).await;
            match asked {
                Err(ReviewError::NoAddress(_)) if waited < ADDRESS => {
                    tokio::time::sleep(LOOK).await;
                    waited = waited.saturating_add(LOOK);
                }
                asked => return asked,
            }
        }
    }

    /// The pod as the index has it; one that the index does not know yet is asked for.
    async fn ask_for_pod(&self, owner: &Owner) -> Result<Workload, ReviewError> {
        if let Some(known) = self.publisher.view().index.pod(&owner.uid) {
            return Ok(known.clone());
        }
        let pods = ApiResource {
            group: String::new(),
            version: "v1".to_owned(),
            api_version: "v1".to_owned(),
            kind: "Pod".to_owned(),
            plural: "pods".to_owned(),
        };
        let api = Api::<Object<PodSpec, PodStatus>>::namespaced_with(
            self.client.clone(),
            &owner.namespace,
            &pods,
        );
        let name = format!("{}/{}", owner.namespace, owner.pod);
        let found = tokio::time::timeout(LIMIT, api.get_opt(&owner.pod)).await;
        let found = found
            .map_err(|_| ReviewError::Unavailable("it does not answer".to_owned()))?
            .map_err(|error| ReviewError::Unavailable(error.to_string()))?;
        let found = found.ok_or_else(|| ReviewError::PodGone(name.clone()))?;
        let raw = pod::PodObject {
            metadata: found.metadata,
            spec: found.spec,
            status: found.status.unwrap_or_default(),
        };
        let has_address = !raw.status.pod_ips.is_empty();
        let mut report = Report::trusting(LocalEndpoints::Refuse);
        pod::translate(&raw, &mut report).ok_or(match has_address {
            true => ReviewError::PodGone(name),
            false => ReviewError::NoAddress(name),
        })
    }
}

/// Whose token it is, if it is genuine, for us and bound to a pod.
fn owner(status: TokenReviewStatus, audience: &str) -> Result<Owner, ReviewError> {
    if status.authenticated != Some(true) {
        let why = status.error.filter(|why| !why.is_empty());
        return Err(ReviewError::Refused(why.unwrap_or_else(|| "it is not accepted".to_owned())));
    }
    // An API server that knows nothing of audiences says none: then the token may be for anything.
    if !status.audiences.iter().flatten().any(|of| of == audience) {
        return Err(ReviewError::Refused(format!("it is not for the audience {audience}")));
    }
    let user: UserInfo = status.user.unwrap_or_default();
    let username = user.username.unwrap_or_default();
    let account = username.strip_prefix(ACCOUNT).and_then(|rest| rest.split_once(':'));
    let Some((namespace, account)) = account else {
        return Err(ReviewError::NoAccount(username));
    };
    let extra = user.extra.unwrap_or_default();
    let one = |key: &str| match extra.get(key).map(Vec::as_slice) {
        Some([value]) if !value.is_empty() => Ok(value.clone()),
        _ => Err(ReviewError::NoPod),
    };
    Ok(Owner {
        pod: one(POD_NAME)?,
        uid: one(POD_UID)?,
        namespace: namespace.to_owned(),
        account: account.to_owned(),
    })
}

fn check(owner: &Owner, pod: &Workload, peer: IpAddr) -> Result<(), ReviewError> {
    let name = || format!("{}/{}", owner.namespace, owner.pod);
    let uid = pod.pod.as_ref().map(|pod| pod.uid.as_str());
    if uid != Some(&owner.uid) || pod.namespace != owner.namespace || pod.name != owner.pod {
        return Err(ReviewError::OtherPod(name()));
    }
    if pod.service_account != owner.account {
        let (runs_as, account) = (pod.service_account.clone(), owner.account.clone());
        return Err(ReviewError::OtherAccount { pod: name(), runs_as, account });
    }
    is_at(pod, peer)
}

fn is_at(workload: &Workload, peer: IpAddr) -> Result<(), ReviewError> {
    let addresses = workload.pod.iter().flat_map(|pod| &pod.addresses);
    if addresses.clone().any(|address| *address == peer.to_canonical()) {
        return Ok(());
    }
    let addresses: Vec<String> = addresses.map(ToString::to_string).collect();
    let pod = format!("{}/{}", workload.namespace, workload.name);
    Err(ReviewError::Elsewhere { pod, addresses: addresses.join(", "), peer })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn status(value: serde_json::Value) -> TokenReviewStatus {
        serde_json::from_value(value).unwrap()
    }

    fn genuine() -> serde_json::Value {
        json!({
            "authenticated": true,
            "audiences": ["outrigger.dev"],
            "user": {
                "username": "system:serviceaccount:bank:ledger",
                "extra": {
                    "authentication.kubernetes.io/pod-name": ["ledger-0"],
                    "authentication.kubernetes.io/pod-uid": ["u-1"],
                },
            },
        })
    }

    fn pod() -> Workload {
        Workload {
            namespace: "bank".to_owned(),
            name: "ledger-0".to_owned(),
            service_account: "ledger".to_owned(),
            labels: BTreeMap::new(),
            address: "10.0.0.1".parse().unwrap(),
            ports: Vec::new(),
            mesh: None,
            zone: None,
            ready: true,
            pod: Some(crate::object::Pod {
                uid: "u-1".to_owned(),
                addresses: vec!["10.0.0.1".parse().unwrap(), "fd00::1".parse().unwrap()],
            }),
            registered: None,
        }
    }

    #[test]
    fn only_a_genuine_token_of_a_pod_for_us_has_an_owner() {
        assert_eq!(owner(status(genuine()), AUDIENCE).unwrap().uid, "u-1");
        let without = |change: &dyn Fn(&mut serde_json::Value)| {
            let mut value = genuine();
            change(&mut value);
            owner(status(value), AUDIENCE).unwrap_err()
        };
        let refused = without(&|v| v["authenticated"] = json!(false));
        assert!(matches!(refused, ReviewError::Refused(_)));
        let refused = without(&|v| v["audiences"] = json!(["https://kubernetes.default.svc"]));
        assert!(refused.to_string().contains("audience outrigger.dev"), "{refused}");
        assert!(matches!(without(&|v| v["audiences"] = json!(null)), ReviewError::Refused(_)));
        let refused = without(&|v| v["user"]["username"] = json!("system:node:n1"));
        assert_eq!(refused, ReviewError::NoAccount("system:node:n1".to_owned()));
        assert_eq!(without(&|v| v["user"]["extra"] = json!({})), ReviewError::NoPod);
    }

    #[test]
    fn a_token_counts_where_its_pod_is_and_nowhere_else() {
        let owner = owner(status(genuine()), AUDIENCE).unwrap();
        let at = |ip: &str| ip.parse::<IpAddr>().unwrap();
        assert_eq!(check(&owner, &pod(), at("10.0.0.1")), Ok(()));
        assert_eq!(check(&owner, &pod(), at("fd00::1")), Ok(()));
        assert_eq!(check(&owner, &pod(), at("::ffff:10.0.0.1")), Ok(()));
        let elsewhere = check(&owner, &pod(), at("10.0.0.2")).unwrap_err();
        assert!(matches!(elsewhere, ReviewError::Elsewhere { .. }), "{elsewhere}");
        let mut other = pod();
        other.pod.as_mut().unwrap().uid = "u-2".to_owned();
        assert!(matches!(check(&owner, &other, at("10.0.0.1")), Err(ReviewError::OtherPod(_))));
        let other = Workload { service_account: "default".to_owned(), ..pod() };
        let refused = check(&owner, &other, at("10.0.0.1")).unwrap_err();
        assert!(matches!(refused, ReviewError::OtherAccount { .. }), "{refused}");
    }
}
