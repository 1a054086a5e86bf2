//! What bounds connections that have stopped being HTTP: upgrades and CONNECT.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::thread::sleep;
use std::time::{Duration, Instant};

use outrigger_tests::app::tcp;
use outrigger_tests::process::{ControlPlane, Proxy, local};

use crate::unmeshed;

/// A deadline that a policy started ends with the head; then only silence counts.
const POLICY: &str = "apiVersion: outrigger.dev/v1alpha1\nkind: TrafficPolicy\n\
    metadata: {name: all, namespace: bank}\nspec:\n  \
    targetRefs: [{group: \"\", kind: Namespace, name: bank}]\n  \
    deadline: 300ms\n  timeouts: {idle: 700ms}\n";
const UPGRADE: &str = "GET http://chat.bank/ HTTP/1.1\r\nhost: chat.bank\r\nconnection: upgrade\r\n\
    upgrade: websocket\r\n";
const CONNECT: &str = "CONNECT echo.bank:80 HTTP/1.1\r\nhost: echo.bank:80\r\n";

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 64];
    while let Ok(n @ 1..) = stream.read(&mut buffer) {
        if stream.write_all(&buffer[..n]).is_err() {
            return;
        }
    }
}

/// Takes the upgrade, then echoes.
fn chat(mut stream: TcpStream) {
    if head(&mut stream).is_some() {
        let taken =
            "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
        if stream.write_all(taken.as_bytes()).is_ok() {
            echo(stream);
        }
    }
}

fn head(stream: &mut TcpStream) -> Option<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        let mut byte = [0];
        stream.read_exact(&mut byte).ok()?;
        head.push(byte[0]);
    }
    String::from_utf8(head).ok()
}

/// Talks for a second in what `asked` opens, then is silent. How long it was open, and then silent.
#[expect(clippy::disallowed_methods, reason = "the pace of a talk, not a wait")]
fn talk(caller: &Proxy, asked: &str) -> (Duration, Duration) {
    let mut stream = TcpStream::connect(local(caller.outbound)).expect("a connection");
    stream.set_read_timeout(Some(Duration::from_secs(20))).expect("a limit");
    let began = Instant::now();
    stream.write_all(format!("{asked}\r\n").as_bytes()).expect("a request");
    let answer = head(&mut stream).expect("an answer");
    assert!(answer.starts_with("HTTP/1.1 101") || answer.starts_with("HTTP/1.1 200"), "{answer}");
    let mut last = Instant::now();
    for _ in 0..5 {
        sleep(Duration::from_millis(200));
        let mut byte = [0];
        if stream.write_all(b"a").and_then(|()| stream.read_exact(&mut byte)).is_err() {
            return (began.elapsed(), last.elapsed());
        }
        last = Instant::now();
    }
    let ended = stream.read(&mut [0]);
    assert!(matches!(ended, Ok(0) | Err(_)), "{ended:?}");
    (began.elapsed(), last.elapsed())
}

#[test]
fn tunnels_end_by_silence_or_by_the_deadline_that_they_brought() {
    let plane = ControlPlane::start(&[
        ("chat.yaml", &unmeshed("chat", "http", tcp(chat))),
        ("echo.yaml", &unmeshed("echo", "tcp", tcp(echo))),
        ("policy.yaml", POLICY),
    ]);
    let caller = Proxy::caller(&plane, &[]);
    for (asked, service) in [(UPGRADE, "bank/chat:80"), (CONNECT, "bank/echo:80")] {
        let (open, silent) = talk(&caller, asked);
        assert!(open > Duration::from_secs(1), "{service} was open for {open:?}");
        let wanted = Duration::from_millis(600)..Duration::from_secs(5);
        assert!(wanted.contains(&silent), "{service} was silent for {silent:?}");
        let service = format!("\"service\":\"{service}\"");
        caller.wait_log(&["\"reason\":\"idle_timeout\"", &service]);
        let (open, _) = talk(&caller, &format!("{asked}x-deadline: 500\r\n"));
        assert!(open < Duration::from_secs(1), "{service} was open for {open:?}");
        caller.wait_log(&["\"reason\":\"deadline_exceeded_after_head\"", &service]);
    }
}
