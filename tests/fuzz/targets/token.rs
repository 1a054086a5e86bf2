//! A bearer token, which any caller may send: what the issuer did not sign never holds, and claims
//! that it did sign are read to their end.
//!
//! A header and a payload with a line feed between are encoded and signed here, so that claims are
//! reached; other bytes are taken as a token.
#![no_main]

use std::sync::OnceLock;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use libfuzzer_sys::fuzz_target;
use outrigger_core::policy::access::TokenIssuer;
use outrigger_proxy::policy::tokens::Tokens;
use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData, SigningKey};

const NOW: u64 = 1_800_000_000;

struct Signer {
    key: KeyPair,
    tokens: Tokens,
}

fuzz_target!(|bytes: &[u8]| {
    static SIGNER: OnceLock<Signer> = OnceLock::new();
    let Signer { key, tokens } = SIGNER.get_or_init(signer);
    let Some(at) = bytes.iter().position(|byte| *byte == b'\n') else {
        assert!(tokens.verify(bytes, NOW).is_err(), "nobody signed this");
        return;
    };
    let (header, payload) = (&bytes[..at], &bytes[at + 1..]);
    let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
    let message = format!("{}.{}", encode(header), encode(payload));
    let signature = key.sign(message.as_bytes()).expect("invariant: the key is sound");
    let token = format!("{message}.{}", encode(&signature));
    if let Ok(verified) = tokens.verify(token.as_bytes(), NOW) {
        assert_eq!(verified.issuer.issuer, "i");
        assert!(verified.claims.contains_key("iss") && verified.claims.contains_key("exp"));
    }
});

fn signer() -> Signer {
    let key = KeyPair::generate_for(&PKCS_ED25519).expect("invariant: a key can be made");
    let x = URL_SAFE_NO_PAD.encode(key.der_bytes());
    let issuer = TokenIssuer {
        issuer: "i".to_owned(),
        audiences: Vec::new(),
        keys: format!(r#"{{"keys":[{{"kty":"OKP","crv":"Ed25519","kid":"k","x":"{x}"}}]}}"#),
        clock_skew: 30,
        claims_to_headers: Vec::new(),
        forward: false,
        required: true,
    };
    let tokens = Tokens::new(&[issuer]).expect("invariant: the key set is sound");
    Signer { key, tokens }
}
