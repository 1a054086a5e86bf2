//! Who may see requests: in a cluster anyone whom its RBAC lets `get` the resource `taps` of the group `outrigger.dev`
//! in the namespace, elsewhere anyone who has a token for taps of it.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec, UserInfo};
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::{Api, ObjectMeta, PostParams};
use tokio::sync::Semaphore;

use crate::token::Tokens;

/// How long the API server may take.
const LIMIT: Duration = Duration::from_secs(5);
/// Reviews at one time.
const AT_ONCE: usize = 4;
/// Bytes of a token; those of Kubernetes have about a thousand.
const MAX_TOKEN: usize = 8 * 1024;

/// Decides who may open a tap.
pub enum Authorizer {
    Cluster {
        client: Client,
        turns: Semaphore,
    },
    Tokens(Arc<Tokens>),
    /// Nothing is there that anybody could prove themselves with.
    Nobody,
}

impl fmt::Debug for Authorizer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cluster { .. } => "Cluster",
            Self::Tokens(_) => "Tokens",
            Self::Nobody => "Nobody",
        })
    }
}

/// Why a tap is refused.
#[derive(Debug)]
pub struct Denied {
    pub status: StatusCode,
    pub why: String,
}

impl Denied {
    pub fn new(status: StatusCode, why: impl Into<String>) -> Self {
        Self { status, why: why.into() }
    }
}

impl Authorizer {
    pub fn new(client: Option<Client>, tokens: Option<Arc<Tokens>>) -> Self {
        match (client, tokens) {
            (Some(client), _) => Self::Cluster { client, turns: Semaphore::new(AT_ONCE) },
            (None, Some(tokens)) => Self::Tokens(tokens),
            (None, None) => Self::Nobody,
        }
    }

    /// Who it is that may see the requests of a namespace.
    pub async fn authorize(&self, token: Option<&str>, namespace: &str) -> Result<String, Denied> {
        let unauthorized = |why: &str| Denied::new(StatusCode::UNAUTHORIZED, why);
        if matches!(self, Self::Nobody) {
            return Err(Denied::new(
                StatusCode::FORBIDDEN,
                "taps need tokens: start the control plane with --state-dir, or --kubernetes",
            ));
        }
        let token = token.filter(|token| !token.is_empty() && token.len() <= MAX_TOKEN);
        let token = token.ok_or_else(|| {
            unauthorized(match self {
                Self::Cluster { .. } => {
                    "the header `Authorization: Bearer TOKEN` is needed: a token of this cluster, \
                     as `kubectl create token` makes it"
                }
                _ => {
                    "the header `Authorization: Bearer TOKEN` is needed: a token as \
                     `outrigger-control-plane token --tap` makes it"
                }
            })
        })?;
        match self {
            Self::Nobody => Err(unauthorized("there are no tokens")),
            Self::Tokens(tokens) => {
                let may = tokens.verify_tap(token).map_err(|why| unauthorized(&why.to_string()))?;
                if may != namespace {
                    let why = format!("the token is for taps of {may} and not of {namespace}");
                    return Err(Denied::new(StatusCode::FORBIDDEN, why));
                }
                Ok(format!("a token for {namespace}"))
            }
            Self::Cluster { client, turns } => {
                let reviewed = async {
                    // It is never closed.
                    let _turn = turns.acquire().await;
                    review(client, token, namespace).await
                };
                let reviewed = tokio::time::timeout(LIMIT, reviewed).await;
                reviewed.unwrap_or_else(|_| Err(unavailable("it does not answer")))
            }
        }
    }
}

fn unavailable(why: impl fmt::Display) -> Denied {
    let why = format!("the API server could not be asked: {why}");
    Denied::new(StatusCode::SERVICE_UNAVAILABLE, why)
}

/// Asks the API server whose token it is, and what they may do.
async fn review(client: &Client, token: &str, namespace: &str) -> Result<String, Denied> {
    let spec = TokenReviewSpec { token: Some(token.to_owned()), audiences: None };
    let review = TokenReview { metadata: ObjectMeta::default(), spec, status: None };
    let reviews: Api<TokenReview> = Api::all(client.clone());
    let review = reviews.create(&PostParams::default(), &review).await.map_err(unavailable)?;
    let status = review.status.unwrap_or_default();
    let user = status.user.filter(|_| status.authenticated == Some(true));
    let name = user.as_ref().and_then(|user| user.username.clone());
    let Some((user, name)) = user.zip(name.filter(|name| !name.is_empty())) else {
        let why = status.error.unwrap_or_else(|| "it is not accepted".to_owned());
        let why = format!("the token is none of this cluster: {why}");
        return Err(Denied::new(StatusCode::UNAUTHORIZED, why));
    };
    let reviews: Api<SubjectAccessReview> = Api::all(client.clone());
    let asked = reviews.create(&PostParams::default(), &access(user, &name, namespace)).await;
    let status = asked.map_err(unavailable)?.status.unwrap_or_default();
    if !status.allowed || status.denied == Some(true) {
        let why = format!(
            "{name} may not get taps.outrigger.dev in the namespace {namespace}: a RoleBinding to the ClusterRole \
             outrigger-tap allows it"
        );
        return Err(Denied::new(StatusCode::FORBIDDEN, why));
    }
    Ok(name)
}

fn access(user: UserInfo, name: &str, namespace: &str) -> SubjectAccessReview {
    let resource = ResourceAttributes {
        group: Some("outrigger.dev".to_owned()),
        resource: Some("taps".to_owned()),
        verb: Some("get".to_owned()),
        namespace: Some(namespace.to_owned()),
        ..ResourceAttributes::default()
    };
    let spec = SubjectAccessReviewSpec {
        user: Some(name.to_owned()),
        groups: user.groups,
        uid: user.uid,
        extra: user.extra,
        resource_attributes: Some(resource),
        ..SubjectAccessReviewSpec::default()
    };
    SubjectAccessReview { metadata: ObjectMeta::default(), spec, status: None }
}
