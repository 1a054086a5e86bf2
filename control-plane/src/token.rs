//! Join tokens: what a workload outside Kubernetes proves its namespace and account with.
//!
//! A token is a JWT signed with a key that never leaves the store; it is bound to one
//! namespace and one service account, and where asked to labels and names of workloads ([`Grant`]).
//! Tokens are never logged.

use std::io;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Header, Validation};
use serde::{Deserialize, Serialize};
use tonic::Status;
use tonic::metadata::MetadataMap;

use crate::grant::Grant;
use crate::store::dir::Directory;
use crate::store::{self, Document, Store};

/// The key's document.
const KEY: &str = "join-token.key";
/// Bytes of the key: as many as HS256's hash has (RFC 7518 section 3.2).
const KEY_BYTES: usize = 32;
/// `iss` and `aud`, so that a token for something else with the same key would not pass.
const ISSUER: &str = "outrigger-control-plane";
const AUDIENCE: &str = "outrigger.mesh.v1.Workload";
/// `aud` of tokens that let somebody see requests.
const TAP_AUDIENCE: &str = "outrigger.graph.v1.Tap";
/// Seconds that two clocks may differ by.
const LEEWAY: u64 = 5;

/// What a token says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub namespace: String,
    pub service_account: String,
    #[serde(flatten)]
    pub grant: Grant,
    iss: String,
    aud: String,
    iat: u64,
    exp: u64,
}

/// What a token for taps says.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct TapClaims {
    namespace: String,
    iss: String,
    aud: String,
    iat: u64,
    exp: u64,
}

/// Signs and verifies tokens.
pub struct Tokens {
    encoding: EncodingKey,
    decoding: DecodingKey,
    validation: Validation,
    tap_validation: Validation,
}

impl std::fmt::Debug for Tokens {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Tokens")
    }
}

impl Tokens {
    /// Opens the key in a state directory, or makes one that only its owner can read.
    pub fn open(state_dir: &Path) -> io::Result<Self> {
        Self::of(&Directory::open(state_dir)?)
    }

    /// Opens the key in the store, or makes one. Several processes may do this at once: the key that is there
    /// first is the key.
    pub fn of(store: &dyn Store) -> io::Result<Self> {
        let document = Document::secret(KEY);
        let key = store::create(store, &document, || {
            let mut key = vec![0; KEY_BYTES];
            getrandom::fill(&mut key).map_err(|error| io::Error::other(error.to_string()))?;
            Ok(key)
        })?;
        if key.len() != KEY_BYTES {
            return Err(io::Error::new(
                io::ErrorKind::InvalidData,
                format!("{} is damaged: remove it and issue new tokens", store.place(&document)),
            ));
        }
        let validation = |audience: &str| {
            let mut validation = Validation::new(Algorithm::HS256);
            validation.leeway = LEEWAY;
            validation.set_issuer(&[ISSUER]);
            validation.set_audience(&[audience]);
            validation.set_required_spec_claims(&["exp", "iss", "aud"]);
            validation
        };
        Ok(Self {
            encoding: EncodingKey::from_secret(&key),
            decoding: DecodingKey::from_secret(&key),
            validation: validation(AUDIENCE),
            tap_validation: validation(TAP_AUDIENCE),
        })
    }

    pub fn issue(
        &self,
        namespace: &str,
        service_account: &str,
        grant: Grant,
        ttl: Duration,
    ) -> Result<String, jsonwebtoken::errors::Error> {
        let now = now();
        let claims = Claims {
            namespace: namespace.to_owned(),
            service_account: service_account.to_owned(),
            grant,
            iss: ISSUER.to_owned(),
            aud: AUDIENCE.to_owned(),
            iat: now,
            exp: now.saturating_add(ttl.as_secs()),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)
    }

