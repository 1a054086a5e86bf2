//! Tables of callers, paths, headers and claims against rules.

use http::HeaderValue;

use super::*;

struct Call {
    identity: Option<SpiffeId>,
    address: IpAddr,
    host: &'static str,
    method: Method,
    path: &'static str,
    bare_path: Option<&'static str>,
    headers: HeaderMap,
    claims: Option<Claims>,
}

fn call(identity: Option<&str>) -> Call {
    let identity = identity.map(|account| {
        let (namespace, account) = account.split_once('/').unwrap();
        SpiffeId::new(&"mesh.local".parse().unwrap(), namespace, account).unwrap()
    });
    Call {
        identity,
        address: "10.1.2.3".parse().unwrap(),
        host: "ledger.bank",
        method: Method::GET,
        path: "/accounts/7",
        bare_path: None,
        headers: HeaderMap::new(),
        claims: None,
    }
}

impl Call {
    fn facts(&self) -> Facts<'_> {
        Facts {
            request: Some(RequestFacts {
                authority: self.host,
                host: self.host,
                method: &self.method,
                path: self.path,
                bare_path: self.bare_path,
                headers: &self.headers,
                claims: self.claims.as_ref(),
            }),
            ..self.stream()
        }
    }

    fn stream(&self) -> Facts<'_> {
        Facts { identity: self.identity.as_ref(), address: self.address, request: None }
    }
}

fn rule(action: Action) -> AccessRule {
    AccessRule {
        policy: "bank/ledger".to_owned(),
        name: "r".to_owned(),
        action,
        audit: false,
        from: Vec::new(),
        to: Vec::new(),
        claims: Vec::new(),
    }
}

fn from(accounts: &[&str]) -> Vec<CallerMatch> {
    let service_accounts = accounts.iter().map(|account| (*account).to_owned()).collect();
    vec![CallerMatch { service_accounts, ..CallerMatch::default() }]
}

fn paths(paths: &[PathMatch]) -> Vec<Operation> {
    vec![Operation { paths: paths.to_vec(), ..Operation::default() }]
}

fn compiled(default: Action, rules: Vec<AccessRule>) -> CompiledAccess {
    CompiledAccess::new(&Access { default, rules, ..Access::default() }).unwrap()
}

fn denied(access: &CompiledAccess, facts: &Facts<'_>) -> Option<String> {
    access.decide(facts).denied.map(|denial| denial.0)
}

#[test]
fn without_rules_the_default_decides() {
    let open = compiled(Action::Allow, vec![]);
    assert!(open.is_open());
    assert_eq!(denied(&open, &call(None).facts()), None);
    let closed = compiled(Action::Deny, vec![]);
    let why = denied(&closed, &call(Some("bank/orders")).facts()).unwrap();
    assert_eq!(why, "the default of the mesh denies it");
}

#[test]
fn an_allow_rule_shuts_out_everybody_else() {
    let orders = AccessRule { from: from(&["bank/orders"]), ..rule(Action::Allow) };
    let access = compiled(Action::Allow, vec![orders]);
    assert_eq!(denied(&access, &call(Some("bank/orders")).facts()), None);
    for other in [Some("bank/market"), Some("shop/orders"), None] {
        let why = denied(&access, &call(other).facts()).unwrap();
        assert_eq!(why, "no rule of bank/ledger allows it");
    }
}

#[test]
fn deny_comes_before_allow() {
    let everybody = rule(Action::Allow);
    let market = AccessRule { from: from(&["bank/market"]), ..rule(Action::Deny) };
    let access = compiled(Action::Allow, vec![everybody, market]);
    assert_eq!(denied(&access, &call(Some("bank/orders")).facts()), None);
    let why = denied(&access, &call(Some("bank/market")).facts()).unwrap();
    assert_eq!(why, "denied by r of bank/ledger");
}

