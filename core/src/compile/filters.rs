//! The filters of rules and backends: checked, and sorted by what they touch.
//!
//! [`crate::filter`] is what applies them to a request.

use http::StatusCode;
use http::uri::Authority;

use super::{Target, Targets};
use crate::config::{Filter, HeaderModifier, Mirror, PathModifier, Redirect, Rewrite};
use crate::error::FieldError;
use crate::filter::{check_path_modifier, host_of};
use crate::policy::cors::Cors;

/// The filters of a rule or a backend, by what they touch.
#[derive(Debug, Default)]
pub struct Filters {
    pub request_headers: Vec<HeaderModifier>,
    pub response_headers: Vec<HeaderModifier>,
    /// Answers in place of any backend, or of the one that was chosen.
    pub redirect: Option<Redirect>,
    pub rewrite: Option<Rewrite>,
    pub mirrors: Vec<CompiledMirror>,
    pub cors: Option<Box<Cors>>,
}

#[derive(Debug)]
pub struct CompiledMirror {
    pub target: Target,
    /// `numerator / denominator` of the requests are mirrored.
    pub numerator: u32,
    pub denominator: u32,
}

impl Filters {
    pub fn is_empty(&self) -> bool {
        self.request_headers.is_empty()
            && self.response_headers.is_empty()
            && self.redirect.is_none()
            && self.rewrite.is_none()
            && self.mirrors.is_empty()
            && self.cors.is_none()
    }

    pub fn rewrites_path(&self) -> bool {
        self.rewrite.as_ref().is_some_and(|rewrite| rewrite.path.is_some())
    }

    /// Whether a filter replaces the prefix that the rule matched, so that there must be one.
    pub(super) fn replaces_prefix(&self) -> bool {
        let redirect = self.redirect.as_ref().and_then(|redirect| redirect.path.as_ref());
        let rewrite = self.rewrite.as_ref().and_then(|rewrite| rewrite.path.as_ref());
        [redirect, rewrite].iter().flatten().any(|path| matches!(path, PathModifier::Prefix(_)))
    }
}

pub(super) fn compile_filters(
    filters: &[Filter],
    targets: &Targets,
) -> Result<Filters, FieldError> {
    let mut compiled = Filters::default();
    for (i, filter) in filters.iter().enumerate() {
        add_filter(&mut compiled, filter, targets).map_err(|e| e.under(format!("filters[{i}]")))?;
    }
    if compiled.redirect.is_some() && compiled.rewrite.is_some() {
        return Err(FieldError::at("filters", "a redirect and a rewrite exclude each other"));
    }
    Ok(compiled)
}

fn add_filter(
    compiled: &mut Filters,
    filter: &Filter,
    targets: &Targets,
) -> Result<(), FieldError> {
    match filter {
        Filter::RequestHeaders(modifier) => {
            check_set_host(modifier).map_err(|e| e.under("request_headers"))?;
            compiled.request_headers.push(modifier.clone());
        }
        Filter::ResponseHeaders(modifier) => compiled.response_headers.push(modifier.clone()),
        Filter::Redirect(redirect) => {
            check_redirect(redirect).map_err(|e| e.under("redirect"))?;
            if compiled.redirect.replace(redirect.clone()).is_some() {
                return Err(FieldError::at("redirect", "there is already a redirect"));
            }
        }
        Filter::Rewrite(rewrite) => {
            check_host(rewrite.host.as_deref()).map_err(|e| e.under("rewrite"))?;
            check_path(rewrite.path.as_ref()).map_err(|e| e.under("rewrite"))?;
            if compiled.rewrite.replace(rewrite.clone()).is_some() {
                return Err(FieldError::at("rewrite", "there is already a rewrite"));
            }
        }
        Filter::Mirror(mirror) => {
            let mirror = compile_mirror(mirror, targets).map_err(|e| e.under("mirror"))?;
            compiled.mirrors.push(mirror);
        }
        Filter::Cors(cors) => {
            let cors = Cors::new(cors).map_err(|e| e.under("cors"))?;
            if compiled.cors.replace(Box::new(cors)).is_some() {
                return Err(FieldError::at("cors", "there is already a CORS filter"));
            }
        }
    }
    Ok(())
}

/// `Host` is the authority of a request, so its value has to be one.
fn check_set_host(modifier: &HeaderModifier) -> Result<(), FieldError> {
    let Some(host) = host_of(modifier) else { return Ok(()) };
    match Authority::try_from(host.as_bytes()) {
        Ok(authority) if !authority.as_str().contains('@') => Ok(()),
        _ => Err(FieldError::at("set", format!("{host:?} is not a host with or without a port"))),
    }
}

fn compile_mirror(mirror: &Mirror, targets: &Targets) -> Result<CompiledMirror, FieldError> {
    if mirror.denominator == 0 {
        return Err(FieldError::at("denominator", "must be at least 1"));
    }
    if mirror.numerator > mirror.denominator {
        return Err(FieldError::at("numerator", "must not exceed the denominator"));
    }
    Ok(CompiledMirror {
        target: targets.resolve(&mirror.target)?,
        numerator: mirror.numerator,
        denominator: mirror.denominator,
    })
}

fn check_redirect(redirect: &Redirect) -> Result<(), FieldError> {
    if let Some(scheme) = &redirect.scheme
        && scheme != "http"
        && scheme != "https"
    {
        return Err(FieldError::at("scheme", format!("{scheme:?} must be http or https")));
    }
    if redirect.port == Some(0) {
        return Err(FieldError::at("port", "must be between 1 and 65535"));
    }
    const ALLOWED: [StatusCode; 5] = [
        StatusCode::MOVED_PERMANENTLY,
        StatusCode::FOUND,
        StatusCode::SEE_OTHER,
        StatusCode::TEMPORARY_REDIRECT,
        StatusCode::PERMANENT_REDIRECT,
    ];
    if !ALLOWED.contains(&redirect.status) {
        let status = redirect.status.as_u16();
        return Err(FieldError::at(
            "status",
            format!("{status} must be 301, 302, 303, 307 or 308"),
        ));
    }
    check_host(redirect.host.as_deref())?;
    check_path(redirect.path.as_ref())
}

fn check_host(host: Option<&str>) -> Result<(), FieldError> {
    let Some(host) = host else { return Ok(()) };
    match host.parse::<http::uri::Authority>() {
        Ok(authority) if authority.host() == host => Ok(()),
        _ => Err(FieldError::at("host", format!("{host:?} is not a host name"))),
    }
}

fn check_path(modifier: Option<&PathModifier>) -> Result<(), FieldError> {
    modifier.map_or(Ok(()), check_path_modifier).map_err(|e| e.under("path"))
}
