//! [`Tap`]: which requests a proxy shows.

use std::time::Duration;

use outrigger_core::error::FieldError;
use outrigger_core::reason::Reason;
use outrigger_core::tap::{StatusFilter, Tap, TapFilter};

use super::{each, optional, parsed};
use crate::graph;

pub fn to_wire(tap: &Tap) -> graph::Tap {
    let filter = &tap.filter;
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let slower_than = filter.slower_than.map_or(0, |limit| limit.as_millis());
    graph::Tap {
        id: tap.id,
        direction: text(&filter.direction),
        service: text(&filter.service),
        peer: text(&filter.peer),
        method: text(&filter.method),
        path: text(&filter.path),
        status: filter.status.map(|status| status.to_string()).unwrap_or_default(),
        reason: filter.reason.map(|reason| reason.as_str().to_owned()).unwrap_or_default(),
        slower_than_ms: u32::try_from(slower_than).unwrap_or(u32::MAX),
        max_per_second: tap.max_per_second,
        headers: tap.headers.iter().map(ToString::to_string).collect(),
    }
}

/// # Errors
///
/// When something in it is unknown here, or [`Tap::check`] finds something: a condition that is left out would show
/// more than was asked for.
pub fn from_wire(wire: &graph::Tap) -> Result<Tap, FieldError> {
    let status = optional(&wire.status).map(|text| {
        let unknown = || FieldError::at("status", format!("{text:?} is no status"));
        StatusFilter::parse(&text).ok_or_else(unknown)
    });
    let reason = optional(&wire.reason).map(|word| {
        let unknown = || FieldError::at("reason", format!("{word:?} is no reason"));
        Reason::from_word(&word).ok_or_else(unknown)
    });
    let slower_than =
        (wire.slower_than_ms > 0).then(|| Duration::from_millis(wire.slower_than_ms.into()));
    let tap = Tap {
        id: wire.id,
        filter: TapFilter {
            direction: optional(&wire.direction),
            service: optional(&wire.service),
            peer: optional(&wire.peer),
            method: optional(&wire.method),
            path: optional(&wire.path),
            status: status.transpose()?,
            reason: reason.transpose()?,
            slower_than,
        },
        max_per_second: wire.max_per_second,
        headers: each("headers", &wire.headers, |name| parsed("name", name))?,
    };
    tap.check()?;
    Ok(tap)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tap_arrives_whole_or_not_at_all() {
        let text = |text: &str| Some(text.to_owned());
        let tap = Tap {
            id: 7,
            filter: TapFilter {
                direction: text("outbound"),
                service: text("bank/orders:80"),
                peer: text("bank/web"),
                method: text("GET"),
                path: text("/orders"),
                status: StatusFilter::parse("5xx"),
                reason: Some(Reason::NoEndpoint),
                slower_than: Some(Duration::from_millis(250)),
            },
            max_per_second: 100,
            headers: vec![http::header::USER_AGENT],
        };
        let wire = to_wire(&tap);
        assert_eq!(from_wire(&wire), Ok(tap));
        let bare = Tap { id: 8, max_per_second: 1, ..Tap::default() };
        assert_eq!(from_wire(&to_wire(&bare)), Ok(bare));
        for (path, wrong) in [
            ("status", graph::Tap { status: "9xx".to_owned(), ..wire.clone() }),
            ("reason", graph::Tap { reason: "none_such".to_owned(), ..wire.clone() }),
            ("max_per_second", graph::Tap { max_per_second: 0, ..wire.clone() }),
            ("headers", graph::Tap { headers: vec!["cookie".to_owned()], ..wire.clone() }),
            ("headers[0].name", graph::Tap { headers: vec!["a b".to_owned()], ..wire }),
        ] {
            assert_eq!(from_wire(&wrong).unwrap_err().path, path);
        }
    }
}
