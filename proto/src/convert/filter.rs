//! [`Filter`], part of a route's rules and backends.

use bytes::Bytes;
use http::{HeaderName, HeaderValue, StatusCode};
use outrigger_core::config::{Filter, HeaderModifier, Mirror, PathModifier, Redirect, Rewrite};
use outrigger_core::error::FieldError;
use outrigger_core::policy::cors::CorsConfig;

use super::{each, optional, parsed, port, set, target_from_wire, target_to_wire};
use crate::mesh;

pub(super) fn to_wire(filter: &Filter) -> mesh::Filter {
    use mesh::filter::Kind;
    let kind = match filter {
        Filter::RequestHeaders(modifier) => Kind::RequestHeaders(headers_to_wire(modifier)),
        Filter::ResponseHeaders(modifier) => Kind::ResponseHeaders(headers_to_wire(modifier)),
        Filter::Redirect(redirect) => Kind::Redirect(mesh::Redirect {
            scheme: redirect.scheme.clone().unwrap_or_default(),
            host: redirect.host.clone().unwrap_or_default(),
            port: redirect.port.unwrap_or_default().into(),
            path: redirect.path.as_ref().map(path_to_wire),
            status: redirect.status.as_u16().into(),
        }),
        Filter::Rewrite(rewrite) => Kind::Rewrite(mesh::Rewrite {
            host: rewrite.host.clone().unwrap_or_default(),
            path: rewrite.path.as_ref().map(path_to_wire),
        }),
        Filter::Mirror(mirror) => Kind::Mirror(mesh::Mirror {
            target: Some(target_to_wire(&mirror.target)),
            numerator: mirror.numerator,
            denominator: mirror.denominator,
        }),
        Filter::Cors(cors) => Kind::Cors(mesh::Cors {
            origins: cors.origins.clone(),
            credentials: cors.credentials,
            methods: cors.methods.clone(),
            headers: cors.headers.clone(),
            expose: cors.expose.clone(),
            max_age: cors.max_age,
        }),
    };
    mesh::Filter { kind: Some(kind) }
}

pub(super) fn from_wire(wire: &mesh::Filter) -> Result<Filter, FieldError> {
    use mesh::filter::Kind;
    match set("kind", wire.kind.as_ref())? {
        Kind::RequestHeaders(wire) => {
            let modifier = headers_from_wire(wire).map_err(|e| e.under("request_headers"))?;
            Ok(Filter::RequestHeaders(modifier))
        }
        Kind::ResponseHeaders(wire) => {
            let modifier = headers_from_wire(wire).map_err(|e| e.under("response_headers"))?;
            Ok(Filter::ResponseHeaders(modifier))
        }
        Kind::Redirect(wire) => {
            Ok(Filter::Redirect(redirect_from_wire(wire).map_err(|e| e.under("redirect"))?))
        }
        Kind::Rewrite(wire) => {
            let path = wire.path.as_ref().map(path_from_wire).transpose();
            let path = path.map_err(|e| e.under("rewrite"))?;
            Ok(Filter::Rewrite(Rewrite { host: optional(&wire.host), path }))
        }
        Kind::Mirror(wire) => Ok(Filter::Mirror(Mirror {
            target: target_from_wire(wire.target.as_ref()).map_err(|e| e.under("mirror"))?,
            numerator: wire.numerator,
            denominator: wire.denominator,
        })),
        Kind::Cors(wire) => Ok(Filter::Cors(CorsConfig {
            origins: wire.origins.clone(),
            credentials: wire.credentials,
            methods: wire.methods.clone(),
            headers: wire.headers.clone(),
            expose: wire.expose.clone(),
            max_age: wire.max_age,
        })),
    }
}

fn redirect_from_wire(wire: &mesh::Redirect) -> Result<Redirect, FieldError> {
    let status = u16::try_from(wire.status).ok().and_then(|code| StatusCode::from_u16(code).ok());
    Ok(Redirect {
        scheme: optional(&wire.scheme),
        host: optional(&wire.host),
        port: if wire.port == 0 { None } else { Some(port("port", wire.port)?) },
        path: wire.path.as_ref().map(path_from_wire).transpose()?,
        status: status.ok_or_else(|| {
            FieldError::at("status", format!("{} is not an HTTP status", wire.status))
        })?,
    })
}

fn headers_to_wire(modifier: &HeaderModifier) -> mesh::HeaderModifier {
    let list = |headers: &[(HeaderName, HeaderValue)]| {
        headers
            .iter()
            .map(|(name, value)| mesh::Header {
                name: name.as_str().to_owned(),
                value: Bytes::copy_from_slice(value.as_bytes()),
            })
            .collect()
    };
    mesh::HeaderModifier {
        set: list(&modifier.set),
        add: list(&modifier.add),
        remove: modifier.remove.iter().map(|name| name.as_str().to_owned()).collect(),
    }
}

fn headers_from_wire(wire: &mesh::HeaderModifier) -> Result<HeaderModifier, FieldError> {
    let header = |wire: &mesh::Header| {
        let name: HeaderName = parsed("name", &wire.name)?;
        let value = HeaderValue::from_bytes(&wire.value)
            .map_err(|error| FieldError::at("value", error.to_string()))?;
        Ok((name, value))
    };
    Ok(HeaderModifier {
        set: each("set", &wire.set, header)?,
        add: each("add", &wire.add, header)?,
        remove: each("remove", &wire.remove, |name| parsed("", name))?,
    })
}

fn path_to_wire(modifier: &PathModifier) -> mesh::PathModifier {
    use mesh::path_modifier::Kind;
    let kind = match modifier {
        PathModifier::Full(path) => Kind::Full(path.clone()),
        PathModifier::Prefix(path) => Kind::Prefix(path.clone()),
    };
    mesh::PathModifier { kind: Some(kind) }
}

fn path_from_wire(wire: &mesh::PathModifier) -> Result<PathModifier, FieldError> {
    use mesh::path_modifier::Kind;
    Ok(match set("path", wire.kind.as_ref())? {
        Kind::Full(path) => PathModifier::Full(path.clone()),
        Kind::Prefix(path) => PathModifier::Prefix(path.clone()),
    })
}