#[test]
fn callers_are_told_apart() {
    let orders = call(Some("bank/orders"));
    let nobody = call(None);
    let text = |text: &str| vec![text.to_owned()];
    for (caller, is_orders, is_nobody) in [
        (CallerMatch::default(), true, true),
        (CallerMatch { namespaces: text("bank"), ..CallerMatch::default() }, true, false),
        (CallerMatch { namespaces: text("shop"), ..CallerMatch::default() }, false, false),
        (CallerMatch { trust_domains: text("mesh.local"), ..CallerMatch::default() }, true, false),
        (CallerMatch { trust_domains: text("other"), ..CallerMatch::default() }, false, false),
        (CallerMatch { authenticated: Some(true), ..CallerMatch::default() }, true, false),
        (CallerMatch { authenticated: Some(false), ..CallerMatch::default() }, false, true),
        (
            CallerMatch { service_accounts: text("bank/orders"), ..CallerMatch::default() },
            true,
            false,
        ),
        (
            CallerMatch { service_accounts: text("bank/order"), ..CallerMatch::default() },
            false,
            false,
        ),
        (CallerMatch { service_accounts: text("orders"), ..CallerMatch::default() }, false, false),
        (
            CallerMatch { networks: vec!["10.0.0.0/8".parse().unwrap()], ..CallerMatch::default() },
            true,
            true,
        ),
        (
            CallerMatch { networks: vec!["11.0.0.0/8".parse().unwrap()], ..CallerMatch::default() },
            false,
            false,
        ),
        // All fields together.
        (
            CallerMatch {
                namespaces: text("bank"),
                networks: vec!["11.0.0.0/8".parse().unwrap()],
                ..CallerMatch::default()
            },
            false,
            false,
        ),
    ] {
        let rule = AccessRule { from: vec![caller.clone()], ..rule(Action::Deny) };
        let access = compiled(Action::Allow, vec![rule]);
        assert_eq!(denied(&access, &orders.facts()).is_some(), is_orders, "{caller:?}");
        assert_eq!(denied(&access, &nobody.facts()).is_some(), is_nobody, "{caller:?}");
    }
}

/// Each trick as a caller sends it, against a rule that denies `/admin` and one that allows only
/// `/public`; `None`: the path has no canonical form and is refused before any rule is asked.
#[test]
fn path_tricks_gain_nothing() {
    let prefix = |path: &str| paths(&[PathMatch::Prefix(path.to_owned())]);
    let deny =
        compiled(Action::Allow, vec![AccessRule { to: prefix("/admin"), ..rule(Action::Deny) }]);
    let allow =
        compiled(Action::Allow, vec![AccessRule { to: prefix("/public"), ..rule(Action::Allow) }]);
    for (path, expected) in [
        ("/admin", Some((true, true))),
        ("/admin/users", Some((true, true))),
        ("/administrator", Some((false, true))),
        ("/public", Some((false, false))),
        ("/public/x", Some((false, false))),
        ("/publicity", Some((false, true))),
        ("//admin", Some((true, true))),
        ("/./admin", Some((true, true))),
        ("/public/../admin", Some((true, true))),
        ("/public/%2e%2e/admin", Some((true, true))),
        ("/public//../admin", Some((true, true))),
        ("/%61dmin", Some((true, true))),
        ("/adm%69n/", Some((true, true))),
        ("/admin/../public", Some((false, false))),
        // Another resource: only a server that ignores case confuses them.
        ("/ADMIN", Some((false, true))),
        ("/admin%20", Some((false, true))),
        ("/%2561dmin", Some((false, true))),
        ("/public%2f..%2fadmin", None),
        ("/public%5c..%5cadmin", None),
        ("/public\\..\\admin", None),
        ("/public/..;/admin", None),
        ("/public/..%3b/admin", None),
        ("/admin%00", None),
        ("/../admin", None),
        ("/%zzadmin", None),
    ] {
        let Ok(canonical) = crate::path::canonical(path) else {
            assert_eq!(expected, None, "{path}");
            continue;
        };
        let mut call = call(Some("bank/orders"));
        let canonical: &'static str = Box::leak(canonical.into_owned().into_boxed_str());
        call.path = canonical;
        let got = (denied(&deny, &call.facts()).is_some(), denied(&allow, &call.facts()).is_some());
        assert_eq!(Some(got), expected, "{path}");
    }
}

#[test]
fn a_rule_that_could_never_match_is_refused() {
    for path in ["admin", "/a/../b", "//a", "/%61", "/a%2fb"] {
        let rule =
            AccessRule { to: paths(&[PathMatch::Exact(path.to_owned())]), ..rule(Action::Deny) };
        let config = Access { rules: vec![rule], ..Access::default() };
        let error = CompiledAccess::new(&config).unwrap_err();
        assert_eq!(error.path, "rules[0].to[0].paths[0]", "{path}");
    }
}

