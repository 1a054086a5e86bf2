//! What is compared: the programs, and the kinds of traffic that they carry.

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Peer {
    Outrigger,
    /// Another build of it (`--before`).
    Before,
    Floor,
    Haproxy,
    Nginx,
    Envoy,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Case {
    H1,
    H2,
    Grpc,
    Tcp,
    PairH1,
    PairGrpc,
    /// As the pair for HTTP/1.1, with a policy of each kind in force.
    Policies,
    TlsH1,
    TlsGrpc,
    /// One proxy and a long answer.
    H1Mib,
    /// The pair with TLS and long answers or requests; those on HTTP/2 are the gRPC pair's.
    TlsH1Kib64,
    TlsH1Mib,
    TlsH1Upload,
    TlsH2Kib64,
    TlsH2Mib,
    TlsH2Upload,
    /// The same with 100 MiB, one at a time.
    H1Mib100,
    TlsH1Mib100,
    TlsH1Upload100,
    TlsH2Mib100,
    TlsH2Upload100,
    /// A few requests a second, where nothing is shared with a next one.
    H1At100,
    H1At1000,
    TlsH1At100,
    TlsH1At1000,
    /// Full handshakes against the inbound proxy of the pair with TLS.
    Handshake,
    /// The same, resumed.
    Resumption,
    /// No traffic: the control plane with a thousand clients ([`mod@crate::control_plane`]).
    ControlPlane,
}

/// What the ports of another build are above those of this one.
pub const BEFORE: u16 = 800;

impl Peer {
    pub const ALL: [Self; 6] =
        [Self::Outrigger, Self::Before, Self::Floor, Self::Haproxy, Self::Nginx, Self::Envoy];

    pub fn name(self) -> &'static str {
        match self {
            Self::Outrigger => "outrigger",
            Self::Before => "before",
            Self::Floor => "floor",
            Self::Haproxy => "haproxy",
            Self::Nginx => "nginx",
            Self::Envoy => "envoy",
        }
    }

    /// The port on which it serves a case, if it can.
    pub fn port(self, case: Case) -> Option<u16> {
        if self == Self::Before {
            // Its root is another one than that of what makes the handshakes.
            if case.is_handshake() {
                return None;
            }
            return Some(Self::Outrigger.port(case)? + BEFORE);
        }
        if case == Case::Policies {
            return (self == Self::Outrigger).then_some(19_605);
        }
        let base = match (self, case.setup()) {
            (Self::Outrigger, Setup::Single) => 19_200,
            (Self::Outrigger, Setup::Pair) => 19_600,
            (Self::Outrigger, Setup::TlsPair) => 19_650,
            (Self::Outrigger, Setup::TlsInbound) => 19_660,
            (Self::Envoy, Setup::Single) => 19_300,
            (Self::Envoy, Setup::Pair) => 19_700,
            (Self::Envoy, Setup::TlsPair) => 19_750,
            (Self::Envoy, Setup::TlsInbound) => 19_760,
            (Self::Floor, Setup::Single) => 19_100,
            (Self::Haproxy, Setup::Single) => 19_400,
            (Self::Nginx, Setup::Single) if matches!(case, Case::H1 | Case::Grpc) => 19_500,
            _ => return None,
        };
        let offset = match case.kind() {
            "h2" => 2,
            "grpc" => 3,
            "tcp" => 4,
            _ => 1,
        };
        Some(base + offset)
    }

    /// What the names of the processes begin with whose CPU counts in a case.
    pub fn subjects(self, case: Case) -> String {
        match (self, case.setup()) {
            (Self::Floor, _) => format!("floor-{}", case.kind()),
            (_, Setup::Single) => self.name().to_owned(),
            (_, Setup::Pair) => format!("pair-{}", self.name()),
            (_, Setup::TlsPair) => format!("tls-{}", self.name()),
            (_, Setup::TlsInbound) => format!("tls-{}-in", self.name()),
            (_, Setup::None) => String::new(),
        }
    }
}

