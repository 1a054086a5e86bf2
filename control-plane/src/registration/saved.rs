//! Registrations on disk: one file, replaced whole, so that a restart withdraws no endpoint.
//!
//! The file is a line with format and checksum, then for each workload its registration (with the hash of
//! its session in the session's place) and its health as length-delimited protobuf messages.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use outrigger_core::address::LocalEndpoints;
use outrigger_proto::mesh::register_request::Message as Incoming;
use outrigger_proto::mesh::{Health, RegisterRequest};
use prost::Message;
use sha2::{Digest, Sha256};

use super::session::Session;
use crate::object::Workload;
use crate::token::create_private;
use crate::translate;

const FILE: &str = "registrations";
/// Name and version of the format; another one is not read.
const FORMAT: &str = "outrigger-registrations 1";

/// One registration.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Saved {
    pub(super) workload: Workload,
    pub(super) health: Health,
    pub(super) session: Option<Session>,
}

/// What was registered, or nothing if there is no file or it is damaged. What may not be registered any
/// more is left out.
pub(super) fn read(state_dir: &Path, local: LocalEndpoints) -> Vec<Saved> {
    let path = state_dir.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "could not read registrations");
            return Vec::new();
        }
    };
    decode(&bytes, local).unwrap_or_else(|| {
        tracing::error!(
            path = %path.display(),
            "the file of registrations is damaged and ignored; workloads register again"
        );
        Vec::new()
    })
}

pub(super) fn write(state_dir: &Path, entries: &[Saved]) -> io::Result<()> {
    let temporary = state_dir.join(format!("{FILE}.new"));
    let mut file = create_private(&temporary)?;
    file.write_all(&encode(entries))?;
    file.sync_all()?;
    fs::rename(&temporary, state_dir.join(FILE))
}

fn encode(entries: &[Saved]) -> Vec<u8> {
    let mut body = Vec::new();
    for Saved { workload, health, session } in entries {
        let mut registration = translate::workload::to_wire(workload);
        if let Some(session) = session {
            registration.session = session.hash().to_vec().into();
        }
        let registration = Incoming::Registration(registration);
        for message in [registration, Incoming::Health((*health).into())] {
            let message = RegisterRequest { message: Some(message) };
            body.extend(message.encode_length_delimited_to_vec());
        }
    }
    let mut bytes = format!("{FORMAT} {}\n", checksum(&body)).into_bytes();
    bytes.extend(body);
    bytes
}

fn decode(bytes: &[u8], local: LocalEndpoints) -> Option<Vec<Saved>> {
    let end = bytes.iter().position(|byte| *byte == b'\n')?;
    let (header, mut body) = (&bytes[..end], &bytes[end + 1..]);
    if header != format!("{FORMAT} {}", checksum(body)).as_bytes() {
        return None;
    }
    let mut entries = Vec::new();
    while !body.is_empty() {
        let registration = RegisterRequest::decode_length_delimited(&mut body).ok()?.message?;
        let health = RegisterRequest::decode_length_delimited(&mut body).ok()?.message?;
        let (Incoming::Registration(registration), Incoming::Health(health)) =
            (registration, health)
        else {
            return None;
        };
        let (session, health) =
            (Session::from_hash(&registration.session), Health::try_from(health).ok()?);
        match translate::workload::translate(&registration, local) {
            Ok(workload) => entries.push(Saved { workload, health, session }),
            Err(problem) => {
                tracing::warn!(name = registration.name, %problem, "a registration is left out");
            }
        }
    }
    Some(entries)
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
            }],
            mesh: Some(MeshAddress {
                address: "127.0.0.1:4743".parse().unwrap(),
                hop_version: 1,
                identity: None,
            }),
            zone: Some("a".to_owned()),
            ready: false,
        };
        let session = Session::of(b"a random value");
        let entries = vec![Saved { workload, health: Health::Ready, session }];
        let decode = |bytes: &[u8]| super::decode(bytes, LocalEndpoints::Loopback);
        let bytes = encode(&entries);
        assert_eq!(decode(&bytes).unwrap(), entries);
        // Another machine's loopback is no endpoint any more; the file is whole.
        assert_eq!(super::decode(&bytes, LocalEndpoints::Refuse), Some(Vec::new()));
        let mut damaged = bytes;
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        assert!(decode(&damaged).is_none());
        assert!(decode(b"").is_none());
    }
}
