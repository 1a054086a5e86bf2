//! The smallest HTTP client that does: one request per connection, answers held in memory.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::Value;

/// Everything asked here is on loopback and small.
const TIMEOUT: Duration = Duration::from_secs(5);

#[derive(Debug, PartialEq)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    /// Names in lower case.
    headers: Vec<(String, String)>,
    pub(crate) body: String,
}

impl Answer {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }
}

pub(crate) fn get(server: SocketAddr, path: &str) -> io::Result<Answer> {
    send(server, &format!("GET {path} HTTP/1.1\r\nhost: {server}\r\n"), "")
}

pub(crate) fn get_json(server: SocketAddr, path: &str) -> io::Result<Value> {
    let answer = get(server, path)?;
    serde_json::from_str(&answer.body).map_err(io::Error::other)
}

pub(crate) fn post_json(server: SocketAddr, path: &str, body: &Value) -> io::Result<Answer> {
    let head =
        format!("POST {path} HTTP/1.1\r\nhost: {server}\r\ncontent-type: application/json\r\n");
    send(server, &head, &body.to_string())
}

/// As `curl -x http://PROXY http://HOST/PATH` asks.
pub(crate) fn get_through(proxy: SocketAddr, host: &str, path: &str) -> io::Result<Answer> {
    send(proxy, &format!("GET http://{host}{path} HTTP/1.1\r\nhost: {host}\r\n"), "")
}

/// A request with further headers and a body, as `curl -x http://PROXY` sends it.
pub(crate) fn through(
    proxy: SocketAddr,
    method: &str,
    host: &str,
    path: &str,
    headers: &[(&str, String)],
    body: &str,
) -> io::Result<Answer> {
    let mut head = format!("{method} http://{host}{path} HTTP/1.1\r\nhost: {host}\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    send(proxy, &head, body)
}

fn send(server: SocketAddr, head: &str, body: &str) -> io::Result<Answer> {
    let mut stream = TcpStream::connect_timeout(&server, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    stream.set_write_timeout(Some(TIMEOUT))?;
    let length = body.len();
    let request = format!("{head}content-length: {length}\r\nconnection: close\r\n\r\n{body}");
    stream.write_all(request.as_bytes())?;
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes)?;
    parse(&String::from_utf8_lossy(&bytes))
        .ok_or_else(|| io::Error::other(format!("{server}: not an HTTP response")))
}

fn parse(text: &str) -> Option<Answer> {
    let (head, body) = text.split_once("\r\n\r\n")?;
    let mut lines = head.lines();
    let status = lines.next()?.split(' ').nth(1)?.parse().ok()?;
    let headers: Vec<(String, String)> = lines
        .filter_map(|line| line.split_once(':'))
        .map(|(name, value)| (name.to_ascii_lowercase(), value.trim().to_owned()))
        .collect();
    let mut answer = Answer { status, headers, body: body.to_owned() };
    if answer.header("transfer-encoding") == Some("chunked") {
        answer.body = unchunk(body)?;
    }
    Some(answer)
}

fn unchunk(mut rest: &str) -> Option<String> {
    let mut body = String::new();
    loop {
        let (size, after) = rest.split_once("\r\n")?;
        let size = usize::from_str_radix(size.split(';').next()?.trim(), 16).ok()?;
        if size == 0 {
            return Some(body);
        }
        body.push_str(after.get(..size)?);
        rest = after.get(size..)?.strip_prefix("\r\n")?;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_whole_and_in_chunks() {
        let plain = parse("HTTP/1.1 502 Bad Gateway\r\nProxy-Status: outrigger\r\n\r\nno").unwrap();
        assert_eq!((plain.status, plain.body.as_str()), (502, "no"));
        assert_eq!(plain.header("proxy-status"), Some("outrigger"));
        let chunked =
            "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n";
        assert_eq!(parse(chunked).unwrap().body, "abcde");
        assert_eq!(parse("nonsense"), None);
    }
}
