//! The head of a request between the wire that it came on and the one that it leaves on.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::uri::{Authority, InvalidUri, PathAndQuery, Scheme};
use http::{Extensions, Method, Request, Uri, Version};
use http_body::Body;
use outrigger_core::compile::Filters;
use outrigger_core::filter::{host_of, modify_headers, rewrite_path};
use outrigger_core::name;
use outrigger_core::policy::retry;
use outrigger_core::reason::Reason;

use crate::base::refusal::Refusal;
use crate::upstream::target::AttemptTarget;
use crate::wire::Wire;
use crate::wire::body::RequestBody;
use crate::wire::headers::{self, CONNECT, HOP, UPGRADE, UPGRADE_BODY, keep_inside};
use crate::wire::hosts::Hosts;

const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
const WEBSOCKET_KEY: HeaderValue = HeaderValue::from_static("b3V0cmlnZ2VyLXByb3h5IQ==");

/// Of an admin server's interest alone.
const PROXIED: HeaderName = HeaderName::from_static(name::PROXIED);

/// The head of a request, free of how it came in, so that it can be written as any wire wants it.
#[derive(Clone)]
pub struct Head {
    pub method: Method,
    pub path: PathAndQuery,
    /// From the request's target; none when only the Host header names it.
    pub authority: Option<Authority>,
    /// From the request's target, where it is a whole URI.
    pub scheme: Option<Scheme>,
    /// It is for an HTTP proxy of somebody else's, and has its whole URI as its target.
    pub absolute: bool,
    pub headers: HeaderMap,
    /// The token of the protocol that the request wants to change to.
    pub upgrade: Option<HeaderValue>,
    /// Between proxies: a policy started its deadline, so that it ends with the head of what streams.
    pub deadline_by_policy: bool,
    /// Between proxies: its trace follows from its id ([`crate::wire::trace::of_id`]).
    pub trace_by_id: bool,
    /// How header names were written, for an upstream on HTTP/1.1 of a caller on HTTP/1.1. Of the first
    /// attempt alone.
    written: Extensions,
    /// The headers, while they are lent.
    lent: Vec<u8>,
}

impl Head {
    pub fn new(parts: Parts, upgrade: Option<&HeaderValue>) -> Self {
        let uri = parts.uri.into_parts();
        let upgrade = upgrade.cloned();
        let mut headers = parts.headers;
        if upgrade.is_some() {
            headers.remove(UPGRADE);
        }
        Self {
            method: match (parts.method, &upgrade) {
                // As another proxy passes it on.
                (_, Some(token)) if *token == CONNECT => Method::CONNECT,
                // An extended CONNECT is the GET that HTTP/1.1 would have sent (RFC 8441 section 5).
                (Method::CONNECT, Some(_)) => Method::GET,
                (method, _) => method,
            },
            // A CONNECT has none, whatever another proxy says beside it.
            path: match &upgrade {
                Some(token) if *token == CONNECT => PathAndQuery::from_static("/"),
                _ => uri.path_and_query.unwrap_or_else(|| PathAndQuery::from_static("/")),
            },
            authority: uri.authority,
            scheme: uri.scheme,
            absolute: false,
            headers,
            upgrade,
            deadline_by_policy: false,
            trace_by_id: false,
            written: match parts.version {
                Version::HTTP_11 => parts.extensions,
                _ => Extensions::new(),
            },
            lent: Vec::new(),
        }
    }

    /// Of a request that this proxy makes itself.
    pub fn own(method: Method, path: PathAndQuery, authority: Authority) -> Self {
        let (headers, written, lent) = Default::default();
        Self {
            method,
            path,
            authority: Some(authority),
            scheme: None,
            absolute: false,
            headers,
            upgrade: None,
            deadline_by_policy: false,
            trace_by_id: false,
            written,
            lent,
        }
    }

    /// The host that the request names: its target's authority, else its Host header.
    pub fn authority(&self) -> Option<&str> {
        match &self.authority {
            Some(authority) => Some(authority.as_str()),
            None => self.headers.get(header::HOST)?.to_str().ok(),
        }
    }

    /// The first value of a header; of `Host` the authority, which HTTP/2 has in its place.
    pub fn value(&self, name: &HeaderName) -> Option<&[u8]> {
        match *name == header::HOST {
            true => self.authority().map(str::as_bytes),
            false => self.headers.get(name).map(HeaderValue::as_bytes),
        }
    }

    /// Another path with the query that came.
    pub fn path_as(&self, path: &str) -> Result<PathAndQuery, InvalidUri> {
        match self.path.query() {
            Some(query) => PathAndQuery::try_from(format!("{path}?{query}")),
            None => PathAndQuery::try_from(path),
        }
    }

