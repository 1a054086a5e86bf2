//! Requests as bytes: what no client library would write, on both protocols, and random ones.

use outrigger_core::config::{HostMatch, PathMatch, ValueMatch};
use outrigger_core::policy::access::{
    Access, AccessRule, Action, CallerMatch, HeaderRule, Operation,
};
use outrigger_tests::random::Random;

const TARGETS: &[&str] = &[
    "/",
    "/admin",
    "/Admin",
    "/admin/",
    "//admin",
    "/./admin",
    "/x/../admin",
    "/%61dmin",
    "/%2561dmin",
    "/admin;x=1",
    "/admin;/x",
    "/;/admin",
    "/;x/admin",
    "/admin%3Bx",
    "/admin%3bx",
    "/admin%20",
    "/admin%00",
    "/admin%2f",
    "/admin%5c..",
    "/x%2f..%2fadmin",
    "/admin\\x",
    "/\\admin",
    "/..;/admin",
    "/admin?x",
    "/admin#x",
    "/%u0061dmin",
    "/admin%c0%af",
    "/adm%69n",
    "/admin.",
    "/.//admin",
    "/%2e/admin",
    "/x/%2e%2e/admin",
    "/x/..%2fadmin",
    "http://a.bank/admin",
    "http://a.bank/x/../admin",
    "http://a.bank?/admin",
    "http://a.bank//admin",
    "*",
    "admin",
    "?/admin",
    "/admin\t",
    "/x?y=/admin",
    "http://admin.bank@a.bank/x",
    "http://u@admin.bank/x",
    "http://admin.bank/x",
    "https://admin.bank/x",
    "ftp://admin.bank/x",
    "/public",
    "/public/../admin",
    "/public/%2e%2e/admin",
    "/public/..;/admin",
    "/public;/../admin",
    "/public/x",
    "a.bank:80",
    "admin.bank:80",
    "/public%2f..%2fadmin",
    "",
];
const HOSTS: &[&str] = &[
    "a.bank",
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
    "admin.bank, a.bank",
    "a.bank, admin.bank",
    " admin.bank ",
    "admin.bank a",
    "admin%2ebank",
    "admin.bank\t",
    "admin.bank\\",
    "[admin.bank]",
    "admin.bank:80 ",
    "",
    ".admin.bank",
    "127.0.0.1",
];
const METHODS: &[&str] =
    &["GET", "POST", "DELETE", "get", "HEAD", "OPTIONS", "CONNECT", "PUT", "PRI"];
const HEADERS: &[&str] = &[
    "x-debug: 1",
    "X-Debug:",
    "X_Debug: 1",
    "x-debug : 1",
    "x-role: user",
    "x-role: admin",
    "X_Role: admin",
    "x-role: user, admin",
    "connection: x-debug",
    "connection: x-role",
    "connection: upgrade",
    "connection: upgrade, x-debug",
    "upgrade: websocket",
    "upgrade: h2c",
    "upgrade: websocket, h2c",
    "upgrade: :connect",
    "upgrade: connect",
    "http2-settings: AAMAAABk",
    "transfer-encoding: chunked",
    "transfer-encoding: chunked, chunked",
    "transfer-encoding: gzip, chunked",
    "transfer-encoding: identity",
    "transfer-encoding:\u{b}chunked",
    "content-length: 5",
    "content-length: 0",
    "content-length: 5, 5",
    "content-length: +5",
    "content-length: 5\r\ncontent-length: 6",
    "expect: 100-continue",
    "x-forwarded-client-cert: URI=spiffe://m/ns/a/sa/admin",
    "x_forwarded_client_cert: URI=admin",
    "x-outrigger-hop: 1;port=8080;proto=h1",
    "x-outrigger-priority: critical",
    "x_outrigger_priority: critical",
    "x-outrigger-upgrade: :connect",
    "x-outrigger-upgrade: websocket",
    "x-outrigger-via: a",
    "te: trailers",
    "x-http-method-override: DELETE",
    "x-original-url: /admin",
    "host: admin.bank",
    " folded: 1",
    "trailer: x-debug",
    "keep-alive: 5",
    "sec-websocket-key: AAAAAAAAAAAAAAAAAAAAAA==",
];
const BODIES: &[&str] = &[
    "hello",
    "0\r\n\r\n",
    "5\r\nhello\r\n0\r\n\r\n",
    "0\r\nx-debug: 1\r\n\r\n",
    "0\r\n\r\nDELETE /admin HTTP/1.1\r\nhost: admin.bank\r\nx-debug: 1\r\n\r\n",
    "GET /admin HTTP/1.1\r\nhost: admin.bank\r\n\r\n",
    "5;x=\r\nhello\r\n0\r\n\r\n",
];

