//! The way to the control plane: address, identity, join token, patience.

use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use rustls::InvalidMessage;
use rustls::pki_types::{DnsName, ServerName};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::{TlsConnector, client};
use tonic::metadata::{Ascii, MetadataMap, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};
use tower::service_fn;

use crate::base::disk;
use crate::tls::credentials::{ClientCredentials, Credentials};
use crate::tls::handshake::describe;
use crate::tls::identity::Identity;
use crate::wire::streams::first::FirstBytes;

/// Time for one connection, its handshake included.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// A dead control plane must be noticed although nothing is sent.
const KEEP_ALIVE: Duration = Duration::from_secs(10);
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// Soon enough that a restarted control plane is used at once, rare enough not to disturb one.
const LONGEST_PAUSE: Duration = Duration::from_secs(2);
/// A stream that lasts for so long was no failure.
const PROVEN: Duration = Duration::from_secs(30);
/// Port of an address that names none.
const DEFAULT_PORT: u16 = 4780;
/// What a server of TLS answers to anything else: a record that holds an alert (RFC 8446 section 5.1).
const TLS_ALERT: u8 = 21;
const SPEAKS_TLS: &str = "the control plane speaks TLS on this port: use https:// in --control-plane, and set \
                          --trust-bundle to its roots";
const SPEAKS_NO_TLS: &str = "the control plane does not speak TLS on this port: use http:// in --control-plane, or \
                             start the control plane with --identity on";
/// How often the same complaint is repeated in the log.
const REPEAT: Duration = Duration::from_secs(60);

#[derive(Clone)]
pub struct ControlPlane {
    pub uri: Uri,
    token_file: Option<PathBuf>,
    identity: Option<Arc<Identity>>,
    /// Why it can never be reached by this address.
    wrong: Arc<watch::Sender<Option<&'static str>>>,
}

impl ControlPlane {
    /// `identity`: none speaks plaintext.
    pub fn new(uri: Uri, token_file: Option<PathBuf>, identity: Option<Arc<Identity>>) -> Self {
        Self { uri, token_file, identity, wrong: Arc::new(watch::Sender::new(None)) }
    }

    /// A connection for everything but Certify: with identity, authenticated on both sides.
    pub async fn connect(&self) -> Result<Channel, String> {
        match &self.identity {
            None => self.open(self.uri.clone(), None).await,
            Some(identity) => {
                let own = identity.available(CONNECT_TIMEOUT).await?;
                self.open_tls(identity, Some(&own)).await
            }
        }
    }

    /// A connection for Certify, and what goes with the request: the certificate that is to be
    /// replaced, while it lasts, and the join token, which may be missing or over by then.
    pub async fn connect_to_certify(&self) -> Result<(Channel, MetadataMap), String> {
        let Some(identity) = &self.identity else {
            return Err("there is no identity without an https --control-plane".to_owned());
        };
        let own = identity.current().ok();
        let mut metadata = MetadataMap::new();
        match (self.authorize(&mut metadata).await, &own) {
            (Err(why), None) => return Err(why),
            (Err(_), Some(_)) | (Ok(()), _) => {}
        }
        Ok((self.open_tls(identity, own.as_deref()).await?, metadata))
    }

    /// Completes when it is known that the address is wrong whatever is waited for, and says why.
    pub async fn wrong(&self) -> &'static str {
        let mut wrong = self.wrong.subscribe();
        match wrong.wait_for(Option::is_some).await.ok().and_then(|why| *why) {
            Some(why) => why,
            // Nobody is left to say so.
            None => std::future::pending().await,
        }
    }

    /// Completes when what this side proves itself with has changed; never without identity.
    pub async fn renewed(&self) {
        let Some(identity) = &self.identity else { return std::future::pending().await };
        identity.renewed().await;
    }

    async fn open_tls(
        &self,
        identity: &Identity,
        own: Option<&Credentials>,
    ) -> Result<Channel, String> {
        let caller = identity.control_plane(own).await?;
        // The connector below speaks TLS; to tonic the inside of it is plain HTTP/2.
        let mut parts = self.uri.clone().into_parts();
        parts.scheme = Some(http::uri::Scheme::HTTP);
        let uri = Uri::from_parts(parts).map_err(|e| e.to_string())?;
        self.open(uri, Some(caller)).await
    }

    async fn open(&self, uri: Uri, caller: Option<ClientCredentials>) -> Result<Channel, String> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']).to_owned();
        let port = uri.port_u16().unwrap_or(DEFAULT_PORT);
        let endpoint = Endpoint::from(uri)
            .connect_timeout(CONNECT_TIMEOUT)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(KEEP_ALIVE)
            .keep_alive_timeout(KEEP_ALIVE)
            .keep_alive_while_idle(true);
        let wrong = Arc::clone(&self.wrong);
        let connected = match caller {
            None => {
                let connector = service_fn(move |_: Uri| {
                    let (host, wrong) = (host.clone(), Arc::clone(&wrong));
                    async move {
                        let stream = tcp(&host, port).await?;
                        let look = move |bytes: &[u8]| {
                            if bytes.first() == Some(&TLS_ALERT) {
                                wrong.send_replace(Some(SPEAKS_TLS));
                                return Err(io::Error::other(SPEAKS_TLS));
                            }
                            Ok(())
                        };
                        Ok::<_, io::Error>(TokioIo::new(FirstBytes::new(stream, look)))
                    }
                });
                endpoint.connect_with_connector(connector).await
            }
            Some(caller) => {
                let config = Arc::clone(&caller.config);
                let connector = service_fn(move |_: Uri| {
                    let (host, wrong) = (host.clone(), Arc::clone(&wrong));
                    let connector = TlsConnector::from(Arc::clone(&config));
                    async move { dial(&host, port, &connector, &wrong).await.map(TokioIo::new) }
                });
                endpoint.connect_with_connector(connector).await
            }
        };
        connected.map_err(|error| chain(&error))
    }

    /// Adds the join token, read anew so that a renewed one is used.
    pub async fn authorize(&self, metadata: &mut MetadataMap) -> Result<(), String> {
        let Some(file) = &self.token_file else { return Ok(()) };
        let token = disk::read(file)
            .await
            .and_then(|bytes| String::from_utf8(bytes).map_err(io::Error::other))
            .map_err(|e| format!("cannot read the join token file {}: {e}", file.display()))?;
        let value: MetadataValue<Ascii> = format!("Bearer {}", token.trim())
            .parse()
            .map_err(|_| format!("{} contains no join token", file.display()))?;
        metadata.insert("authorization", value);
        Ok(())
    }
}

