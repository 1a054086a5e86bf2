//! What nobody should send: refused with its reason and counted, memory bounded, others unharmed.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use outrigger_tests::app::{Echo, tcp};
use outrigger_tests::client::{Curl, Load, raw};
use outrigger_tests::eventually;
use outrigger_tests::process::{ControlPlane, Proxy, free_port, local};

use crate::{Mesh, unmeshed};

/// Most that a proxy may hold in a debug build, whatever is thrown at it, in KiB.
const MEMORY: u64 = 40 * 1024;
/// Longest that a refusal may take to arrive.
const SOON: Duration = Duration::from_secs(10);

/// A mesh whose proxies are attacked while somebody else is being served.
struct Siege {
    load: Load,
    caller: Proxy,
    mesh: Mesh,
}

impl Siege {
    fn begin() -> Self {
        let mesh = Mesh::start("h1");
        let port = free_port();
        let listen = format!("127.0.0.1:{port}=web.bank:80");
        let args = ["--listen", &listen, "--header-timeout", "1s"];
        let caller = Proxy::start(&mesh.plane, "besieged", &args);
        let load = Load::start(port, 2, Duration::from_millis(5));
        load.further(10);
        Self { load, caller, mesh }
    }

    /// Waits until as many refusals as `count` are counted for `reason` in `direction`.
    #[track_caller]
    fn counted(&self, proxy: &Proxy, reason: &str, count: f64) {
        let label = format!("reason=\"{reason}\"");
        eventually(&format!("{count} of {reason} are counted"), || {
            proxy.count("outrigger_requests_total", &[&label]) >= count
        });
        proxy.wait_log(&[reason]);
    }

    /// Nobody else noticed, and memory is where it was.
    #[track_caller]
    fn end(mut self) {
        self.load.further(50);
        self.load.stop_unharmed();
        for proxy in [&mut self.caller, &mut self.mesh.web] {
            let pss = proxy.process().pss();
            assert!(pss < MEMORY, "the proxy takes {pss} KiB");
        }
    }
}

#[test]
fn oversized_and_countless_headers_get_431() {
    let siege = Siege::begin();
    let long = format!("GET http://web.bank/ HTTP/1.1\r\nx: {}\r\n\r\n", "y".repeat(100_000));
    let many: String = (0..150).map(|i| format!("x-{i}: y\r\n")).collect();
    let many = format!("GET http://web.bank/ HTTP/1.1\r\nhost: web.bank\r\n{many}\r\n");
    for request in [&long, &many] {
        let answer = raw(siege.caller.outbound, request.as_bytes(), SOON);
        assert!(answer.starts_with("HTTP/1.1 431"), "{} bytes: {answer}", request.len());
    }
    siege.counted(&siege.caller, "headers_too_large", 2.0);
    siege.end();
}

#[test]
fn oversized_headers_of_http2_are_refused_like_any_other() {
    let mesh = Mesh::start("h2");
    let small = ["--max-header-bytes", "4096"];
    let caller = Proxy::caller(&mesh.plane, &small);
    let long = format!("x: {}", "y".repeat(5_000));
    for url in ["http://web.bank/", &format!("http://web.bank/{}", "y".repeat(5_000))] {
        let to = format!("web.bank:80:{}", local(caller.outbound));
        let args = ["--http2-prior-knowledge", "--connect-to", &to, "-H", &long];
        let answer = Curl::direct().args(&args[..if url.len() > 100 { 3 } else { 5 }]).get(url);
        assert_eq!(answer.status, 431, "{answer:?}");
        let words =
            "proxy-status: outrigger; error=http_request_error; details=\"headers_too_large";
        assert!(answer.head.contains(words), "{}", answer.head);
        assert!(answer.body.starts_with("outrigger: headers_too_large: "), "{}", answer.body);
    }
    let label = "reason=\"headers_too_large\"";
    assert_eq!(caller.count("outrigger_requests_total", &[label]), 2.0);
    caller.wait_log(&["headers_too_large"]);
}

#[test]
fn heads_that_take_too_long_end_the_connection() {
    let siege = Siege::begin();
    let slow: [&[u8]; 4] = [
        b"GET http://web.bank/ HTTP/1.1\r\nhost: we",
        b"GE",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0",
        // Half of a TLS handshake.
        b"\x16\x03\x01\x02\x00\x01",
    ];
    for bytes in slow {
        let began = Instant::now();
        let answer = raw(siege.caller.outbound, bytes, Duration::from_secs(15));
        if bytes.starts_with(b"GET ") {
            let words =
                "proxy-status: outrigger; error=http_request_error; details=\"header_timeout";
            assert!(answer.starts_with("HTTP/1.1 408") && answer.contains(words), "{answer}");
        }
        let took = began.elapsed();
        assert!(took < Duration::from_secs(10), "{bytes:?} held a connection for {took:?}");
    }
    siege.counted(&siege.caller, "header_timeout", 4.0);
    siege.end();
}

