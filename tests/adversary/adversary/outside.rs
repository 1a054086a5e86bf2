//! From outside the mesh, and from a member of it: ways around a policy that denies a path, a host, a header and
//! a method, and around limits; forged words of the mesh's own.

use std::time::Duration;

use http::Method;
use outrigger_core::config::ValueMatch;
use outrigger_core::config::{HostMatch, PathMatch, Protocol};
use outrigger_core::policy::ServerPolicy;
use outrigger_core::policy::access::{
    Access, AccessRule, Action, HeaderRule, Operation, TokenIssuer,
};
use outrigger_core::policy::rate_limit::{Key, RateLimitConfig, Strategy};

use super::app::Seen;
use super::bed::{Bed, Seat, run};
use super::requests::h2;

fn deny(to: Operation) -> AccessRule {
    AccessRule {
        policy: "bank/deny".to_owned(),
        name: "no".to_owned(),
        action: Action::Deny,
        audit: false,
        from: Vec::new(),
        to: vec![to],
        claims: Vec::new(),
    }
}

/// Denies `/admin`, `admin.bank`, `x-debug` and DELETE, and allows the rest.
fn rules() -> Access {
    let paths = vec![PathMatch::Prefix("/admin".to_owned())];
    let hosts = vec![HostMatch::Exact("admin.bank".to_owned())];
    let headers = vec![HeaderRule { name: "x-debug".parse().expect("a name"), value: None }];
    let rules = vec![
        deny(Operation { paths, ..Operation::default() }),
        deny(Operation { hosts, ..Operation::default() }),
        deny(Operation { headers, ..Operation::default() }),
        deny(Operation { methods: vec![Method::DELETE], ..Operation::default() }),
    ];
    Access { rules, ..Access::default() }
}

async fn read_of(bed: &Bed, seat: Seat, bytes: &[u8]) -> (String, Vec<Seen>) {
    let (answer, seen) = bed.send(seat, &[bytes]).await;
    (String::from_utf8_lossy(&answer).into_owned(), seen)
}

