//! Conversions in both directions: round trips of everything, refusals with their paths.

#![allow(clippy::unwrap_used, reason = "a broken test may panic")]

mod policies;

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use http::{HeaderName, HeaderValue, Method, StatusCode};
use outrigger_core::config::features;
use outrigger_core::config::{
    Backend, BackendTarget, Balancer, Destination, Endpoint, Filter, HashKey, HeaderMatch,
    HeaderModifier, HostMatch, HttpMatch, HttpRoute, HttpRule, Inbound, InboundPort, MeshAddress,
    MeshSettings, Mirror, MtlsMode, OutsideTls, PathMatch, PathModifier, Protocol, QueryMatch,
    Redirect, Rewrite, TcpBackend, TcpRoute, TlsRoute, Unmatched, ValueMatch, WeightedBackend,
};
use outrigger_core::identity::SpiffeId;
use outrigger_core::name::{DestinationName, EndpointId};
use outrigger_core::policy::access::{
    Access, AccessRule, Action, CallerMatch, ClaimMatch, HeaderRule, Operation, TokenIssuer,
};
use outrigger_core::policy::cache::CacheConfig;
use outrigger_core::policy::cors::CorsConfig;
use outrigger_core::policy::fallback::{Classes, Fallback, Give};
use outrigger_core::policy::hedge::HedgeConfig;
use outrigger_core::policy::session::SessionConfig;
use outrigger_core::policy::{BackendPolicy, CallPolicy, ServerPolicy};
use outrigger_core::telemetry::{
    AccessLog, Collector, LogLayout, OtlpMetrics, OtlpProtocol, Ratio, Statsd, Telemetry, Traces,
};
use outrigger_proto::convert::{destination, endpoint, inbound, is_unsupported, settings, version};
use outrigger_proto::mesh;
use policies::{any_backend_policy, any_call, any_server};
use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use proptest::sample::select;
use prost::Message;

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..Default::default() })]

    #[test]
    fn destinations_survive(config in any_destination()) {
        let bytes = destination::to_wire(&config).encode_to_vec();
        let wire = mesh::Destination::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(destination::from_wire(&wire).unwrap(), config);
        for feature in &wire.requires {
            prop_assert!(features().any(|known| known == feature), "{} is not known", feature);
        }
    }

    #[test]
    fn endpoints_survive(config in any_endpoint()) {
        let bytes = endpoint::to_wire(&config).encode_to_vec();
        let wire = mesh::Endpoint::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(endpoint::from_wire(&endpoint::name(&config), &wire).unwrap(), config);
    }

    #[test]
    fn inbounds_survive(config in any_inbound()) {
        let bytes = inbound::to_wire(&config).encode_to_vec();
        let wire = mesh::Inbound::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(inbound::from_wire(&wire).unwrap(), config);
    }

    #[test]
    fn settings_survive(config in any_settings()) {
        let bytes = settings::to_wire(&config).encode_to_vec();
        let wire = mesh::MeshSettings::decode(bytes.as_slice()).unwrap();
        prop_assert_eq!(settings::from_wire(&wire).unwrap(), config);
    }

    #[test]
    fn nothing_panics_on_other_bytes(bytes in vec(any::<u8>(), 0..200)) {
        if let Ok(wire) = mesh::Destination::decode(bytes.as_slice()) {
            let _ = destination::from_wire(&wire);
        }
        if let Ok(wire) = mesh::Endpoint::decode(bytes.as_slice()) {
            let _ = endpoint::from_wire("bank/app:80/bank.app-1:80", &wire);
        }
    }
}