#[test]
fn malformed_requests_are_refused_and_counted() {
    let siege = Siege::begin();
    // With whether it looks enough like HTTP to be answered in HTTP.
    let wrong: [(&[u8], bool); 9] = [
        (b"GET / HTTP/9.9\r\nhost: web.bank\r\n\r\n", false),
        (b"GET /a\x01b HTTP/1.1\r\nhost: web.bank\r\n\r\n", false),
        (b"GET  HTTP/1.1\r\n\r\n", false),
        (b"GET http://web.bank/ HTTP/1.1\r\nno colon here\r\n\r\n", true),
        (b"GET http://web.bank/ HTTP/1.1\r\nx : space before the colon\r\n\r\n", true),
        (b"POST http://web.bank/ HTTP/1.1\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\nhello!", true),
        (b"POST http://web.bank/ HTTP/1.1\r\ncontent-length: minus\r\n\r\n", true),
        (b"\x00\x01\x02\x03garbage\r\n\r\n", false),
        (b"\x16\x03\x01\x00\x05\x01\x00\x00\x01\x00", false),
    ];
    let refusals = |proxy: &Proxy| {
        ["bad_request", "protocol_error"]
            .iter()
            .map(|reason| {
                let label = format!("reason=\"{reason}\"");
                proxy.count("outrigger_requests_total", &[&label])
            })
            .sum::<f64>()
    };
    for port in [siege.caller.outbound, siege.mesh.web.inbound] {
        let proxy = if port == siege.caller.outbound { &siege.caller } else { &siege.mesh.web };
        for (sent, (bytes, answered)) in wrong.iter().enumerate() {
            let answer = raw(port, bytes, SOON);
            let said = answer.starts_with("HTTP/1.1 400");
            assert!(said || !answered, "{:?}: {answer}", String::from_utf8_lossy(bytes));
            eventually(&format!("{:?} is counted", String::from_utf8_lossy(bytes)), || {
                refusals(proxy) >= (sent + 1) as f64
            });
        }
    }
    siege.end();
}

