//! What a request may look like, decided before anything else (RFC 9110 section 7.2, RFC 9112 sections 3.2
//! and 6.1, RFC 9113 section 8.3.1). What two readers could take for two different requests is refused, so
//! that what is authorized is what the app reads.

use h2::ext::Protocol;
use http::header::{self, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::Scheme;
use http::{Method, Version};

use crate::wire::headers::{CONNECT, HeaderScan, UPGRADE, list_has};
use crate::wire::hosts::Hosts;

/// Why a head may go no further. `seen`: in its headers.
pub fn check(head: &Parts, seen: HeaderScan, hosts: &Hosts) -> Result<(), &'static str> {
    match head.version {
        Version::HTTP_2 => check_http2(head, seen, hosts)?,
        _ => check_http1(head, seen, hosts)?,
    }
    if let Some(authority) = head.uri.authority()
        && !hosts.is_valid(authority.as_str().as_bytes())
    {
        return Err("the host of the target is not valid");
    }
    match head.uri.scheme() {
        None => {}
        Some(scheme) if *scheme == Scheme::HTTP || *scheme == Scheme::HTTPS => {}
        Some(_) => return Err("the scheme of the target is neither http nor https"),
    }
    let protocol = head.extensions.get::<Protocol>();
    if protocol.is_some_and(|protocol| !is_protocol(protocol.as_str().as_bytes())) {
        return Err("the protocol in :protocol is not one to change to");
    }
    let connects = head.method == Method::CONNECT && protocol.is_none();
    let passed_on = seen.has(HeaderScan::PASSES_UPGRADE) && check_passed_on(head)?;
    if (connects || passed_on) && head.uri.port_u16().is_none() {
        return Err("the target of a CONNECT has no port");
    }
    // Of `*` alone the whole server is asked (RFC 9110 section 9.3.7).
    if head.uri.path() == "*" && head.method != Method::OPTIONS {
        return Err("the target * is for OPTIONS alone");
    }
    Ok(())
}

/// What another proxy passes on; true: a CONNECT.
fn check_passed_on(head: &Parts) -> Result<bool, &'static str> {
    match only(head, &UPGRADE).map_err(|()| "more than one protocol to change to")? {
        Some(token) if *token == CONNECT => Ok(true),
        Some(token) if !is_protocol(token.as_bytes()) => {
            Err("the protocol that another proxy passes on is not one to change to")
        }
        _ => Ok(false),
    }
}

fn check_http1(head: &Parts, seen: HeaderScan, hosts: &Hosts) -> Result<(), &'static str> {
    let uri = &head.uri;
    let host = only(head, &header::HOST).map_err(|()| "more than one Host header")?;
    if head.method == Method::CONNECT {
        if uri.authority().is_none() || uri.scheme().is_some() {
            return Err("the target of a CONNECT is a host and a port");
        }
    } else if uri.authority().is_some() && uri.scheme().is_none() {
        return Err("the target is neither a path nor a whole URI");
    } else if host.is_none() {
        return Err("no Host header");
    }
    if host.is_some_and(|host| !hosts.is_valid(host.as_bytes())) {
        return Err("the Host header is not valid");
    }
    if seen.has(HeaderScan::TRANSFER_CODING) {
        check_coding(head)?;
    }
    if seen.has(HeaderScan::UPGRADE) {
        check_upgrade(head)?;
    }
    Ok(())
}

fn check_coding(head: &Parts) -> Result<(), &'static str> {
    let coding = only(head, &header::TRANSFER_ENCODING).map_err(|()| OTHER_CODING)?;
    match coding
        .is_some_and(|coding| !coding.as_bytes().trim_ascii().eq_ignore_ascii_case(b"chunked"))
    {
        true => Err(OTHER_CODING),
        false => Ok(()),
    }
}

const OTHER_CODING: &str = "a transfer coding other than chunked";

