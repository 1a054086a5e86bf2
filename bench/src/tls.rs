//! The pair with mutual TLS: our proxies with identities from a control plane of their own, and
//! Envoy's with certificates of the same root.
//!
//! Both sides speak TLS 1.3 with X25519MLKEM768, show one P-256 leaf right under the root, ask for the
//! caller's certificate and demand the other side's exact identity.

use std::fs;
use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, Issuer, KeyPair, SanType, date_time_ymd};
use serde::Deserialize;

use crate::Failure;
use crate::memory::wait_ready;
use crate::peers::{Build, OTHER_CPU, Places, Running, envoy, token};

/// Accounts of the called and the calling workload.
const CALLED: &str = "pair";
const CALLER: &str = "caller";

/// Starts the control plane and both proxies of each pair.
pub fn start(running: &mut Running, places: &Places) -> Result<(), Failure> {
    for build in Build::all(places) {
        let state = state(build);
        let path = places.work.join(&state);
        if path.exists() {
            fs::remove_dir_all(&path)?;
        }
        let (listen, admin) = (build.at(19_785), build.at(19_787));
        let args = ["--manifests", "manifests", "--state-dir", &state, "--listen", &listen];
        let args =
            [&args[..], &["--admin", &admin, "--identity", "on", "--mtls", "strict"]].concat();
        let (name, port) = (build.named("tls-control-plane-", ""), build.port(19_785));
        running.start(places, &name, OTHER_CPU, port, &places.control_plane, &args)?;
    }
    issue(places)?;
    for build in Build::all(places) {
        ours(running, places, build)?;
    }
    if places.envoy.is_some() {
        for (side, port) in [("in", 19_761), ("out", 19_751)] {
            let text = fs::read_to_string(places.configs.join(format!("envoy-{side}.yaml")))?;
            let config = places.work.join(format!("envoy-tls-{side}.yaml"));
            fs::write(&config, envoy_with_tls(&text, &folder(places)))?;
            let name = format!("tls-envoy-{side}");
            envoy(running, places, &name, port, &config.display().to_string())?;
        }
    }
    Ok(())
}

/// Where the certificates of Envoy and of the caller that only makes handshakes are.
pub fn folder(places: &Places) -> std::path::PathBuf {
    places.work.join("tls")
}

fn state(build: Build) -> String {
    build.named("control-plane-tls-", "")
}

fn ours(running: &mut Running, places: &Places, build: Build) -> Result<(), Failure> {
    let state = state(build);
    let (bundle, to) =
        (format!("{state}/trust-bundle.pem"), format!("https://{}", build.at(19_785)));
    let common = ["--control-plane", &to, "--trust-bundle", &bundle];
    let (called, inbound) = (token(places, CALLED, &state)?, build.at(19_661));
    let mut args = common.to_vec();
    args.extend(["--token-file", &called, "--service-account", CALLED]);
    args.extend(["--inbound", &inbound, "--workload", "pair-1", "--label", "app=pair"]);
    args.extend(["--app-port", "19001=h1:http,19003=grpc:grpc"]);
    build.proxy(running, places, &build.named("tls-", "-in"), 19_670, &args)?;
    wait_ready(build.port(19_672))?;
    let caller = token(places, CALLER, &state)?;
    let mut args = common.to_vec();
    args.extend(["--token-file", &caller, "--service-account", CALLER]);
    let [h1, grpc] = [19_651, 19_653].map(|port| build.at(port));
    let listen = format!("{h1}=pair-h1.bench:80,{grpc}=pair-grpc.bench:80");
    args.extend(["--listen", &listen]);
    build.proxy(running, places, &build.named("tls-", "-out"), 19_675, &args)?;
    wait_ready(build.port(19_677))
}

/// The part of the control plane's own file that is needed to issue under its root.
#[derive(Deserialize)]
struct Roots {
    roots: Vec<Root>,
}

#[derive(Deserialize)]
struct Root {
    certificate: String,
    key: String,
}

