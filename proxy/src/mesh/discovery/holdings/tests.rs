//! What stays in force when something that comes is refused.

use clap::Parser;
use outrigger_core::config::{
    Backend, BackendTarget, Balancer, Destination, Filter, HttpRoute, HttpRule, PathModifier,
    Protocol, Rewrite, WeightedBackend,
};
use outrigger_core::policy::{BackendPolicy, CallPolicy};
use outrigger_logging::Log;

use crate::base::settings::Settings;
use crate::mesh::discovery::holdings::*;

const ORDERS: &str = "bank/orders:80";
const OWN: &str = "bank/orders:80@shop";
const DIALLED: &str = "orders.bank:80";

fn holdings() -> Holdings {
    let flags = ["outrigger-proxy", "--workload", "caller", "--namespace", "shop"];
    let (proxy, _) = Proxy::new(Settings::parse_from(flags), None, Log::unread());
    let mut holdings = Holdings::new(proxy);
    for name in [DIALLED, "other.bank:80"] {
        let authority = Authority::parse(name, None).unwrap();
        holdings.proxy.store.dial(&authority, 0).expect("room for a name");
        holdings.want(authority);
    }
    holdings
}

/// A destination that sends to `old` for the path `rewritten`.
fn destination(name: &str, rewritten: &str, alias: &str) -> wire::Resource {
    let old: DestinationName = "bank/old:80".parse().unwrap();
    let path = Some(PathModifier::Full(rewritten.to_owned()));
    let rule = HttpRule {
        name: None,
        matches: Vec::new(),
        filters: vec![Filter::Rewrite(Rewrite { host: None, path })],
        call: None,
        backends: vec![WeightedBackend {
            target: BackendTarget::Service(old.clone()),
            weight: 1,
            filters: Vec::new(),
        }],
    };
    let route = HttpRoute {
        name: "bank/r".to_owned(),
        created: 0,
        hostnames: Vec::new(),
        rules: vec![rule],
    };
    let config = Destination {
        name: name.parse().unwrap(),
        protocol: Protocol::Http1,
        balancer: Balancer::default(),
        call: CallPolicy::default(),
        policy: BackendPolicy::default(),
        backends: vec![Backend {
            name: old,
            protocol: Protocol::Http1,
            balancer: Balancer::default(),
            policy: BackendPolicy::default(),
        }],
        http_routes: vec![route],
        tls_routes: Vec::new(),
        tcp_route: None,
    };
    let value = convert::destination::to_wire(&config).encode_to_vec().into();
    let any = wire::Any { type_url: wire::DESTINATION.to_owned(), value };
    wire::Resource {
        version: rewritten.to_owned(),
        resource: Some(any),
        name: name.to_owned(),
        aliases: vec![alias.to_owned()],
        ..Default::default()
    }
}

fn marker(collection: &str) -> wire::Resource {
    wire::Resource { version: "1".to_owned(), name: collection.to_owned(), ..Default::default() }
}

/// The destination that a dialled name leads to, if any.
fn leads_to(holdings: &Holdings, name: &str) -> Option<String> {
    let authority = Authority::parse(name, None).unwrap();
    match holdings.proxy.store.dial(&authority, 0).expect("room for a name").resolution() {
        Resolution::Found(live) => Some(live.compiled.name.to_string()),
        _ => None,
    }
}

fn complete(holdings: &Holdings) -> bool {
    let old = "bank/old:80".parse().unwrap();
    holdings.proxy.store.endpoints(&old, &holdings.proxy.metrics).load().complete
}

#[test]
fn one_that_is_refused_leaves_the_others_of_its_response_in_force() {
    let mut holdings = holdings();
    let bad = destination(ORDERS, "/a b", DIALLED);
    let good = destination("bank/other:80", "/a", "other.bank:80");
    let problems = holdings.apply(wire::DESTINATION, &[bad, good], &[]);
    assert_eq!(problems.len(), 1, "{problems:?}");
    assert!(problems[0].starts_with("bank/orders:80: http_routes[0].rules[0].filters[0]"));
    assert_eq!(leads_to(&holdings, "other.bank:80").as_deref(), Some("bank/other:80"));
}

#[test]
fn what_a_refused_destination_was_to_replace_goes_on() {
    let mut holdings = holdings();
    let first = destination(ORDERS, "/a", DIALLED);
    assert!(holdings.apply(wire::DESTINATION, &[first], &[]).is_empty());
    holdings.apply(wire::ENDPOINT, &[marker("bank/orders:80/*"), marker("bank/old:80/*")], &[]);
    assert!(complete(&holdings));
    // A consumer route takes its place, and is refused; what it replaces is withdrawn with its endpoints.
    let own = destination(OWN, "/a#b", DIALLED);
    let removed = [ORDERS.to_owned()];
    assert_eq!(holdings.apply(wire::DESTINATION, &[own], &removed).len(), 1);
    holdings.apply(wire::ENDPOINT, &[], &["bank/old:80/*".to_owned()]);
    assert_eq!(leads_to(&holdings, DIALLED).as_deref(), Some(ORDERS));
    assert!(complete(&holdings));
    // Once the replacement is taken, it goes.
    let own = destination(OWN, "/b", DIALLED);
    assert!(holdings.apply(wire::DESTINATION, &[own], &[]).is_empty());
    assert_eq!(leads_to(&holdings, DIALLED).as_deref(), Some(OWN));
    assert!(!holdings.live().any(|(name, ..)| name == ORDERS));
}

#[test]
fn what_is_gone_is_gone_whatever_was_refused() {
    let mut holdings = holdings();
    holdings.apply(wire::DESTINATION, &[destination(ORDERS, "/a", DIALLED)], &[]);
    // A refused update, and then nothing has the name any more.
    holdings.apply(wire::DESTINATION, &[destination(ORDERS, "/a?b", DIALLED)], &[]);
    assert_eq!(leads_to(&holdings, DIALLED).as_deref(), Some(ORDERS));
    holdings.apply(wire::DESTINATION, &[], &[DIALLED.to_owned(), ORDERS.to_owned()]);
    assert_eq!(leads_to(&holdings, DIALLED), None);
    // The same while a replacement is refused.
    holdings.apply(wire::DESTINATION, &[destination(ORDERS, "/a", DIALLED)], &[]);
    let own = destination(OWN, "/a b", DIALLED);
    holdings.apply(wire::DESTINATION, &[own], &[ORDERS.to_owned()]);
    assert_eq!(leads_to(&holdings, DIALLED).as_deref(), Some(ORDERS));
    holdings.apply(wire::DESTINATION, &[], &[DIALLED.to_owned()]);
    assert_eq!(leads_to(&holdings, DIALLED), None);
    assert_eq!(holdings.live().count(), 0);
    // And when the replacement is withdrawn that was refused.
    holdings.apply(wire::DESTINATION, &[destination(ORDERS, "/a", DIALLED)], &[]);
    let own = destination(OWN, "/a b", DIALLED);
    holdings.apply(wire::DESTINATION, &[own], &[ORDERS.to_owned()]);
    assert_eq!(leads_to(&holdings, DIALLED).as_deref(), Some(ORDERS));
    holdings.apply(wire::DESTINATION, &[], &[OWN.to_owned()]);
    assert_eq!(leads_to(&holdings, DIALLED), None);
    assert_eq!(holdings.live().count(), 0);
}
