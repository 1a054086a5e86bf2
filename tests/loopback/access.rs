//! Who may call: access policies and tokens, as written into the folder of manifests, asked by the
//! server side's proxy.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use outrigger_tests::app::{Echo, greet_then_echo, tcp};
use outrigger_tests::client::{Answer, Curl};
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy, free_port, local};
use serde_json::{Value, json};

use crate::service;

/// An app `ledger`, and two callers with different accounts.
struct Bank {
    orders: Proxy,
    market: Proxy,
    ledger: Proxy,
    plane: ControlPlane,
    app: Echo,
}

impl Bank {
    fn start(plane: &[&str], policy: &str) -> Self {
        let app = Echo::start("ledger");
        let manifests =
            [("ledger.yaml", service("ledger", "")), ("policy.yaml", policy.to_owned())];
        let manifests: Vec<_> = manifests.iter().map(|(name, text)| (*name, &**text)).collect();
        let plane = ControlPlane::start_with_identity(&manifests, plane);
        let port = format!("{}=h1:main", app.port);
        let ledger = Proxy::beside(&plane, "ledger", &[port], &["--drain-timeout", "1s"]);
        let orders = Proxy::start(&plane, "orders", &[]);
        let market = Proxy::start(&plane, "market", &[]);
        Self { orders, market, ledger, plane, app }
    }
}

fn policy(spec: &str) -> String {
    format!(
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\n\
         metadata: {{name: ledger, namespace: bank}}\nspec:\n  selector: {{matchLabels: {{app: ledger}}}}\n{spec}"
    )
}

const READ_ONLY: &str = "  rules:\n  - name: orders-read\n    action: Allow\n    \
    from: [{serviceAccounts: [orders]}]\n    \
    to: [{methods: [GET], paths: [{prefix: /accounts}], hosts: [ledger.bank]}]\n";

fn ask(proxy: &Proxy, path: &str, more: &[&str]) -> Answer {
    let url = format!("http://ledger.bank{path}");
    Curl::through(proxy).args(&["--path-as-is"]).args(more).get(&url)
}

#[test]
fn only_what_a_rule_allows_reaches_the_app() {
    let bank = Bank::start(&["--mtls", "strict"], &policy(READ_ONLY));
    assert_eq!(ask(&bank.orders, "/accounts/7", &[]).status, 200);
    let answer = ask(&bank.market, "/accounts/7", &[]);
    assert_eq!(answer.status, 403, "{answer:?}");
    assert!(answer.body.contains("access_denied"), "{answer:?}");
    assert!(answer.body.contains("no rule of bank/ledger allows it"), "{answer:?}");
    bank.ledger.wait_log(&["access_denied", "bank/market", "no rule of bank/ledger"]);
    assert_eq!(ask(&bank.orders, "/accounts/7", &["--data", "x"]).status, 403);
    for (path, status) in [
        ("/admin", 403),
        ("/accounts/../admin", 403),
        ("/accounts/%2e%2e/admin", 403),
        ("//admin", 403),
        ("/accounts%2f..%2fadmin", 400),
        ("/accounts/..;/admin", 400),
    ] {
        assert_eq!(ask(&bank.orders, path, &[]).status, status, "{path}");
    }
    let before = bank.app.requests.load(Relaxed);
    // What was judged is what the app gets.
    let answer = ask(&bank.orders, "/x/..//accounts/%37?q=%2e", &[]);
    let said: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    assert_eq!(said["uri"], "/accounts/7?q=%2e", "{answer:?}");
    assert_eq!((before, bank.app.requests.load(Relaxed)), (1, 2));
}

#[test]
fn a_policy_on_trial_refuses_nothing_and_says_what_it_would() {
    let audit = policy(&format!("  audit: true\n{READ_ONLY}"));
    let bank = Bank::start(&["--mtls", "strict"], &audit);
    assert_eq!(ask(&bank.market, "/accounts/7", &[]).status, 200);
    assert_eq!(ask(&bank.orders, "/accounts/7", &[]).status, 200);
    bank.ledger.wait_log(&["audit mode", "no rule of bank/ledger", "sa/market"]);
    assert_eq!(bank.ledger.count("outrigger_access_audited_total", &[]), 1.0);
    // In force after one edit, and out of force after another.
    bank.plane.write("policy.yaml", &policy(READ_ONLY));
    eventually("the policy is in force", || ask(&bank.market, "/accounts/7", &[]).status == 403);
    bank.plane.remove("policy.yaml");
    eventually("it is gone", || ask(&bank.market, "/accounts/7", &[]).status == 200);
}

