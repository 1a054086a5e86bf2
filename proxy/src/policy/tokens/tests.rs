//! What callers may try with a token, each with the reason that it is refused for.

use jsonwebtoken::EncodingKey;
use rcgen::{KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ED25519, PKCS_RSA_SHA256};
use serde_json::json;

use crate::policy::tokens::*;

const NOW: u64 = 1_800_000_000;

struct Signer {
    id: &'static str,
    algorithm: Algorithm,
    key: EncodingKey,
    jwk: Value,
}

fn signer(id: &'static str, algorithm: Algorithm) -> Signer {
    let kind = match algorithm {
        Algorithm::ES256 => &PKCS_ECDSA_P256_SHA256,
        Algorithm::EdDSA => &PKCS_ED25519,
        _ => &PKCS_RSA_SHA256,
    };
    let pair = KeyPair::generate_for(kind).unwrap();
    let pem = pair.serialize_pem();
    let key = match algorithm {
        Algorithm::ES256 => EncodingKey::from_ec_pem(pem.as_bytes()),
        Algorithm::EdDSA => EncodingKey::from_ed_pem(pem.as_bytes()),
        _ => EncodingKey::from_rsa_pem(pem.as_bytes()),
    };
    let key = key.unwrap();
    let mut jwk = match algorithm {
        Algorithm::EdDSA => {
            let x = URL_SAFE_NO_PAD.encode(pair.public_key_raw());
            json!({"kty": "OKP", "crv": "Ed25519", "x": x})
        }
        _ => serde_json::to_value(Jwk::from_encoding_key(&key, algorithm).unwrap()).unwrap(),
    };
    jwk["kid"] = json!(id);
    Signer { id, algorithm, key, jwk }
}

impl Signer {
    fn jwk(&self) -> Value {
        self.jwk.clone()
    }

    fn sign(&self, header: &Value, claims: &Value) -> String {
        let message = format!("{}.{}", encoded(header), encoded(claims));
        let signature =
            jsonwebtoken::crypto::sign(message.as_bytes(), &self.key, self.algorithm).unwrap();
        format!("{message}.{signature}")
    }

    fn token(&self, claims: &Value) -> String {
        let algorithm = format!("{:?}", self.algorithm);
        self.sign(&json!({"alg": algorithm, "kid": self.id}), claims)
    }
}

fn encoded(value: &Value) -> String {
    URL_SAFE_NO_PAD.encode(value.to_string())
}

fn issuer(keys: &[Value]) -> TokenIssuer {
    TokenIssuer {
        issuer: "https://id.bank".to_owned(),
        audiences: vec!["ledger".to_owned()],
        keys: json!({ "keys": keys }).to_string(),
        clock_skew: 30,
        claims_to_headers: Vec::new(),
        forward: false,
        required: true,
    }
}