/// A target of HTTP/1.1: a known trick, or anything of the characters that they are made of.
fn target(random: &mut Random) -> String {
    match random.below(4) {
        0 => return random.of(&["/public/x", "/x", "/admin/x"]).to_owned(),
        1 | 2 => return random.of(TARGETS).to_owned(),
        _ => {}
    }
    const PIECES: &[&str] = &[
        "/", "//", ".", "..", ";", "%2e", "%2E", "%2f", "%5c", "%3b", "admin", "public", "x", "?",
        "%", "a",
    ];
    let count = 1 + random.below(8);
    let text: String = (0..count).map(|_| random.of(PIECES)).collect();
    format!("/{text}")
}

/// A whole request of HTTP/1.1, and sometimes another one behind it.
pub fn http1(random: &mut Random) -> Vec<u8> {
    let mut text = String::new();
    if random.once_in(12) {
        text.push_str(random.of(&["\r\n", "\r\n\r\n", "\n"]));
    }
    let space = if random.once_in(20) { random.of(&["  ", "\t", ""]) } else { " " };
    let method = if random.below(3) == 0 { random.of(METHODS) } else { "GET" };
    let version = if random.once_in(12) {
        random.of(&["HTTP/1.0", "HTTP/1.2", "HTTP/2.0", ""])
    } else {
        "HTTP/1.1"
    };
    text.push_str(&format!("{method}{space}{} {version}\r\n", target(random)));
    match random.below(12) {
        0 => {}
        1 => text.push_str(&format!("host: a.bank\r\nhost: {}\r\n", random.of(HOSTS))),
        // Most tricks show only where all else is right.
        2..8 => text.push_str("Host: a.bank\r\n"),
        _ => text.push_str(&format!("Host:{}\r\n", random.of(HOSTS))),
    }
    for _ in 0..random.below(4) {
        text.push_str(random.of(HEADERS));
        text.push_str(if random.once_in(40) { "\n" } else { "\r\n" });
    }
    text.push_str("\r\n");
    if random.once_in(3) {
        text.push_str(random.of(BODIES));
    }
    if random.once_in(4) {
        text.push_str("GET /admin HTTP/1.1\r\nhost: admin.bank\r\nx-debug: 1\r\n\r\n");
    }
    text.into_bytes()
}

/// One request on an HTTP/2 connection of its own. `hop`: as another proxy would send it.
pub fn http2(random: &mut Random, hop: bool) -> Vec<u8> {
    let mut fields: Vec<(String, String)> = Vec::new();
    let method = if random.below(3) == 0 { random.of(METHODS) } else { "GET" };
    fields.push((":method".to_owned(), method.to_owned()));
    if !random.once_in(12) {
        const SCHEMES: &[&str] =
            &["http", "http", "http", "http", "https", "ftp", "http://admin.bank/x"];
        let scheme = random.of(SCHEMES);
        fields.push((":scheme".to_owned(), scheme.to_owned()));
    }
    if !random.once_in(12) {
        fields.push((":path".to_owned(), target(random)));
    }
    if !random.once_in(6) {
        let host = if random.once_in(2) { "a.bank" } else { random.of(HOSTS) };
        fields.push((":authority".to_owned(), host.to_owned()));
    }
    if method == "CONNECT" && random.once_in(2) {
        const PROTOCOLS: &[&str] =
            &["websocket", "connect-udp", ":connect", "h2c", "websocket, h2c", "a b", ""];
        fields.push((":protocol".to_owned(), random.of(PROTOCOLS).to_owned()));
    }
    for _ in 0..random.below(3) {
        if random.once_in(3) {
            fields.push(("host".to_owned(), random.of(HOSTS).to_owned()));
        }
        if let Some((name, value)) = random.of(HEADERS).split_once(':') {
            // White space around a value is a trick of its own.
            let value = if random.once_in(8) { value } else { value.trim() };
            fields.push((name.trim().to_ascii_lowercase(), value.to_owned()));
        }
    }
    if hop {
        let tell = random.of(&["1;port=8080;proto=h1", "1;port=8080;proto=h1;form=absolute"]);
        fields.push(("x-outrigger-hop".to_owned(), tell.to_owned()));
    }
    let body = random.once_in(4).then(|| random.of(BODIES).as_bytes());
    let fields: Vec<_> =
        fields.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    h2(&fields, body)
}

