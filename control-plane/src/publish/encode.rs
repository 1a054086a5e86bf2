//! Resources as they travel: the body is shared by everyone who gets it.

use std::sync::Arc;

use bytes::Bytes;
use outrigger_core::name::DestinationName;
use outrigger_proto::{convert, wire};
use prost::Message;

use super::fit::{self, LeftOut};
use crate::index::{Index, PortId};
use crate::translate::{destination, inbound};

/// One resource as it travels: the body is shared by everyone who gets it.
#[derive(Debug)]
pub struct Encoded {
    pub name: Box<str>,
    pub version: Arc<str>,
    pub body: Bytes,
}

impl Encoded {
    pub(super) fn new(name: &str, body: Vec<u8>) -> Self {
        let version = convert::version(&body).into();
        // A vector of its own size costs no more than its bytes.
        Self { name: name.into(), version, body: body.into_boxed_slice().into() }
    }
}

#[derive(Debug)]
pub struct EncodedDestination {
    pub name: Arc<DestinationName>,
    pub resource: Encoded,
    /// Whose endpoints it needs: its own and its backends'.
    pub endpoints: Vec<Arc<PortId>>,
    /// What proxies would not take of it.
    pub left_out: Vec<LeftOut>,
}

impl EncodedDestination {
    /// `Err` when there is no such Service or port, or nothing of it can be sent; with what was left out then.
    pub(super) fn new(index: &Index, name: &DestinationName) -> Result<Self, Vec<LeftOut>> {
        let Some(value) = destination::build(index, name) else { return Err(Vec::new()) };
        let backends = value.backends.iter().map(|backend| PortId::from(&backend.name));
        let endpoints = std::iter::once(PortId::from(name)).chain(backends).map(Arc::new);
        let fit::Fitted { body, left_out } = fit::destination(&value);
        warn(name, &left_out);
        let Some(body) = body else { return Err(left_out) };
        Ok(Self {
            name: Arc::new(name.clone()),
            resource: Encoded::new(&name.to_string(), body),
            endpoints: endpoints.collect(),
            left_out,
        })
    }
}

impl EncodedDestination {
    /// A version that a proxy has kept from an earlier stream, of which nothing else is known.
    pub fn kept(name: &Arc<DestinationName>, version: &str) -> Self {
        let (name, version) = (name.clone(), version.into());
        let resource = Encoded { name: Box::default(), version, body: Bytes::new() };
        Self { name, resource, endpoints: Vec::new(), left_out: Vec::new() }
    }
}

#[derive(Debug)]
pub(super) struct EncodedInbound {
    pub(super) resource: Arc<Encoded>,
    pub(super) left_out: Vec<LeftOut>,
}

impl EncodedInbound {
    /// `Err` when there is no such workload, or nothing of it can be sent; with what was left out then.
    pub(super) fn new(index: &Index, uid: &str) -> Result<Self, Vec<LeftOut>> {
        let Some(value) = inbound::build(index, uid) else { return Err(Vec::new()) };
        let fit::Fitted { body, left_out } = fit::inbound(&value);
        warn(&uid, &left_out);
        let Some(body) = body else { return Err(left_out) };
        Ok(Self { resource: Arc::new(Encoded::new(uid, body)), left_out })
    }
}

/// The settings in parts, see [`Index::settings_of`]; those after the first have names of their own.
pub(super) fn settings(index: &Index) -> Arc<[Arc<Encoded>]> {
    let parts = (0..index.settings_parts()).map(|part| {
        let value = convert::settings::to_wire(&index.settings_of(part));
        let name = wire::settings_part(part);
        Arc::new(Encoded::new(&name, value.encode_to_vec()))
    });
    parts.collect()
}

fn warn(resource: &dyn std::fmt::Display, left_out: &[LeftOut]) {
    for LeftOut { part, problem } in left_out {
        tracing::warn!(%resource, ?part, %problem, "a part that proxies would refuse is left out");
    }
}
