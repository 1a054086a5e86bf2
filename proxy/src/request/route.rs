//! The routes of a service, asked for one request: which rule and backend, and what they change about it.

use std::borrow::Cow;

use http::uri::PathAndQuery;
use outrigger_core::compile::{self, Filters, HttpRouting, Matched};
use outrigger_core::name::Authority;
use outrigger_core::path::canonical;
use outrigger_core::policy::cors::Grant;
use outrigger_core::reason::Reason;
use outrigger_core::route::RequestView;

use crate::base::refusal::Refusal;
use crate::listener::connection::Connection;
use crate::request::exchange::Exchange;
use crate::request::head::Head;
use crate::request::route_answer::{self, RouteAnswer};
use crate::upstream::store::Live;

/// Where the routes send a request, and what they change about it.
#[derive(Default)]
pub(crate) struct Routed<'a> {
    pub(crate) backend: usize,
    /// The canonical path, where it is not the one that came: the app gets that as it came, unless a
    /// rule rewrites it.
    pub(crate) path: Option<PathAndQuery>,
    pub(crate) matched: Option<Matched<'a>>,
    /// The chosen backend's own filters.
    share: Option<&'a Filters>,
    /// What its answer says to a browser.
    pub(crate) cors: Option<Box<Grant>>,
}

impl<'a> Routed<'a> {
    pub(crate) fn filters(&self) -> impl Iterator<Item = &'a Filters> {
        let rule = self.matched.as_ref().map(|matched| &matched.rule.filters);
        rule.into_iter().chain(self.share)
    }

    pub(crate) fn prefix(&self) -> Option<&'a str> {
        self.matched.as_ref().and_then(|matched| matched.prefix)
    }
}

/// Finds the rule and backend of a request; or the answer that the rule itself gives.
pub(crate) fn route<'a>(
    connection: &Connection,
    exchange: &mut Exchange,
    (live, dialed): (&'a Live, &Authority),
    head: &Head,
) -> Result<Result<Routed<'a>, RouteAnswer>, Refusal> {
    exchange.service = live.label.get();
    if !live.compiled.has_http_routes() || live.is_instance(dialed) {
        return Ok(Ok(Routed::default()));
    }
    let authority = head.authority().unwrap_or_default();
    let (host, port) = split_port(authority);
    let origin = (connection.listener.scheme, port);
    // One that servers read differently is matched as it came: only access rules must be sure.
    let path = canonical(head.path.path()).unwrap_or(Cow::Borrowed(head.path.path()));
    let view = RequestView {
        authority,
        host,
        path: &path,
        query: head.path.query(),
        method: &head.method,
        headers: &head.headers,
    };
    if let Some(answer) = route_answer::preflight(&live.compiled, &view) {
        return Ok(Err(answer));
    }
    let matched = match live.compiled.route_http(&view) {
        HttpRouting::Direct => return Ok(Ok(Routed::default())),
        HttpRouting::Rule(matched) => matched,
        HttpRouting::NoMatch => {
            let what = format!("no rule matches {} {}", head.method, head.path.path());
            return Err(Refusal::new(Reason::NoRoute, what));
        }
    };
    exchange.route = live.route_label(matched.rule);
    let of_rule = &matched.rule.filters;
    if let Some(answer) = route_answer::of(of_rule, matched.prefix, &view, origin)? {
        return Ok(Err(answer));
    }
    let share = matched.rule.split.pick(connection.worker.random());
    let share = share.ok_or_else(|| Refusal::new(Reason::NoBackend, "the rule has no backends"))?;
    match &share.target {
        compile::Target::Backend(backend) => {
            let filters = (!share.filters.is_empty()).then_some(&share.filters);
            if let Some(own) = filters
                && let Some(answer) = route_answer::of(own, matched.prefix, &view, origin)?
            {
                return Ok(Err(answer));
            }
            let cors = filters.and_then(|own| route_answer::grant(own, &view));
            let cors = cors.or_else(|| route_answer::grant(of_rule, &view)).map(Box::new);
            let path = match path {
                Cow::Borrowed(_) => None,
                Cow::Owned(path) => head.path_as(&path).ok(),
            };
            Ok(Ok(Routed { backend: *backend, path, matched: Some(matched), share: filters, cors }))
        }
        compile::Target::Invalid(why) => Err(Refusal::new(Reason::NoBackend, why.to_string())),
    }
}

fn split_port(authority: &str) -> (&str, Option<u16>) {
    let colon = authority.bytes().rposition(|byte| byte == b':');
    match colon.map(|at| (&authority[..at], &authority[at + 1..])) {
        Some((host, port)) if !host.ends_with(':') && !port.contains(']') => {
            (host, port.parse().ok())
        }
        _ => (authority, None),
    }
}
