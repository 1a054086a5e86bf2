//! An issuing certificate in a Secret, as cert-manager keeps one, and how it is followed.

use k8s_openapi::ByteString;
use outrigger_tests::eventually;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    date_time_ymd,
};
use serde_json::{Value, json};

use super::cluster::{Cluster, Plane};

/// An authority of the user.
struct Pki {
    root: String,
    key: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Pki {
    fn new(name: &str) -> Self {
        let key = KeyPair::generate().expect("a key");
        let params = authority(name, 2090);
        let root = params.self_signed(&key).expect("a root").pem();
        let pem = key.serialize_pem();
        Self { root, key: pem, issuer: Issuer::new(params, key) }
    }

    /// Certificate and key of one that issues until that year.
    fn pair(&self, until: i32) -> (String, String) {
        let key = KeyPair::generate().expect("a key");
        let made = authority("issuing", until).signed_by(&key, &self.issuer);
        (made.expect("a certificate").pem(), key.serialize_pem())
    }
}

fn authority(name: &str, until: i32) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params.not_after = date_time_ymd(until, 1, 1);
    params
}

fn secret(cluster: &Cluster, (certificate, key): (&str, &str), root: &str) -> Value {
    let text = |text: &str| ByteString(text.as_bytes().to_vec());
    json!({
        "apiVersion": "v1", "kind": "Secret", "type": "Opaque",
        "metadata": {"name": "mesh-issuer", "namespace": cluster.system},
        "data": {"tls.crt": text(certificate), "tls.key": text(key), "ca.crt": text(root)},
    })
}

fn held(plane: &Plane) -> String {
    let page: Value = serde_json::from_str(&plane.page("/identity")).expect("JSON");
    page["held"].as_str().unwrap_or_default().to_owned()
}

/// The year in which the issuing certificate ends.
fn ends(plane: &Plane) -> i64 {
    let metrics = plane.page("/metrics");
    let mut lines = metrics.lines();
    let line =
        lines.find_map(|l| l.strip_prefix("outrigger_control_plane_ca_expiry_timestamp_seconds "));
    let seconds: f64 = line.and_then(|line| line.trim().parse().ok()).expect("a time");
    1970 + (seconds / (365.2425 * 24.0 * 3600.0)).round() as i64
}

fn bundle(cluster: &Cluster) -> String {
    let map = json!({"apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": "outrigger-trust-bundle.pem", "namespace": cluster.system}});
    cluster.get(&map)["data"]["document"].as_str().expect("roots").replace("\r\n", "\n")
}

#[test]
fn an_issuing_certificate_in_a_secret_is_followed_and_a_broken_one_changes_nothing() {
    let cluster = Cluster::start();
    let pki = Pki::new("one");
    let (certificate, key) = pki.pair(2040);
    let good = secret(&cluster, (&certificate, &key), &pki.root);
    cluster.apply(&good);
    let plane = Plane::start(&cluster, &["--issuer-secret", "mesh-issuer"]);
    assert_eq!((held(&plane), ends(&plane)), (String::new(), 2040));
    assert_eq!(bundle(&cluster), pki.root.replace("\r\n", "\n"));

    let (second, second_key) = pki.pair(2050);
    let name = format!("Secret {}/mesh-issuer", cluster.system);
    let mut without = secret(&cluster, (&second, &second_key), &pki.root);
    without["data"]["tls.key"] = Value::Null;
    for (broken, problem) in [
        (
            secret(&cluster, (&certificate, &second_key), &pki.root),
            "the key is not that of the certificate",
        ),
        (secret(&cluster, (&certificate, "nonsense"), &pki.root), "tls.key"),
        (secret(&cluster, (&certificate, &key), &Pki::new("other").root), "does not lead to"),
        (without, "tls.key is not there"),
    ] {
        cluster.patch(&good, &json!({"data": broken["data"]}));
        eventually(&format!("it is said: {problem}"), || {
            let held = held(&plane);
            held.contains(problem)
                && held.contains(&name)
                && held.ends_with("the last good one stays in force")
        });
        assert_eq!(ends(&plane), 2040);
    }
    cluster.delete(&good);
    eventually("that it is gone is said", || {
        held(&plane).starts_with(&format!("{name} is not there"))
    });
    eventually("in the log as well", || plane.log().contains("mesh-issuer is not there"));
    assert!(plane.is_ready());

    cluster.apply(&secret(&cluster, (&second, &second_key), &pki.root));
    eventually("the new one issues", || ends(&plane) == 2050 && held(&plane).is_empty());
    // Another root, and one that issues itself: cert-manager's self-signed ones are in both places.
    let other = Pki::new("two");
    cluster.apply(&secret(&cluster, (&other.root, &other.key), &other.root));
    eventually("a new root issues, since no proxy is there to wait for", || ends(&plane) == 2090);
    eventually("the old one goes", || bundle(&cluster) == other.root.replace("\r\n", "\n"));
}

#[test]
fn without_a_good_secret_at_the_start_it_says_which_one_and_ends() {
    let cluster = Cluster::start();
    let plane = Plane::start_unready(&cluster, &["--issuer-secret", "mesh-issuer"]);
    eventually("it says what is not there", || {
        plane.log().contains(&format!("Secret {}/mesh-issuer is not there", cluster.system))
    });
    assert!(!plane.is_ready());
}