#[test]
fn a_mesh_can_deny_by_default() {
    let bank = Bank::start(&["--mtls", "strict", "--default-access", "deny"], "");
    let answer = ask(&bank.orders, "/", &[]);
    assert_eq!(answer.status, 403, "{answer:?}");
    assert!(answer.body.contains("the default of the mesh denies it"), "{answer:?}");
    let open = "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\n\
                metadata: {name: open, namespace: bank}\nspec: {default: Allow}\n";
    bank.plane.write("policy.yaml", open);
    eventually("the namespace is open", || ask(&bank.orders, "/", &[]).status == 200);
}

#[test]
fn a_stream_that_is_no_longer_allowed_ends() {
    let plane = ControlPlane::start_with_identity(
        &[("greet.yaml", &service("greet", "tcp"))],
        &["--mtls", "strict"],
    );
    let port = format!("{}=tcp:main", tcp(greet_then_echo));
    let greet = Proxy::beside(&plane, "greet", &[port], &["--drain-timeout", "1s"]);
    let listen = free_port();
    let _caller =
        Proxy::caller(&plane, &["--listen", &format!("127.0.0.1:{listen}=greet.bank:80")]);
    let mut stream = TcpStream::connect(local(listen)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
    let mut greeting = [0; 64];
    assert!(stream.read(&mut greeting).expect("a greeting") > 0);
    plane.write(
        "policy.yaml",
        "apiVersion: outrigger.dev/v1alpha1\nkind: AccessPolicy\n\
         metadata: {name: greet, namespace: bank}\nspec: {default: Deny}\n",
    );
    // Ends: with its end or a reset, never by the read's own limit.
    let ended = stream.read(&mut greeting);
    let timed_out = ended.as_ref().is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
    assert!(!timed_out && !matches!(ended, Ok(n) if n > 0), "{ended:?}");
    greet.wait_log(&["access_denied"]);
    // A new one is refused at once, with the cause in the log.
    let mut stream = TcpStream::connect(local(listen)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
    let _ = stream.write_all(b"x");
    assert!(!matches!(stream.read(&mut greeting), Ok(n) if n > 0));
    greet.wait_log(&["access_denied", "the default of bank/greet denies it"]);
}

pub struct Issuer {
    key: EncodingKey,
    id: &'static str,
}

impl Issuer {
    pub fn new(id: &'static str) -> Self {
        let pem = rcgen::KeyPair::generate().expect("a key").serialize_pem();
        Self { key: EncodingKey::from_ec_pem(pem.as_bytes()).expect("a key"), id }
    }

    pub fn key_set(&self) -> String {
        let jwk = Jwk::from_encoding_key(&self.key, Algorithm::ES256).expect("a public key");
        let mut jwk = serde_json::to_value(jwk).expect("JSON");
        jwk["kid"] = json!(self.id);
        json!({ "keys": [jwk] }).to_string()
    }

    pub fn token(&self, group: &str) -> String {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock").as_secs();
        let claims = json!({
            "iss": "https://id.bank", "aud": "ledger", "exp": now + 600, "sub": "alice",
            "groups": [group],
        });
        let header = Header { kid: Some(self.id.to_owned()), ..Header::new(Algorithm::ES256) };
        let token = jsonwebtoken::encode(&header, &claims, &self.key).expect("a token");
        format!("authorization: Bearer {token}")
    }
}

#[test]
fn tokens_are_verified_and_keys_rotate() {
    let old = Issuer::new("old");
    let spec = "  jwt:\n  - issuer: https://id.bank\n    audiences: [ledger]\n    jwks: {file: keys.json}\n    \
                required: true\n    claimsToHeaders: [{claim: sub, header: x-user}]\n  rules:\n  \
                - action: Allow\n    claims: [{name: groups, values: [ops]}]\n";
    let bank = Bank::start(&["--mtls", "strict"], "");
    bank.plane.write("keys.json", &old.key_set());
    bank.plane.write("policy.yaml", &policy(spec));
    let said = |header: &str| {
        let forged = "x-user: mallory";
        ask(&bank.orders, "/", &["--header", header, "--header", forged])
    };
    // Without the policy, too, it passes, but nobody tells the app whose it is.
    eventually("a good token passes", || said(&old.token("ops")).body.contains("alice"));
    let answer = said(&old.token("ops"));
    let headers: Value = serde_json::from_str(&answer.body).unwrap_or_default();
    assert_eq!(headers["headers"]["x-user"], "alice", "{answer:?}");
    assert_eq!(headers["headers"]["authorization"], Value::Null, "{answer:?}");
    let answer = said("x: y");
    assert_eq!((answer.status, answer.body.contains("token_missing")), (401, true), "{answer:?}");
    assert_eq!(said(&old.token("dev")).status, 403);
    let new = Issuer::new("new");
    let answer = said(&new.token("ops"));
    assert_eq!(answer.status, 401, "{answer:?}");
    assert!(
        answer.body.contains("token_invalid: unknown key") || answer.body.contains("unknown key")
    );
    bank.plane.write("keys.json", &new.key_set());
    eventually("the new key is known", || said(&new.token("ops")).status == 200);
    assert_eq!(said(&old.token("ops")).status, 401);
    // Broken keys are reported, and the good ones stay.
    bank.plane.write("keys.json", "{");
    eventually("it is reported", || {
        let log = bank.plane.process().log();
        log.contains("keys.json") && log.contains("last good")
    });
    assert_eq!(said(&new.token("ops")).status, 200);
}

#[test]
fn a_policy_that_could_never_match_is_reported_and_the_last_good_one_stays() {
    let bank = Bank::start(&["--mtls", "strict"], &policy(READ_ONLY));
    bank.plane.write("policy.yaml", &policy(&READ_ONLY.replace("/accounts", "/a/../accounts")));
    eventually("it is reported with its line", || {
        let problems = bank.plane.admin("/problems");
        problems.contains("policy.yaml")
            && problems.contains("spec.rules[0].to[0].paths[0]")
            && problems.contains("canonical form")
    });
    assert_eq!(ask(&bank.orders, "/accounts/7", &[]).status, 200);
    assert_eq!(ask(&bank.market, "/accounts/7", &[]).status, 403);
    let unknown = policy("  rulez: []\n");
    bank.plane.write("policy.yaml", &unknown);
    eventually("an unknown field is an error", || bank.plane.admin("/problems").contains("rulez"));
    assert_eq!(ask(&bank.market, "/accounts/7", &[]).status, 403);
}

#[test]
fn keys_are_fetched_from_an_external_service_once_for_the_mesh() {
    let issuer = Issuer::new("a");
    let (keys, fetched) = (issuer.key_set(), Arc::new(AtomicUsize::new(0)));
    let seen = Arc::clone(&fetched);
    let port = tcp(move |mut stream| {
        let mut head = [0; 1024];
        let n = stream.read(&mut head).unwrap_or(0);
        let found = head[..n].starts_with(b"GET /keys.json ");
        let (status, body) = if found { ("200 OK", keys.as_str()) } else { ("404 Not Found", "") };
        seen.fetch_add(1, Relaxed);
        let answer = format!(
            "HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
            body.len()
        );
        let _ = stream.write_all(answer.as_bytes());
    });
    let spec = "  jwt:\n  - issuer: https://id.bank\n    audiences: [ledger]\n    required: true\n    \
                jwks: {externalService: {name: id, path: /keys.json}}\n";
    let bank = Bank::start(&["--mtls", "strict"], &policy(spec));
    let said = || ask(&bank.orders, "/", &["--header", &issuer.token("ops")]);
    let answer = said();
    assert_eq!((answer.status, answer.body.contains("unknown key")), (401, true), "{answer:?}");
    eventually("the missing service is reported", || {
        bank.plane.process().log().contains("there is no ExternalService bank/id")
    });
    bank.plane.write(
        "id.yaml",
        &format!(
            "apiVersion: outrigger.dev/v1alpha1\nkind: ExternalService\n\
             metadata: {{name: id, namespace: bank}}\nspec: {{host: 127.0.0.1, port: {port}}}\n"
        ),
    );
    eventually("the keys are known", || said().status == 200);
    for _ in 0..20 {
        assert_eq!(said().status, 200);
    }
    assert_eq!(fetched.load(Relaxed), 1);
}
