//! Whether a caller may do what it asks: the rules and tokens of a port, asked once per request or
//! stream. What they mean is decided in `core/src/policy/access.rs`.

use std::borrow::Cow;
use std::net::IpAddr;
use std::rc::Rc;

use http::header::{self, HeaderMap, HeaderValue};
use outrigger_core::path::{canonical, without_parameters};
use outrigger_core::policy::access::{AccessDecision, Denial, Facts, RequestFacts, is_respelled};
use outrigger_core::reason::Reason;
use tracing::info;

use crate::base::refusal::Refusal;
use crate::listener::connection::Connection;
use crate::observe::metrics::add;
use crate::policy::access::{PortRules, facts};
use crate::policy::tokens::VerifiedToken;
use crate::proxy::worker::Worker;
use crate::request::head::{Head, join_cookies};
use crate::tls::caller::MeshCaller;
use crate::tls::unix_now;
use crate::wire::headers::remove_respelled;

impl PortRules {
    /// Whether an opaque stream of this caller is allowed.
    pub fn stream(
        &self,
        worker: &Worker,
        caller: Option<&MeshCaller>,
        address: IpAddr,
    ) -> Result<(), Refusal> {
        if self.tokens.required() {
            return Err(Refusal::new(
                Reason::TokenMissing,
                "an opaque stream cannot carry a token",
            ));
        }
        decide(worker, self.access.decide(&facts(caller, address)), caller)
    }

    /// Whether a request is allowed. The app gets the path that was judged, and of a token what the
    /// policy says.
    pub fn request(&self, connection: &Connection, head: &mut Head) -> Result<(), Refusal> {
        // Before any rule reads them: they are the tokens' to say.
        self.remove_claims(&mut head.headers);
        // As the app will read them.
        join_cookies(&mut head.headers);
        if self.access.asks_for_path {
            judge_path(head)?;
        }
        let verified = self.verify(head)?;
        let authority = head.authority().unwrap_or_default();
        let host = host_of(authority);
        let caller = connection.caller.as_deref();
        let path = match self.access.audits_path || self.access.asks_for_path {
            true => canonical(head.path.path()),
            false => Ok(Cow::Borrowed("")),
        };
        let ambiguous = path.as_ref().err().copied();
        let path = path.unwrap_or(Cow::Borrowed(head.path.path()));
        let bare_path = without_parameters(&path);
        let facts = Facts {
            request: Some(RequestFacts {
                authority,
                host: &host,
                method: &head.method,
                path: &path,
                bare_path: bare_path.as_deref(),
                headers: &head.headers,
                claims: verified.as_ref().map(|verified| &verified.claims),
            }),
            ..facts(caller, connection.remote.ip())
        };
        let mut decision = self.access.decide(&facts);
        if let Some(why) = ambiguous {
            decision.audited.get_or_insert_with(|| Denial(why.to_string()));
        }
        decide(&connection.worker, decision, caller)?;
        self.hand_over(head, verified.as_ref());
        Ok(())
    }

    fn verify(&self, head: &Head) -> Result<Option<VerifiedToken<'_>>, Refusal> {
        if self.tokens.is_empty() {
            return Ok(None);
        }
        let given = head.headers.get_all(header::AUTHORIZATION);
        let mut values = given.iter();
        let mentioned = given.iter().any(|value| mentions_bearer(value.as_bytes()));
        let (first, more) = (values.next(), values.next().is_some());
        let token = first.filter(|_| !more).and_then(|value| bearer(value.as_bytes()));
        if mentioned && token.is_none() {
            let why = "malformed: the Authorization header is not one bearer token";
            return Err(Refusal::new(Reason::TokenInvalid, why));
        }
        match token {
            Some(token) => match self.tokens.verify(token, unix_now()) {
                Ok(verified) => Ok(Some(verified)),
                Err(error) => Err(Refusal::new(Reason::TokenInvalid, error.to_string())),
            },
            None if self.tokens.required() => {
                Err(Refusal::new(Reason::TokenMissing, "the request has no bearer token"))
            }
            None => Ok(None),
        }
    }

    /// Removes what callers say of claims, however they spell it.
    fn remove_claims(&self, headers: &mut HeaderMap) {
        for header in self.tokens.claim_headers() {
            headers.remove(header);
            remove_respelled(headers, |name| is_respelled(header, name));
        }
    }

    fn hand_over(&self, head: &mut Head, verified: Option<&VerifiedToken<'_>>) {
        let Some(VerifiedToken { issuer, claims }) = verified else { return };
        for (claim, header) in &issuer.claims_to_headers {
            let value = claims.get(claim).map(|values| values.join(","));
            if let Some(Ok(value)) = value.map(HeaderValue::try_from) {
                head.headers.insert(header.clone(), value);
            }
        }
        if !issuer.forward {
            head.headers.remove(header::AUTHORIZATION);
        }
    }
}

fn decide(
    worker: &Worker,
    decision: AccessDecision,
    caller: Option<&MeshCaller>,
) -> Result<(), Refusal> {
    if let Some(Denial(why)) = decision.audited {
        add(&worker.proxy.metrics.gauges.access_audited, 1);
        if worker.once_a_second() {
            let caller = caller.map(|caller| caller.proof.id.as_str());
            info!(caller, why, "a policy in audit mode would refuse this");
        }
    }
    match decision.denied {
        Some(Denial(why)) => Err(Refusal::new(Reason::AccessDenied, why)),
        None => Ok(()),
    }
}

fn judge_path(head: &mut Head) -> Result<(), Refusal> {
    let wrong = |why: String| Refusal::new(Reason::BadRequest, why);
    let path = canonical(head.path.path()).map_err(|why| wrong(why.to_string()))?;
    if let Cow::Owned(path) = path {
        head.path = head.path_as(&path).map_err(|error| wrong(error.to_string()))?;
    }
    Ok(())
}

/// Lower case, without port and final dot.
fn host_of(authority: &str) -> Rc<str> {
    let host = match authority.rsplit_once(':') {
        Some((host, port)) if port.bytes().all(|b| b.is_ascii_digit()) => host,
        _ => authority,
    };
    host.trim_end_matches('.').to_ascii_lowercase().into()
}

/// Whether some reader could find a bearer token in it.
fn mentions_bearer(value: &[u8]) -> bool {
    const SCHEME: &[u8] = b"bearer";
    value.windows(SCHEME.len()).any(|window| window.eq_ignore_ascii_case(SCHEME))
}

/// RFC 6750 section 2.1; the scheme's case does not matter.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked(7)?;
    scheme.eq_ignore_ascii_case(b"bearer ").then(|| token.trim_ascii())
}
