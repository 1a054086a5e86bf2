//! The gRPC service by which a proxy comes to its certificate.
//!
//! It alone is served to those who have none yet. Whatever a request says, a certificate is issued
//! for what the [`Credential`] proves and for nothing else.

use std::sync::Arc;

use outrigger_core::bounds;
use outrigger_core::identity::SpiffeId;
use outrigger_proto::convert;
use outrigger_proto::identity::identity_server::Identity;
use outrigger_proto::identity::{CertifyRequest, CertifyResponse};
use tonic::{Request, Response, Status};

use crate::ca::csr::{self, CsrError};
use crate::ca::ledger::shown;
use crate::ca::root::RootId;
use crate::ca::verify::Verified;
use crate::ca::{Authority, CertifyError};
use crate::cluster::review::{PodProof, ReviewError, Reviewer};
use crate::connection::Connection;
use crate::metrics::{Metrics, ReasonLabel};
use crate::token::{Claims, TokenError, Tokens, bearer};

/// Bytes of a node's name, as of any other name.
const MAX_NODE: usize = bounds::NAME;

/// What a proxy proves with who it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Credential {
    JoinToken(Claims),
    /// A pod's token of its service account, as the API server of the cluster has reviewed it.
    Pod(PodProof),
    /// The certificate of the connection, which is still valid: anyone who has its key renews it.
    Certificate(Verified),
}

