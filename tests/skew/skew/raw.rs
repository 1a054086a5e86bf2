//! gRPC over plaintext HTTP/2 with messages as bytes, both sides.

use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response};
use outrigger_tests::process::local;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, SignatureScheme};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;

/// Longest that a message is waited for.
pub(super) const LIMIT: Duration = Duration::from_secs(20);

/// One side of a call.
pub(super) struct Sender(SendStream<Bytes>);

/// The other.
pub(super) struct Receiver {
    stream: RecvStream,
    /// Headers of a response: a refusal may say everything there.
    head: HeaderMap,
    buffer: BytesMut,
}

impl Sender {
    pub(super) fn send(&mut self, message: &[u8]) {
        let mut frame = BytesMut::with_capacity(message.len() + 5);
        frame.put_u8(0);
        frame.put_u32(u32::try_from(message.len()).expect("a small message"));
        frame.put_slice(message);
        // A peer that has gone is noticed by the task that reads.
        let _ = self.0.send_data(frame.freeze(), false);
    }

    pub(super) fn end(&mut self) {
        let _ = self.0.send_data(Bytes::new(), true);
    }

    /// That a call has ended, with a code of gRPC.
    pub(super) fn finish(&mut self, code: HeaderValue, message: Option<HeaderValue>) {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", code);
        trailers.extend(
            message.map(|message| (http::HeaderName::from_static("grpc-message"), message)),
        );
        let _ = self.0.send_trailers(trailers);
    }
}

impl Receiver {
    fn new(head: HeaderMap, stream: RecvStream) -> Self {
        Self { head, stream, buffer: BytesMut::new() }
    }

    /// The next message; none: there are no more, and [`Self::status`] says why.
    pub(super) async fn next(&mut self) -> Option<Bytes> {
        loop {
            if self.buffer.len() >= 5 {
                let length = (&self.buffer[1..5]).get_u32() as usize;
                if self.buffer.len() >= 5 + length {
                    assert_eq!(self.buffer[0], 0, "no message is compressed");
                    self.buffer.advance(5);
                    return Some(self.buffer.split_to(length).freeze());
                }
            }
            let data = self.stream.data().await?.ok()?;
            let _ = self.stream.flow_control().release_capacity(data.len());
            self.buffer.extend_from_slice(&data);
        }
    }

    pub(super) async fn soon(&mut self) -> Option<Bytes> {
        tokio::time::timeout(LIMIT, self.next()).await.expect("a message in time")
    }

    /// Code and message of a call that has ended.
    pub(super) async fn status(&mut self) -> (HeaderValue, Option<HeaderValue>) {
        let trailers = self.stream.trailers().await.ok().flatten();
        let says = trailers.as_ref().unwrap_or(&self.head);
        let code = says.get("grpc-status").cloned();
        (code.unwrap_or(HeaderValue::from_static("14")), says.get("grpc-message").cloned())
    }
}

/// A connection of a client.
pub(super) struct Client(h2::client::SendRequest<Bytes>);

impl Client {
    pub(super) async fn connect(port: u16) -> Self {
        Self::over(TcpStream::connect(local(port)).await.expect("a connection")).await
    }

    /// Over TLS, without a certificate and without asking who answers: this side proves nothing here.
    pub(super) async fn connect_tls(port: u16) -> Self {
        let config =
            rustls::ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13]);
        let config = config.dangerous().with_custom_certificate_verifier(Arc::new(Anybody));
        let mut config = config.with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec()];
        let stream = TcpStream::connect(local(port)).await.expect("a connection");
        let name = ServerName::try_from("control-plane").expect("a name");
        let connector = TlsConnector::from(Arc::new(config));
        Self::over(connector.connect(name, stream).await.expect("TLS")).await
    }

    async fn over<T: AsyncRead + AsyncWrite + Unpin + Send + 'static>(stream: T) -> Self {
        let (client, connection) = h2::client::handshake(stream).await.expect("HTTP/2");
        tokio::spawn(connection);
        Self(client)
    }

    /// Begins a call. `token`: to be shown.
    pub(super) async fn call(
        &self,
        path: &str,
        token: Option<&HeaderValue>,
    ) -> (Sender, impl Future<Output = Receiver> + use<>) {
        let mut request = Request::post(format!("http://control-plane{path}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .expect("a request");
        request.headers_mut().extend(token.map(|t| (http::header::AUTHORIZATION, t.clone())));
        let mut client = self.0.clone().ready().await.expect("room for a call");
        let (response, sender) = client.send_request(request, false).expect("a call");
        let receiver = async move {
            let (head, body) = response.await.expect("a response").into_parts();
            Receiver::new(head.headers, body)
        };
        (Sender(sender), receiver)
    }
}

/// Takes any server.
#[derive(Debug)]
struct Anybody;

impl ServerCertVerifier for Anybody {
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

/// One call as a server sees it.
pub(super) struct Call {
    pub(super) path: String,
    pub(super) token: Option<HeaderValue>,
    pub(super) sender: Sender,
    pub(super) receiver: Receiver,
}

/// Hands every call to `answer`, until the runtime ends.
pub(super) async fn serve<F>(port: u16, answer: impl Fn(Call) -> F + Clone + Send + Sync + 'static)
where
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(local(port)).await.expect("the port");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            tokio::spawn(async move {
                let Ok(mut connection) = h2::server::handshake(stream).await else { return };
                while let Some(Ok((request, mut respond))) = connection.accept().await {
                    let response = Response::builder().header("content-type", "application/grpc");
                    let response = response.body(()).expect("a response");
                    let Ok(sender) = respond.send_response(response, false) else { continue };
                    let call = Call {
                        path: request.uri().path().to_owned(),
                        token: request.headers().get(http::header::AUTHORIZATION).cloned(),
                        sender: Sender(sender),
                        receiver: Receiver::new(HeaderMap::new(), request.into_body()),
                    };
                    tokio::spawn(answer(call));
                }
            });
        }
    });
}
