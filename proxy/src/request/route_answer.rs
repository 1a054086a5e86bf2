//! What routes answer themselves, before any backend is asked: redirects, and the preflights of browsers.

use http::{HeaderMap, Method, StatusCode, header};
use outrigger_core::compile::{Compiled, Filters, HttpRouting};
use outrigger_core::filter::redirect_location;
use outrigger_core::policy::cors::{self, Grant};
use outrigger_core::reason::Reason;
use outrigger_core::route::RequestView;

use crate::base::refusal::Refusal;

/// Status and headers of an answer without a body.
pub(crate) type RouteAnswer = (StatusCode, HeaderMap);

/// The answer to a preflight by the rule for the request that it announces, whatever methods that rule
/// is for (Fetch standard: a preflight is about another request).
pub(crate) fn preflight(compiled: &Compiled, view: &RequestView<'_>) -> Option<RouteAnswer> {
    if !cors::is_preflight(view.method, view.headers) {
        return None;
    }
    let method = view.headers.get(header::ACCESS_CONTROL_REQUEST_METHOD)?;
    let method = Method::from_bytes(method.as_bytes()).ok()?;
    let HttpRouting::Rule(matched) = compiled.route_http(&RequestView { method: &method, ..*view })
    else {
        return None;
    };
    let cors = matched.rule.filters.cors.as_ref()?;
    Some((StatusCode::NO_CONTENT, cors.preflight(view.headers)))
}

/// The answer that the filters of a rule or backend give in its place, if they give one.
pub(crate) fn of(
    filters: &Filters,
    prefix: Option<&str>,
    view: &RequestView<'_>,
    (scheme, port): (&str, Option<u16>),
) -> Result<Option<RouteAnswer>, Refusal> {
    if let Some(cors) = &filters.cors
        && cors::is_preflight(view.method, view.headers)
    {
        return Ok(Some((StatusCode::NO_CONTENT, cors.preflight(view.headers))));
    }
    let Some(redirect) = &filters.redirect else { return Ok(None) };
    let RequestView { host, path, query, .. } = *view;
    let location = redirect_location(redirect, prefix, scheme, host, port, path, query)
        .map_err(|e| Refusal::new(Reason::BadRequest, e.to_string()))?;
    let mut headers = HeaderMap::new();
    if let Some(grant) = grant(filters, view) {
        grant.write(&mut headers);
    }
    headers.insert(header::LOCATION, location);
    Ok(Some((redirect.status, headers)))
}

/// What the answer of a backend says to a browser.
pub(crate) fn grant(filters: &Filters, view: &RequestView<'_>) -> Option<Grant> {
    filters.cors.as_ref()?.grant(view.headers)
}