/// One protocol to change to: of several it is not known which one the app would take.
fn check_upgrade(head: &Parts) -> Result<(), &'static str> {
    if !list_has(&head.headers, &header::CONNECTION, "upgrade") {
        return Ok(());
    }
    let values = head.headers.get_all(header::UPGRADE).iter();
    let tokens = values.flat_map(|value| value.as_bytes().split(|byte| *byte == b','));
    let mut tokens = tokens.map(<[u8]>::trim_ascii).filter(|token| !token.is_empty());
    match (tokens.next(), tokens.next()) {
        (_, Some(_)) => Err("more than one protocol in Upgrade"),
        (Some(one), None) if !one.eq_ignore_ascii_case(H2C) && !is_protocol(one) => {
            Err("the protocol in Upgrade is not a token")
        }
        _ => Ok(()),
    }
}

/// HTTP/2 by upgrade, which is gone (RFC 9113 section 3.1), and would be read by nobody but the app.
const H2C: &[u8] = b"h2c";

/// A name, with a version or without (RFC 9110 section 7.8), of what a connection may change to.
fn is_protocol(text: &[u8]) -> bool {
    !text.is_empty()
        && text.iter().all(|byte| is_token(*byte) || *byte == b'/')
        && !text.eq_ignore_ascii_case(H2C)
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn check_http2(head: &Parts, seen: HeaderScan, hosts: &Hosts) -> Result<(), &'static str> {
    let host = match seen.has(HeaderScan::HOST) {
        true => only(head, &header::HOST).map_err(|()| "more than one host header")?,
        false => None,
    };
    // Some read it without (RFC 9113 section 8.2.1).
    if head.headers.values().any(|value| is_padded(value.as_bytes())) {
        return Err("a header value begins or ends with white space");
    }
    match (head.uri.authority(), host) {
        (None, None) => return Err("neither :authority nor host"),
        (None, Some(host)) if !hosts.is_valid(host.as_bytes()) => {
            return Err("the host header is not valid");
        }
        (Some(authority), Some(host))
            if !authority.as_str().as_bytes().eq_ignore_ascii_case(host.as_bytes()) =>
        {
            return Err(":authority and host differ");
        }
        _ => {}
    }
    let path = head.uri.path_and_query().map_or("", |path| path.as_str());
    let connects = head.method == Method::CONNECT && path.is_empty();
    if !connects && !path.starts_with('/') && path != "*" {
        return Err(":path is not a path");
    }
    Ok(())
}

fn is_padded(value: &[u8]) -> bool {
    let is_space = |byte: Option<&u8>| matches!(byte, Some(b' ' | b'\t'));
    is_space(value.first()) || is_space(value.last())
}

/// The value of a header that may be there once.
fn only<'a>(head: &'a Parts, name: &HeaderName) -> Result<Option<&'a HeaderValue>, ()> {
    let mut values = head.headers.get_all(name).iter();
    let first = values.next();
    match values.next() {
        None => Ok(first),
        Some(_) => Err(()),
    }
}

#[cfg(test)]
mod tests {
    use http::{Request, Uri};

    use super::*;

    fn parts(version: Version, method: &str, uri: Uri, headers: &[(&str, &str)]) -> Parts {
        let mut request = Request::builder().version(version).method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        request.body(()).unwrap().into_parts().0
    }

    fn passes(head: &Parts) -> bool {
        check(head, HeaderScan::of(&head.headers), &Hosts::default()).is_ok()
    }

    fn http1(method: &str, target: &str, headers: &[(&str, &str)]) -> bool {
        let Ok(uri) = target.parse() else { return false };
        passes(&parts(Version::HTTP_11, method, uri, headers))
    }

