//! Registrations in the store: one document of each replica, replaced whole, so that a restart withdraws no
//! endpoint, and other replicas know them.
//!
//! The document is a line with format and checksum, then for each workload its registration (with the hash of
//! its session in the session's place), its health and what is known of its stream, as length-delimited
//! protobuf messages. Format 1 lacks the last of them.

use std::collections::BTreeSet;

use outrigger_core::address::LocalEndpoints;
use outrigger_core::bounds;
use outrigger_proto::mesh::register_request::Message as Incoming;
use outrigger_proto::mesh::{Health, RegisterRequest};
use prost::Message;
use sha2::{Digest, Sha256};

use super::session::SessionHash;
use crate::object::Workload;
use crate::translate;

/// The document's name.
pub(super) const NAME: &str = "registrations";
/// Names and versions of the formats; another one is not read.
const FIRST_FORMAT: &str = "outrigger-registrations 1";
const FORMAT: &str = "outrigger-registrations 2";

/// One registration.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct SavedRegistration {
    pub(super) workload: Workload,
    pub(super) health: Health,
    /// Ports on which the app accepts no connection.
    pub(super) closed: BTreeSet<u16>,
    pub(super) session: Option<SessionHash>,
    pub(super) stream: SavedStream,
}

/// What is known of the stream that speaks for a workload. Times are milliseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub(super) struct SavedStream {
    /// When the registration was taken.
    #[prost(uint64, tag = "1")]
    pub(super) since: u64,
    /// When the stream broke; 0 while it is open.
    #[prost(uint64, tag = "2")]
    pub(super) broken: u64,
}

pub(super) fn encode(entries: &[SavedRegistration]) -> Vec<u8> {
    let mut body = Vec::new();
    for SavedRegistration { workload, health, closed, session, stream } in entries {
        let mut registration = translate::workload::to_wire(workload);
        if let Some(session) = session {
            registration.session = session.hash().to_vec().into();
        }
        let registration = Incoming::Registration(registration);
        let health = Incoming::Health((*health).into());
        let closed = closed.iter().copied().map(u32::from).collect();
        for (message, closed_ports) in [(registration, Vec::new()), (health, closed)] {
            let message = RegisterRequest { message: Some(message), closed_ports };
            body.extend(message.encode_length_delimited_to_vec());
        }
        body.extend(stream.encode_length_delimited_to_vec());
    }
    let mut bytes = format!("{FORMAT} {}\n", checksum(&body)).into_bytes();
    bytes.extend(body);
    bytes
}

/// What was registered, or nothing if the document is damaged. What may not be registered any more is left out.
pub(super) fn decode(bytes: &[u8], local: LocalEndpoints) -> Option<Vec<SavedRegistration>> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (header, mut body) = (&bytes[..end], &bytes[end + 1..]);
    let is = |format: &str| header == format!("{format} {}", checksum(body)).as_bytes();
    let has_streams = is(FORMAT);
    if !has_streams && !is(FIRST_FORMAT) {
        return None;
    }
    let mut entries = Vec::new();
    while !body.is_empty() {
        let registration = RegisterRequest::decode_length_delimited(&mut body).ok()?.message?;
        let health = RegisterRequest::decode_length_delimited(&mut body).ok()?;
        let closed = closed_ports(&health);
        let health = health.message?;
        let (Incoming::Registration(registration), Incoming::Health(health)) =
            (registration, health)
        else {
            return None;
        };
        let stream = match has_streams {
            true => SavedStream::decode_length_delimited(&mut body).ok()?,
            // It was open or broken when the process ended.
            false => SavedStream { since: 0, broken: 1 },
        };
        let (session, health) =
            (SessionHash::from_hash(&registration.session), Health::try_from(health).ok()?);
        match translate::workload::translate(&registration, local) {
            Ok(workload) => {
                let entry = SavedRegistration { workload, health, closed, session, stream };
                entries.push(entry);
            }
            Err(problem) => {
                tracing::warn!(name = registration.name, %problem, "a registration is left out");
            }
        }
    }
    Some(entries)
}

/// The ports that a message about health says are closed, at most as many as a workload has; those that are none are
/// left out.
pub(super) fn closed_ports(health: &RegisterRequest) -> BTreeSet<u16> {
    let ports = health.closed_ports.iter().take(bounds::WORKLOAD_PORTS);
    ports.filter_map(|port| u16::try_from(*port).ok()).collect()
}

fn checksum(body: &[u8]) -> String {
    Sha256::digest(body)[..16].iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use outrigger_core::config::{MeshAddress, Protocol};

    use super::*;
    use crate::object::WorkloadPort;

    #[test]
    fn registrations_survive_and_damage_is_noticed() {
        let workload = Workload {
            namespace: "bank".to_owned(),
            name: "orders-1".to_owned(),
            service_account: "orders".to_owned(),
            labels: BTreeMap::from([("app".to_owned(), "orders".to_owned())]),
            address: "127.0.0.1".parse().unwrap(),
            ports: vec![WorkloadPort {
                port: 9000,
                name: "grpc".to_owned(),
                protocol: Protocol::Grpc,
                open: true,
            }],
            mesh: Some(MeshAddress {
                address: "127.0.0.1:4743".parse().unwrap(),
                hop_version: 1,
                identity: None,
            }),
            zone: Some("a".to_owned()),
            ready: false,
            pod: None,
            registered: None,
        };
        let session = SessionHash::of(b"a random value");
        let stream = SavedStream { since: 1_700_000_000_000, broken: 0 };
        let (health, closed) = (Health::Ready, BTreeSet::from([9000]));
        let entries = vec![SavedRegistration { workload, health, closed, session, stream }];
        let decode = |bytes: &[u8]| super::decode(bytes, LocalEndpoints::Loopback);
        let bytes = encode(&entries);
        assert_eq!(decode(&bytes).unwrap(), entries);
        // Another machine's loopback is no endpoint any more; the file is whole.
        assert_eq!(super::decode(&bytes, LocalEndpoints::Refuse), Some(Vec::new()));
        // What the version before wrote.
        let entry = &entries[0];
        let mut registration = translate::workload::to_wire(&entry.workload);
        registration.session = entry.session.as_ref().unwrap().hash().to_vec().into();
        let health = Incoming::Health(Health::Ready.into());
        let body: Vec<u8> = [Incoming::Registration(registration), health]
            .into_iter()
            .flat_map(|m| {
                RegisterRequest { message: Some(m), closed_ports: vec![9000] }
                    .encode_length_delimited_to_vec()
            })
            .collect();
        let mut first = format!("{FIRST_FORMAT} {}\n", checksum(&body)).into_bytes();
        first.extend(body);
        let stream = SavedStream { since: 0, broken: 1 };
        assert_eq!(decode(&first).unwrap(), [SavedRegistration { stream, ..entry.clone() }]);
        let mut damaged = bytes;
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        assert!(decode(&damaged).is_none());
        assert!(decode(b"").is_none());
    }
}