#[test]
fn early_closes_and_resets_leave_nothing_behind() {
    let siege = Siege::begin();
    for i in 0..300 {
        let mut stream = TcpStream::connect(local(siege.caller.outbound)).expect("a connection");
        let head = "POST http://web.bank/ HTTP/1.1\r\nhost: web.bank\r\ncontent-length: 100000\r\n";
        // The proxy may be the first to end it.
        let _ = stream.write_all(head.as_bytes());
        if i % 3 > 0 {
            let _ = stream.write_all(b"\r\nthe beginning of a body");
        }
        if i % 2 == 0 {
            rustix::net::sockopt::set_socket_linger(&stream, Some(Duration::ZERO))
                .expect("SO_LINGER");
        } else {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
    // 2 of the load stay.
    eventually("every broken connection is closed", || {
        siege.caller.count("outrigger_connections_open", &[]) <= 2.0
    });
    siege.counted(&siege.caller, "downstream_reset", 1.0);
    siege.end();
}

/// The beginning of an HTTP/2 connection: the preface and empty SETTINGS.
fn h2(port: u16) -> TcpStream {
    let mut stream = TcpStream::connect(local(port)).expect("a connection");
    stream.set_read_timeout(Some(SOON)).expect("a limit");
    stream.set_write_timeout(Some(SOON)).expect("a limit");
    stream.write_all(PREFACE).expect("written");
    stream.write_all(&frame(SETTINGS, 0, 0, &[])).expect("written");
    stream
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const CONTINUATION: u8 = 9;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;
const NO_ERROR: u32 = 0;
const INTERNAL_ERROR: u32 = 2;
const CANCEL: u32 = 8;
/// HPACK: `:method: POST`.
const POST: u8 = 0x83;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let mut bytes = (payload.len() as u32).to_be_bytes()[1..].to_vec();
    bytes.extend([kind, flags]);
    bytes.extend(stream.to_be_bytes());
    bytes.extend(payload);
    bytes
}

/// HPACK: GET http / of an authority, as indexed fields and a literal.
fn request_block(authority: &str) -> Vec<u8> {
    let mut block = vec![0x82, 0x86, 0x84, 0x01, authority.len() as u8];
    block.extend(authority.as_bytes());
    block
}

/// HPACK: a literal without indexing, with a value of 120 bytes.
fn literal(name: &str) -> Vec<u8> {
    let mut field = vec![0x00, name.len() as u8];
    field.extend(name.as_bytes());
    field.push(120);
    field.extend([b'v'; 120]);
    field
}

/// Reads until the other side ends the connection.
fn read_to_end(stream: &mut TcpStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    // A reset ends it as well.
    let _ = stream.read_to_end(&mut bytes);
    bytes
}

#[test]
fn endless_header_blocks_are_cut_off() {
    let siege = Siege::begin();
    for proxy in [&siege.caller, &siege.mesh.web] {
        let port = if std::ptr::eq(proxy, &siege.caller) { proxy.outbound } else { proxy.inbound };
        let mut stream = h2(port);
        let mut written =
            stream.write_all(&frame(HEADERS, END_STREAM, 1, &request_block("web.bank")));
        let piece: Vec<u8> = (0..100).flat_map(|_| literal("x-endless")).collect();
        let piece = frame(CONTINUATION, 0, 1, &piece);
        let mut sent = 0;
        while written.is_ok() && sent < 200 << 20 {
            written = stream.write_all(&piece);
            sent += piece.len();
        }
        assert!(written.is_err(), "{sent} bytes of one header block were taken");
        siege.counted(proxy, "protocol_error", 1.0);
    }
    siege.end();
}

#[test]
fn header_blocks_over_the_limit_are_refused() {
    let siege = Siege::begin();
    let mut stream = h2(siege.caller.outbound);
    let fields: Vec<u8> = (0..120).flat_map(|_| literal("x-large")).collect();
    let mut bytes = frame(HEADERS, END_STREAM, 1, &request_block("web.bank"));
    // Some 80 KB in as many frames as are let through.
    for i in 0..5 {
        let flags = if i == 4 { END_HEADERS } else { 0 };
        bytes.extend(frame(CONTINUATION, flags, 1, &fields));
    }
    // And one after it that is as it should be, for whom nobody is.
    bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, 3, &request_block("nobody.bank")));
    stream.write_all(&bytes).expect("written");
    let answered = |stream: &mut TcpStream, wanted: u32| {
        loop {
            let (kind, id) = next_frame(stream).expect("an answer before the end");
            if kind == HEADERS && id == wanted {
                return;
            }
        }
    };
    // Refused, and the rest of the connection goes on.
    answered(&mut stream, 1);
    answered(&mut stream, 3);
    siege.end();
}

/// Reads a frame; its type and stream. `None` at the end of the connection.
fn next_frame(stream: &mut TcpStream) -> Option<(u8, u32)> {
    let mut head = [0; 9];
    stream.read_exact(&mut head).ok()?;
    let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
    let mut payload = vec![0; length as usize];
    stream.read_exact(&mut payload).ok()?;
    Some((head[3], u32::from_be_bytes([head[5], head[6], head[7], head[8]])))
}

#[test]
fn rapid_resets_end_the_connection() {
    let siege = Siege::begin();
    for proxy in [&siege.caller, &siege.mesh.web] {
        let port = if std::ptr::eq(proxy, &siege.caller) { proxy.outbound } else { proxy.inbound };
        let mut stream = h2(port);
        let mut written = Ok(());
        let mut streams = 0;
        while written.is_ok() && streams < 500_000 {
            let mut bytes = Vec::new();
            for _ in 0..1_000 {
                let id = streams * 2 + 1;
                let block = request_block("web.bank");
                bytes.extend(frame(HEADERS, END_STREAM | END_HEADERS, id, &block));
                bytes.extend(frame(RST_STREAM, 0, id, &8_u32.to_be_bytes()));
                streams += 1;
            }
            written = stream.write_all(&bytes);
        }
        // A hop is shared by many, so that it bears more of them before it ends.
        if std::ptr::eq(proxy, &siege.caller) {
            assert!(written.is_err(), "{streams} streams were opened and reset");
            siege.counted(proxy, "protocol_error", 1.0);
        }
    }
    siege.end();
}

#[test]
fn an_http2_frame_that_makes_no_sense_ends_only_its_connection() {
    let siege = Siege::begin();
    for bytes in [
        // A frame larger than allowed, DATA on stream 0, a stream id that goes back.
        vec![0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1],
        frame(0, 0, 0, b"data"),
        [
            frame(HEADERS, 5, 3, &request_block("web.bank")),
            frame(HEADERS, 5, 1, &request_block("web.bank")),
        ]
        .concat(),
    ] {
        let mut stream = h2(siege.caller.outbound);
        stream.write_all(&bytes).expect("written");
        read_to_end(&mut stream);
    }
    siege.counted(&siege.caller, "protocol_error", 3.0);
    siege.end();
}