#[test]
fn only_used_features_are_required() {
    let mut config = plain_destination();
    let requires = |config: &Destination| destination::to_wire(config).requires;
    assert_eq!(requires(&config), [""; 0]);
    config.tls_routes = vec![TlsRoute {
        name: "bank/tls".to_owned(),
        created: 0,
        hostnames: Vec::new(),
        backends: Vec::new(),
    }];
    assert_eq!(requires(&config), ["tls.sni"]);
    config.backends = vec![Backend {
        name: DestinationName::new("bank", "v2", 80).unwrap(),
        protocol: Protocol::Http1,
        balancer: Balancer::RingHash(HashKey::Source),
        policy: BackendPolicy::default(),
    }];
    assert_eq!(requires(&config), ["balancer.ring-hash", "tls.sni"]);
    config.http_routes = vec![HttpRoute {
        name: "bank/r".to_owned(),
        created: 0,
        hostnames: Vec::new(),
        rules: vec![HttpRule {
            name: None,
            matches: Vec::new(),
            filters: Vec::new(),
            call: None,
            backends: vec![WeightedBackend {
                target: BackendTarget::Invalid("gone".to_owned()),
                weight: 1,
                filters: vec![Filter::RequestHeaders(HeaderModifier::default())],
            }],
        }],
    }];
    assert_eq!(requires(&config), ["balancer.ring-hash", "http.filters.v1", "tls.sni"]);
    config.http_routes[0].rules[0].call = Some(CallPolicy::default());
    assert_eq!(requires(&config)[2], "policy.v1");
    config.http_routes[0].rules[0].call = None;
    config.backends[0].policy.budget.percent = 10;
    assert_eq!(requires(&config)[2], "policy.v1");
    let give = Give::Route("/".parse().unwrap());
    config.call.fallbacks = vec![Fallback { when: Classes::default(), give }];
    assert_eq!(requires(&config)[1], "fallbacks.v1");
    let (ttl, stale_on_error) = (Duration::from_secs(1), Duration::ZERO);
    config.call.cache = Some(CacheConfig { ttl, stale_on_error, max_entry_bytes: 1 });
    assert_eq!(requires(&config)[1], "cache.v1");
    config.backends[0].policy.preference.panic_threshold = Some(50);
    config.policy.preference.min_healthy_percent = Some(70);
    config.policy.session = Some(SessionConfig::Header("x-session".parse().unwrap()));
    config.backends[0].policy.faults = vec![policies::plain_fault()];
    assert_eq!(requires(&config)[3], "faults.v1");
    config.call.hedge = Some(HedgeConfig::After(Duration::from_secs(1)));
    assert_eq!(requires(&config)[5], "hedge.v1");
    config.http_routes[0].rules[0].filters.push(Filter::Cors(CorsConfig {
        origins: Vec::new(),
        credentials: false,
        methods: Vec::new(),
        headers: Vec::new(),
        expose: Vec::new(),
        max_age: 5,
    }));
    let port = InboundPort {
        port: 80,
        protocol: Protocol::Http1,
        services: Vec::new(),
        mtls: MtlsMode::Strict,
        access: None,
        server: None,
    };
    let workload = "w".to_owned();
    let mut own = Inbound { workload, addresses: Vec::new(), ports: vec![port] };
    assert_eq!(inbound::to_wire(&own).requires, [""; 0]);
    own.ports[0].server = Some(ServerPolicy::default());
    assert_eq!(inbound::to_wire(&own).requires, ["policy.v1"]);
    own.ports[0].access = Some(Access::default());
    let tls = OutsideTls { server_name: "api.example".to_owned(), roots: Vec::new() };
    let mut outside = Endpoint {
        destination: "bank/external:api:443".parse().unwrap(),
        id: "192.0.2.1:443".parse().unwrap(),
        address: "192.0.2.1:443".parse().unwrap(),
        mesh: None,
        zone: None,
        hostname: None,
        workload: None,
        tls: None,
    };
    assert_eq!(endpoint::to_wire(&outside).requires, [""; 0]);
    outside.tls = Some(Arc::new(tls));
    let all: BTreeSet<_> = requires(&config)
        .into_iter()
        .chain(inbound::to_wire(&own).requires)
        .chain(endpoint::to_wire(&outside).requires)
        .collect();
    let known: BTreeSet<_> = features().map(str::to_owned).collect();
    assert_eq!(all, known);
}