    pub fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        self.decode(token, &self.validation)
    }

    /// A token that lets its holder see the requests of a namespace.
    pub fn issue_tap(
        &self,
        namespace: &str,
        ttl: Duration,
    ) -> Result<String, jsonwebtoken::errors::Error> {
        let now = now();
        let claims = TapClaims {
            namespace: namespace.to_owned(),
            iss: ISSUER.to_owned(),
            aud: TAP_AUDIENCE.to_owned(),
            iat: now,
            exp: now.saturating_add(ttl.as_secs()),
        };
        jsonwebtoken::encode(&Header::new(Algorithm::HS256), &claims, &self.encoding)
    }

    /// The namespace whose requests a token lets somebody see.
    pub fn verify_tap(&self, token: &str) -> Result<String, TokenError> {
        let claims: TapClaims =
            self.decode(token, &self.tap_validation).map_err(|error| match error {
                TokenError::Foreign => TokenError::NoTap,
                error => error,
            })?;
        Ok(claims.namespace)
    }

    fn decode<T: serde::de::DeserializeOwned + Clone>(
        &self,
        token: &str,
        validation: &Validation,
    ) -> Result<T, TokenError> {
        use jsonwebtoken::errors::ErrorKind;
        match jsonwebtoken::decode::<T>(token, &self.decoding, validation) {
            Ok(data) => Ok(data.claims),
            Err(error) if matches!(error.kind(), ErrorKind::ExpiredSignature) => {
                Err(TokenError::Expired)
            }
            Err(_) => Err(TokenError::Foreign),
        }
    }
}

/// Seconds since the Unix epoch.
fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs())
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("the token has expired: issue a new one")]
    Expired,
    #[error(
        "the join token is not valid here: it must come from this control plane's `token` command \
         and the same state directory"
    )]
    Foreign,
    #[error(
        "the token is not for taps here: it must come from this control plane's `token --tap` command and the same \
         state directory"
    )]
    NoTap,
    #[error("the authorization metadata must be \"Bearer <join token>\"")]
    Malformed,
}

impl From<TokenError> for Status {
    fn from(error: TokenError) -> Self {
        Self::unauthenticated(error.to_string())
    }
}

/// The token of a request, if it has one.
pub fn bearer(metadata: &MetadataMap) -> Result<Option<&str>, TokenError> {
    let Some(value) = metadata.get("authorization") else { return Ok(None) };
    let token = value.to_str().ok().and_then(|value| value.strip_prefix("Bearer "));
    token.map(Some).ok_or(TokenError::Malformed)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_token_is_good_for_its_own_key_and_time() {
        let state = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(state.path()).unwrap();
        let hour = Duration::from_secs(3600);
        let token = tokens.issue("bank", "orders", Grant::default(), hour).unwrap();
        let mode = fs::metadata(state.path().join(KEY)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        // The same directory is the same key, also in another process.
        let claims = Tokens::open(state.path()).unwrap().verify(&token).unwrap();
        assert_eq!(
            (claims.namespace.as_str(), claims.service_account.as_str()),
            ("bank", "orders")
        );
        assert_eq!(claims.grant, Grant::default());
        let bound = Grant { workloads: vec!["orders-1".to_owned()], ..Grant::default() };
        let token = tokens.issue("bank", "orders", bound.clone(), hour).unwrap();
        assert_eq!(tokens.verify(&token).unwrap().grant, bound);
        let tap = tokens.issue_tap("bank", hour).unwrap();
        assert_eq!(tokens.verify_tap(&tap).as_deref(), Ok("bank"));
        // Neither is good for what the other is.
        assert_eq!(tokens.verify(&tap), Err(TokenError::Foreign));
        assert_eq!(tokens.verify_tap(&token), Err(TokenError::NoTap));
        let other = tempfile::tempdir().unwrap();
        let problem: Status =
            Tokens::open(other.path()).unwrap().verify(&token).unwrap_err().into();
        assert_eq!(problem.code(), tonic::Code::Unauthenticated);
        assert!(!problem.message().contains(&token));
        let header = Header::new(Algorithm::HS256);
        let expired = Claims { exp: claims.iat - 2 * LEEWAY, ..claims };
        let expired = jsonwebtoken::encode(&header, &expired, &tokens.encoding).unwrap();
        assert_eq!(tokens.verify(&expired), Err(TokenError::Expired));
        fs::write(state.path().join(KEY), "short").unwrap();
        assert!(Tokens::open(state.path()).is_err());
    }
}
