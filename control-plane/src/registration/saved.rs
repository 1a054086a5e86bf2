//! Registrations on disk: one file, replaced whole, so that a restart withdraws no endpoint.
//!
//! The file is a line with format and checksum, then for each workload its registration and its
//! health as length-delimited protobuf messages.

use std::fs;
use std::io::{self, Write};
use std::path::Path;

use outrigger_proto::mesh::register_request::Message as Incoming;
use outrigger_proto::mesh::{Health, RegisterRequest};
use prost::Message;
use sha2::{Digest, Sha256};

use crate::object::Workload;
use crate::token::create_private;
use crate::translate;

const FILE: &str = "registrations";
/// Name and version of the format; another one is not read.
const FORMAT: &str = "outrigger-registrations 1";

/// What was registered, or nothing if there is no file or it is damaged.
pub(super) fn read(state_dir: &Path) -> Vec<(Workload, Health)> {
    let path = state_dir.join(FILE);
    let bytes = match fs::read(&path) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => {
            tracing::error!(path = %path.display(), %error, "could not read registrations");
            return Vec::new();
        }
    };
    decode(&bytes).unwrap_or_else(|| {
        tracing::error!(
            path = %path.display(),
            "the file of registrations is damaged and ignored; workloads register again"
        );
        Vec::new()
    })
}

pub(super) fn write(state_dir: &Path, entries: &[(Workload, Health)]) -> io::Result<()> {
    let temporary = state_dir.join(format!("{FILE}.new"));
    let mut file = create_private(&temporary)?;
    file.write_all(&encode(entries))?;
    file.sync_all()?;
    fs::rename(&temporary, state_dir.join(FILE))
}

fn encode(entries: &[(Workload, Health)]) -> Vec<u8> {
    let mut body = Vec::new();
    for (workload, health) in entries {
        let registration = Incoming::Registration(translate::workload::to_wire(workload));
        for message in [registration, Incoming::Health((*health).into())] {
            let message = RegisterRequest { message: Some(message) };
            body.extend(message.encode_length_delimited_to_vec());
        }
    }
    let mut bytes = format!("{FORMAT} {}\n", checksum(&body)).into_bytes();
    bytes.extend(body);
    bytes
}

fn decode(bytes: &[u8]) -> Option<Vec<(Workload, Health)>> {
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
        let workload = translate::workload::translate(&registration).ok()?;
        entries.push((workload, Health::try_from(health).ok()?));
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
        let entries = vec![(workload, Health::Ready)];
        let bytes = encode(&entries);
        assert_eq!(decode(&bytes).unwrap(), entries);
        let mut damaged = bytes;
        let last = damaged.len() - 1;
        damaged[last] ^= 1;
        assert!(decode(&damaged).is_none());
        assert!(decode(b"").is_none());
    }
}