#[test]
fn an_unknown_feature_is_told_from_a_wrong_value() {
    let mut wire = destination::to_wire(&plain_destination());
    wire.requires = vec!["tls.sni".to_owned(), "warp.drive".to_owned()];
    let error = destination::from_wire(&wire).unwrap_err();
    assert_eq!(
        error.to_string(),
        "requires[1]: \"warp.drive\" is a feature that this build does not know; upgrade it"
    );
    assert!(is_unsupported(&error));
    wire.requires.clear();
    wire.name = "no name".to_owned();
    assert!(!is_unsupported(&destination::from_wire(&wire).unwrap_err()));
}

#[test]
fn what_is_unset_or_unknown_is_refused_with_its_path() {
    type Change = fn(&mut mesh::Destination);
    let unset = "is not set, or set to something that this build does not know";
    let cases: &[(Change, &str)] = &[
        (|d| d.protocol = 0, "protocol: 0 is not a known protocol"),
        (|d| d.protocol = 99, "protocol: 99 is not a known protocol"),
        (|d| d.balancer = None, &format!("balancer: {unset}")),
        (|d| d.balancer = Some(mesh::Balancer { kind: None }), &format!("balancer: {unset}")),
        (
            |d| {
                let kind = mesh::balancer::Kind::RingHash(mesh::HashKey { key: None });
                d.balancer = Some(mesh::Balancer { kind: Some(kind) });
            },
            &format!("balancer.ring_hash: {unset}"),
        ),
        (
            |d| first_match(d).path = Some(mesh::PathMatch { kind: None }),
            &format!("http_routes[0].rules[0].matches[0].path: {unset}"),
        ),
        (
            |d| first_match(d).headers[0].value = None,
            &format!("http_routes[0].rules[0].matches[0].headers[0].value: {unset}"),
        ),
        (
            |d| first_match(d).headers[0].name = "a b".to_owned(),
            "http_routes[0].rules[0].matches[0].headers[0].name: \"a b\": invalid HTTP header name",
        ),
        (
            |d| first_match(d).method = "a b".to_owned(),
            "http_routes[0].rules[0].matches[0].method: \"a b\": invalid HTTP method",
        ),
        (
            |d| d.http_routes[0].hostnames = vec!["a".to_owned(), "*.A".to_owned()],
            "http_routes[0].hostnames[1]: \"*.A\" is not a lower-case host name",
        ),
        (
            |d| d.http_routes[0].rules[0].filters = vec![mesh::Filter { kind: None }],
            &format!("http_routes[0].rules[0].filters[0].kind: {unset}"),
        ),
        (
            |d| d.http_routes[0].rules[0].backends[0].target = None,
            &format!("http_routes[0].rules[0].backends[0].target: {unset}"),
        ),
        (
            |d| {
                let kind = mesh::filter::Kind::Redirect(mesh::Redirect {
                    status: 302,
                    port: 70_000,
                    ..Default::default()
                });
                d.http_routes[0].rules[0].filters = vec![mesh::Filter { kind: Some(kind) }];
            },
            "http_routes[0].rules[0].filters[0].redirect.port: 70000 must be between 1 and 65535",
        ),
        (
            |d| d.name = "bank".to_owned(),
            "name: \"bank\": \"bank\" is not a destination name (namespace/service:port)",
        ),
    ];
    for (change, want) in cases {
        let mut wire = destination::to_wire(&plain_destination());
        wire.http_routes = vec![mesh::HttpRoute {
            name: "bank/r".to_owned(),
            rules: vec![mesh::HttpRule {
                matches: vec![mesh::HttpMatch {
                    headers: vec![mesh::NamedMatch {
                        name: "a".to_owned(),
                        value: Some(mesh::named_match::Value::Exact("1".to_owned())),
                    }],
                    ..Default::default()
                }],
                backends: vec![mesh::WeightedBackend {
                    target: Some(mesh::Target {
                        kind: Some(mesh::target::Kind::Service("bank/app:80".to_owned())),
                    }),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }];
        assert!(destination::from_wire(&wire).is_ok());
        change(&mut wire);
        assert_eq!(destination::from_wire(&wire).unwrap_err().to_string(), *want);
    }
}

#[test]
fn names_of_endpoints_and_collections() {
    let destination = DestinationName::new("bank", "app", 80).unwrap();
    let collection = endpoint::collection(&destination.clone().for_consumer("shop"));
    assert_eq!(collection, "bank/app:80/*");
    assert_eq!(endpoint::parse_name(&collection).unwrap(), (destination.clone(), None));
    let id = EndpointId::new("bank.app-1", 8080).unwrap();
    assert_eq!(
        endpoint::parse_name("bank/app:80/bank.app-1:8080").unwrap(),
        (destination, Some(id))
    );
    for name in ["", "bank", "bank/app:80", "bank/app:80/", "bank/app:80/x", "bank/app:80@shop/*"] {
        assert!(endpoint::parse_name(name).is_err(), "{name:?} must be refused");
    }
    let nobody = mesh::Endpoint {
        address: "192.0.2.1:80".to_owned(),
        tls: Some(mesh::OutsideTls::default()),
        ..Default::default()
    };
    let error = endpoint::from_wire("bank/external:a:80/x:80", &nobody).unwrap_err();
    assert!(error.to_string().starts_with("tls.server_name: "), "{error}");
    let error = endpoint::from_wire("bank/app:80/*", &mesh::Endpoint::default()).unwrap_err();
    assert_eq!(error.to_string(), "name: \"bank/app:80/*\" names a collection");
}

#[test]
fn versions_follow_the_content() {
    assert_eq!(version(b""), "e3b0c44298fc1c149afbf4c8996fb924");
    assert_ne!(version(b"a"), version(b"b"));
}

fn first_match(wire: &mut mesh::Destination) -> &mut mesh::HttpMatch {
    &mut wire.http_routes[0].rules[0].matches[0]
}

fn plain_destination() -> Destination {
    Destination {
        name: DestinationName::new("bank", "app", 80).unwrap(),
        protocol: Protocol::Detect,
        balancer: Balancer::PowerOfTwo,
        call: CallPolicy::default(),
        policy: BackendPolicy::default(),
        backends: Vec::new(),
        http_routes: Vec::new(),
        tls_routes: Vec::new(),
        tcp_route: None,
    }
}

fn any_destination() -> impl Strategy<Value = Destination> {
    let backend = (any_name(), any_protocol(), any_balancer(), any_backend_policy()).prop_map(
        |(name, protocol, balancer, policy)| Backend { name, protocol, balancer, policy },
    );
    let tls =
        (any_text(), any::<i64>(), vec(any_host(), 0..3), vec(any_tcp_backend(), 0..3)).prop_map(
            |(name, created, hostnames, backends)| TlsRoute { name, created, hostnames, backends },
        );
    let tcp = (any_text(), vec(any_tcp_backend(), 0..3))
        .prop_map(|(name, backends)| TcpRoute { name, backends });
    let head = (any_name(), any_protocol(), any_balancer(), vec(backend, 0..3));
    let call = prop_oneof![Just(CallPolicy::default()), any_call()];
    let policy = prop_oneof![Just(BackendPolicy::default()), any_backend_policy()];
    let routes = (vec(any_http_route(), 0..3), vec(tls, 0..3), of(tcp));
    (head, routes, call, policy).prop_map(
        |(
            (name, protocol, balancer, backends),
            (http_routes, tls_routes, tcp_route),
            call,
            policy,
        )| Destination {
            name,
            protocol,
            balancer,
            call,
            policy,
            backends,
            http_routes,
            tls_routes,
            tcp_route,
        },
    )
}

fn any_http_route() -> impl Strategy<Value = HttpRoute> {
    let backend = (any_target(), any::<u32>(), vec(any_filter(), 0..2))
        .prop_map(|(target, weight, filters)| WeightedBackend { target, weight, filters });
    let parts = (vec(any_match(), 0..3), vec(any_filter(), 0..3), vec(backend, 0..3));
    let rule = (of(any_text()), parts, of(any_call())).prop_map(
        |(name, (matches, filters, backends), call)| HttpRule {
            name,
            matches,
            filters,
            call,
            backends,
        },
    );
    (any_text(), any::<i64>(), vec(any_host(), 0..3), vec(rule, 0..3))
        .prop_map(|(name, created, hostnames, rules)| HttpRoute { name, created, hostnames, rules })
}

fn any_match() -> impl Strategy<Value = HttpMatch> {
    let path = prop_oneof![
        any_text().prop_map(PathMatch::Exact),
        any_text().prop_map(PathMatch::Prefix),
        any_text().prop_map(PathMatch::Regex),
    ];
    let header =
        (any_header_name(), any_value()).prop_map(|(name, value)| HeaderMatch { name, value });
    let query = (any_text(), any_value()).prop_map(|(name, value)| QueryMatch { name, value });
    let method = "[A-Z]{1,10}".prop_map(|name| Method::from_bytes(name.as_bytes()).unwrap());
    (of(path), of(method), vec(header, 0..3), vec(query, 0..3))
        .prop_map(|(path, method, headers, query)| HttpMatch { path, method, headers, query })
}

fn any_value() -> impl Strategy<Value = ValueMatch> {
    prop_oneof![
        any_text().prop_map(ValueMatch::Exact),
        any_text().prop_map(ValueMatch::Regex),
        Just(ValueMatch::Exact(String::new())),
    ]
}

fn any_filter() -> impl Strategy<Value = Filter> {
    let header = || {
        let value = vec(0x20u8..0x7f, 0..10).prop_map(|v| HeaderValue::from_bytes(&v).unwrap());
        vec((any_header_name(), value), 0..3)
    };
    let modifier = move || {
        (header(), header(), vec(any_header_name(), 0..3))
            .prop_map(|(set, add, remove)| HeaderModifier { set, add, remove })
    };
    let path = || {
        prop_oneof![
            any_text().prop_map(PathModifier::Full),
            any_text().prop_map(PathModifier::Prefix),
            Just(PathModifier::Prefix(String::new())),
        ]
    };
    let redirect = (of(any_text()), of(any_text()), of(1u16..), of(path()), 100u16..1000).prop_map(
        |(scheme, host, port, path, status)| {
            let status = StatusCode::from_u16(status).unwrap();
            Filter::Redirect(Redirect { scheme, host, port, path, status })
        },
    );
    let rewrite = (of(any_text()), of(path()))
        .prop_map(|(host, path)| Filter::Rewrite(Rewrite { host, path }));
    let mirror =
        (any_target(), any::<u32>(), any::<u32>()).prop_map(|(target, numerator, denominator)| {
            Filter::Mirror(Mirror { target, numerator, denominator })
        });
    let texts = || vec("[a-z*]{0,5}", 0..3);
    let cors = (texts(), any::<bool>(), texts(), texts(), texts(), any::<u32>()).prop_map(
        |(origins, credentials, methods, headers, expose, max_age)| {
            Filter::Cors(CorsConfig { origins, credentials, methods, headers, expose, max_age })
        },
    );
    prop_oneof![
        modifier().prop_map(Filter::RequestHeaders),
        modifier().prop_map(Filter::ResponseHeaders),
        redirect,
        rewrite,
        mirror,
        cors,
    ]
}

fn any_tcp_backend() -> impl Strategy<Value = TcpBackend> {
    (any_target(), any::<u32>()).prop_map(|(target, weight)| TcpBackend { target, weight })
}

fn any_target() -> impl Strategy<Value = BackendTarget> {
    prop_oneof![
        any_name().prop_map(BackendTarget::Service),
        any_text().prop_map(BackendTarget::Invalid),
        Just(BackendTarget::Invalid(String::new())),
    ]
}

fn any_balancer() -> impl Strategy<Value = Balancer> {
    prop_oneof![
        Just(Balancer::PowerOfTwo),
        Just(Balancer::RoundRobin),
        Just(Balancer::RingHash(HashKey::Source)),
        any_header_name().prop_map(|name| Balancer::RingHash(HashKey::Header(name))),
        any_text().prop_map(|name| Balancer::RingHash(HashKey::Cookie(name))),
    ]
}

fn any_endpoint() -> impl Strategy<Value = Endpoint> {
    let mesh = (any::<SocketAddr>(), of(any_identity()))
        .prop_map(|(address, identity)| MeshAddress { address, hop_version: 1, identity });
    let id = (select(&["bank.app-1", "127.0.0.1", "::1", "7a1e"][..]), 1u16..)
        .prop_map(|(workload, port)| EndpointId::new(workload, port).unwrap());
    let texts = (of(any_text()), of(any_text()), of(any_text()));
    let name = select(&["api.example", "10.0.0.1", "2001:db8::1"][..]);
    let tls = (name, vec(vec(any::<u8>(), 1..9), 0..3))
        .prop_map(|(name, roots)| Arc::new(OutsideTls { server_name: name.to_owned(), roots }));
    (any_name(), id, any::<SocketAddr>(), of(mesh), texts, of(tls)).prop_map(
        |(destination, id, address, mesh, (zone, hostname, workload), tls)| Endpoint {
            destination: destination.without_consumer(),
            id,
            // The scope and flow of an IPv6 address have no place in an endpoint.
            address: SocketAddr::new(address.ip(), address.port()),
            mesh: mesh.map(|mesh| MeshAddress {
                address: SocketAddr::new(mesh.address.ip(), mesh.address.port()),
                ..mesh
            }),
            zone,
            hostname,
            workload,
            tls,
        },
    )
}

fn any_inbound() -> impl Strategy<Value = Inbound> {
    let mtls = select(&[MtlsMode::Permissive, MtlsMode::Strict][..]);
    let rules = (of(any_access()), of(any_server()));
    let port = (1u16.., any_protocol(), vec(any_name(), 0..3), mtls, rules).prop_map(
        |(port, protocol, services, mtls, (access, server))| InboundPort {
            port,
            protocol,
            services,
            mtls,
            access,
            server,
        },
    );
    (any_text(), vec(any::<IpAddr>(), 0..3), vec(port, 0..4))
        .prop_map(|(workload, addresses, ports)| Inbound { workload, addresses, ports })
}

fn any_access() -> impl Strategy<Value = Access> {
    let action = || select(&[Action::Allow, Action::Deny][..]);
    let texts = || vec(any_text(), 0..3);
    let network = select(&["10.0.0.0/8", "::1/128"][..]).prop_map(|text| text.parse().unwrap());
    let caller = (texts(), texts(), texts(), of(any::<bool>()), vec(network, 0..2)).prop_map(
        |(service_accounts, namespaces, trust_domains, authenticated, networks)| CallerMatch {
            service_accounts,
            namespaces,
            trust_domains,
            authenticated,
            networks,
        },
    );
    let value = any_text().prop_map(ValueMatch::Exact);
    let header =
        (any_header_name(), of(value)).prop_map(|(name, value)| HeaderRule { name, value });
    let path = any_text().prop_map(PathMatch::Prefix);
    let operation = (vec(header, 0..2), vec(path, 0..2)).prop_map(|(headers, paths)| Operation {
        hosts: vec![HostMatch::Suffix(".bank".to_owned())],
        methods: vec![Method::GET],
        headers,
        paths,
    });
    let claim = (any_text(), texts()).prop_map(|(name, values)| ClaimMatch { name, values });
    let rule = (
        (any_text(), any_text(), action(), any::<bool>()),
        (vec(caller, 0..3), vec(operation, 0..3), vec(claim, 0..2)),
    )
        .prop_map(|((policy, name, action, audit), (from, to, claims))| AccessRule {
            policy,
            name,
            action,
            audit,
            from,
            to,
            claims,
        });
    let token = (any_text(), texts(), any_text(), any::<u32>(), any::<bool>(), any_header_name())
        .prop_map(|(issuer, audiences, keys, clock_skew, forward, header)| TokenIssuer {
            issuer,
            audiences,
            keys,
            clock_skew,
            claims_to_headers: vec![("sub".to_owned(), header)],
            forward,
            required: !forward,
        });
    (action(), of(any_text()), vec(rule, 0..3), vec(token, 0..2)).prop_map(
        |(default, default_from, rules, tokens)| Access { default, default_from, rules, tokens },
    )
}

fn any_settings() -> impl Strategy<Value = MeshSettings> {
    let unmatched = select(&[Unmatched::Passthrough, Unmatched::Refuse][..]);
    (any_text(), unmatched, 1u32.., vec(any_text(), 0..4), any_telemetry()).prop_map(
        |(cluster_domain, unmatched, max_endpoints, namespaces, telemetry)| MeshSettings {
            cluster_domain,
            unmatched,
            max_endpoints,
            namespaces,
            telemetry,
        },
    )
}

fn any_telemetry() -> impl Strategy<Value = Telemetry> {
    let every = || (1u64..=3_600).prop_map(Duration::from_secs);
    let metrics =
        (any_collector(), every()).prop_map(|(collector, every)| OtlpMetrics { collector, every });
    let statsd = ("[a-z]{1,9}:[1-9][0-9]{1,3}", every())
        .prop_map(|(address, every)| Statsd { address, every });
    let layout = of(select(&[LogLayout::Json, LogLayout::Logstash][..]));
    let logs = of(any_collector());
    (of(any_traces()), of(any_access_log()), layout, logs, of(metrics), of(statsd)).prop_map(
        |(traces, access_log, access_log_layout, logs, metrics, statsd)| Telemetry {
            traces,
            access_log,
            access_log_layout,
            logs,
            metrics,
            statsd,
        },
    )
}

fn any_collector() -> impl Strategy<Value = Collector> {
    let protocol = select(&[OtlpProtocol::Grpc, OtlpProtocol::Http][..]);
    let address = "http://[a-z]{1,9}:[1-9][0-9]{1,3}";
    (address, protocol).prop_map(|(address, protocol)| Collector { address, protocol })
}

fn any_access_log() -> impl Strategy<Value = AccessLog> {
    let slower_than = of((1u64..=3_600_000).prop_map(Duration::from_millis));
    (0u32..=1_000_000, any::<bool>(), slower_than).prop_map(|(share, errors, slower_than)| {
        AccessLog { share: Ratio::from_millionths(share).unwrap(), errors, slower_than }
    })
}

fn any_traces() -> impl Strategy<Value = Traces> {
    let slower_than = of((1u64..=3_600_000).prop_map(Duration::from_millis));
    (any_collector(), 0u32..=1_000_000, any::<[bool; 2]>(), slower_than).prop_map(
        |(collector, ratio, [parent, errors], slower_than)| Traces {
            collector,
            ratio: Ratio::from_millionths(ratio).unwrap(),
            parent,
            errors,
            slower_than,
        },
    )
}

fn any_protocol() -> impl Strategy<Value = Protocol> {
    use Protocol::{Detect, Grpc, Http1, Http2, Tcp, Tls};
    select(&[Detect, Http1, Http2, Grpc, Tls, Tcp][..])
}

fn any_host() -> impl Strategy<Value = HostMatch> {
    prop_oneof![
        "[a-z0-9]{1,5}(\\.[a-z]{1,5}){0,2}".prop_map(HostMatch::Exact),
        "\\.[a-z0-9]{1,5}(\\.[a-z]{1,5}){0,2}".prop_map(HostMatch::Suffix),
    ]
}

fn any_name() -> impl Strategy<Value = DestinationName> {
    let label = || select(&["bank", "shop", "app-2", "x"][..]);
    (label(), label(), 1u16.., of(label())).prop_map(|(namespace, service, port, consumer)| {
        let name = DestinationName::new(namespace, service, port).unwrap();
        match consumer {
            Some(consumer) => name.for_consumer(consumer),
            None => name,
        }
    })
}

fn any_header_name() -> impl Strategy<Value = HeaderName> {
    "[a-z][a-z0-9-]{0,10}".prop_map(|name| name.parse().unwrap())
}

/// Any text but the empty one, which stands for a value that is not there.
fn any_text() -> impl Strategy<Value = String> {
    "\\PC{1,12}"
}

fn any_identity() -> impl Strategy<Value = SpiffeId> {
    ("[a-z][a-z0-9-]{0,8}[a-z0-9]", "[a-z0-9]{1,9}", "[a-z0-9]{1,9}").prop_map(
        |(domain, namespace, account): (String, String, String)| {
            SpiffeId::new(&domain.parse().unwrap(), &namespace, &account).unwrap()
        },
    )
}