fn issue(places: &Places) -> Result<(), Failure> {
    let text = fs::read_to_string(places.work.join(state(Build::NOW)).join("ca/roots.json"))?;
    let roots: Roots = serde_json::from_str(&text)?;
    let root = roots.roots.first().ok_or("the control plane has no root")?;
    let issuer = Issuer::from_ca_cert_pem(&root.certificate, KeyPair::from_pem(&root.key)?)?;
    let folder = folder(places);
    fs::create_dir_all(&folder)?;
    fs::write(folder.join("root.pem"), &root.certificate)?;
    let now = SystemTime::now().duration_since(UNIX_EPOCH)?;
    for account in [CALLED, CALLER] {
        let mut params = CertificateParams::default();
        params.subject_alt_names = vec![SanType::URI(identity(account).as_str().try_into()?)];
        params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        params.not_before = date_time_ymd(1970, 1, 1) + now - Duration::from_secs(30);
        params.not_after = params.not_before + Duration::from_secs(24 * 3600);
        let key = KeyPair::generate()?;
        let certificate = params.signed_by(&key, &issuer)?;
        fs::write(folder.join(format!("{account}.pem")), certificate.pem())?;
        fs::write(folder.join(format!("{account}.key")), key.serialize_pem())?;
    }
    Ok(())
}

fn identity(account: &str) -> String {
    format!("spiffe://outrigger.local/ns/bench/sa/{account}")
}

/// The configuration of the plaintext pair with TLS between the two, on ports of its own.
fn envoy_with_tls(text: &str, folder: &Path) -> String {
    let calling = text.contains("cluster: in-h1");
    let (own, other) = if calling { (CALLER, CALLED) } else { (CALLED, CALLER) };
    let file = |name: &str| format!("{{filename: {}}}", folder.join(name).display());
    let common = format!(
        "common_tls_context: {{alpn_protocols: [h2], \
         tls_params: {{tls_minimum_protocol_version: TLSv1_3, tls_maximum_protocol_version: TLSv1_3, \
         ecdh_curves: [X25519MLKEM768]}}, \
         tls_certificates: [{{certificate_chain: {}, private_key: {}}}], \
         validation_context: {{trusted_ca: {}, \
         match_typed_subject_alt_names: [{{san_type: URI, matcher: {{exact: \"{}\"}}}}]}}}}",
        file(&format!("{own}.pem")),
        file(&format!("{own}.key")),
        file("root.pem"),
        identity(other),
    );
    let socket = |kind: &str, more: &str| {
        format!(
            "transport_socket: {{name: envoy.transport_sockets.tls, typed_config: {{\"@type\": \
             type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.{kind}TlsContext, \
             {more}{common}}}}}"
        )
    };
    let text = text.replace("1970", "1975").replace("1971", "1976").replace("1979", "1974");
    if calling {
        let with = format!("    type: STATIC\n    {}\n", socket("Upstream", ""));
        text.replace("    type: STATIC\n", &with)
    } else {
        let socket = socket("Downstream", "require_client_certificate: true, ");
        text.replace("    - filters:\n", &format!("    - {socket}\n      filters:\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_sides_of_envoy_get_tls_on_other_ports() {
        let text = |side: &str| {
            let peers = Path::new(env!("CARGO_MANIFEST_DIR")).join("peers");
            fs::read_to_string(peers.join(format!("envoy-{side}.yaml"))).unwrap()
        };
        let calling = envoy_with_tls(&text("out"), Path::new("/t"));
        assert_eq!(calling.matches("UpstreamTlsContext").count(), 2);
        assert!(calling.contains("19751") && calling.contains("19761"));
        assert!(calling.contains("/t/caller.key") && calling.contains("sa/pair\""));
        let called = envoy_with_tls(&text("in"), Path::new("/t"));
        assert_eq!(called.matches("require_client_certificate: true").count(), 2);
        assert!(called.contains("19761") && called.contains("19001"));
    }
}