#[test]
fn requests_are_told_apart() {
    let with = |f: &dyn Fn(&mut Operation)| {
        let mut operation = Operation::default();
        f(&mut operation);
        compiled(Action::Allow, vec![AccessRule { to: vec![operation], ..rule(Action::Deny) }])
    };
    let is = |access: &CompiledAccess| denied(access, &call(None).facts()).is_some();
    assert!(is(&with(&|o| o.methods = vec![Method::POST, Method::GET])));
    assert!(!is(&with(&|o| o.methods = vec![Method::POST])));
    assert!(is(&with(&|o| o.hosts = vec![HostMatch::Exact("ledger.bank".to_owned())])));
    assert!(is(&with(&|o| o.hosts = vec![HostMatch::Suffix(".bank".to_owned())])));
    assert!(!is(&with(&|o| o.hosts = vec![HostMatch::Exact("bank".to_owned())])));
    assert!(is(&with(&|o| o.paths = vec![PathMatch::Regex("/accounts/[0-9]+".to_owned())])));
    assert!(!is(&with(&|o| o.paths = vec![PathMatch::Regex("/accounts".to_owned())])));
    assert!(!is(&with(&|o| {
        o.headers = vec![HeaderRule { name: "x-debug".parse().unwrap(), value: None }];
    })));
}

#[test]
fn a_second_header_value_gains_nothing() {
    let exact = |action| {
        let value = Some(ValueMatch::Exact("yes".to_owned()));
        let headers = vec![HeaderRule { name: "x-debug".parse().unwrap(), value }];
        let to = vec![Operation { headers, ..Operation::default() }];
        compiled(Action::Allow, vec![AccessRule { to, ..rule(action) }])
    };
    let mut twice = call(None);
    twice.headers.append("x-debug", HeaderValue::from_static("no"));
    twice.headers.append("x-debug", HeaderValue::from_static("yes"));
    assert!(denied(&exact(Action::Deny), &twice.facts()).is_some());
    assert!(denied(&exact(Action::Allow), &twice.facts()).is_some());
}

#[test]
fn claims_of_a_verified_token_count() {
    let claims = vec![ClaimMatch { name: "groups".to_owned(), values: vec!["ops".to_owned()] }];
    let access = compiled(Action::Allow, vec![AccessRule { claims, ..rule(Action::Allow) }]);
    let mut ops = call(None);
    assert!(denied(&access, &ops.facts()).is_some());
    let groups = vec!["dev".to_owned(), "ops".to_owned()];
    ops.claims = Some(Claims::from([("groups".to_owned(), groups)]));
    assert_eq!(denied(&access, &ops.facts()), None);
}

#[test]
fn streams_are_denied_on_suspicion_and_allowed_only_for_sure() {
    let prefix = paths(&[PathMatch::Prefix("/admin".to_owned())]);
    let deny =
        compiled(Action::Allow, vec![AccessRule { to: prefix.clone(), ..rule(Action::Deny) }]);
    assert!(denied(&deny, &call(None).stream()).is_some());
    let allow = compiled(Action::Allow, vec![AccessRule { to: prefix, ..rule(Action::Allow) }]);
    assert!(denied(&allow, &call(None).stream()).is_some());
    let orders = AccessRule { from: from(&["bank/orders"]), ..rule(Action::Allow) };
    let orders = compiled(Action::Allow, vec![orders]);
    assert_eq!(denied(&orders, &call(Some("bank/orders")).stream()), None);
}

#[test]
fn audit_refuses_nothing_and_says_what_it_would() {
    let audit = |action| AccessRule { audit: true, from: from(&["bank/orders"]), ..rule(action) };
    let access = compiled(Action::Allow, vec![audit(Action::Allow)]);
    let market = access.decide(&call(Some("bank/market")).facts());
    assert_eq!(market.denied, None);
    assert_eq!(market.audited, Some(Denial("no rule of bank/ledger allows it".to_owned())));
    assert_eq!(access.decide(&call(Some("bank/orders")).facts()), AccessDecision::default());
    let access = compiled(Action::Allow, vec![audit(Action::Deny)]);
    let orders = access.decide(&call(Some("bank/orders")).facts());
    assert_eq!((orders.denied, orders.audited.is_some()), (None, true));
    // What an enforced rule allows, the policy being probed need not.
    let allowed = AccessRule { from: from(&["bank/market"]), ..rule(Action::Allow) };
    let access = compiled(Action::Allow, vec![audit(Action::Allow), allowed]);
    assert_eq!(access.decide(&call(Some("bank/market")).facts()), AccessDecision::default());
}

