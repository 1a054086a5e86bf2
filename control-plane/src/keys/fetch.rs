//! One key set over HTTP or HTTPS, with how long it may be kept.
//!
//! Where it is fetched from is written by anyone who may write an ExternalService: never this machine itself,
//! whatever the name of the host leads to, unless the whole mesh is here.

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::header::CACHE_CONTROL;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Empty, Limited};
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::connect::dns::Name;
use hyper_util::rt::TokioExecutor;
use outrigger_core::address::LocalEndpoints;
use outrigger_core::name::Host;
use rustls::{ClientConfig, RootCertStore};
use tonic::codegen::Service;

use super::MAX_KEYS;
use crate::object::External;
use crate::translate::workload::check_endpoint;

/// Time for the whole answer.
const LIMIT: Duration = Duration::from_secs(10);
/// Without a word of the issuer; and the least and most that its word counts.
const KEPT: Duration = Duration::from_secs(5 * 60);
const KEPT_LEAST: Duration = Duration::from_secs(60);
const KEPT_MOST: Duration = Duration::from_secs(60 * 60);

/// The text of a key set, and how long it may be used without asking again.
pub(super) async fn fetch(
    from: &External,
    path: &str,
    local: LocalEndpoints,
) -> Result<(String, Duration), String> {
    let scheme = if from.tls.is_some() { "https" } else { "http" };
    let uri = format!("{scheme}://{}:{}{path}", from.host, from.port);
    let fetching = tokio::time::timeout(LIMIT, get(from, &uri, local));
    let result = fetching.await.unwrap_or_else(|_| Err(format!("no answer in {LIMIT:?}")));
    result.map_err(|error| format!("{uri}: {error}"))
}

async fn get(
    from: &External,
    uri: &str,
    local: LocalEndpoints,
) -> Result<(String, Duration), String> {
    if let Host::Ip(ip) = from.dialled.host {
        check_endpoint(ip, local).map_err(|error| error.to_string())?;
    }
    let mut http = HttpConnector::new_with_resolver(Checked(local));
    http.enforce_http(false);
    let https = HttpsConnectorBuilder::new()
        .with_tls_config(tls(from)?)
        .https_or_http()
        .enable_http1()
        .wrap_connector(http);
    let client = Client::builder(TokioExecutor::new()).build(https);
    let request = Request::get(uri).header("accept", "application/json");
    let request = request.body(Empty::<Bytes>::new()).map_err(|error| error.to_string())?;
    let answer = client.request(request).await.map_err(|error| chain(&error))?;
    if answer.status() != StatusCode::OK {
        return Err(format!("the answer is {}", answer.status()));
    }
    let kept = kept(answer.headers());
    let body = Limited::new(answer.into_body(), MAX_KEYS as usize).collect().await;
    let body = body.map_err(|error| error.to_string())?.to_bytes();
    let text =
        String::from_utf8(body.to_vec()).map_err(|_| "the answer is not UTF-8".to_owned())?;
    Ok((text, kept))
}

/// Looks names up, and gives no address that may not be dialled.
#[derive(Clone, Copy)]
struct Checked(LocalEndpoints);

impl Service<Name> for Checked {
    type Response = std::vec::IntoIter<SocketAddr>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, io::Error>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, name: Name) -> Self::Future {
        let local = self.0;
        Box::pin(async move {
            let mut found = Vec::new();
            for address in tokio::net::lookup_host((name.as_str(), 0)).await? {
                check_endpoint(address.ip(), local).map_err(io::Error::other)?;
                found.push(address);
            }
            Ok(found.into_iter())
        })
    }
}

fn tls(from: &External) -> Result<ClientConfig, String> {
    let mut roots = RootCertStore::empty();
    match &from.tls {
        Some(tls) if !tls.roots.is_empty() => {
            for root in &tls.roots {
                roots.add(root.clone().into()).map_err(|error| error.to_string())?;
            }
        }
        Some(_) => {
            let (_, unusable) =
                roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
            if roots.is_empty() {
                return Err(format!("the system has no usable roots ({unusable} unusable)"));
            }
        }
        None => {}
    }
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// `max-age` of Cache-Control (RFC 9111 section 5.2.2.1), within bounds.
fn kept(headers: &HeaderMap) -> Duration {
    let values = headers.get_all(CACHE_CONTROL).iter().filter_map(|value| value.to_str().ok());
    let mut parts = values.flat_map(|value| value.split(',')).map(str::trim);
    let age = parts.find_map(|part| part.strip_prefix("max-age=")?.parse().ok());
    age.map_or(KEPT, Duration::from_secs).clamp(KEPT_LEAST, KEPT_MOST)
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_issuer_says_how_long_within_bounds() {
        for (value, seconds) in [
            (None, 300),
            (Some("max-age=600"), 600),
            (Some("public, max-age=900, must-revalidate"), 900),
            (Some("max-age=0"), 60),
            (Some("no-store"), 300),
            (Some("max-age=99999999"), 3600),
            (Some("max-age=x"), 300),
        ] {
            let headers = value.map(|value| (CACHE_CONTROL, value.parse().unwrap()));
            let headers: HeaderMap = headers.into_iter().collect();
            assert_eq!(kept(&headers), Duration::from_secs(seconds), "{value:?}");
        }
    }
}
