//! What is an identity and what only looks like one.

use rcgen::{CustomExtension, ExtendedKeyUsagePurpose, SanType};

use crate::tls::testing::{Ca, Leaf, bundle, id};
use crate::tls::unix_now;
use crate::tls::verify::*;

const GOOD: &str = "spiffe://mesh.local/ns/bank/sa/orders";

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn verify(ca: &Ca, leaf: Leaf) -> Result<VerifiedChain, Untrusted> {
    let trust = Trust::new(&bundle(&[ca])).unwrap();
    let (_, chain) = ca.issue(leaf);
    trust.verify(&chain, Role::Client, unix_now())
}

#[test]
fn exactly_one_uri_of_the_exact_form_is_an_identity() {
    let ca = Ca::new("root");
    let verified = verify(&ca, Leaf::of(GOOD)).unwrap();
    assert_eq!(verified.id, id("orders"));
    let not_spiffe = [
        "https://mesh.local/ns/bank/sa/orders",
        "SPIFFE://mesh.local/ns/bank/sa/orders",
        "spiffe://Mesh.local/ns/bank/sa/orders",
        "spiffe://mesh.local/ns/Bank/sa/orders",
        "spiffe://mesh.local/ns/bank/sa/orders/",
        "spiffe://mesh.local/ns/bank/sa/*",
        "spiffe://*/ns/bank/sa/orders",
        "spiffe://mesh.local/ns/bank/sa/orders\0",
        "spiffe://mesh.local/ns/bank/sa/orders\0.evil",
        "spiffe://mesh.local/ns/bank/sa/%6Frders",
        "spiffe://mesh.local/ns/bank/sa/orders?x",
        "spiffe://mesh.local/ns/bank/sa/orders#x",
        "spiffe://mesh.local:443/ns/bank/sa/orders",
        "spiffe://user@mesh.local/ns/bank/sa/orders",
        "spiffe://mesh.local/ns/bank/../bank/sa/orders",
        "spiffe://mesh.local//ns/bank/sa/orders",
        " spiffe://mesh.local/ns/bank/sa/orders",
        "",
    ];
    for text in not_spiffe {
        let got = verify(&ca, Leaf::of(text));
        assert!(matches!(got, Err(Untrusted::NotSpiffe(_))), "{text:?}: {got:?}");
    }
    let dns = || SanType::DnsName("orders.bank".try_into().unwrap());
    let names: [(&str, Vec<SanType>); 6] = [
        ("two URIs", vec![uri(GOOD), uri("spiffe://mesh.local/ns/bank/sa/admin")]),
        ("the same URI twice", vec![uri(GOOD), uri(GOOD)]),
        ("a DNS name beside it", vec![uri(GOOD), dns()]),
        ("a DNS name before it", vec![dns(), uri(GOOD)]),
        ("a DNS name only", vec![dns()]),
        ("nothing", vec![]),
    ];
    for (what, names) in names {
        let got = verify(&ca, Leaf { names, ..Leaf::of(GOOD) });
        assert!(matches!(got, Err(Untrusted::Names(_))), "{what}: {got:?}");
    }
    let got = verify(&ca, Leaf::of("spiffe://other.local/ns/bank/sa/orders"));
    assert!(matches!(got, Err(Untrusted::OtherDomain { .. })), "{got:?}");
}

#[test]
fn a_second_extension_of_names_is_no_way_in() {
    let ca = Ca::new("root");
    // SEQUENCE { [6] "spiffe://mesh.local/ns/bank/sa/admin" }
    let name = b"spiffe://mesh.local/ns/bank/sa/admin";
    let mut der = vec![0x30, name.len() as u8 + 2, 0x86, name.len() as u8];
    der.extend_from_slice(name);
    let extension = CustomExtension::from_oid_content(&[2, 5, 29, 17], der);
    let got = verify(&ca, Leaf { extensions: vec![extension], ..Leaf::of(GOOD) });
    assert!(matches!(got, Err(Untrusted::Malformed(_))), "{got:?}");
}

#[test]
fn chains_must_lead_to_the_bundle_in_time_and_for_their_purpose() {
    let (ca, namesake, other) = (Ca::new("root"), Ca::new("root"), Ca::new("other"));
    let trust = Trust::new(&bundle(&[&ca])).unwrap();
    let now = unix_now();
    let check = |chain: &[CertificateDer<'_>], role, now| trust.verify(chain, role, now);

    for outside in [&namesake, &other] {
        let (_, chain) = outside.issue(Leaf::of(GOOD));
        assert_eq!(check(&chain, Role::Client, now), Err(Untrusted::UnknownRoot));
    }
    let (_, chain) = ca.issue(Leaf::of(GOOD));
    let verified = check(&chain, Role::Client, now).unwrap();
    assert_eq!(verified.root, trust.roots[0]);
    // From the memo by now; dates are looked at each time.
    let late = verified.not_after + 5;
    let ended = Untrusted::Expired { not_after: verified.not_after, now: late };
    assert_eq!(check(&chain, Role::Client, late), Err(ended.clone()));
    assert_eq!(ended.to_string(), "the certificate expired 5 s ago");
    assert_eq!(check(&chain, Role::Server, late), Err(ended));
    let early = verified.not_before - 5;
    assert!(matches!(check(&chain, Role::Client, early), Err(Untrusted::NotYetValid { .. })));

    let purposes = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let (_, chain) = ca.issue(Leaf { purposes, ..Leaf::of(GOOD) });
    assert!(check(&chain, Role::Server, now).is_ok());
    assert!(matches!(check(&chain, Role::Client, now), Err(Untrusted::Purpose(_))));

    // A root is no leaf.
    let root = [CertificateDer::from(ca.der.clone())];
    assert!(check(&root, Role::Client, now).is_err());
    assert_eq!(check(&[], Role::Client, now), Err(Untrusted::Missing));
    assert!(matches!(
        check(&[CertificateDer::from(vec![1, 2, 3])], Role::Client, now),
        Err(Untrusted::Malformed(_))
    ));
    let long = vec![CertificateDer::from(ca.der.clone()); MAX_CHAIN + 1];
    assert!(matches!(check(&long, Role::Client, now), Err(Untrusted::Malformed(_))));
}

#[test]
fn every_cut_and_flip_of_a_certificate_is_survived() {
    let ca = Ca::new("root");
    let (_, chain) = ca.issue(Leaf::of(GOOD));
    let trust = Trust::new(&bundle(&[&ca])).unwrap();
    for at in 0..chain[0].len() {
        let mut flipped = chain[0].to_vec();
        flipped[at] ^= 0x41;
        for der in [flipped.as_slice(), &chain[0][..at]] {
            // Parsers get the bytes before any signature has vouched for them.
            let _ = (spiffe_id(der), validity(der));
            let chain = [CertificateDer::from(der.to_vec())];
            assert!(trust.verify(&chain, Role::Client, unix_now()).is_err(), "at {at}");
        }
    }
}

#[test]
fn the_control_plane_is_asked_for_by_its_exact_place() {
    let demand = RequiredIdentity::ControlPlane;
    let id = |text: &str| text.parse::<SpiffeId>().unwrap();
    let good = "spiffe://mesh.local/ns/outrigger-system/sa/control-plane";
    assert_eq!(demand.check(&id(good)), Ok(()));
    for bad in [
        "spiffe://mesh.local/ns/bank/sa/control-plane",
        "spiffe://mesh.local/ns/outrigger-system/sa/orders",
    ] {
        let got = demand.check(&id(bad));
        assert!(matches!(got, Err(Untrusted::OtherIdentity { .. })), "{bad}");
    }
}