#[test]
fn networks_are_parsed_and_compared() {
    for (network, inside, outside) in [
        ("10.0.0.0/8", "10.255.0.1", "11.0.0.1"),
        ("10.1.2.3", "10.1.2.3", "10.1.2.4"),
        ("0.0.0.0/0", "8.8.8.8", "::1"),
        ("fd00::/8", "fd12::1", "fe80::1"),
        ("::/0", "::1", "10.0.0.1"),
        ("10.0.0.0/8", "::ffff:10.0.0.1", "::ffff:11.0.0.1"),
    ] {
        let network: Network = network.parse().unwrap();
        assert!(network.contains(inside.parse().unwrap()), "{network} {inside}");
        assert!(!network.contains(outside.parse().unwrap()), "{network} {outside}");
    }
    for text in ["", "10.0.0.0/33", "10.0.0/8", "fd00::/129", "10.0.0.0/", "10.0.0.0/-1", "a/8"] {
        assert!(text.parse::<Network>().is_err(), "{text}");
    }
}

#[test]
fn parameters_of_a_path_hide_nothing_and_open_nothing() {
    let admin = paths(&[PathMatch::Prefix("/admin".to_owned())]);
    let deny =
        compiled(Action::Allow, vec![AccessRule { to: admin.clone(), ..rule(Action::Deny) }]);
    let allow = compiled(Action::Deny, vec![AccessRule { to: admin, ..rule(Action::Allow) }]);
    for (path, bare_path, denied, allowed) in [
        ("/admin;x=1", Some("/admin"), true, false),
        ("/;/admin", Some("/admin"), true, false),
        ("/admin/x;y", Some("/admin/x"), true, true),
        ("/other;/admin", Some("/other/admin"), false, false),
        ("/admin", None, true, true),
    ] {
        let call = Call { path, bare_path, ..call(Some("bank/shop")) };
        assert_eq!(deny.decide(&call.facts()).denied.is_some(), denied, "{path}");
        assert_eq!(allow.decide(&call.facts()).denied.is_none(), allowed, "{path}");
    }
}

#[test]
fn a_header_spelled_with_underscores_is_the_one_that_it_is_to_some_apps() {
    let debug = |value: Option<&str>| {
        let value = value.map(|value| ValueMatch::Exact(value.to_owned()));
        let headers = vec![HeaderRule { name: HeaderName::from_static("x-debug"), value }];
        vec![Operation { headers, ..Operation::default() }]
    };
    let decide = |to, action, headers: &[(&'static str, &'static str)]| {
        let default = if action == Action::Deny { Action::Allow } else { Action::Deny };
        let access = compiled(default, vec![AccessRule { to, ..rule(action) }]);
        let mut call = call(None);
        for (name, value) in headers {
            call.headers.append(*name, HeaderValue::from_static(value));
        }
        access.decide(&call.facts()).denied.is_none()
    };
    assert!(!decide(debug(None), Action::Deny, &[("x_debug", "1")]));
    assert!(!decide(debug(Some("1")), Action::Deny, &[("x-debug", "0"), ("x_debug", "1")]));
    assert!(decide(debug(Some("1")), Action::Deny, &[("x_debug", "0"), ("x_other", "1")]));
    assert!(decide(debug(Some("1")), Action::Allow, &[("x-debug", "1")]));
    assert!(!decide(debug(Some("1")), Action::Allow, &[("x-debug", "1"), ("x_debug", "0")]));
    assert!(!decide(debug(Some("1")), Action::Allow, &[("x_debug", "1")]));
}

#[test]
fn a_denied_host_header_is_denied_however_it_is_spelled() {
    let value = Some(ValueMatch::Exact("ledger.bank".to_owned()));
    let headers = vec![HeaderRule { name: http::header::HOST, value }];
    let to = vec![Operation { headers, ..Operation::default() }];
    let access = compiled(Action::Allow, vec![AccessRule { to, ..rule(Action::Deny) }]);
    let mut call = call(None);
    assert!(access.decide(&call.facts()).denied.is_some());
    let mut facts = call.facts();
    facts.request.as_mut().unwrap().authority = "LEDGER.bank.:80";
    assert!(access.decide(&facts).denied.is_some());
    call.host = "other.bank";
    assert!(access.decide(&call.facts()).denied.is_none());
}

#[test]
fn bytes_that_are_no_text_hide_nothing_from_a_regular_expression() {
    let value = Some(ValueMatch::Regex(".*admin.*".to_owned()));
    let headers = vec![HeaderRule { name: HeaderName::from_static("x-role"), value }];
    let to = vec![Operation { headers, ..Operation::default() }];
    let access = compiled(Action::Allow, vec![AccessRule { to, ..rule(Action::Deny) }]);
    for value in [&b"admin"[..], b"\xffadmin", b"admin\xe9", b"\xc3\xa4admin\xff"] {
        let mut call = call(None);
        call.headers.insert("x-role", HeaderValue::from_bytes(value).unwrap());
        assert!(access.decide(&call.facts()).denied.is_some(), "{value:?}");
    }
}
