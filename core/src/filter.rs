//! What filters do to a request or response: headers, path, redirect.
//!
//! [`crate::compile`] has checked the filters themselves; errors here come from putting them
//! together with a request.

use std::fmt::Write;

use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, header};

use crate::config::{HeaderModifier, PathModifier, Redirect};
use crate::error::FieldError;
use crate::route::without_final_slash;

/// Sets, adds, then removes headers; not those that are no modifier's to say ([`check_modified`]), and
/// not `Host`, which is the authority of a request ([`host_of`]).
pub fn modify_headers(modifier: &HeaderModifier, headers: &mut HeaderMap) {
    for (name, value) in modifier.set.iter().filter(|(name, _)| is_free(name)) {
        headers.insert(name, value.clone());
    }
    for (name, value) in modifier.add.iter().filter(|(name, _)| is_free(name)) {
        headers.append(name, value.clone());
    }
    for name in modifier.remove.iter().filter(|name| is_free(name)) {
        headers.remove(name);
    }
}

/// The authority that a modifier gives to requests, if it sets one.
pub fn host_of(modifier: &HeaderModifier) -> Option<&HeaderValue> {
    modifier.set.iter().find(|(name, _)| *name == header::HOST).map(|(_, value)| value)
}

/// Whether a modifier may name a header: what frames a message or belongs to one connection is said by
/// the writer of the message (RFC 9110 section 7.6.1, RFC 9112 section 6), and what the proxies tell
/// one another by nobody else.
pub fn check_modified(name: &HeaderName) -> Result<(), FieldError> {
    if is_framing(name) {
        let problem = format!("{name} says how a message is sent, which no modifier can change");
        return Err(FieldError::here(problem));
    }
    if is_internal(name) {
        return Err(FieldError::here(format!("{name} is a header of the mesh itself")));
    }
    Ok(())
}

fn is_free(name: &HeaderName) -> bool {
    !is_framing(name) && !is_internal(name) && *name != header::HOST
}

fn is_framing(name: &HeaderName) -> bool {
    matches!(
        name.as_str(),
        "content-length"
            | "transfer-encoding"
            | "connection"
            | "keep-alive"
            | "proxy-connection"
            | "te"
            | "trailer"
            | "upgrade"
            | "http2-settings"
    )
}

/// All but the one that apps use, too.
fn is_internal(name: &HeaderName) -> bool {
    name.as_str().starts_with("x-outrigger-") && name.as_str() != "x-outrigger-priority"
}

/// Whether what a modifier puts in the place of a path is one: it begins with a slash, and has neither a
/// query nor a fragment.
pub fn check_path_modifier(modifier: &PathModifier) -> Result<(), FieldError> {
    let path = match modifier {
        // Nothing in place of the prefix: the rest of the path remains.
        PathModifier::Prefix(path) if path.is_empty() => return Ok(()),
        PathModifier::Prefix(path) | PathModifier::Full(path) => path,
    };
    if !path.starts_with('/') {
        return Err(FieldError::here(format!("{path:?} must begin with \"/\"")));
    }
    match path.parse::<PathAndQuery>() {
        Ok(parsed) if parsed.as_str() == path && parsed.query().is_none() => Ok(()),
        _ => Err(FieldError::here(format!("{path:?} is not a valid path"))),
    }
}

/// The path after a path modifier, with the request's query. `matched_prefix` is what the rule's
/// prefix match named.
pub fn rewrite_path(
    modifier: &PathModifier,
    matched_prefix: Option<&str>,
    path: &str,
    query: Option<&str>,
) -> Result<PathAndQuery, FieldError> {
    let mut text = String::new();
    push_path(&mut text, modifier, matched_prefix, path)?;
    push_query(&mut text, query);
    PathAndQuery::try_from(text)
        .map_err(|error| FieldError::at("path", format!("the modified path is not valid: {error}")))
}

/// The `Location` of a redirect. `scheme`, `host`, `port`, `path` and `query` are the request's.
///
/// Gateway API's port rules: the redirect's port; else, with a redirect's scheme, the well-known
/// port of that scheme; else the request's port. A well-known port is left out.
pub fn redirect_location(
    redirect: &Redirect,
    matched_prefix: Option<&str>,
    scheme: &str,
    host: &str,
    port: Option<u16>,
    path: &str,
    query: Option<&str>,
) -> Result<HeaderValue, FieldError> {
    let port = match (redirect.port, &redirect.scheme) {
        (Some(port), _) => Some(port),
        (None, Some(_)) => None,
        (None, None) => port,
    };
    let scheme = redirect.scheme.as_deref().unwrap_or(scheme);
    let host = redirect.host.as_deref().unwrap_or(host);

    let mut location = String::with_capacity(scheme.len() + host.len() + path.len() + 16);
    location.push_str(scheme);
    location.push_str("://");
    push_host(&mut location, host);
    if let Some(port) = port
        && Some(port) != well_known_port(scheme)
    {
        // Writing to a string cannot fail.
        let _ = write!(location, ":{port}");
    }
    match &redirect.path {
        Some(modifier) => push_path(&mut location, modifier, matched_prefix, path)?,
        None => location.push_str(path),
    }
    push_query(&mut location, query);
    HeaderValue::try_from(location)
        .map_err(|_| FieldError::here("the redirect's location is not a valid header value"))
}

fn push_path(
    text: &mut String,
    modifier: &PathModifier,
    matched_prefix: Option<&str>,
    path: &str,
) -> Result<(), FieldError> {
    match modifier {
        PathModifier::Full(full) => text.push_str(full),
        PathModifier::Prefix(replacement) => {
            let prefix = matched_prefix.ok_or_else(|| {
                FieldError::at("path", "replaces a prefix, and the rule did not match by prefix")
            })?;
            let prefix = without_final_slash(prefix);
            let rest = path.strip_prefix(prefix).filter(|r| r.is_empty() || r.starts_with('/'));
            let rest = rest.ok_or_else(|| {
                FieldError::at("path", format!("{path:?} does not begin with {prefix:?}"))
            })?;
            let replacement = without_final_slash(replacement);
            if replacement.is_empty() && rest.is_empty() {
                text.push('/');
            }
            text.push_str(replacement);
            text.push_str(rest);
        }
    }
    Ok(())
}

fn push_query(text: &mut String, query: Option<&str>) {
    if let Some(query) = query {
        text.push('?');
        text.push_str(query);
    }
}

fn push_host(text: &mut String, host: &str) {
    if host.contains(':') && !host.starts_with('[') {
        text.push('[');
        text.push_str(host);
        text.push(']');
    } else {
        text.push_str(host);
    }
}

fn well_known_port(scheme: &str) -> Option<u16> {
    match scheme {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    }
}
