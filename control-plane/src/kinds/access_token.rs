//! `jwt` of an `AccessPolicy`: whose tokens are trusted.

use outrigger_core::policy::bounds;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::defaults;
use super::schema::{default, header, not_blank, number, pattern, rule, subdomain, within};

/// An issuer of tokens (RFC 7519) and its keys (RFC 7517).
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessJwt {
    /// The token's `iss`, which must be equal byte by byte. Example: `https://id.bank`.
    #[schemars(transform = not_blank)]
    pub issuer: String,
    /// Audiences, one of which the token's `aud` must contain. Empty: any. Example: `[ledger]`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub audiences: Vec<String>,
    /// Source of the issuer's keys: exactly one of `inline`, `file` and `externalService`.
    pub jwks: AccessJwks,
    /// Tolerated clock skew, in seconds.
    #[schemars(transform = number(&bounds::CLOCK_SKEW), transform = default(defaults::CLOCK_SKEW_SECONDS))]
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clock_skew_seconds: Option<u32>,
    /// Claims that are forwarded to the app as headers; these headers are removed from what callers send.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub claims_to_headers: Vec<AccessClaimHeader>,
    /// Whether the token is forwarded to the app, in `Authorization`.
    #[serde(default)]
    pub forward: bool,
    /// Whether a request without a token is refused with 401.
    #[serde(default)]
    pub required: bool,
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub enum AccessJwks {
    /// The key set itself, as JSON. Example: `{"keys": [...]}`.
    #[schemars(transform = within(pattern(r#""keys"\s*:\s*\["#, "a JSON Web Key Set")))]
    Inline(String),
    /// A file in the folder of the manifests, reloaded when it changes. Example: `keys.json`.
    #[schemars(transform = within(rule(
        r"!self.matches('^/|^\\./|^\\.$|(^|/)\\.\\.(/|$)') && self != ''",
        "must be a file in the folder of the manifests",
    )))]
    File(String),
    /// Fetched by the control plane from an ExternalService of the policy's namespace.
    ExternalService(AccessJwksService),
}

#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessJwksService {
    /// Name of the ExternalService. Example: `id`.
    #[schemars(transform = subdomain)]
    pub name: String,
    /// Path and query of the key set. Example: `/.well-known/jwks.json`.
    #[schemars(transform = pattern("^/", "begins with `/`"))]
    pub path: String,
}

/// A claim that is forwarded as a header.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct AccessClaimHeader {
    /// Name of the claim; dots separate the parts of a nested one. Example: `sub`.
    pub claim: String,
    /// Name of the header that the app gets. Example: `x-user`.
    #[schemars(transform = header)]
    pub header: String,
}