    /// This head with the headers in it, to be sent; what stays can be made whole again. Most requests are
    /// sent once: a second HeaderMap would cost them more than all that is done with the first.
    pub fn lend(&mut self) -> Self {
        let headers = std::mem::take(&mut self.headers);
        self.lent = pack(&headers);
        Self {
            method: self.method.clone(),
            path: self.path.clone(),
            authority: self.authority.clone(),
            scheme: self.scheme.clone(),
            absolute: self.absolute,
            headers,
            upgrade: self.upgrade.clone(),
            deadline_by_policy: self.deadline_by_policy,
            trace_by_id: self.trace_by_id,
            written: std::mem::take(&mut self.written),
            lent: Vec::new(),
        }
    }

    /// Gets back what [`Self::lend`] took.
    pub fn restore(&mut self) {
        for (name, value) in unpack(&std::mem::take(&mut self.lent)) {
            self.headers.append(name, value);
        }
    }

    /// Applies what a rule or a backend changes about requests.
    pub fn apply(&mut self, filters: &Filters, prefix: Option<&str>) -> Result<(), Refusal> {
        for modifier in &filters.request_headers {
            modify_headers(modifier, &mut self.headers);
            headers::keep_connection_out(&mut self.headers, true);
            if let Some(host) = host_of(modifier) {
                let host = Authority::try_from(host.as_bytes()).map_err(|_| bad_authority())?;
                self.authority = Some(host);
            }
        }
        let Some(rewrite) = &filters.rewrite else { return Ok(()) };
        let broken = |why: String| Refusal::new(Reason::BadRequest, why);
        if let Some(path) = &rewrite.path {
            self.path = rewrite_path(path, prefix, self.path.path(), self.path.query())
                .map_err(|e| broken(e.to_string()))?;
        }
        if let Some(host) = &rewrite.host {
            let authority =
                Authority::try_from(host.as_str()).map_err(|e| broken(e.to_string()))?;
            self.authority = Some(authority);
        }
        Ok(())
    }

    /// The request as `hop` wants it written.
    pub(crate) fn into_request(
        self,
        target: &AttemptTarget,
        body: RequestBody,
        hosts: &Hosts,
    ) -> Result<Request<RequestBody>, Refusal> {
        let ends = body.is_end_stream();
        let mut request = Request::new(body);
        *request.method_mut() = self.method;
        *request.headers_mut() = self.headers;
        let headers = request.headers_mut();
        if target.is_outside() {
            keep_inside(headers);
        }
        if target.is_proxied() {
            headers.insert(PROXIED, HeaderValue::from_static("1"));
        }
        if target.wire == Wire::Http1 {
            if let Some(authority) = &self.authority {
                headers.insert(header::HOST, hosts.header(authority).ok_or_else(bad_authority)?);
            }
            join_cookies(headers);
            // hyper would leave out the body of a GET whose length is not known.
            if !ends && !headers.contains_key(header::CONTENT_LENGTH) {
                headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            }
            if let Some(token) = self.upgrade.filter(|token| *token != CONNECT) {
                headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
                // A caller on HTTP/2 sends none (RFC 8441); it proves only that the app understood.
                if token.as_bytes().eq_ignore_ascii_case(b"websocket") {
                    headers.entry("sec-websocket-key").or_insert(WEBSOCKET_KEY);
                }
                headers.insert(header::UPGRADE, token);
            }
            *request.uri_mut() = match (self.authority, self.scheme) {
                (Some(authority), _) if request.method() == Method::CONNECT => Uri::from(authority),
                (Some(authority), Some(scheme))
                    if self.absolute && self.path.as_str().starts_with('/') =>
                {
                    uri_of(scheme, authority, self.path)?
                }
                _ => Uri::from(self.path),
            };
            *request.extensions_mut() = self.written;
            return Ok(request);
        }
        let host = headers.remove(header::HOST);
        let authority = match (self.authority, host) {
            (Some(authority), _) => authority,
            (None, Some(host)) => hosts.authority(&host).ok_or_else(bad_authority)?,
            (None, None) => return Err(bad_authority()),
        };
        if target.wire == Wire::Hop {
            let hop = target.header(self.deadline_by_policy, self.trace_by_id, self.absolute);
            headers.insert(HOP, hop);
        }
        if let Some(token) = self.upgrade {
            if token == CONNECT {
                // HTTP/2's own CONNECT asks the far proxy for a stream of bytes.
                *request.method_mut() = Method::GET;
            }
            let headers = request.headers_mut();
            // Of the stream it would not be true: more follows.
            let length = headers.remove(header::CONTENT_LENGTH);
            if !ends || length.is_some() {
                let length = length.unwrap_or_else(|| HeaderValue::from_static("chunked"));
                headers.insert(UPGRADE_BODY, length);
            }
            headers.insert(UPGRADE, token);
        }
        let scheme = match self.scheme {
            Some(scheme) if self.absolute => scheme,
            _ if target.begins_tls() => Scheme::HTTPS,
            _ => Scheme::HTTP,
        };
        *request.uri_mut() = uri_of(scheme, authority, self.path)?;
        *request.version_mut() = Version::HTTP_2;
        Ok(request)
    }
}

