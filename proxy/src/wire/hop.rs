//! `x-outrigger-hop`: what one proxy tells another about where a request goes.

use std::cell::RefCell;
use std::rc::Rc;

use http::HeaderValue;
use outrigger_core::config::Protocol;

/// What one proxy tells another about where a request goes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct To {
    /// The app's.
    pub port: u16,
    /// What to speak to it.
    pub protocol: Protocol,
    /// A policy started the request's deadline.
    pub by_policy: bool,
    /// The request's trace follows from its id.
    pub trace_by_id: bool,
    /// The app gets the whole URI as the target (RFC 9112 section 3.2.2).
    pub absolute: bool,
    /// The service that was called, `namespace/name:port`; several may select the app's port.
    pub service: Option<Rc<[u8]>>,
}

/// Bytes of a hop header that is kept. A proxy's own has some 60 beside the name of a service, at most 600; others may
/// send longer ones, and would be held for each of their connections.
const MAX_KEPT: usize = 1024;

/// The hop header that came last on a connection, and what it says: the next one is most often the same, word for word.
#[derive(Default)]
pub struct LastHop(RefCell<Option<(Box<[u8]>, To)>>);

impl LastHop {
    /// What a header says. None: it is malformed.
    pub fn read(&self, header: &HeaderValue) -> Option<To> {
        let mut last = self.0.borrow_mut();
        if let Some((text, to)) = &*last
            && **text == *header.as_bytes()
        {
            return Some(to.clone());
        }
        let to = parse_hop(header.as_bytes())?;
        if header.len() <= MAX_KEPT {
            *last = Some((header.as_bytes().into(), to.clone()));
        }
        Some(to)
    }
}

/// `1;port=8080;proto=h1`, `;deadline=policy` where a policy started the deadline, `;trace=id` where the trace
/// follows from the request's id, `;form=absolute` of a request for an HTTP proxy, and `;service=` the one that was
/// called. A later version may add parameters, never change these; none may be there twice.
pub fn parse_hop(text: &[u8]) -> Option<To> {
    let mut parts = text.split(|byte| *byte == b';');
    (parts.next()? == b"1").then_some(())?;
    let (mut port, mut protocol, mut by_policy, mut absolute) = (None, None, None, None);
    let (mut trace, mut service) = (None, None);
    for part in parts {
        let part = part.trim_ascii();
        if let Some(value) = part.strip_prefix(b"port=") {
            once(&mut port, port_number(value)?)?;
        } else if let Some(value) = part.strip_prefix(b"proto=") {
            once(&mut protocol, hop_protocol(value)?)?;
        } else if let Some(value) = part.strip_prefix(b"service=") {
            once(&mut service, Rc::from(value))?;
        } else if let Some(value) = part.strip_prefix(b"trace=") {
            once(&mut trace, value == b"id")?;
        } else if let Some(value) = part.strip_prefix(b"deadline=") {
            once(&mut by_policy, value == b"policy")?;
        } else if let Some(value) = part.strip_prefix(b"form=") {
            once(&mut absolute, value == b"absolute")?;
        } else if !part.contains(&b'=') {
            return None;
        }
    }
    let (by_policy, absolute) = (by_policy.unwrap_or(false), absolute.unwrap_or(false));
    let trace_by_id = trace.unwrap_or(false);
    Some(To { port: port?, protocol: protocol?, by_policy, trace_by_id, absolute, service })
}

/// None: it was there already.
fn once<T>(parameter: &mut Option<T>, value: T) -> Option<()> {
    parameter.replace(value).is_none().then_some(())
}

fn hop_protocol(name: &[u8]) -> Option<Protocol> {
    match name {
        b"h1" => Some(Protocol::Http1),
        b"h2" => Some(Protocol::Http2),
        b"grpc" => Some(Protocol::Grpc),
        _ => None,
    }
}

/// Digits alone: `+80` is no port.
fn port_number(digits: &[u8]) -> Option<u16> {
    let add = |number: u16, digit: &u8| {
        let digit = digit.is_ascii_digit().then(|| u16::from(digit - b'0'))?;
        number.checked_mul(10)?.checked_add(digit)
    };
    (!digits.is_empty()).then(|| digits.iter().try_fold(0, add))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hop_headers_parse_or_are_refused() {
        let to = |protocol| To {
            port: 80,
            protocol,
            by_policy: false,
            trace_by_id: false,
            absolute: false,
            service: None,
        };
        assert_eq!(parse_hop(b"1;port=80;proto=h1"), Some(to(Protocol::Http1)));
        assert_eq!(parse_hop(b"1;port=80;proto=grpc;new=1"), Some(to(Protocol::Grpc)));
        let by_policy = parse_hop(b"1;port=80;proto=h2;deadline=policy");
        assert_eq!(by_policy, Some(To { by_policy: true, ..to(Protocol::Http2) }));
        let absolute = parse_hop(b"1;port=80;proto=h1;form=absolute");
        assert_eq!(absolute, Some(To { absolute: true, ..to(Protocol::Http1) }));
        let traced = parse_hop(b"1;port=80;proto=h1;trace=id");
        assert_eq!(traced, Some(To { trace_by_id: true, ..to(Protocol::Http1) }));
        let named = parse_hop(b"1;port=80;proto=h1;service=bank/orders:80");
        assert_eq!(
            named,
            Some(To { service: Some(b"bank/orders:80"[..].into()), ..to(Protocol::Http1) })
        );
        for bad in [
            "1;port=80;proto=h1;service=a;service=b",
            "",
            "2;port=80;proto=h1",
            "1;port=80",
            "1;port=x;proto=h1",
            "1;port=1;proto=q",
            "1;port=;proto=h1",
            "1;port",
            "1;port=80;proto=h1;;",
            "1;port=+80;proto=h1",
            "1;port=65536;proto=h1",
            "1;port=80;port=81;proto=h1",
            "1;port=80;proto=h1;proto=h2",
            "1;port=80;proto=h1;deadline=policy;deadline=none",
            "1;port=80;proto=h1;form=absolute;form=origin",
            "1;port=80;proto=h1;trace=id;trace=id",
        ] {
            assert_eq!(parse_hop(bad.as_bytes()), None, "{bad}");
        }
    }

    /// Anyone may send one, before anything is known of them, and keep the connection.
    #[test]
    fn a_long_header_is_read_and_not_kept() {
        let last = LastHop::default();
        let long = format!("1;port=80;proto=h1;service={}", "a".repeat(60_000));
        let header = HeaderValue::from_str(&long).unwrap();
        assert_eq!(last.read(&header), parse_hop(long.as_bytes()));
        assert!(last.0.borrow().is_none());
    }

    #[test]
    fn what_was_said_last_is_not_taken_for_what_is_said_now() {
        let last = LastHop::default();
        for text in ["1;port=80;proto=h1", "1;port=81;proto=h1", "1;port=81", "1;port=80;proto=h1"]
        {
            for _ in 0..2 {
                let read = last.read(&HeaderValue::from_static(text));
                assert_eq!(read, parse_hop(text.as_bytes()), "{text}");
            }
        }
    }
}