/// Why no certificate was issued.
#[derive(Debug, thiserror::Error)]
pub enum IssuanceRefused {
    #[error(
        "a join token is required: get one with `outrigger-control-plane token` and send it as \
         authorization metadata"
    )]
    NoCredential,
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("the join token is for the control plane's own identity, which nobody else can have")]
    Reserved,
    #[error("the join token does not name an identity: {0}")]
    Identity(outrigger_core::error::FieldError),
    #[error("node: must be 1 to {MAX_NODE} visible ASCII characters")]
    Node,
    #[error("{0}")]
    Bound(outrigger_core::error::FieldError),
    #[error(transparent)]
    Review(#[from] ReviewError),
    #[error("csr: {0}")]
    Csr(#[from] CsrError),
    #[error(transparent)]
    Certify(#[from] CertifyError),
}

/// Without identity in the mesh there is no authority.
#[derive(Debug)]
pub struct Certifier {
    security: Option<(Arc<Authority>, Arc<Tokens>)>,
    /// In a cluster: who knows its pods.
    reviewer: Option<Arc<Reviewer>>,
    metrics: Arc<Metrics>,
}

impl Certifier {
    pub fn new(
        security: Option<(Arc<Authority>, Arc<Tokens>)>,
        reviewer: Option<Arc<Reviewer>>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self { security, reviewer, metrics }
    }
}

#[tonic::async_trait]
impl Identity for Certifier {
    async fn certify(
        &self,
        request: Request<CertifyRequest>,
    ) -> Result<Response<CertifyResponse>, Status> {
        let Some((authority, tokens)) = &self.security else {
            return Err(Status::failed_precondition(
                "this control plane runs with --identity off and issues no certificates",
            ));
        };
        let certified = match self.credential(tokens, &request).await {
            Ok(credential) => {
                let (authority, asked) = (authority.clone(), request.get_ref().clone());
                let issue = move || certify(&authority, &credential, &asked);
                let issued = tokio::task::spawn_blocking(issue).await;
                issued.map_err(|error| Status::internal(error.to_string()))?
            }
            Err(refused) => Err(refused),
        };
        let (response, root) = match certified {
            Ok(issued) => issued,
            Err(refused) => return Err(self.refuse(refused, &request)),
        };
        // A root that is still needed must not be forgotten by a crash, nor by a step of another replica.
        authority.ledger.persisted().await;
        let authority = authority.clone();
        let confirmed = tokio::task::spawn_blocking(move || authority.confirm(root)).await;
        match confirmed.map_err(|error| Status::internal(error.to_string()))? {
            Ok(()) => {
                self.metrics.certificates_issued.inc();
                Ok(Response::new(response))
            }
            Err(error) => Err(self.refuse(error.into(), &request)),
        }
    }
}

impl Certifier {
    /// What a request proves. A token says who somebody is; one that has merely ended does not speak against a
    /// certificate.
    async fn credential(
        &self,
        tokens: &Tokens,
        request: &Request<CertifyRequest>,
    ) -> Result<Credential, IssuanceRefused> {
        let connection = request.extensions().get::<Connection>();
        let client = connection.and_then(|connection| connection.client());
        let renewed = |client: &Verified| -> Result<Credential, IssuanceRefused> {
            if let (Some(uid), Some(connection)) = (&client.grant.pod, connection) {
                let reviewer = self.reviewer.as_ref().ok_or(IssuanceRefused::NoCredential)?;
                reviewer.renew(uid, connection.peer)?;
            }
            Ok(Credential::Certificate(client.clone()))
        };
        let Some(token) = bearer(request.metadata())? else {
            return client.ok_or(IssuanceRefused::NoCredential).and_then(renewed);
        };
        match (tokens.verify(token), client, &self.reviewer, connection) {
            (Ok(claims), ..) => Ok(Credential::JoinToken(claims)),
            (Err(TokenError::Expired), Some(client), ..) => renewed(client),
            (Err(TokenError::Foreign), _, Some(reviewer), Some(connection)) => {
                Ok(Credential::Pod(reviewer.review(token, connection.peer).await?))
            }
            (Err(error), ..) => Err(error.into()),
        }
    }

    /// Says that no certificate was issued, and why.
    fn refuse(&self, refused: IssuanceRefused, request: &Request<CertifyRequest>) -> Status {
        let reason = refused.reason();
        self.metrics.certificates_refused.get_or_create(&ReasonLabel { reason }).inc();
        let peer = request.extensions().get::<Connection>().map(|c| c.peer.to_string());
        tracing::warn!(reason, peer, problem = %refused, "a certificate was refused");
        refused.into()
    }
}

fn certify(
    authority: &Authority,
    credential: &Credential,
    request: &CertifyRequest,
) -> Result<(CertifyResponse, RootId), IssuanceRefused> {
    let id = credential.identity(authority)?;
    let CertifyRequest { csr, node } = request;
    if node.is_empty() || node.len() > MAX_NODE || !node.bytes().all(|b| b.is_ascii_graphic()) {
        return Err(IssuanceRefused::Node);
    }
    let key = csr::parse(csr)?;
    let grant = match credential {
        Credential::JoinToken(claims) => &claims.grant,
        Credential::Pod(proof) => &proof.grant,
        Credential::Certificate(proven) => &proven.grant,
    };
    grant.check_node(node).map_err(IssuanceRefused::Bound)?;
    let (leaf, in_force) = authority.certify(&id, node, &key, grant)?;
    let not_after = shown(leaf.not_after);
    tracing::info!(identity = %id, node, not_after, root = %leaf.root, "certificate issued");
    let response = CertifyResponse {
        chain: leaf.chain.iter().map(|certificate| certificate.to_vec().into()).collect(),
        bundle: Some(convert::trust::to_wire(&in_force.bundle)),
    };
    Ok((response, leaf.root))
}

impl Credential {
    /// The one identity that it gives.
    fn identity(&self, authority: &Authority) -> Result<SpiffeId, IssuanceRefused> {
        let id = match self {
            Self::JoinToken(claims) => {
                let domain = &authority.trust_domain;
                SpiffeId::new(domain, &claims.namespace, &claims.service_account)
                    .map_err(IssuanceRefused::Identity)?
            }
            Self::Pod(proof) => {
                let domain = &authority.trust_domain;
                SpiffeId::new(domain, &proof.namespace, &proof.service_account)
                    .map_err(IssuanceRefused::Identity)?
            }
            Self::Certificate(proven) => proven.id.clone(),
        };
        if id.is_control_plane() { Err(IssuanceRefused::Reserved) } else { Ok(id) }
    }
}

impl IssuanceRefused {
    /// The metric's label.
    fn reason(&self) -> &'static str {
        match self {
            Self::NoCredential => "no_credential",
            Self::Token(TokenError::Expired) => "token_expired",
            Self::Token(_) => "token_invalid",
            Self::Reserved | Self::Identity(_) => "identity",
            Self::Node => "node",
            Self::Bound(_) => "bound",
            Self::Review(ReviewError::Unavailable(_)) => "api_server",
            Self::Review(_) => "pod_token",
            Self::Csr(_) => "csr",
            Self::Certify(CertifyError::TooManyNodes) => "too_many_nodes",
            Self::Certify(CertifyError::Issue(_)) => "issuer",
            Self::Certify(CertifyError::Unconfirmed(_)) => "unconfirmed",
        }
    }
}

impl From<IssuanceRefused> for Status {
    fn from(refused: IssuanceRefused) -> Self {
        let text = refused.to_string();
        match refused {
            IssuanceRefused::NoCredential | IssuanceRefused::Token(_) => {
                Self::unauthenticated(text)
            }
            IssuanceRefused::Reserved
            | IssuanceRefused::Identity(_)
            | IssuanceRefused::Bound(_) => Self::permission_denied(text),
            IssuanceRefused::Review(error) if error.is_passing() => Self::unavailable(text),
            IssuanceRefused::Review(_) => Self::permission_denied(text),
            IssuanceRefused::Node | IssuanceRefused::Csr(_) => Self::invalid_argument(text),
            IssuanceRefused::Certify(CertifyError::TooManyNodes) => Self::resource_exhausted(text),
            IssuanceRefused::Certify(CertifyError::Issue(_) | CertifyError::Unconfirmed(_)) => {
                Self::unavailable(text)
            }
        }
    }
}
