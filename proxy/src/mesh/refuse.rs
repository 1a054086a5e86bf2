//! Mistakes of the command line that no waiting mends: said at the start, before anything is served.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::Value;

use crate::base::settings::Settings;
use crate::proxy::Proxy;

/// Who a join token is for.
const AUDIENCE: &str = "outrigger.mesh.v1.Workload";
/// Seconds that two clocks may differ by.
const LEEWAY: u64 = 60;

/// Why the proxy could never do anything as it was started, without a configuration on disk; `now` in seconds since 1970.
///
/// # Errors
/// What is wrong and what to do, for a person.
pub fn check(proxy: &Proxy, now: u64) -> Result<(), String> {
    let settings = &proxy.settings;
    // What the disk knows goes on being served, whatever has become of a token since.
    if proxy.lifecycle.configured() {
        return Ok(());
    }
    if settings.control_plane.is_none() {
        let nothing = match &settings.state_dir {
            None => "and there is no --state-dir with a saved configuration".to_owned(),
            Some(dir) => format!("and --state-dir {} contains no configuration", dir.display()),
        };
        return Err(format!(
            "--control-plane is missing, {nothing}: there is nothing to serve. Example: \
             --control-plane http://127.0.0.1:4780"
        ));
    }
    let Some(file) = &settings.token_file else { return Ok(()) };
    // Who has a certificate needs no token.
    if proxy.identity.as_ref().is_some_and(|identity| identity.current().is_ok()) {
        return Ok(());
    }
    let token = read(file)?;
    match complaint(&token, settings, now) {
        Some(why) => Err(format!("--token-file {}: {why}", file.display())),
        None => Ok(()),
    }
}

fn read(file: &Path) -> Result<String, String> {
    let token = std::fs::read_to_string(file);
    let token = token.map_err(|error| format!("--token-file {}: {error}", file.display()))?;
    let token = token.trim();
    if token.is_empty() {
        return Err(format!(
            "--token-file {} is empty: write the output of `outrigger-control-plane token` to it",
            file.display()
        ));
    }
    Ok(token.to_owned())
}

/// What a token says of itself that the control plane will refuse; none for tokens of other kinds. Its signature is
/// the control plane's to check.
fn complaint(token: &str, settings: &Settings, now: u64) -> Option<String> {
    let claims = token.split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    let claims: Value = serde_json::from_slice(&claims).ok()?;
    if claims["exp"].as_u64().is_some_and(|end| end.saturating_add(LEEWAY) < now) {
        return Some("the token has expired: get a new one".to_owned());
    }
    let (namespace, account) = if claims["aud"] == AUDIENCE {
        (&claims["namespace"], &claims["service_account"])
    } else {
        // Of Kubernetes, for a pod.
        let of = &claims["kubernetes.io"];
        (&of["namespace"], &of["serviceaccount"]["name"])
    };
    let (namespace, account) = (namespace.as_str()?, account.as_str()?);
    let (mine, own) = (&settings.namespace, &settings.service_account);
    (namespace != mine || account != own).then(|| {
        format!(
            "the token is for {namespace}/{account}, but this proxy is {mine}/{own}: set --namespace \
             {namespace} --service-account {account}, or use a token of its own"
        )
    })
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;

    use super::*;

    #[derive(Debug, Parser)]
    struct Cli {
        #[command(flatten)]
        settings: Settings,
    }

    fn token(claims: &Value) -> String {
        format!("e30.{}.signature", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    #[test]
    fn a_token_that_will_be_refused_is_known_by_what_it_says() {
        let flags = ["proxy", "--namespace", "bank", "--service-account", "web"];
        let settings = Cli::try_parse_from(flags).expect("flags").settings;
        let said = |claims: Value| complaint(&token(&claims), &settings, 1_000);
        let own = |namespace: &str, account: &str, exp: u64| json!({"aud": AUDIENCE, "namespace": namespace, "service_account": account, "exp": exp});
        assert_eq!(said(own("bank", "web", 2_000)), None);
        assert_eq!(said(own("bank", "web", 950)), None, "clocks differ");
        let expired = said(own("bank", "web", 900)).expect("an end");
        assert_eq!(expired, "the token has expired: get a new one");
        for (namespace, account) in [("bank", "orders"), ("shop", "web")] {
            let why = said(own(namespace, account, 2_000)).expect("another one");
            let is = format!("the token is for {namespace}/{account}, but this proxy is bank/web");
            assert!(why.starts_with(&is), "{why}");
        }
        let pod = |account: &str| {
            json!({"aud": ["outrigger"], "kubernetes.io": {
                "namespace": "bank", "serviceaccount": {"name": account},
            }})
        };
        assert_eq!(said(pod("web")), None);
        assert!(said(pod("orders")).is_some());
        for other in ["", "a", "a.b.c", "a.e30.c"] {
            assert_eq!(complaint(other, &settings, 0), None, "{other}");
        }
    }
}