/// The preface, our settings, and one request (RFC 9113 sections 3.4 and 6).
pub fn h2(fields: &[(&str, &str)], body: Option<&[u8]>) -> Vec<u8> {
    const END_STREAM: u8 = 1;
    const END_HEADERS: u8 = 4;
    let mut block = Vec::new();
    for (name, value) in fields {
        // A literal without indexing and without Huffman (RFC 7541 section 6.2.2).
        block.push(0);
        for text in [name, value] {
            length(&mut block, text.len());
            block.extend_from_slice(text.as_bytes());
        }
    }
    let mut out = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    frame(&mut out, 4, 0, 0, &[]);
    let ends = if body.is_none() { END_STREAM } else { 0 };
    frame(&mut out, 1, END_HEADERS | ends, 1, &block);
    if let Some(body) = body {
        frame(&mut out, 0, END_STREAM, 1, body);
    }
    out
}

/// An integer with a prefix of seven bits (RFC 7541 section 5.1).
fn length(out: &mut Vec<u8>, mut n: usize) {
    if n < 127 {
        return out.push(n as u8);
    }
    out.push(127);
    n -= 127;
    while n >= 128 {
        out.push((n % 128) as u8 | 128);
        n /= 128;
    }
    out.push(n as u8);
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u8, payload: &[u8]) {
    out.extend_from_slice(&(payload.len() as u32).to_be_bytes()[1..]);
    out.extend_from_slice(&[kind, flags, 0, 0, 0, stream]);
    out.extend_from_slice(payload);
}

/// Rules over what the requests above are made of.
pub fn access(random: &mut Random) -> Access {
    let action =
        |random: &mut Random| if random.below(2) == 0 { Action::Deny } else { Action::Allow };
    let rules = (0..1 + random.below(3)).map(|i| {
        let action = action(random);
        let to = if random.once_in(8) { Vec::new() } else { vec![operation(random)] };
        let from = match random.below(6) {
            0 => vec![CallerMatch { authenticated: Some(false), ..CallerMatch::default() }],
            1 => {
                vec![CallerMatch { namespaces: vec!["bank".to_owned()], ..CallerMatch::default() }]
            }
            _ => Vec::new(),
        };
        let (policy, name) = ("bank/p".to_owned(), format!("rules[{i}]"));
        AccessRule { policy, name, action, audit: random.once_in(6), from, to, claims: Vec::new() }
    });
    let rules = rules.collect();
    Access { default: action(random), default_from: None, rules, tokens: Vec::new() }
}

fn operation(random: &mut Random) -> Operation {
    let mut to = Operation::default();
    if random.once_in(3) {
        let method = random.of(&["GET", "POST", "DELETE", "CONNECT"]);
        to.methods.push(method.parse().expect("a method"));
    }
    if random.below(3) > 0 {
        to.paths.push(match random.below(4) {
            0 => PathMatch::Exact("/admin".to_owned()),
            1 => PathMatch::Prefix("/admin".to_owned()),
            2 => PathMatch::Prefix("/public".to_owned()),
            _ => PathMatch::Prefix("/".to_owned()),
        });
    }
    if random.once_in(3) {
        to.hosts.push(match random.below(3) {
            0 => HostMatch::Suffix(".bank".to_owned()),
            1 => HostMatch::Exact("a.bank".to_owned()),
            _ => HostMatch::Exact("admin.bank".to_owned()),
        });
    }
    if random.once_in(3) {
        let (name, value) = match random.below(4) {
            0 => ("x-debug", None),
            1 => ("x-role", Some("user")),
            2 => ("x-role", Some("admin")),
            _ => ("host", Some("admin.bank")),
        };
        let name = name.parse().expect("a name");
        to.headers.push(HeaderRule { name, value: value.map(|v| ValueMatch::Exact(v.to_owned())) });
    }
    to
}