async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let stream = TcpStream::connect((host, port)).await?;
    stream.set_nodelay(true)?;
    Ok(stream)
}

async fn dial(
    host: &str,
    port: u16,
    connector: &TlsConnector,
    wrong: &watch::Sender<Option<&'static str>>,
) -> io::Result<client::TlsStream<TcpStream>> {
    let connecting = async {
        let stream = tcp(host, port).await?;
        // Never sent and never compared: the identity is what counts.
        let name = DnsName::try_from("control-plane").map_err(io::Error::other)?;
        connector.connect(ServerName::DnsName(name), stream).await.map_err(|error| {
            let tls = error.get_ref().and_then(|inner| inner.downcast_ref());
            if let Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) = tls {
                wrong.send_replace(Some(SPEAKS_NO_TLS));
                return io::Error::other(SPEAKS_NO_TLS);
            }
            io::Error::other(describe(&error).1)
        })
    };
    tokio::time::timeout(CONNECT_TIMEOUT, connecting)
        .await
        .map_err(|_| io::Error::new(io::ErrorKind::TimedOut, "no connection in time"))?
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

/// Which of many failures in a row are worth a line: a new one at once, the same again once a minute.
#[derive(Debug, Default)]
pub struct FailureLog {
    /// What was said last, and when.
    said: Option<(String, Instant)>,
    left_out: u64,
}

impl FailureLog {
    /// How often the same was left out since it was said; none: it is left out this time, too.
    pub fn say(&mut self, why: &str, now: Instant) -> Option<u64> {
        let same = self
            .said
            .as_ref()
            .is_some_and(|(said, at)| said == why && now.saturating_duration_since(*at) < REPEAT);
        if same {
            self.left_out += 1;
            return None;
        }
        self.said = Some((why.to_owned(), now));
        Some(std::mem::take(&mut self.left_out))
    }

    /// It went well: the next failure is news.
    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

/// Growing pauses with jitter, so that a fleet does not return all at once.
#[derive(Debug, Default)]
pub struct Backoff {
    failures: u32,
}

impl Backoff {
    pub fn pause(&mut self) -> Duration {
        let pause = FIRST_PAUSE.saturating_mul(2u32.saturating_pow(self.failures.min(10)));
        self.failures = self.failures.saturating_add(1);
        let pause = pause.min(LONGEST_PAUSE);
        let jitter = RandomState::new().hash_one(self.failures) as f64 / u64::MAX as f64;
        pause.mul_f64(0.5 + jitter / 2.0)
    }

    /// What was built up has lasted for so long. Only what has proven to last forgives earlier failures:
    /// a stream that is taken and refused at once would come back without a pause.
    pub fn lasted(&mut self, time: Duration) {
        if time >= PROVEN {
            self.failures = 0;
        }
    }

    pub fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_complaint_is_one_line_a_minute() {
        let (mut complaints, now) = (FailureLog::default(), Instant::now());
        assert_eq!(complaints.say("refused", now), Some(0));
        for second in 1..60 {
            assert_eq!(complaints.say("refused", now + Duration::from_secs(second)), None);
        }
        assert_eq!(complaints.say("refused", now + REPEAT), Some(59));
        assert_eq!(complaints.say("no route", now + REPEAT), Some(0), "another one");
        assert_eq!(complaints.say("no route", now + REPEAT), None);
        complaints.reset();
        assert_eq!(complaints.say("no route", now + REPEAT), Some(0));
    }
}
