//! Bearer tokens: JSON Web Tokens (RFC 7519) signed by an issuer that the port's policy names.
//!
//! The key decides which algorithms it may verify, never the token alone: a token that asks for `none`,
//! for a shared secret, or for another kind of key than the issuer published is refused.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use outrigger_core::error::FieldError;
use outrigger_core::policy::access::{Claims, TokenIssuer};
use serde::Deserialize;
use serde_json::{Map, Value};

/// Bytes of a token; more than any header can carry by default.
const MAX_TOKEN: usize = 16 * 1024;
/// Levels of nested claims that are looked into.
const MAX_DEPTH: usize = 8;

/// The issuers of one port with their keys.
#[derive(Debug, Default)]
pub struct Tokens {
    issuers: Vec<Issuer>,
}

#[derive(Debug)]
struct Issuer {
    config: TokenIssuer,
    keys: Vec<Key>,
}

#[derive(Debug)]
struct Key {
    id: Option<String>,
    algorithms: &'static [Algorithm],
    key: DecodingKey,
}

/// Why a token does not hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenError {
    Malformed,
    AlgorithmNotAllowed,
    UnknownIssuer,
    UnknownKey,
    BadSignature,
    NoExpiry,
    Expired,
    NotYetValid,
    WrongAudience,
}

impl fmt::Display for TokenError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "malformed",
            Self::AlgorithmNotAllowed => "algorithm not allowed",
            Self::UnknownIssuer => "unknown issuer",
            Self::UnknownKey => "unknown key",
            Self::BadSignature => "bad signature",
            Self::NoExpiry => "no expiry",
            Self::Expired => "expired",
            Self::NotYetValid => "not yet valid",
            Self::WrongAudience => "wrong audience",
        })
    }
}

/// A token that holds.
#[derive(Debug)]
pub struct VerifiedToken<'a> {
    pub issuer: &'a TokenIssuer,
    pub claims: Claims,
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    crit: Option<Value>,
}

impl Tokens {
    pub fn new(config: &[TokenIssuer]) -> Result<Self, FieldError> {
        let issuers = config.iter().enumerate().map(|(i, config)| {
            let keys = keys(&config.keys).map_err(|e| e.under(format!("tokens[{i}].keys")))?;
            Ok(Issuer { config: config.clone(), keys })
        });
        Ok(Self { issuers: issuers.collect::<Result<_, _>>()? })
    }

    pub fn is_empty(&self) -> bool {
        self.issuers.is_empty()
    }

    pub fn required(&self) -> bool {
        self.issuers.iter().any(|issuer| issuer.config.required)
    }

    /// Headers that carry claims to the app: callers must not set them.
    pub fn claim_headers(&self) -> impl Iterator<Item = &http::HeaderName> {
        let claims = self.issuers.iter().flat_map(|issuer| &issuer.config.claims_to_headers);
        claims.map(|(_, header)| header)
    }

    /// Whether a token holds at `now`, in seconds since the Unix epoch.
    pub fn verify(&self, token: &[u8], now: u64) -> Result<VerifiedToken<'_>, TokenError> {
        if token.len() > MAX_TOKEN {
            return Err(TokenError::Malformed);
        }
        let token = std::str::from_utf8(token).map_err(|_| TokenError::Malformed)?;
        let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
        let (header, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
        let header: Header = part(header)?;
        let claims: Map<String, Value> = part(payload)?;
        // No extension is understood here (RFC 7515 section 4.1.11).
        if header.crit.is_some() {
            return Err(TokenError::Malformed);
        }
        let algorithm = match header.alg.as_str() {
            "RS256" => Algorithm::RS256,
            "PS256" => Algorithm::PS256,
            "ES256" => Algorithm::ES256,
            "EdDSA" => Algorithm::EdDSA,
            _ => return Err(TokenError::AlgorithmNotAllowed),
        };
        let named = claims.get("iss").and_then(Value::as_str);
        let issuer = self.issuers.iter().find(|issuer| Some(&*issuer.config.issuer) == named);
        let issuer = issuer.ok_or(TokenError::UnknownIssuer)?;
        issuer.check_signature(&header, algorithm, message, signature)?;
        issuer.check_claims(&claims, now)?;
        let mut flat = Claims::new();
        flatten(&mut flat, "", &Value::Object(claims), MAX_DEPTH);
        Ok(VerifiedToken { issuer: &issuer.config, claims: flat })
    }
}

fn part<T: for<'a> Deserialize<'a>>(text: &str) -> Result<T, TokenError> {
    let bytes = URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Malformed)?;
    serde_json::from_slice(&bytes).map_err(|_| TokenError::Malformed)
}