fn claims() -> Value {
    json!({"iss": "https://id.bank", "aud": "ledger", "exp": NOW + 60, "sub": "alice"})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn verdict(tokens: &Tokens, token: &str) -> Result<Claims, TokenError> {
    tokens.verify(token.as_bytes(), NOW).map(|verified| verified.claims)
}

#[test]
fn each_algorithm_is_verified() {
    for algorithm in [Algorithm::RS256, Algorithm::PS256, Algorithm::ES256, Algorithm::EdDSA] {
        let signer = signer("a", algorithm);
        let tokens = Tokens::new(&[issuer(&[signer.jwk()])]).unwrap();
        let claims = verdict(&tokens, &signer.token(&claims())).unwrap();
        assert_eq!(claims["sub"], ["alice"], "{algorithm:?}");
    }
}

#[test]
fn every_trick_is_refused_with_its_reason() {
    let (ec, other, rsa) = (
        signer("ec", Algorithm::ES256),
        signer("ec", Algorithm::ES256),
        signer("rsa", Algorithm::RS256),
    );
    let tokens = Tokens::new(&[issuer(&[ec.jwk(), rsa.jwk()])]).unwrap();
    let good = ec.token(&claims());
    verdict(&tokens, &good).unwrap();
    let (message, signature) = good.rsplit_once('.').unwrap();
    let (head, body) = message.split_once('.').unwrap();
    let header = |value: Value| ec.sign(&value, &claims());
    let unsigned = |value: Value| format!("{}.{body}.", encoded(&value));
    // The public key as the secret of an HMAC: key confusion.
    let public = ec.jwk().to_string();
    let mac = EncodingKey::from_secret(public.as_bytes());
    let confused = format!("{}.{body}", encoded(&json!({"alg": "HS256", "kid": "ec"})));
    let tag = jsonwebtoken::crypto::sign(confused.as_bytes(), &mac, Algorithm::HS256).unwrap();
    let other_body = encoded(&with("sub", json!("mallory")));
    for (token, expected) in [
        (String::new(), TokenError::Malformed),
        ("a.b".to_owned(), TokenError::Malformed),
        ("a.b.c".to_owned(), TokenError::Malformed),
        (format!("{good}.x"), TokenError::Malformed),
        (format!("{head}=.{body}.{signature}"), TokenError::Malformed),
        ("x".repeat(MAX_TOKEN + 1), TokenError::Malformed),
        (unsigned(json!({"alg": "none"})), TokenError::AlgorithmNotAllowed),
        (unsigned(json!({"alg": "None"})), TokenError::AlgorithmNotAllowed),
        (unsigned(json!({"alg": ""})), TokenError::AlgorithmNotAllowed),
        (unsigned(json!({"kid": "ec"})), TokenError::Malformed),
        (unsigned(json!({"alg": "ES256", "kid": "ec"})), TokenError::BadSignature),
        (format!("{confused}.{tag}"), TokenError::AlgorithmNotAllowed),
        // A key of one kind asked to verify another.
        (header(json!({"alg": "RS256", "kid": "ec"})), TokenError::AlgorithmNotAllowed),
        (header(json!({"alg": "PS256", "kid": "rsa"})), TokenError::AlgorithmNotAllowed),
        (header(json!({"alg": "ES256", "kid": "gone"})), TokenError::UnknownKey),
        (header(json!({"alg": "ES256", "kid": "ec", "crit": ["exp"]})), TokenError::Malformed),
        (format!("{head}.{other_body}.{signature}"), TokenError::BadSignature),
        (other.token(&claims()), TokenError::BadSignature),
        (ec.token(&with("iss", json!("https://id.bank/"))), TokenError::UnknownIssuer),
        (ec.token(&with("iss", json!(["https://id.bank"]))), TokenError::UnknownIssuer),
        (ec.token(&with("aud", json!("orders"))), TokenError::WrongAudience),
        (ec.token(&with("aud", json!(["orders", "Ledger"]))), TokenError::WrongAudience),
        (ec.token(&with("aud", Value::Null)), TokenError::WrongAudience),
        (ec.token(&with("exp", json!(NOW - 31))), TokenError::Expired),
        (ec.token(&with("exp", json!("later"))), TokenError::Malformed),
        (ec.token(&with("nbf", json!(NOW + 31))), TokenError::NotYetValid),
    ] {
        assert_eq!(verdict(&tokens, &token).unwrap_err(), expected, "{token}");
    }
    let mut endless = claims();
    endless.as_object_mut().unwrap().remove("exp");
    assert_eq!(verdict(&tokens, &ec.token(&endless)).unwrap_err(), TokenError::NoExpiry);
}

#[test]
fn clocks_may_differ_by_the_skew() {
    let signer = signer("a", Algorithm::EdDSA);
    let tokens = Tokens::new(&[issuer(&[signer.jwk()])]).unwrap();
    verdict(&tokens, &signer.token(&with("exp", json!(NOW - 29)))).unwrap();
    verdict(&tokens, &signer.token(&with("nbf", json!(NOW + 29)))).unwrap();
}

#[test]
fn keys_rotate_by_id() {
    let (old, new) = (signer("old", Algorithm::ES256), signer("new", Algorithm::ES256));
    let both = Tokens::new(&[issuer(&[old.jwk(), new.jwk()])]).unwrap();
    verdict(&both, &old.token(&claims())).unwrap();
    verdict(&both, &new.token(&claims())).unwrap();
    // Without an id every key of the kind is tried.
    verdict(&both, &new.sign(&json!({"alg": "ES256"}), &claims())).unwrap();
    let after = Tokens::new(&[issuer(&[new.jwk()])]).unwrap();
    assert_eq!(verdict(&after, &old.token(&claims())).unwrap_err(), TokenError::UnknownKey);
}

#[test]
fn keys_for_something_else_are_passed_over() {
    let signer = signer("a", Algorithm::ES256);
    let mut encryption = signer.jwk();
    encryption["use"] = json!("enc");
    let secret = json!({"kty": "oct", "k": "AAAA", "kid": "a", "alg": "HS256"});
    let tokens = Tokens::new(&[issuer(&[encryption, secret, json!({"kty": "??"})])]).unwrap();
    assert_eq!(verdict(&tokens, &signer.token(&claims())).unwrap_err(), TokenError::UnknownKey);
    let config = TokenIssuer { keys: "{".to_owned(), ..issuer(&[]) };
    assert_eq!(Tokens::new(&[config]).unwrap_err().path, "tokens[0].keys");
}

#[test]
fn nested_claims_are_named_with_dots() {
    let signer = signer("a", Algorithm::EdDSA);
    let tokens = Tokens::new(&[issuer(&[signer.jwk()])]).unwrap();
    let roles = json!({"roles": ["ops", "dev"], "level": 3});
    let claims = verdict(&tokens, &signer.token(&with("realm", roles))).unwrap();
    assert_eq!(claims["realm.roles"], ["ops", "dev"]);
    assert_eq!(claims["realm.level"], ["3"]);
}
