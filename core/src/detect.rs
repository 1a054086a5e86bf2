//! Telling the protocol of a connection from the client's first bytes.
//!
//! A pure function of the bytes so far. Too few bytes never give a verdict: what silence means is
//! the proxy's business. Whatever the bytes are, nothing here panics or reads past them.

/// No verdict needs more bytes than this: a whole ClientHello, or a request line as long as common
/// servers take.
pub const MAX_DETECT: usize = 16 * 1024;

/// What every HTTP/2 connection begins with (RFC 9113 section 3.4).
const HTTP2_PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// The longest method known to IANA has 17 characters.
const MAX_METHOD: usize = 32;

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Detected {
    /// All bytes so far fit more than one protocol.
    NeedMore,
    Http1,
    Http2,
    Tls {
        /// Lower case; none: the client sent none or no valid one.
        server_name: Option<String>,
    },
    /// None of the others.
    Opaque,
}

pub fn detect(bytes: &[u8]) -> Detected {
    if bytes.is_empty() {
        return Detected::NeedMore;
    }
    if bytes.starts_with(HTTP2_PREFACE) {
        return Detected::Http2;
    }
    if HTTP2_PREFACE.starts_with(bytes) {
        return Detected::NeedMore;
    }
    let detected = match bytes[0] {
        HANDSHAKE => tls(bytes),
        _ => http1(bytes),
    };
    match detected {
        Detected::NeedMore if bytes.len() >= MAX_DETECT => Detected::Opaque,
        detected => detected,
    }
}

/// A request line: `method target HTTP/`. What follows is for the HTTP parser to judge, so that a
/// wrong version gets an HTTP answer.
fn http1(bytes: &[u8]) -> Detected {
    // RFC 9112 section 2.2: an empty line before the request line is ignored.
    let line = match bytes {
        [b'\r', b'\n', line @ ..] => line,
        [b'\r'] => return Detected::NeedMore,
        line => line,
    };
    let method = line.iter().take_while(|byte| is_token(**byte)).count();
    if method > MAX_METHOD {
        return Detected::Opaque;
    }
    let target = match &line[method..] {
        [] => return Detected::NeedMore,
        [b' ', target @ ..] if method > 0 => target,
        _ => return Detected::Opaque,
    };
    // Bytes above ASCII are not valid in a target but common servers let them through.
    let length = target.iter().take_while(|byte| **byte > b' ' && **byte != 0x7f).count();
    let version = match &target[length..] {
        [] if bytes.len() >= MAX_DETECT && target.starts_with(b"/") => return Detected::Http1,
        [] => return Detected::NeedMore,
        [b' ', version @ ..] if length > 0 => version,
        _ => return Detected::Opaque,
    };
    if version.starts_with(b"HTTP/") {
        Detected::Http1
    } else if b"HTTP/".starts_with(version) {
        Detected::NeedMore
    } else {
        Detected::Opaque
    }
}

/// RFC 9110 section 5.6.2.
fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

/// Content type of a TLS record (RFC 8446 section 5.1).
const HANDSHAKE: u8 = 22;
/// Handshake type (RFC 8446 section 4).
const CLIENT_HELLO: u8 = 1;
/// RFC 8446 section 5.1: more is a fatal error.
const MAX_RECORD: usize = 1 << 14;
/// Extension type and name type of RFC 6066 section 3.
const SERVER_NAME: u16 = 0;
const HOST_NAME: u8 = 0;

fn tls(bytes: &[u8]) -> Detected {
    let (hello, broken) = join_records(bytes);
    match client_hello(&hello) {
        Ok(server_name) => Detected::Tls { server_name },
        Err(Stop::Malformed) => Detected::Opaque,
        Err(Stop::Short) if broken => Detected::Opaque,
        // So much of it was right that it is TLS; its name is out of reach.
        Err(Stop::Short) if bytes.len() >= MAX_DETECT => Detected::Tls { server_name: None },
        Err(Stop::Short) => Detected::NeedMore,
    }
}

