//! A caller that makes mutual TLS handshakes and nothing else.
//!
//! A handshake counts when the server side has sent something after it, which shows that it has
//! accepted the caller's certificate. The server side is trusted unseen: this process is not what is
//! measured, and should leave the measured one busy.

use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use hdrhistogram::Histogram;
use rustls::client::Resumption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::crypto::aws_lc_rs::{cipher_suite, default_provider, kx_group};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use rustls::version::TLS13;
use rustls::{ClientConfig, DigitallySignedStruct, HandshakeKind, SignatureScheme};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::JoinSet;
use tokio_rustls::TlsConnector;

type Failure = Box<dyn Error + Send + Sync>;

/// What an HTTP/2 client says first: the preface and empty settings.
const HELLO: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0";
/// Tickets that rustls keeps for one name.
const TICKETS: usize = 8;

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Kind {
    Full,
    Resumed,
}

#[derive(Debug, Parser)]
struct Options {
    #[arg(long)]
    kind: Kind,
    #[arg(long)]
    address: SocketAddr,
    /// The caller's certificate and its key, in PEM
    #[arg(long)]
    certificate: PathBuf,
    #[arg(long)]
    key: PathBuf,
    /// Handshakes at one time
    #[arg(long)]
    connections: usize,
    #[arg(long, default_value_t = 10.0)]
    seconds: f64,
    /// Ends after so many instead
    #[arg(long)]
    count: Option<usize>,
}

struct Tally {
    wanted: Histogram<u64>,
    /// Full ones where resumed ones are wanted: the first of each connection must be.
    others: u64,
    errors: u64,
}

fn main() -> ExitCode {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    match runtime.map_err(Failure::from).and_then(|runtime| runtime.block_on(run())) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::from(2)
        }
    }
}

async fn run() -> Result<(), Failure> {
    let options = Arc::new(Options::parse());
    let connector = TlsConnector::from(Arc::new(config(&options)?));
    let end = Instant::now() + Duration::from_secs_f64(options.seconds);
    let mut callers = JoinSet::new();
    for index in 0..options.connections {
        callers.spawn(caller(Arc::clone(&options), connector.clone(), index, end));
    }
    let mut all = Tally { wanted: Histogram::new(3)?, others: 0, errors: 0 };
    while let Some(done) = callers.join_next().await {
        let tally = done??;
        all.wanted.add(&tally.wanted)?;
        all.others += tally.others;
        all.errors += tally.errors;
    }
    let at = |quantile| all.wanted.value_at_quantile(quantile);
    let unwanted = all.others.saturating_sub(options.connections as u64);
    #[expect(clippy::print_stdout, reason = "the report is the output")]
    {
        println!(
            "{}",
            serde_json::json!({
                "requests": all.wanted.len(),
                "errors": all.errors + unwanted,
                "p50_us": at(0.5),
                "p99_us": at(0.99),
                "p999_us": at(0.999),
            })
        );
    }
    Ok(())
}

fn config(options: &Options) -> Result<ClientConfig, Failure> {
    let chain = CertificateDer::pem_file_iter(&options.certificate)?.collect::<Result<_, _>>()?;
    let key = PrivateKeyDer::from_pem_file(&options.key)?;
    let kx_groups = vec![kx_group::X25519MLKEM768];
    // What both proxies prefer among themselves.
    let cipher_suites = vec![cipher_suite::TLS13_AES_128_GCM_SHA256];
    let provider = CryptoProvider { kx_groups, cipher_suites, ..default_provider() };
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_protocol_versions(&[&TLS13])?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(Unseen))
        .with_client_auth_cert(chain, key)?;
    config.enable_sni = false;
    config.alpn_protocols = vec![b"h2".to_vec()];
    config.resumption = match options.kind {
        Kind::Full => Resumption::disabled(),
        Kind::Resumed => Resumption::in_memory_sessions(TICKETS * options.connections),
    };
    Ok(config)
}

async fn caller(
    options: Arc<Options>,
    connector: TlsConnector,
    index: usize,
    end: Instant,
) -> Result<Tally, Failure> {
    let mut tally = Tally { wanted: Histogram::new(3)?, others: 0, errors: 0 };
    // Never sent: each caller keeps its own tickets by it.
    let name = ServerName::try_from(format!("caller-{index}.bench"))?;
    let wanted = match options.kind {
        Kind::Full => HandshakeKind::Full,
        Kind::Resumed => HandshakeKind::Resumed,
    };
    let mut left = options.count.map(|count| count / options.connections);
    while left.map_or_else(|| Instant::now() < end, |left| left > 0) {
        left = left.map(|left| left - 1);
        let began = Instant::now();
        match handshake(&connector, options.address, name.clone()).await {
            Ok(kind) if kind == wanted => {
                tally.wanted.saturating_record(began.elapsed().as_micros() as u64);
            }
            Ok(_) => tally.others += 1,
            Err(error) => {
                if tally.errors == 0 {
                    eprintln!("caller {index}: {error}");
                }
                tally.errors += 1;
            }
        }
    }
    Ok(tally)
}

async fn handshake(
    connector: &TlsConnector,
    address: SocketAddr,
    name: ServerName<'static>,
) -> Result<HandshakeKind, Failure> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut stream = connector.connect(name, stream).await?;
    stream.write_all(HELLO).await?;
    if stream.read(&mut [0; 256]).await? == 0 {
        return Err("closed after the handshake".into());
    }
    let kind = stream.get_ref().1.handshake_kind().ok_or("no handshake")?;
    Ok(match kind {
        HandshakeKind::FullWithHelloRetryRequest => HandshakeKind::Full,
        kind => kind,
    })
}

/// Trusts everybody.
#[derive(Debug)]
struct Unseen;

impl ServerCertVerifier for Unseen {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256]
    }
}