/// A body that its caller gives up is never taken for a whole one.
#[test]
fn an_upload_that_is_reset_does_not_end_as_if_it_were_whole() {
    for protocol in ["http", "h2"] {
        let (bytes, got) = mpsc::channel();
        let port = tcp(move |mut stream| {
            if protocol == "h2" {
                stream.write_all(&frame(SETTINGS, 0, 0, &[])).expect("written");
            }
            let mut read = Vec::new();
            while !read.windows(HALF.len()).any(|bytes| bytes == HALF) {
                let mut buffer = [0; 4096];
                let n = stream.read(&mut buffer).unwrap_or(0);
                assert_ne!(n, 0, "it ended too early");
                read.extend(&buffer[..n]);
            }
            bytes.send(read.clone()).expect("somebody waits");
            stream.set_read_timeout(Some(Duration::from_millis(300))).expect("a limit");
            let _ = stream.read_to_end(&mut read);
            bytes.send(read).expect("somebody waits");
        });
        let plane = ControlPlane::start(&[("app.yaml", &unmeshed("app", protocol, port))]);
        let caller = Proxy::caller(&plane, &[]);
        for reason in [NO_ERROR, CANCEL, INTERNAL_ERROR] {
            let mut stream = h2(caller.outbound);
            let mut block = request_block("app.bank");
            block[0] = POST;
            stream.write_all(&frame(HEADERS, END_HEADERS, 1, &block)).expect("written");
            stream.write_all(&frame(DATA, 0, 1, HALF)).expect("written");
            got.recv_timeout(SOON).expect("it arrives");
            stream.write_all(&frame(RST_STREAM, 0, 1, &reason.to_be_bytes())).expect("written");
            let all = got.recv_timeout(SOON).expect("it has waited");
            let ended = if protocol == "h2" { ended_in_http2(&all) } else { ended_in_http1(&all) };
            assert!(!ended, "{protocol}, reset with {reason}: {}", all.escape_ascii());
        }
    }
}

const HALF: &[u8] = b"the first half";

/// The last chunk has come.
fn ended_in_http1(bytes: &[u8]) -> bool {
    bytes.ends_with(b"\r\n0\r\n\r\n")
}

/// A DATA frame has come that is the last.
fn ended_in_http2(mut bytes: &[u8]) -> bool {
    bytes = bytes.strip_prefix(PREFACE).expect("the preface");
    while let Some((head, rest)) = bytes.split_at_checked(9) {
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize;
        if head[3] == DATA && head[4] & END_STREAM != 0 {
            return true;
        }
        bytes = rest.split_at_checked(length).map_or(&[], |(_, next)| next);
    }
    false
}

#[test]
fn garbage_instead_of_tls_is_refused() {
    let app = Echo::start("secure");
    let plane = ControlPlane::start(&[("secure.yaml", &unmeshed("secure", "tls", app.port))]);
    let port = free_port();
    let listen = format!("127.0.0.1:{port}=secure.bank:80");
    let caller = Proxy::caller(&plane, &["--listen", &listen]);
    for bytes in [&b"GET / HTTP/1.1\r\nhost: secure.bank\r\n\r\n"[..], b"\x00\xff\x00garbage\n"] {
        assert_eq!(raw(port, bytes, SOON), "");
    }
    eventually("both are counted", || {
        caller.count("outrigger_requests_total", &["reason=\"protocol_error\""]) == 2.0
    });
    caller.wait_log(&["protocol_error", "bank/secure:80"]);
    assert_eq!(app.connections.load(Relaxed), 0);
}

#[test]
fn connections_over_the_limit_are_closed_and_the_others_are_served() {
    let mesh = Mesh::start("h1");
    let caller = Proxy::start(&mesh.plane, "limited", &["--max-connections", "5"]);
    let held: Vec<_> = (0..20)
        .map(|_| TcpStream::connect(local(caller.outbound)).expect("a connection"))
        .collect();
    eventually("15 are refused", || {
        caller.count("outrigger_connections_refused_total", &[]) == 15.0
    });
    drop(held);
    eventually("there is room again", || caller.count("outrigger_connections_open", &[]) == 0.0);
    assert_eq!(Curl::through(&caller).get("http://web.bank/").status, 200);
}