/// The handshake bytes in all records so far, and whether something that is no handshake record
/// follows them.
fn join_records(mut bytes: &[u8]) -> (Vec<u8>, bool) {
    let mut joined = Vec::new();
    loop {
        match bytes {
            [HANDSHAKE, 3, 0..=4, high, low, rest @ ..] => {
                let length = usize::from(u16::from_be_bytes([*high, *low]));
                if length == 0 || length > MAX_RECORD {
                    return (joined, true);
                }
                let (body, rest) = rest.split_at(length.min(rest.len()));
                joined.extend_from_slice(body);
                bytes = rest;
            }
            []
            | [HANDSHAKE]
            | [HANDSHAKE, 3]
            | [HANDSHAKE, 3, 0..=4]
            | [HANDSHAKE, 3, 0..=4, _] => {
                return (joined, false);
            }
            _ => return (joined, true),
        }
    }
}

/// Why a ClientHello could not be read to its end.
enum Stop {
    Short,
    Malformed,
}

/// The server name of a ClientHello (RFC 8446 section 4.1.2), as soon as it is known.
fn client_hello(bytes: &[u8]) -> Result<Option<String>, Stop> {
    let mut message = Reader { bytes, declared: usize::MAX };
    if message.u8()? != CLIENT_HELLO {
        return Err(Stop::Malformed);
    }
    let mut hello = message.prefixed(3)?;
    if hello.u8()? != 3 {
        return Err(Stop::Malformed);
    }
    // The minor version, then the client's random.
    hello.skip(1 + 32)?;
    let session_id = hello.length(1)?;
    if session_id > 32 {
        return Err(Stop::Malformed);
    }
    hello.skip(session_id)?;
    let cipher_suites = hello.length(2)?;
    if cipher_suites < 2 || cipher_suites % 2 != 0 {
        return Err(Stop::Malformed);
    }
    hello.skip(cipher_suites)?;
    let compression = hello.length(1)?;
    if compression == 0 {
        return Err(Stop::Malformed);
    }
    hello.skip(compression)?;
    if hello.at_end() {
        // TLS 1.2 without extensions.
        return Ok(None);
    }
    let mut extensions = hello.prefixed(2)?;
    while !extensions.at_end() {
        let kind = extensions.u16()?;
        let mut body = extensions.prefixed(2)?;
        if kind == SERVER_NAME {
            let mut names = body.prefixed(2)?;
            while !names.at_end() {
                let kind = names.u8()?;
                let mut name = names.prefixed(2)?;
                if kind == HOST_NAME {
                    return Ok(host_name(name.rest()?));
                }
            }
            return Ok(None);
        }
    }
    Ok(None)
}

fn host_name(bytes: &[u8]) -> Option<String> {
    let name = std::str::from_utf8(bytes).ok()?;
    let name = name.strip_suffix('.').unwrap_or(name);
    let valid = !name.is_empty()
        && name.len() <= 253
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'));
    valid.then(|| name.to_ascii_lowercase())
}

/// Reads a vector of declared length of which only a beginning may have arrived.
struct Reader<'a> {
    bytes: &'a [u8],
    /// Bytes that are still to come according to the length in front of the vector.
    declared: usize,
}

impl<'a> Reader<'a> {
    fn at_end(&self) -> bool {
        self.declared == 0
    }

    fn take(&mut self, count: usize) -> Result<&'a [u8], Stop> {
        self.declared = self.declared.checked_sub(count).ok_or(Stop::Malformed)?;
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(Stop::Short)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn rest(&mut self) -> Result<&'a [u8], Stop> {
        self.take(self.declared)
    }

    fn skip(&mut self, count: usize) -> Result<(), Stop> {
        self.take(count).map(drop)
    }

    fn u8(&mut self) -> Result<u8, Stop> {
        self.length(1).map(|value| value as u8)
    }

    fn u16(&mut self) -> Result<u16, Stop> {
        self.length(2).map(|value| value as u16)
    }

    /// A number of `width` bytes, at most 3.
    fn length(&mut self, width: usize) -> Result<usize, Stop> {
        let bytes = self.take(width)?;
        Ok(bytes.iter().fold(0, |value, byte| value << 8 | usize::from(*byte)))
    }

    /// The vector behind a length of `width` bytes; this reader goes on after it.
    fn prefixed(&mut self, width: usize) -> Result<Self, Stop> {
        let length = self.length(width)?;
        self.declared = self.declared.checked_sub(length).ok_or(Stop::Malformed)?;
        let (bytes, rest) = self.bytes.split_at(length.min(self.bytes.len()));
        self.bytes = rest;
        Ok(Self { bytes, declared: length })
    }
}