fn uri_of(scheme: Scheme, authority: Authority, path: PathAndQuery) -> Result<Uri, Refusal> {
    let mut uri = http::uri::Parts::default();
    (uri.scheme, uri.authority, uri.path_and_query) = (Some(scheme), Some(authority), Some(path));
    Uri::from_parts(uri).map_err(|_| bad_authority())
}

fn bad_authority() -> Refusal {
    Refusal::new(Reason::BadRequest, "the request's Host or :authority is invalid")
}

/// Bytes of a head that needs no second allocation.
const USUAL: usize = 512;
/// Of a packed length: the value is not for HPACK's tables.
const SENSITIVE: u32 = 1 << 31;

/// Headers one after the other, each as the lengths of its name and its value and what they are.
fn pack(headers: &HeaderMap) -> Vec<u8> {
    let mut packed = Vec::with_capacity(USUAL);
    for (name, value) in headers {
        let (name, text) = (name.as_str().as_bytes(), value.as_bytes());
        // Heads are far smaller than 2 GiB.
        let sensitive = if value.is_sensitive() { SENSITIVE } else { 0 };
        let lengths = [name.len() as u32, text.len() as u32 | sensitive].map(u32::to_ne_bytes);
        packed.extend_from_slice(lengths.as_flattened());
        packed.extend_from_slice(name);
        packed.extend_from_slice(text);
    }
    packed
}

fn unpack(mut packed: &[u8]) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    std::iter::from_fn(move || {
        let (name, rest) = packed.split_first_chunk()?;
        let (value, rest) = rest.split_first_chunk()?;
        let (name, value) = (u32::from_ne_bytes(*name), u32::from_ne_bytes(*value));
        let (name, rest) = rest.split_at_checked(name as usize)?;
        let (text, rest) = rest.split_at_checked((value & !SENSITIVE) as usize)?;
        packed = rest;
        let mut field = HeaderValue::from_bytes(text).ok()?;
        field.set_sensitive(value & SENSITIVE != 0);
        Some((HeaderName::from_bytes(name).ok()?, field))
    })
}

/// HTTP/2 may split cookies; HTTP/1.1 wants one header (RFC 9113 section 8.2.3).
pub fn join_cookies(headers: &mut HeaderMap) {
    if headers.len() == headers.keys_len() {
        // Nothing is there twice.
        return;
    }
    let mut cookies = headers.get_all(header::COOKIE).iter();
    let (Some(first), Some(second)) = (cookies.next(), cookies.next()) else { return };
    let mut joined = first.as_bytes().to_vec();
    for cookie in std::iter::once(second).chain(cookies) {
        joined.extend_from_slice(b"; ");
        joined.extend_from_slice(cookie.as_bytes());
    }
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(header::COOKIE, joined);
    }
}

pub(crate) fn head_already_sent() -> Refusal {
    Refusal::new(Reason::InternalError, "an attempt has no request")
}

pub(crate) fn is_idempotent(head: &Head) -> bool {
    // Most are by their method: the header is looked for where that leaves it open.
    retry::is_idempotent(&head.method, false) || head.headers.contains_key(IDEMPOTENCY_KEY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_that_was_lent_is_whole_again() {
        let mut request = Request::get("http://web.bank/x?y=1");
        for (name, value) in
            [("cookie", "a=1"), ("x-b", ""), ("cookie", "b=2"), ("x-\u{63}", "\t~")]
        {
            request = request.header(name, value);
        }
        let mut secret = HeaderValue::from_bytes(b"\xff\x80").unwrap();
        secret.set_sensitive(true);
        let request = request.header("authorization", secret).body(()).unwrap();
        let mut head = Head::new(request.into_parts().0, None);
        let whole = head.clone();
        let lent = head.lend();
        assert_eq!(lent.headers, whole.headers);
        assert!(head.headers.is_empty());
        head.restore();
        assert_eq!(head.headers, whole.headers);
        assert!(head.headers["authorization"].is_sensitive());
        assert!(!head.headers["x-c"].is_sensitive());
        let (path, method) = (head.path.as_str(), head.method);
        assert_eq!((path, method, head.authority), ("/x?y=1", Method::GET, whole.authority));
        assert!(head.lent.is_empty());
    }
}