/// Each is refused: the app reads nothing.
#[test]
fn no_spelling_passes_a_rule_on_http1() {
    let paths = [
        "/admin",
        "/admin/",
        "//admin",
        "/./admin",
        "/x/../admin",
        "/%61dmin",
        "/admin;x=1",
        "/admin;/x",
        "/;/admin",
        "/admin%3Bx",
        "/admin%00",
        "/admin%2f",
        "/admin%5c..",
        "/x%2f..%2fadmin",
        "/admin\\x",
        "/\\admin",
        "/..;/admin",
        "/admin?x",
        "/admin#x",
        "/adm%69n",
        "/.//admin",
        "/%2e/admin",
        "/x/%2e%2e/admin",
        "/x/..%2fadmin",
        "http://a/admin",
        "http://a/x/../admin",
        "http://a//admin",
        "*",
        "admin",
        "?/admin",
        "http://admin.bank@a/x",
        "http://u@admin.bank/x",
        "http://admin.bank/x",
        "ftp://a/x",
        "/%",
        "/x%",
        "",
    ];
    let hosts = [
        "admin.bank",
        "ADMIN.bank",
        "admin.bank.",
        "admin.bank..",
        "admin.bank:80",
        "admin.bank:",
        "admin.bank:80:80",
        "admin.bank:x",
        "u@admin.bank",
        "admin.bank/",
        "admin.bank?",
        "admin.bank#",
        "admin.bank, a",
        "a, admin.bank",
        " admin.bank ",
        "admin.bank a",
        "admin%2ebank",
        "admin.bank\\",
        "[admin.bank]",
        "",
        "a\r\nHost: admin.bank",
        "admin.bank\r\nHost: a",
    ];
    let headers = [
        "X-Debug: 1",
        "X-Debug:",
        "X_Debug: 1",
        "x-debug : 1",
        " x-debug: 1",
        "Transfer-Encoding: chunked, chunked",
        "Transfer-Encoding: gzip",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked",
        "Content-Length: 5, 6",
        "Content-Length: 5\r\nContent-Length: 6",
        "Content-Length: +5",
        "Connection: upgrade\r\nUpgrade: websocket, h2c",
        "Connection: upgrade\r\nUpgrade: a b",
        "Connection: upgrade\r\nUpgrade: :connect",
    ];
    let mut requests = Vec::new();
    requests.extend(paths.map(|path| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n")));
    requests.extend(hosts.map(|host| format!("GET /h HTTP/1.1\r\nHost:{host}\r\n\r\n")));
    requests
        .extend(headers.map(|header| format!("POST /h HTTP/1.1\r\nHost: a\r\n{header}\r\n\r\n")));
    requests.extend([
        "DELETE /h HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "DELETE /h HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
            .to_owned(),
        "GET /h HTTP/1.0\r\n\r\n".to_owned(),
        "GET http://admin.bank/h HTTP/1.0\r\n\r\n".to_owned(),
        "GET http://admin.bank/h HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "CONNECT 127.0.0.1:8080 HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "CONNECT a HTTP/1.1\r\nHost: a\r\n\r\n".to_owned(),
        "GET /h HTTP/1.1\r\n\r\n".to_owned(),
    ]);
    assert!(requests.len() >= 80);
    run(async {
        let bed = Bed::new(&["--probe", "8080/healthz"]);
        bed.configure(Protocol::Http1, rules(), None);
        for request in &requests {
            let (answer, seen) = read_of(&bed, Seat::Outside, request.as_bytes()).await;
            assert!(seen.is_empty(), "{request:?}: the app read {seen:?}");
            assert!(!answer.contains(" 200 "), "{request:?}: {answer}");
        }
        // What a caller sends behind a CONNECT is no request.
        let behind = b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\nGET /h HTTP/1.1\r\nHost: a\r\n\r\n";
        assert!(read_of(&bed, Seat::Outside, behind).await.1.is_empty());
        let (_, seen) = read_of(&bed, Seat::Outside, b"GET /h HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert_eq!(seen.len(), 1, "what nothing denies arrives");
    });
}

/// An extended CONNECT (RFC 8441).
fn switch(protocol: &str) -> [(&str, &str); 5] {
    [
        (":method", "CONNECT"),
        (":protocol", protocol),
        (":scheme", "http"),
        (":path", "/h"),
        (":authority", "a:80"),
    ]
}

#[test]
fn no_spelling_passes_a_rule_on_http2() {
    let get = [(":method", "GET"), (":scheme", "http")];
    let cases: [&[(&str, &str)]; 19] = [
        &[(":path", "/h"), (":authority", "admin.bank")],
        &[(":path", "/h"), (":authority", "a"), ("host", "admin.bank")],
        &[(":path", "/h"), ("host", "admin.bank")],
        &[(":path", "/h"), ("host", "a"), ("host", "admin.bank")],
        &[(":path", "/h"), (":authority", "a"), ("host", "a"), ("host", "admin.bank")],
        &[(":path", "/h")],
        &[(":path", "/h"), (":authority", "u@admin.bank")],
        &[(":path", "/h"), (":authority", "")],
        &[(":path", "http://a/admin"), (":authority", "a")],
        &[(":path", "//admin"), (":authority", "a")],
        &[(":path", "admin"), (":authority", "a")],
        &[(":path", "*"), (":authority", "a")],
        &[(":path", ""), (":authority", "a")],
        &[(":path", "/h HTTP/1.1\r\nx-debug: 1"), (":authority", "a")],
        &[(":path", "/admin;x"), (":authority", "a")],
        &[(":path", "/h"), (":authority", "a"), ("x_debug", "1")],
        &[(":path", "/h"), (":authority", "a"), ("x-debug", "")],
        &[(":path", "/h"), (":authority", "a"), ("x-other", " 1")],
        &[(":path", "/h"), (":authority", "a"), ("x-other", "1\t")],
    ];
    let odd: [&[(&str, &str)]; 9] = [
        &[
            (":method", "GET"),
            (":scheme", "http://admin.bank/x"),
            (":path", "/h"),
            (":authority", "a"),
        ],
        &[(":method", "GET"), (":scheme", "ftp"), (":path", "/h"), (":authority", "a")],
        &[(":method", "CONNECT"), (":authority", "127.0.0.1:8080")],
        &[
            (":method", "CONNECT"),
            (":protocol", "websocket"),
            (":scheme", "http"),
            (":path", "/admin"),
            (":authority", "a"),
        ],
        &[(":method", "DELETE"), (":scheme", "http"), (":path", "/h"), (":authority", "a")],
        &switch(":connect"),
        &switch("h2c"),
        &switch("websocket, h2c"),
        &switch("a b"),
    ];
    run(async {
        let bed = Bed::new(&[]);
        bed.configure(Protocol::Http1, rules(), None);
        let cases = cases.iter().map(|case| [&get[..], *case].concat());
        for case in cases.chain(odd.iter().map(|case| case.to_vec())) {
            let (_, seen) = read_of(&bed, Seat::Outside, &h2(&case, None)).await;
            assert!(seen.is_empty(), "{case:?}: the app read {seen:?}");
            // The same said by a member of the mesh.
            let hop = [&case[..], &[("x-outrigger-hop", "1;port=8080;proto=h1")]].concat();
            let (_, seen) = read_of(&bed, Seat::Mesh, &h2(&hop, None)).await;
            assert!(seen.is_empty(), "{hop:?}: the app read {seen:?}");
        }
        let fine = [&get[..], &[(":path", "/h"), (":authority", "a")]].concat();
        assert_eq!(read_of(&bed, Seat::Outside, &h2(&fine, None)).await.1.len(), 1);
        let hop = [&fine[..], &[("x-outrigger-hop", "1;port=8080;proto=h1")]].concat();
        assert_eq!(read_of(&bed, Seat::Mesh, &h2(&hop, None)).await.1.len(), 1);
    });
}

/// What is authorized is what the app gets, also where it wants to change protocols.
#[test]
fn an_upgrade_keeps_its_method() {
    let rule = deny(Operation { methods: vec![Method::GET], ..Operation::default() });
    run(async {
        let bed = Bed::new(&[]);
        bed.configure(Protocol::Http1, Access { rules: vec![rule], ..Access::default() }, None);
        for method in ["POST", "DELETE", "OPTIONS"] {
            let request = format!(
                "{method} /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n"
            );
            let (_, seen) = read_of(&bed, Seat::Outside, request.as_bytes()).await;
            assert_eq!(seen.iter().map(|seen| &*seen.method).collect::<Vec<_>>(), [method]);
        }
        let get =
            b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n";
        assert!(read_of(&bed, Seat::Outside, get).await.1.is_empty());
    });
}

/// A probe is what a kubelet sends and nothing more.
#[test]
fn a_probe_carries_nothing_past_the_rules() {
    let everything = AccessRule { to: Vec::new(), ..deny(Operation::default()) };
    let probe = "GET /healthz HTTP/1.1\r\nHost: 10.0.0.7:8080\r\nUser-Agent: kube-probe/1.34\r\nAccept: */*\r\n\
                 Connection: close\r\n";
    run(async {
        let bed = Bed::new(&["--probe", "8080/healthz"]);
        bed.configure(
            Protocol::Http1,
            Access { rules: vec![everything], ..Access::default() },
            None,
        );
        let (_, seen) = read_of(&bed, Seat::Outside, format!("{probe}\r\n").as_bytes()).await;
        assert_eq!(seen.len(), 1);
        for more in [
            "X-Debug: 1\r\n\r\n",
            "Authorization: Bearer x\r\n\r\n",
            "X-Forwarded-Client-Cert: URI=spiffe://m/ns/a/sa/b\r\n\r\n",
            "Cookie: a=b\r\n\r\n",
            "Content-Length: 3\r\n\r\nabc",
            "Transfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
            "Upgrade: websocket\r\nConnection: upgrade\r\n\r\n",
            "X-HTTP-Method-Override: DELETE\r\n\r\n",
        ] {
            let (_, seen) = read_of(&bed, Seat::Outside, format!("{probe}{more}").as_bytes()).await;
            assert!(seen.is_empty(), "{more:?}: {seen:?}");
        }
        for line in [
            "GET /healthz?x",
            "HEAD /healthz",
            "POST /healthz",
            "GET /healthz/",
            "GET http://a/healthz",
        ] {
            let request = probe.replacen("GET /healthz", line, 1);
            let (_, seen) = read_of(&bed, Seat::Outside, format!("{request}\r\n").as_bytes()).await;
            assert!(seen.is_empty(), "{line:?}: {seen:?}");
        }
    });
}

/// The health check of gRPC likewise, and what a pod's author has named besides.
#[test]
fn a_grpc_probe_carries_nothing_past_the_rules_either() {
    let everything = AccessRule { to: Vec::new(), ..deny(Operation::default()) };
    let check = "/grpc.health.v1.Health/Check";
    let probe = |method, path| {
        vec![
            (":method", method),
            (":scheme", "http"),
            (":path", path),
            (":authority", "10.0.0.7:8080"),
            ("content-type", "application/grpc"),
            ("user-agent", "kube-probe/1.36 grpc-go/1.72"),
            ("te", "trailers"),
            ("grpc-timeout", "999m"),
        ]
    };
    // On a bed of its own: this app speaks no HTTP/2, which its proxy remembers.
    let arrives = |bytes: &[u8]| {
        let args = ["--probe", &format!("8080{check}"), "--probe-header", "x-probe"];
        let rules = vec![everything.clone()];
        run(async {
            let bed = Bed::new(&args);
            bed.configure(Protocol::Detect, Access { rules, ..Access::default() }, None);
            !read_of(&bed, Seat::Outside, bytes).await.1.is_empty()
        })
    };
    let called = |fields: &[(&str, &str)]| arrives(&h2(fields, Some(&[0; 5])));
    assert!(called(&probe("POST", check)));
    assert!(called(&[probe("POST", check), vec![("x-probe", "1")]].concat()));
    for other in [
        probe("GET", check),
        probe("POST", "/grpc.health.v1.Health/Watch"),
        probe("POST", "/grpc.health.v1.Health/Check?x"),
        probe("POST", "/orders.Orders/Delete"),
        [probe("POST", check), vec![("x-debug", "1")]].concat(),
        [probe("POST", check), vec![("authorization", "Bearer x")]].concat(),
    ] {
        assert!(!called(&other), "{other:?}");
    }
    // A path in the list is one for a GET of HTTP/1.1 as well, and carries no more there.
    let get = format!("GET {check} HTTP/1.1\r\nHost: a\r\nX-Debug: 1\r\n\r\n");
    assert!(!arrives(get.as_bytes()));
}

/// A limit of one request an hour, on a port that is declared and on one that is not.
#[test]
fn a_limit_holds_whatever_the_bytes_look_like() {
    let limit = RateLimitConfig {
        name: "all".to_owned(),
        requests: 1,
        period: Duration::from_secs(3_600),
        burst: 1,
        strategy: Strategy::default(),
        key: Key::default(),
    };
    let server = ServerPolicy { rate_limits: vec![limit], ..ServerPolicy::default() };
    let get: &[u8] = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
    for protocol in [Protocol::Http1, Protocol::Detect] {
        run(async {
            let bed = Bed::new(&[]);
            bed.configure(protocol, Access::default(), Some(server.clone()));
            assert_eq!(bed.send(Seat::Outside, &[get]).await.1.len(), 1, "the first one");
            let disguises: [&[&[u8]]; 9] = [
                &[get],
                &[b"\r\n\r\n", get],
                &[b"\n", get],
                &[b"\r\n\r\n\r\n\r\nGET /x HTTP/1.1\r\nHost: a\r\n\r\n"],
                &[b"GE", b"T /x HTTP/1.1\r\nHost: a\r\n\r\n"],
                &[b"GET  /x HTTP/1.1\r\nHost: a\r\n\r\n"],
                &[b"GET\t/x HTTP/1.1\r\nHost: a\r\n\r\n"],
                &[b"CONNECT a:8080 HTTP/1.1\r\nHost: a\r\n\r\n", get],
                &[b"x", get],
            ];
            for pieces in disguises {
                let (_, seen) = bed.send(Seat::Outside, pieces).await;
                assert!(seen.is_empty(), "{protocol:?} {pieces:?}: {seen:?}");
            }
            // A stream of bytes for a port of requests, from a member.
            let connect = h2(&[(":method", "CONNECT"), (":authority", "10.0.0.7:8080")], Some(get));
            let (_, seen) = bed.send(Seat::Mesh, &[&connect]).await;
            assert!(seen.is_empty(), "{protocol:?}: {seen:?}");
        });
    }
}

/// Nobody may call before the control plane has said who may.
#[test]
fn nothing_arrives_before_the_first_configuration() {
    let get: &[u8] = b"GET /x HTTP/1.1\r\nHost: a\r\n\r\n";
    let fields = [(":method", "GET"), (":scheme", "http"), (":path", "/x"), (":authority", "a")];
    let hop = [&fields[..], &[("x-outrigger-hop", "1;port=8080;proto=h1")]].concat();
    run(async {
        let bed = Bed::new(&["--probe", "8080/healthz"]);
        let (answer, seen) = read_of(&bed, Seat::Outside, get).await;
        assert!(seen.is_empty() && answer.contains("config_unavailable"), "{answer}");
        for bytes in [h2(&fields, None), b"\x00\x01binary".to_vec()] {
            assert!(read_of(&bed, Seat::Outside, &bytes).await.1.is_empty());
        }
        let connect = h2(&[(":method", "CONNECT"), (":authority", "10.0.0.7:8080")], Some(get));
        for bytes in [h2(&hop, None), connect] {
            assert!(read_of(&bed, Seat::Mesh, &bytes).await.1.is_empty());
        }
        bed.configure(Protocol::Http1, Access::default(), None);
        assert_eq!(read_of(&bed, Seat::Outside, get).await.1.len(), 1);
        assert_eq!(read_of(&bed, Seat::Mesh, &h2(&hop, None)).await.1.len(), 1);
    });
}

/// A rule in audit mode changes neither the answer nor what the app reads.
#[test]
fn audit_changes_nothing() {
    let paths = vec![PathMatch::Exact("/admin".to_owned())];
    let audited = AccessRule { audit: true, ..deny(Operation { paths, ..Operation::default() }) };
    run(async {
        let bed = Bed::new(&[]);
        bed.configure(Protocol::Http1, Access { rules: vec![audited], ..Access::default() }, None);
        for path in ["/admin", "/a%2Fb", "/x//y", "/%7Euser", "/../x", "/%", "/a;b"] {
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            let (_, seen) = read_of(&bed, Seat::Outside, request.as_bytes()).await;
            assert_eq!(seen.iter().map(|seen| &*seen.target).collect::<Vec<_>>(), [path]);
        }
    });
}

/// What a token says to the app is the token's to say: a rule never reads it from a caller.
#[test]
fn headers_of_claims_cannot_be_forged() {
    let header = "x-user".parse().expect("a name");
    let value = Some(ValueMatch::Exact("admin".to_owned()));
    let headers = vec![HeaderRule { name: header, value }];
    let admin =
        AccessRule { action: Action::Allow, ..deny(Operation { headers, ..Operation::default() }) };
    let issuer = TokenIssuer {
        issuer: "https://id.bank".to_owned(),
        audiences: Vec::new(),
        keys: r#"{"keys":[]}"#.to_owned(),
        clock_skew: 30,
        claims_to_headers: vec![("sub".to_owned(), "x-user".parse().expect("a name"))],
        forward: false,
        required: false,
    };
    run(async {
        let bed = Bed::new(&[]);
        let rules = vec![admin];
        bed.configure(Protocol::Http1, Access { rules: rules.clone(), ..Access::default() }, None);
        let ask = |name: &str| format!("GET / HTTP/1.1\r\nHost: a\r\n{name}: admin\r\n\r\n");
        assert_eq!(read_of(&bed, Seat::Outside, ask("X-User").as_bytes()).await.1.len(), 1);
        let tokens = vec![issuer];
        bed.configure(Protocol::Http1, Access { rules, tokens, ..Access::default() }, None);
        for name in ["X-User", "x_user", "X_User"] {
            let (answer, seen) = read_of(&bed, Seat::Outside, ask(name).as_bytes()).await;
            assert!(seen.is_empty() && answer.contains("access_denied"), "{name}: {answer}");
        }
    });
}

/// `SETTINGS_MAX_CONCURRENT_STREAMS` of the first frame (RFC 9113 section 6.5.2).
fn max_streams(answer: &[u8]) -> Option<u32> {
    let length = usize::from(*answer.get(2)?);
    answer.get(9..9 + length)?.chunks_exact(6).find_map(|setting| {
        let (id, value) = setting.split_at(2);
        (id == [0, 3]).then(|| u32::from_be_bytes(value.try_into().unwrap_or_default()))
    })
}

/// The streams of a hop are for another proxy alone.
#[test]
fn an_external_client_gets_the_streams_that_are_set_for_external_clients() {
    let get =
        h2(&[(":method", "GET"), (":scheme", "http"), (":path", "/"), (":authority", "a")], None);
    run(async {
        let bed = Bed::new(&["--max-streams", "7"]);
        bed.configure(Protocol::Http1, Access::default(), None);
        for (seat, streams) in [(Seat::Outside, 7), (Seat::Mesh, 256)] {
            let (answer, _) = bed.send(seat, &[&get]).await;
            assert_eq!(max_streams(&answer), Some(streams), "{seat:?}");
        }
    });
}

/// What follows a request that wants to change protocols is never its body, unless a proxy says so.
#[test]
fn an_upgrade_on_http2_leaves_no_length_behind() {
    let hop = ("x-outrigger-hop", "1;port=8080;proto=h1");
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/h"), (":authority", "a"), hop];
    let up = ("x-outrigger-upgrade", "echo");
    run(async {
        let bed = Bed::new(&[]);
        bed.configure(Protocol::Http1, Access::default(), None);
        let outside = [&switch("websocket")[..], &[("content-length", "99")]].concat();
        let mut cases = vec![(Seat::Outside, outside)];
        cases.push((Seat::Mesh, [&get[..], &[up, ("content-length", "99")]].concat()));
        for length in ["+5", "abc", "-1", "0x5", "99999999999999999999"] {
            let said = ("x-outrigger-upgrade-body", length);
            cases.push((Seat::Mesh, [&get[..], &[up, said, ("content-length", "7")]].concat()));
        }
        for (seat, fields) in cases {
            let (_, seen) = bed.send(seat, &[&h2(&fields, None)]).await;
            let lengths = seen.iter().flat_map(|seen| seen.all("content-length"));
            assert_eq!(lengths.count(), 0, "{fields:?}: {seen:?}");
        }
    });
}

/// A CONNECT that a member sends to a port of requests is a stream to rules and limits.
#[test]
fn a_connect_of_a_member_passes_no_rule_about_requests() {
    let fields = [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/h"),
        (":authority", "a:80"),
        ("x-outrigger-hop", "1;port=8080;proto=h1"),
        ("x-outrigger-upgrade", ":connect"),
    ];
    let inside: &[u8] = b"DELETE /admin HTTP/1.1\r\nHost: admin.bank\r\n\r\n";
    run(async {
        let bed = Bed::new(&[]);
        bed.configure(Protocol::Http1, rules(), None);
        let (_, seen) = bed.send(Seat::Mesh, &[&h2(&fields, None), inside]).await;
        assert!(seen.is_empty(), "{seen:?}");
        // Where nothing is said about requests, an app that is a proxy may be asked.
        bed.configure(Protocol::Http1, Access::default(), None);
        let (_, seen) = bed.send(Seat::Mesh, &[&h2(&fields, None)]).await;
        assert_eq!(seen.iter().map(|seen| &*seen.method).collect::<Vec<_>>(), ["CONNECT"]);
    });
}

/// Two fields of HTTP/2 are one cookie to the app (RFC 9113 section 8.2.3).
#[test]
fn cookies_are_judged_as_the_app_gets_them() {
    let value = Some(ValueMatch::Exact("a=1; b=2".to_owned()));
    let headers = vec![HeaderRule { name: http::header::COOKIE, value }];
    let get = [(":method", "GET"), (":scheme", "http"), (":path", "/h"), (":authority", "a")];
    let crumbs = [&get[..], &[("cookie", "a=1"), ("cookie", "b=2")]].concat();
    run(async {
        let bed = Bed::new(&[]);
        let rule = deny(Operation { headers, ..Operation::default() });
        bed.configure(Protocol::Http1, Access { rules: vec![rule], ..Access::default() }, None);
        assert!(read_of(&bed, Seat::Outside, &h2(&crumbs, None)).await.1.is_empty());
    });
}

/// Nobody's spelling of a header gets him a limit of his own.
#[test]
fn a_limit_by_header_or_path_has_one_key_for_every_spelling() {
    let limit = |key: Key| RateLimitConfig {
        name: "key".to_owned(),
        requests: 1,
        period: Duration::from_secs(3_600),
        burst: 1,
        strategy: Strategy::PerKey,
        key,
    };
    let server = |key| ServerPolicy { rate_limits: vec![limit(key)], ..ServerPolicy::default() };
    run(async {
        let bed = Bed::new(&[]);
        bed.configure(Protocol::Http1, Access::default(), Some(server(Key::Path)));
        for (i, path) in ["/e", "/e;1", "/e;2", "/e/", "//e", "/x/../e", "/%65"].iter().enumerate()
        {
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            let (_, seen) = read_of(&bed, Seat::Outside, request.as_bytes()).await;
            assert_eq!(seen.len(), usize::from(i == 0), "{path}");
        }
        for (i, path) in ["/e%2f", "/e%2F1", "/../e", "/e\\"].iter().enumerate() {
            let request = format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
            let (_, seen) = read_of(&bed, Seat::Outside, request.as_bytes()).await;
            assert_eq!(seen.len(), usize::from(i == 0), "{path}");
        }
        let name = "x-api-key".parse().expect("a name");
        bed.configure(Protocol::Http1, Access::default(), Some(server(Key::Header(name))));
        for (i, junk) in ["1", "2", "3"].iter().enumerate() {
            let request =
                format!("GET / HTTP/1.1\r\nHost: a\r\nX-Api-Key: {junk}\r\nX-Api-Key: k\r\n\r\n");
            let (_, seen) = read_of(&bed, Seat::Outside, request.as_bytes()).await;
            assert_eq!(seen.len(), usize::from(i == 0), "{junk}");
        }
    });
}

/// A token that does not hold is refused wherever it stands, also where none is required.
#[test]
fn a_token_is_found_however_it_is_written() {
    let issuer = TokenIssuer {
        issuer: "https://id.bank".to_owned(),
        audiences: Vec::new(),
        keys: r#"{"keys":[]}"#.to_owned(),
        clock_skew: 30,
        claims_to_headers: Vec::new(),
        forward: true,
        required: false,
    };
    run(async {
        let bed = Bed::new(&[]);
        bed.configure(Protocol::Http1, Access { tokens: vec![issuer], ..Access::default() }, None);
        for given in [
            "Bearer x.y.z",
            "bearer x.y.z",
            "Bearer\tx.y.z",
            "Basic eA==, Bearer x.y.z",
            "Basic eA==\r\nAuthorization: Bearer x.y.z",
            "Bearer x.y.z\r\nAuthorization: Basic eA==",
        ] {
            let request = format!("GET / HTTP/1.1\r\nHost: a\r\nAuthorization: {given}\r\n\r\n");
            let (answer, seen) = read_of(&bed, Seat::Outside, request.as_bytes()).await;
            assert!(seen.is_empty() && answer.contains("token_invalid"), "{given:?}: {answer}");
        }
        let other = b"GET / HTTP/1.1\r\nHost: a\r\nAuthorization: Basic eA==\r\n\r\n";
        assert_eq!(read_of(&bed, Seat::Outside, other).await.1.len(), 1);
    });
}