/// The longest bodies.
pub const MIB100: usize = 100 * 1024 * 1024;

/// Long bodies, in bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Payload {
    Small,
    Answer(usize),
    Request(usize),
}

/// How many proxies stand in the way, and what they speak.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Setup {
    Single,
    Pair,
    TlsPair,
    /// The server side of that pair alone.
    TlsInbound,
    None,
}

impl Case {
    pub const ALL: [Self; 28] = [
        Self::H1,
        Self::H2,
        Self::Grpc,
        Self::Tcp,
        Self::PairH1,
        Self::PairGrpc,
        Self::Policies,
        Self::TlsH1,
        Self::TlsGrpc,
        Self::H1Mib,
        Self::TlsH1Kib64,
        Self::TlsH1Mib,
        Self::TlsH1Upload,
        Self::TlsH2Kib64,
        Self::TlsH2Mib,
        Self::TlsH2Upload,
        Self::H1Mib100,
        Self::TlsH1Mib100,
        Self::TlsH1Upload100,
        Self::TlsH2Mib100,
        Self::TlsH2Upload100,
        Self::H1At100,
        Self::H1At1000,
        Self::TlsH1At100,
        Self::TlsH1At1000,
        Self::Handshake,
        Self::Resumption,
        Self::ControlPlane,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Self::H1 => "HTTP/1.1",
            Self::H2 => "HTTP/2",
            Self::Grpc => "gRPC",
            Self::Tcp => "TCP",
            Self::PairH1 => "pair HTTP/1.1",
            Self::PairGrpc => "pair gRPC",
            Self::Policies => "policies",
            Self::TlsH1 => "mTLS HTTP/1.1",
            Self::TlsGrpc => "mTLS gRPC",
            Self::H1Mib => "HTTP/1.1 1 MiB",
            Self::TlsH1Kib64 => "mTLS HTTP/1.1 64 KiB",
            Self::TlsH1Mib => "mTLS HTTP/1.1 1 MiB",
            Self::TlsH1Upload => "mTLS HTTP/1.1 upload of 1 MiB",
            Self::TlsH2Kib64 => "mTLS HTTP/2 64 KiB",
            Self::TlsH2Mib => "mTLS HTTP/2 1 MiB",
            Self::TlsH2Upload => "mTLS HTTP/2 upload of 1 MiB",
            Self::H1Mib100 => "HTTP/1.1 100 MiB",
            Self::TlsH1Mib100 => "mTLS HTTP/1.1 100 MiB",
            Self::TlsH1Upload100 => "mTLS HTTP/1.1 upload of 100 MiB",
            Self::TlsH2Mib100 => "mTLS HTTP/2 100 MiB",
            Self::TlsH2Upload100 => "mTLS HTTP/2 upload of 100 MiB",
            Self::H1At100 => "HTTP/1.1 100/s",
            Self::H1At1000 => "HTTP/1.1 1000/s",
            Self::TlsH1At100 => "mTLS HTTP/1.1 100/s",
            Self::TlsH1At1000 => "mTLS HTTP/1.1 1000/s",
            Self::Handshake => "handshake",
            Self::Resumption => "resumption",
            Self::ControlPlane => "control-plane",
        }
    }

    /// The case of that name, whatever its upper and lower case.
    pub fn named(name: &str) -> Result<Self, String> {
        let found = Self::ALL.into_iter().find(|case| case.name().eq_ignore_ascii_case(name));
        let all = || Self::ALL.map(Self::name).join(", ");
        found.ok_or_else(|| format!("no such case; there are {}", all()))
    }

    fn setup(self) -> Setup {
        match self {
            Self::H1 | Self::H2 | Self::Grpc | Self::Tcp => Setup::Single,
            Self::H1Mib | Self::H1Mib100 | Self::H1At100 | Self::H1At1000 => Setup::Single,
            Self::PairH1 | Self::PairGrpc | Self::Policies => Setup::Pair,
            Self::TlsH1
            | Self::TlsGrpc
            | Self::TlsH1Kib64
            | Self::TlsH1Mib
            | Self::TlsH1Upload
            | Self::TlsH2Kib64
            | Self::TlsH2Mib
            | Self::TlsH2Upload
            | Self::TlsH1Mib100
            | Self::TlsH1Upload100
            | Self::TlsH2Mib100
            | Self::TlsH2Upload100
            | Self::TlsH1At100
            | Self::TlsH1At1000 => Setup::TlsPair,
            Self::Handshake | Self::Resumption => Setup::TlsInbound,
            Self::ControlPlane => Setup::None,
        }
    }

    /// Whether it needs the pair with TLS.
    pub fn is_tls(self) -> bool {
        matches!(self.setup(), Setup::TlsPair | Setup::TlsInbound)
    }

    /// Whether proxies carry traffic in it.
    pub fn has_traffic(self) -> bool {
        self.setup() != Setup::None
    }

    /// Whether connections are counted, not requests.
    pub fn is_handshake(self) -> bool {
        self.setup() == Setup::TlsInbound
    }

    /// What `load`, `backend` and `handshakes` call it.
    pub fn kind(self) -> &'static str {
        match self {
            Self::H1 | Self::PairH1 | Self::Policies | Self::TlsH1 => "h1",
            Self::H1Mib | Self::TlsH1Kib64 | Self::TlsH1Mib | Self::TlsH1Upload => "h1",
            Self::H1Mib100 | Self::TlsH1Mib100 | Self::TlsH1Upload100 => "h1",
            Self::H1At100 | Self::H1At1000 | Self::TlsH1At100 | Self::TlsH1At1000 => "h1",
            Self::H2 => "h2",
            Self::Grpc | Self::PairGrpc | Self::TlsGrpc => "grpc",
            Self::TlsH2Kib64 | Self::TlsH2Mib | Self::TlsH2Upload => "grpc",
            Self::TlsH2Mib100 | Self::TlsH2Upload100 => "grpc",
            Self::Tcp => "tcp",
            Self::Handshake => "full",
            Self::Resumption => "resumed",
            Self::ControlPlane => "none",
        }
    }

    /// Whether it has a closed-loop run.
    pub fn saturates(self) -> bool {
        !matches!(self, Self::H1At100 | Self::H1At1000 | Self::TlsH1At100 | Self::TlsH1At1000)
    }

    /// Requests per second of the open-loop runs: a busy sidecar, far from saturation. None: the case
    /// has no such run.
    pub fn rate(self) -> Option<u32> {
        match self {
            Self::H1 | Self::H2 => Some(7_500),
            Self::Grpc => Some(5_000),
            Self::Tcp => Some(10_000),
            // Both proxies share a processor, and at twice this rate Envoy's fill it.
            Self::PairH1 | Self::TlsH1 => Some(2_500),
            Self::PairGrpc | Self::TlsGrpc => Some(2_000),
            Self::H1At100 | Self::TlsH1At100 => Some(100),
            Self::H1At1000 | Self::TlsH1At1000 => Some(1_000),
            _ => None,
        }
    }

    /// What its requests and answers carry.
    pub fn payload(self) -> Payload {
        match self {
            Self::TlsH1Kib64 | Self::TlsH2Kib64 => Payload::Answer(64 * 1024),
            Self::H1Mib | Self::TlsH1Mib | Self::TlsH2Mib => Payload::Answer(1024 * 1024),
            Self::TlsH1Upload | Self::TlsH2Upload => Payload::Request(1024 * 1024),
            Self::H1Mib100 | Self::TlsH1Mib100 | Self::TlsH2Mib100 => Payload::Answer(MIB100),
            Self::TlsH1Upload100 | Self::TlsH2Upload100 => Payload::Request(MIB100),
            _ => Payload::Small,
        }
    }
}
