//! [`Fallback`]s of a call: what is given instead of a failure. And its cache, which some of them need.

use outrigger_core::error::FieldError;
use outrigger_core::policy::bounds;
use outrigger_core::policy::cache::CacheConfig;
use outrigger_core::policy::fallback::{Class, Classes, Fallback, Give, Static};

use super::policy::{at_most, duration, millis, number};
use super::{each, set, target_from_wire, target_to_wire};
use crate::mesh;
use crate::mesh::fallback::Give as Wire;

pub(super) fn to_wire(fallback: &Fallback) -> mesh::Fallback {
    let when = match fallback.when == Classes::default() {
        true => Vec::new(),
        false => fallback.when.iter().map(|class| class_to_wire(class).into()).collect(),
    };
    let give = match &fallback.give {
        Give::Cached => Wire::Cached(mesh::Unit {}),
        Give::Backend(target) => Wire::Backend(target_to_wire(target)),
        Give::Route(path) => Wire::Path(path.to_string()),
        Give::Static(answer) => Wire::Static(mesh::StaticAnswer {
            status: answer.status.as_u16().into(),
            content_type: answer
                .content_type
                .as_ref()
                .map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned())
                .unwrap_or_default(),
            body: answer.body.clone(),
        }),
    };
    mesh::Fallback { when, give: Some(give) }
}

pub(super) fn all_from_wire(wire: &[mesh::Fallback]) -> Result<Vec<Fallback>, FieldError> {
    at_most("fallbacks", wire.len(), bounds::MAX_FALLBACKS)?;
    each("fallbacks", wire, from_wire)
}

fn from_wire(wire: &mesh::Fallback) -> Result<Fallback, FieldError> {
    let classes = each("when", &wire.when, |class| class_from_wire(*class))?;
    let when = if classes.is_empty() { Classes::default() } else { Classes::of(&classes) };
    let give = match set("give", wire.give.as_ref())? {
        Wire::Cached(_) => Give::Cached,
        Wire::Backend(target) => {
            Give::Backend(target_from_wire(Some(target)).map_err(|e| e.under("backend"))?)
        }
        Wire::Path(path) => Give::Route(bounds::path(path).map_err(|e| e.under("path"))?),
        Wire::Static(answer) => {
            Give::Static(static_from_wire(answer).map_err(|e| e.under("static"))?)
        }
    };
    Ok(Fallback { when, give })
}

pub(super) fn cache_to_wire(cache: &CacheConfig) -> mesh::Cache {
    mesh::Cache {
        ttl: millis(cache.ttl),
        stale_on_error: millis(cache.stale_on_error),
        max_entry_bytes: cache.max_entry_bytes,
    }
}

pub(super) fn cache_from_wire(wire: &mesh::Cache) -> Result<CacheConfig, FieldError> {
    let config = CacheConfig {
        ttl: duration("ttl", wire.ttl, &bounds::KEPT)?,
        stale_on_error: duration("stale_on_error", wire.stale_on_error, &bounds::KEPT)?,
        max_entry_bytes: number("max_entry_bytes", wire.max_entry_bytes, &bounds::ENTRY_BYTES)?,
    };
    config.check()?;
    Ok(config)
}

fn static_from_wire(wire: &mesh::StaticAnswer) -> Result<Static, FieldError> {
    let content_type = match wire.content_type.as_str() {
        "" => None,
        text => Some(bounds::content_type(text).map_err(|e| e.under("content_type"))?),
    };
    Ok(Static {
        status: bounds::static_status(wire.status).map_err(|e| e.under("status"))?,
        content_type,
        body: bounds::static_body(&wire.body).map_err(|e| e.under("body"))?,
    })
}

fn class_to_wire(class: Class) -> mesh::FailureClass {
    match class {
        Class::Unavailable => mesh::FailureClass::Unavailable,
        Class::Timeout => mesh::FailureClass::Timeout,
        Class::Overloaded => mesh::FailureClass::Overloaded,
        Class::ServerError => mesh::FailureClass::ServerError,
    }
}

fn class_from_wire(wire: i32) -> Result<Class, FieldError> {
    match mesh::FailureClass::try_from(wire) {
        Ok(mesh::FailureClass::Unavailable) => Ok(Class::Unavailable),
        Ok(mesh::FailureClass::Timeout) => Ok(Class::Timeout),
        Ok(mesh::FailureClass::Overloaded) => Ok(Class::Overloaded),
        Ok(mesh::FailureClass::ServerError) => Ok(Class::ServerError),
        Ok(mesh::FailureClass::Unspecified) | Err(_) => {
            Err(FieldError::here(format!("{wire} is not a known class of failures")))
        }
    }
}