    #[test]
    fn a_target_and_a_host_have_one_reading() {
        let host = [("host", "a.bank")];
        for (method, target) in [
            ("GET", "/"),
            ("GET", "/x?y=/admin"),
            ("GET", "http://a.bank/x"),
            ("GET", "https://a.bank:443/x"),
            ("OPTIONS", "*"),
            ("CONNECT", "a.bank:80"),
        ] {
            assert!(http1(method, target, &host), "{method} {target}");
        }
        for (method, target) in [
            ("GET", "admin"),
            ("GET", "*"),
            ("GET", "ftp://a.bank/x"),
            ("GET", "http://u@a.bank/x"),
            ("GET", "http://a,b/x"),
            ("GET", "http://a.bank:99999/x"),
            ("CONNECT", "/x"),
            ("CONNECT", "http://a.bank/"),
            ("CONNECT", "u@a.bank:80"),
            ("CONNECT", "a.bank"),
            ("CONNECT", "a.bank:"),
        ] {
            assert!(!http1(method, target, &host), "{method} {target}");
        }
        for value in ["a, b", "x@h", "h/", "h:80:80", "h:x", "", " ", "h#", "h\\", "[h]", "a..b"] {
            assert!(!http1("GET", "/", &[("host", value)]), "{value:?}");
            // Also where the target has a host of its own.
            assert!(!http1("GET", "http://a.bank/", &[("host", value)]), "{value:?}");
        }
        assert!(!http1("GET", "/", &[("host", "a"), ("host", "a")]));
        for version in [Version::HTTP_10, Version::HTTP_11] {
            assert!(!passes(&parts(version, "GET", Uri::from_static("/"), &[])));
        }
    }

    #[test]
    fn http2_names_one_host() {
        let uri = |authority: Option<&str>, path: &str| {
            let mut uri = http::uri::Parts::default();
            uri.authority = authority.map(|authority| authority.parse().unwrap());
            uri.scheme = authority.map(|_| Scheme::HTTP);
            uri.path_and_query = Some(path.parse().unwrap());
            Uri::from_parts(uri).unwrap()
        };
        let check =
            |uri, headers: &[(&str, &str)]| passes(&parts(Version::HTTP_2, "GET", uri, headers));
        assert!(check(uri(Some("a"), "/"), &[]));
        assert!(check(uri(Some("a"), "/"), &[("host", "A")]));
        assert!(check(uri(None, "/"), &[("host", "a")]));
        assert!(!check(uri(Some("a"), "/"), &[("host", "b")]));
        assert!(!check(uri(Some("a"), "/"), &[("host", "a"), ("host", "a")]));
        assert!(!check(uri(None, "/"), &[("host", "a"), ("host", "b")]));
        assert!(!check(uri(None, "/"), &[("host", "u@a")]));
        assert!(!check(uri(None, "/"), &[]));
        assert!(!check(uri(Some("u@a"), "/"), &[]));
        assert!(!check(uri(Some("a"), "*"), &[]));
        for padded in [" b", "b ", "\tb", "b\t", " "] {
            assert!(!check(uri(Some("a"), "/"), &[("x-a", padded)]), "{padded:?}");
        }
        for (token, fine) in [
            ("websocket", true),
            ("connect-udp", true),
            (":connect", false),
            ("h2c", false),
            ("H2C", false),
            ("a, b", false),
            ("a b", false),
            ("", false),
        ] {
            assert_eq!(
                check(uri(Some("a"), "/"), &[("x-outrigger-upgrade", token)]),
                fine,
                "{token:?}"
            );
        }
    }

    #[test]
    fn framing_and_upgrades_have_one_reading() {
        let with = |more: &[(&str, &str)]| {
            let mut headers = vec![("host", "a")];
            headers.extend(more);
            http1("POST", "/", &headers)
        };
        assert!(with(&[("transfer-encoding", "Chunked")]));
        for coding in ["chunked, chunked", "gzip, chunked", "identity", "", "chunked;q=1"] {
            assert!(!with(&[("transfer-encoding", coding)]), "{coding:?}");
        }
        assert!(!with(&[("transfer-encoding", "chunked"), ("transfer-encoding", "chunked")]));
        let asks = ("connection", "upgrade");
        for token in ["websocket", "h2c", "h2c,", "TLS/1.0"] {
            assert!(with(&[asks, ("upgrade", token)]), "{token:?}");
        }
        assert!(!with(&[asks, ("upgrade", "websocket, h2c")]));
        assert!(!with(&[asks, ("upgrade", ":connect")]));
        assert!(!with(&[asks, ("upgrade", "websocket"), ("upgrade", "h2c")]));
        // Nobody asked for it: it stays on this connection.
        assert!(with(&[("upgrade", "websocket, h2c")]));
    }
}