impl Issuer {
    fn check_signature(
        &self,
        header: &Header,
        algorithm: Algorithm,
        message: &str,
        signature: &str,
    ) -> Result<(), TokenError> {
        let named = |key: &&Key| header.kid.is_none() || key.id == header.kid;
        let mut known = self.keys.iter().filter(named).peekable();
        if known.peek().is_none() {
            return Err(TokenError::UnknownKey);
        }
        let mut fitting = known.filter(|key| key.algorithms.contains(&algorithm)).peekable();
        if fitting.peek().is_none() {
            return Err(TokenError::AlgorithmNotAllowed);
        }
        let holds = fitting.any(|key| {
            let verified =
                jsonwebtoken::crypto::verify(signature, message.as_bytes(), &key.key, algorithm);
            verified.unwrap_or(false)
        });
        if holds { Ok(()) } else { Err(TokenError::BadSignature) }
    }

    fn check_claims(&self, claims: &Map<String, Value>, now: u64) -> Result<(), TokenError> {
        let skew = f64::from(self.config.clock_skew);
        let now = now as f64;
        let time = |name: &str| match claims.get(name) {
            None => Ok(None),
            Some(value) => value.as_f64().map(Some).ok_or(TokenError::Malformed),
        };
        let expiry = time("exp")?.ok_or(TokenError::NoExpiry)?;
        if now >= expiry + skew {
            return Err(TokenError::Expired);
        }
        if time("nbf")?.is_some_and(|from| now + skew < from) {
            return Err(TokenError::NotYetValid);
        }
        let wanted = &self.config.audiences;
        let is_wanted =
            |value: &Value| value.as_str().is_some_and(|a| wanted.iter().any(|w| w == a));
        let named = match claims.get("aud") {
            Some(Value::Array(all)) => all.iter().any(is_wanted),
            Some(one) => is_wanted(one),
            None => false,
        };
        if wanted.is_empty() || named { Ok(()) } else { Err(TokenError::WrongAudience) }
    }
}

/// The usable keys of a JSON Web Key Set; those of other kinds are passed over.
fn keys(text: &str) -> Result<Vec<Key>, FieldError> {
    #[derive(Deserialize)]
    struct Set {
        keys: Vec<Value>,
    }
    let set: Set = serde_json::from_str(text)
        .map_err(|error| FieldError::here(format!("is not a JSON Web Key Set: {error}")))?;
    let known = set.keys.into_iter().filter_map(|key| serde_json::from_value::<Jwk>(key).ok());
    Ok(known.filter_map(|jwk| key(&jwk)).collect())
}

fn key(jwk: &Jwk) -> Option<Key> {
    if jwk.common.public_key_use.as_ref().is_some_and(|usage| *usage != PublicKeyUse::Signature) {
        return None;
    }
    let kind: &'static [Algorithm] = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => &[Algorithm::RS256, Algorithm::PS256],
        AlgorithmParameters::EllipticCurve(ec) if ec.curve == EllipticCurve::P256 => {
            &[Algorithm::ES256]
        }
        AlgorithmParameters::OctetKeyPair(okp) if okp.curve == EllipticCurve::Ed25519 => {
            &[Algorithm::EdDSA]
        }
        _ => return None,
    };
    let algorithms: &'static [Algorithm] = match jwk.common.key_algorithm {
        None => kind,
        Some(only) => {
            let only = only.to_string();
            let at = kind.iter().position(|algorithm| format!("{algorithm:?}") == only)?;
            &kind[at..=at]
        }
    };
    let key = DecodingKey::from_jwk(jwk).ok()?;
    Some(Key { id: jwk.common.key_id.clone(), algorithms, key })
}

/// Claims as text, nested ones with dots between; of a list each entry.
fn flatten(flat: &mut Claims, name: &str, value: &Value, depth: usize) {
    let mut add = |text: String| flat.entry(name.to_owned()).or_default().push(text);
    match value {
        Value::String(text) => add(text.clone()),
        Value::Number(number) => add(number.to_string()),
        Value::Bool(bool) => add(bool.to_string()),
        Value::Array(all) if depth > 0 => {
            for one in all {
                flatten(flat, name, one, depth - 1);
            }
        }
        Value::Object(all) if depth > 0 => {
            for (key, value) in all {
                let name = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
                flatten(flat, &name, value, depth - 1);
            }
        }
        Value::Null | Value::Array(_) | Value::Object(_) => {}
    }
}

#[cfg(test)]
mod tests;
