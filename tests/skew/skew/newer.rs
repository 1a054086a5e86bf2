//! What a newer minor release would say, made of what the recorded ones said: fields that nobody knows are passed
//! over, and what cannot be passed over is refused by itself, with its reason, while all else is in force.

use bytes::Bytes;
use outrigger_proto::wire::{DeltaDiscoveryRequest, DeltaDiscoveryResponse, Resource};
use outrigger_tests::eventually;
use outrigger_tests::process::ControlPlane;
use prost::Message;

use super::former::{Told, ask, message_of};
use super::raw::Client;
use super::record::{DISCOVERY, runtime};
use super::walk::{Messages, with_field, with_number};
use super::{Release, schema};

const NEWER_TYPE: &str = "type.googleapis.com/outrigger.mesh.v1.Rollout";
/// A value that no enum has.
const NO_VALUE: u64 = 99;

fn with_unknown(message: &str, bytes: &Bytes) -> Bytes {
    Messages::of(&schema::present()).with_unknown(message, bytes)
}

#[test]
fn a_control_plane_passes_over_fields_that_it_does_not_know() {
    for release in Release::all() {
        ask(&release, &with_unknown);
    }
}

#[test]
fn a_proxy_passes_over_fields_that_it_does_not_know() {
    for release in Release::all() {
        let told = Told::start(&release, &with_unknown, Vec::new());
        told.works();
        assert_eq!(told.former.answers().nacks, [""; 0]);
    }
}

/// Destinations that demand more than this release has.
fn demanding(message: &str, bytes: &Bytes) -> Bytes {
    let messages = Messages::of(&schema::present());
    let of = |bytes: &Bytes, name: &str| bytes.starts_with(&with_field(b"", 1, name.as_bytes()));
    messages.changed(message, bytes, &mut |message, bytes| {
        if message != ".outrigger.mesh.v1.Destination" {
            return bytes;
        }
        if of(&bytes, "bank/other:80") {
            return with_field(&bytes, 2, b"rollouts.v1");
        }
        if of(&bytes, "bank/calls:80") {
            return with_number(&bytes, 3, NO_VALUE);
        }
        if of(&bytes, "bank/opaque:5432") {
            // A filter of a kind that only its release knows.
            let filter = with_field(b"", 90, b"");
            let rule = with_field(b"", 3, &filter);
            return with_field(&bytes, 6, &with_field(&with_field(b"", 1, b"newer"), 4, &rule));
        }
        bytes
    })
}

#[test]
fn a_proxy_refuses_each_resource_that_it_cannot_understand_and_takes_all_else() {
    for release in Release::all() {
        let rollout = DeltaDiscoveryResponse {
            type_url: NEWER_TYPE.to_owned(),
            resources: vec![Resource { name: "bank/rollout".to_owned(), ..Resource::default() }],
            nonce: "newer".to_owned(),
            ..DeltaDiscoveryResponse::default()
        };
        let more = vec![Bytes::from(rollout.encode_to_vec())];
        let told = Told::start(&release, &demanding, more);
        for authority in ["other.bank", "calls.bank", "opaque.bank:5432"] {
            told.web.get(authority, "/");
        }
        for (resource, problem) in [
            (
                "bank/other:80: requires[",
                "\"rollouts.v1\" is a feature that this build does not know; upgrade it",
            ),
            ("bank/calls:80: protocol: ", "99 is not a known protocol"),
            (
                "bank/opaque:5432: http_routes[0].rules[0].filters[0].kind: ",
                "is not set, or set to something that this build does not know",
            ),
            (
                "bank/rollout: ",
                "unknown resource type type.googleapis.com/outrigger.mesh.v1.Rollout",
            ),
        ] {
            eventually(&format!("it is refused: {problem}"), || {
                let nacks = &told.former.answers().nacks;
                nacks.iter().any(|nack| nack.contains(resource) && nack.contains(problem))
            });
        }
        let nacks = told.former.answers().nacks.join("; ");
        let taken = ["bank/full", "bank/web", "bank/sealed"];
        assert!(!taken.iter().any(|name| nacks.contains(name)), "{nacks}");
        let (status, text) = told.web.get("other.bank", "/");
        assert!(status == 503 && text.contains("config_unsupported"), "{text}");
        told.works();
    }
}

#[test]
fn a_control_plane_says_of_types_that_it_does_not_know_that_there_is_nothing() {
    let plane = ControlPlane::start(&[]);
    let release = Release::present();
    let first = release.messages("discovery.requests").swap_remove(0);
    let newer = DeltaDiscoveryRequest {
        type_url: NEWER_TYPE.to_owned(),
        resource_names_subscribe: vec!["bank/rollout".to_owned()],
        ..DeltaDiscoveryRequest::default()
    };
    runtime().block_on(async {
        let client = Client::connect(plane.listen).await;
        let (mut sender, answers) = client.call(DISCOVERY, None).await;
        sender.send(&first);
        sender.send(&newer.encode_to_vec());
        let mut answers = answers.await;
        loop {
            let answer = answers.soon().await.expect("the stream goes on");
            let answer = DeltaDiscoveryResponse::decode(&*answer).expect("a response");
            if answer.type_url == NEWER_TYPE {
                assert_eq!(answer.removed_resources, ["bank/rollout"]);
                return;
            }
        }
    });
    assert!(message_of("discovery.requests").ends_with("DeltaDiscoveryRequest"));
}
