//! Whom and what the request path refuses before it knows where a request goes, or lets no further.

pub mod access;
pub mod limits;

use http::Method;
use http::request::Parts;
use outrigger_core::reason::Reason;

use crate::base::refusal::Refusal;
use crate::listener::connection::Connection;
use crate::request::destination::Target;
use crate::upstream::fixed::Fixed;
use crate::wire::grammar;
use crate::wire::headers::HeaderScan;

/// Refuses what may go no further. `seen`: in its headers.
pub fn head(connection: &Connection, parts: &Parts, seen: HeaderScan) -> Result<(), Refusal> {
    if !connection.takes_headers(parts) {
        return Err(Refusal::new(Reason::HeadersTooLarge, "the headers are larger than the limit"));
    }
    grammar::check(parts, seen, &connection.worker.hosts)
        .map_err(|why| Refusal::new(Reason::BadRequest, why))?;
    if parts.method == Method::CONNECT
        && parts.extensions.get::<h2::ext::Protocol>().is_none()
        && matches!(connection.fixed, Fixed::App(_))
    {
        let why = "this proxy is one for the app beside it alone";
        return Err(Refusal::new(Reason::NotForUs, why));
    }
    Ok(())
}

/// A CONNECT that the app accepts is a stream of bytes, of which no rule about requests and no limit would be
/// asked again.
pub fn connect(connection: &Connection, target: &Target) -> Result<(), Refusal> {
    let Target::App { rules, limits, .. } = target else { return Ok(()) };
    if limits.is_some() {
        let why = "requests to this port are limited, and a CONNECT would carry more of them";
        return Err(Refusal::new(Reason::ProtocolError, why));
    }
    match rules {
        Some(rules) => {
            let (caller, address) = (connection.caller.as_deref(), connection.remote.ip());
            rules.stream(&connection.worker, caller, address)
        }
        None => Ok(()),
    }
}
