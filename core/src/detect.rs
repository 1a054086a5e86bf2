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
    // Empty lines before the request line are ignored, by common servers any number of them (RFC 9112
    // section 2.2).
    let empty = bytes.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
    let line = &bytes[empty..];
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
        Err(ParseStop::Malformed) => Detected::Opaque,
        Err(ParseStop::Short) if broken => Detected::Opaque,
        // So much of it was right that it is TLS; its name is out of reach.
        Err(ParseStop::Short) if bytes.len() >= MAX_DETECT => Detected::Tls { server_name: None },
        Err(ParseStop::Short) => Detected::NeedMore,
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
enum ParseStop {
    Short,
    Malformed,
}

/// The server name of a ClientHello (RFC 8446 section 4.1.2), as soon as it is known.
fn client_hello(bytes: &[u8]) -> Result<Option<String>, ParseStop> {
    let mut message = Reader { bytes, declared: usize::MAX };
    if message.u8()? != CLIENT_HELLO {
        return Err(ParseStop::Malformed);
    }
    let mut hello = message.prefixed(3)?;
    if hello.u8()? != 3 {
        return Err(ParseStop::Malformed);
    }
    // The minor version, then the client's random.
    hello.skip(1 + 32)?;
    let session_id = hello.length(1)?;
    if session_id > 32 {
        return Err(ParseStop::Malformed);
    }
    hello.skip(session_id)?;
    let cipher_suites = hello.length(2)?;
    if cipher_suites < 2 || cipher_suites % 2 != 0 {
        return Err(ParseStop::Malformed);
    }
    hello.skip(cipher_suites)?;
    let compression = hello.length(1)?;
    if compression == 0 {
        return Err(ParseStop::Malformed);
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

    fn take(&mut self, count: usize) -> Result<&'a [u8], ParseStop> {
        self.declared = self.declared.checked_sub(count).ok_or(ParseStop::Malformed)?;
        let (taken, rest) = self.bytes.split_at_checked(count).ok_or(ParseStop::Short)?;
        self.bytes = rest;
        Ok(taken)
    }

    fn rest(&mut self) -> Result<&'a [u8], ParseStop> {
        self.take(self.declared)
    }

    fn skip(&mut self, count: usize) -> Result<(), ParseStop> {
        self.take(count).map(drop)
    }

    fn u8(&mut self) -> Result<u8, ParseStop> {
        self.length(1).map(|value| value as u8)
    }

    fn u16(&mut self) -> Result<u16, ParseStop> {
        self.length(2).map(|value| value as u16)
    }

    /// A number of `width` bytes, at most 3.
    fn length(&mut self, width: usize) -> Result<usize, ParseStop> {
        let bytes = self.take(width)?;
        Ok(bytes.iter().fold(0, |value, byte| value << 8 | usize::from(*byte)))
    }

    /// The vector behind a length of `width` bytes; this reader goes on after it.
    fn prefixed(&mut self, width: usize) -> Result<Self, ParseStop> {
        let length = self.length(width)?;
        self.declared = self.declared.checked_sub(length).ok_or(ParseStop::Malformed)?;
        let (bytes, rest) = self.bytes.split_at(length.min(self.bytes.len()));
        self.bytes = rest;
        Ok(Self { bytes, declared: length })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn first_bytes_tell_the_protocol() {
        let cases: &[(&[u8], Detected)] = &[
            (b"", Detected::NeedMore),
            (b"GET / HTTP/1.1\r\n", Detected::Http1),
            (b"GET / HTTP/", Detected::Http1),
            (b"GET / HTTP/9.9\r\n", Detected::Http1),
            (b"GET / HTT", Detected::NeedMore),
            (b"GET /", Detected::NeedMore),
            (b"GET", Detected::NeedMore),
            (b"\r\nGET / HTTP/1.0", Detected::Http1),
            (b"M-SEARCH * HTTP/1.1", Detected::Http1),
            (b"x!#~ http://a.b/c?d HTTP/1.1", Detected::Http1),
            (b"CONNECT a.b:443 HTTP/1.1", Detected::Http1),
            (b"PRI /x HTTP/1.1", Detected::Http1),
            (b"GET /\r\n", Detected::Opaque),
            (b"GET  / HTTP/1.1", Detected::Opaque),
            (b" GET / HTTP/1.1", Detected::Opaque),
            (b"EHLO mail.example\r\n", Detected::Opaque),
            (b"PING\r\n", Detected::Opaque),
            (b"*1\r\n$4\r\nPING\r\n", Detected::Opaque),
            (b"GET / SMTP", Detected::Opaque),
            (b"\0\0\0\x08\x04\xd2\x16\x2f", Detected::Opaque),
            (b"a-word-longer-than-any-method-there-is", Detected::Opaque),
            (b"PRI", Detected::NeedMore),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r", Detected::NeedMore),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", Detected::Http2),
            (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\x12", Detected::Http2),
            (b"\x16", Detected::NeedMore),
            (b"\x16\x03\x01", Detected::NeedMore),
            (b"\x16\x04", Detected::Opaque),
            (b"\x16\x03\x09", Detected::Opaque),
            (b"\x16\x03\x01\0\0", Detected::Opaque),
            (b"\x16\x03\x01\xff\xff", Detected::Opaque),
            // A handshake message that is no ClientHello.
            (b"\x16\x03\x01\0\x05\x02\0\0\x01\0", Detected::Opaque),
            // An alert.
            (b"\x15\x03\x01\0\x02\x02\x28", Detected::Opaque),
        ];
        for (bytes, want) in cases {
            assert_eq!(detect(bytes), *want, "{:?}", String::from_utf8_lossy(bytes));
        }
    }

    #[test]
    fn an_endless_request_line_gets_an_http_answer() {
        let mut line = b"GET /".to_vec();
        line.resize(MAX_DETECT - 1, b'a');
        assert_eq!(detect(&line), Detected::NeedMore);
        line.push(b'a');
        assert_eq!(detect(&line), Detected::Http1);
        assert_eq!(
            detect(&[b"GET ".as_slice(), &vec![b'a'; MAX_DETECT]].concat()),
            Detected::Opaque
        );
    }

    #[test]
    fn the_server_name_is_read_from_a_client_hello() {
        let cases: &[(Option<&[u8]>, Option<&str>)] = &[
            (Some(b"Market-Data.bank"), Some("market-data.bank")),
            (Some(b"a.io."), Some("a.io")),
            (Some(b""), None),
            (Some(b"\xff\xfe"), None),
            (Some(b"a b"), None),
            (None, None),
        ];
        for (name, want) in cases {
            let records = split_into_records(&client_hello_with(*name), &[]);
            let server_name = want.map(str::to_owned);
            assert_eq!(detect(&records), Detected::Tls { server_name }, "{name:?}");
        }
    }

    #[test]
    fn a_client_hello_without_extensions_has_no_name() {
        let mut hello = client_hello_with(None);
        hello.truncate(HEAD);
        hello[3] = u8::try_from(HEAD - 4).unwrap();
        let records = split_into_records(&hello, &[]);
        assert_eq!(detect(&records), Detected::Tls { server_name: None });
    }

    #[test]
    fn a_client_hello_too_large_is_still_tls() {
        let mut hello = client_hello_with(None);
        hello.resize(20_000, 0);
        hello[1..4].copy_from_slice(&[0, 0x4e, 0x1c]);
        let extensions = u16::try_from(20_000 - HEAD - 2).unwrap();
        hello[HEAD..HEAD + 2].copy_from_slice(&extensions.to_be_bytes());
        // One unknown extension takes what the first one left.
        let first = usize::from(u16::from_be_bytes([hello[HEAD + 4], hello[HEAD + 5]]));
        let next = HEAD + 2 + 4 + first;
        hello[next..next + 2].copy_from_slice(&[0xfa, 0xfa]);
        let rest = u16::try_from(20_000 - next - 4).unwrap();
        hello[next + 2..next + 4].copy_from_slice(&rest.to_be_bytes());
        // A last extension that is announced in full needs no waiting for.
        let records = split_into_records(&hello, &[16_000]);
        assert_eq!(detect(&records[..next + 4]), Detected::NeedMore);
        assert_eq!(detect(&records[..next + 9]), Detected::Tls { server_name: None });
        hello[next + 2..next + 4].copy_from_slice(&(rest - 4).to_be_bytes());
        let records = split_into_records(&hello, &[16_000]);
        assert_eq!(detect(&records[..MAX_DETECT - 1]), Detected::NeedMore);
        assert_eq!(detect(&records[..MAX_DETECT]), Detected::Tls { server_name: None });
    }

    proptest! {
        #[test]
        fn a_verdict_holds_whatever_follows(bytes in likely_bytes(), cut in 0usize..200) {
            let first = detect(&bytes[..cut.min(bytes.len())]);
            if first != Detected::NeedMore {
                prop_assert_eq!(first, detect(&bytes));
            }
        }

        #[test]
        fn records_may_be_cut_anywhere(
            name in "[a-z]{1,20}(\\.[a-z]{1,20}){0,2}",
            cuts in proptest::collection::vec(1usize..300, 0..12),
            flip in proptest::option::of((0usize..400, any::<u8>())),
        ) {
            let hello = client_hello_with(Some(name.as_bytes()));
            let mut records = split_into_records(&hello, &cuts);
            let want = Detected::Tls { server_name: Some(name) };
            prop_assert_eq!(&detect(&records), &want);
            for end in 0..records.len() {
                let got = detect(&records[..end]);
                prop_assert!(got == Detected::NeedMore || got == want, "{got:?} at {end}");
            }
            // Damaged ones only must not panic.
            if let Some((at, value)) = flip && at < records.len() {
                records[at] = value;
                detect(&records);
            }
        }
    }

    /// Bytes that reach deep into each parser more often than chance would.
    fn likely_bytes() -> impl Strategy<Value = Vec<u8>> {
        let noise = || proptest::collection::vec(any::<u8>(), 0..300);
        let with = |start: &'static [u8]| noise().prop_map(move |end| [start, &end].concat());
        let damaged = (0usize..150, any::<u8>()).prop_map(|(at, value)| {
            let mut bytes = split_into_records(&client_hello_with(Some(b"a.io")), &[40]);
            let at = at % bytes.len();
            bytes[at] = value;
            bytes
        });
        prop_oneof![
            noise(),
            "[A-Z /*a-z]{0,20} ?/?[ -~]{0,20} HTTP".prop_map(String::into_bytes),
            with(b"GET /"),
            with(b"PRI * HTTP/2.0\r\n"),
            with(b"\x16\x03\x01\x00\x80\x01\x00\x00\x7c\x03\x03"),
            damaged,
        ]
    }

    /// Bytes of a ClientHello in front of its extensions.
    const HEAD: usize = 4 + 2 + 32 + 1 + 32 + 2 + 4 + 1 + 1;

    fn client_hello_with(name: Option<&[u8]>) -> Vec<u8> {
        let length = |n: usize| u16::try_from(n).unwrap().to_be_bytes();
        let mut extensions = vec![0, 43, 0, 3, 2, 3, 4];
        if let Some(name) = name {
            extensions.extend([0, 0]);
            extensions.extend(length(name.len() + 5));
            extensions.extend(length(name.len() + 3));
            extensions.push(0);
            extensions.extend(length(name.len()));
            extensions.extend(name);
        }
        // A later extension, so that the name is not the last.
        extensions.extend([0, 16, 0, 5, 0, 3, 2, b'h', b'2']);
        let mut hello = vec![1, 0, 0, 0, 3, 3];
        hello.extend([7; 32]);
        hello.push(32);
        hello.extend([9; 32]);
        hello.extend([0, 4, 0x13, 1, 0x13, 2, 1, 0]);
        assert_eq!(hello.len(), HEAD);
        hello.extend(length(extensions.len()));
        hello.extend(extensions);
        let body = length(hello.len() - 4);
        hello[2..4].copy_from_slice(&body);
        hello
    }

    /// One record per length in `cuts`, the rest in a last one.
    fn split_into_records(mut message: &[u8], cuts: &[usize]) -> Vec<u8> {
        let mut records = Vec::new();
        for cut in cuts.iter().copied().chain([usize::MAX]) {
            let (body, rest) = message.split_at(cut.min(message.len()));
            if !body.is_empty() {
                records.extend([22, 3, 1]);
                records.extend(u16::try_from(body.len()).unwrap().to_be_bytes());
                records.extend(body);
            }
            message = rest;
        }
        records
    }
}
