//! Handshakes over loopback, and every ticket that must be worth nothing.

use std::future::poll_fn;
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Poll;

use bytes::Bytes;
use rustls::client::Resumption;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpListener;
use tokio::runtime::{Builder, LocalOptions};
use tokio::time::timeout;

use crate::tls::ALPN;
use crate::tls::handshake::*;
use crate::tls::testing::{Ca, Leaf, bundle, id};
use crate::tls::verify::RequiredIdentity;
use crate::wire::io::{Io, Transport};
use crate::wire::watch::ConnectionWatch;

const LIMIT: Duration = Duration::from_secs(5);

fn run(test: impl Future<Output = ()>) {
    let runtime =
        Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).unwrap();
    runtime.block_on(test);
}

fn identity(ca: &Ca, account: &str, roots: &[&Ca]) -> Identity {
    let identity = Identity::testing("bank", account);
    let (key, chain) = ca.issue(Leaf::of(id(account).as_str()));
    identity.install(key, chain, bundle(roots), unix_now()).unwrap();
    identity
}

/// A server side on one address.
struct Called(TcpListener);

impl Called {
    async fn new() -> Self {
        Self(TcpListener::bind("127.0.0.1:0").await.unwrap())
    }

    fn address(&self) -> SocketAddr {
        self.0.local_addr().unwrap()
    }

    async fn accept(&self, identity: &Identity) -> Result<Proof, HandshakeFailure> {
        let (stream, _) = self.0.accept().await.unwrap();
        let (mut stream, proof) =
            accept(identity, &Rc::new(Pace::default()), stream, LIMIT).await?;
        // What HTTP/2 says first; then the other side, if it is still there, is heard out.
        let _ = stream.write_all(b"settings").await;
        let _ = stream.flush().await;
        let _ = stream.read(&mut [0]).await;
        Ok(proof)
    }

    async fn call(
        &self,
        called: &Identity,
        caller: &Identity,
        expected: &str,
    ) -> (Result<Proof, HandshakeFailure>, Result<Proof, ConnectRefused>) {
        let calling = async {
            let stream = TcpStream::connect(self.address()).await.unwrap();
            let pace = Rc::new(Pace::default());
            let (address, expected) = (self.address(), id(expected));
            let connecting = connect(caller, &pace, stream, address, &expected, LIMIT);
            connecting.await.map(|(_, proof)| proof)
        };
        futures::join!(self.accept(called), calling)
    }
}

fn detail(refused: Result<Proof, ConnectRefused>) -> (Reason, String) {
    match refused.unwrap_err() {
        ConnectRefused::For(failed) => (failed.reason, failed.detail),
        ConnectRefused::Stale => panic!("no session was resumed"),
    }
}

#[test]
fn both_sides_know_each_other_and_the_second_time_is_cheaper() {
    run(async {
        let ca = Ca::new("root");
        let (orders, shop) = (identity(&ca, "orders", &[&ca]), identity(&ca, "shop", &[&ca]));
        let called = Called::new().await;
        for _ in 0..3 {
            let (accepted, connected) = called.call(&orders, &shop, "orders").await;
            assert_eq!(accepted.unwrap().id, id("shop"));
            assert_eq!(connected.unwrap().id, id("orders"));
        }
        let counts = (orders.counts(), shop.counts());
        assert_eq!(counts.0.accepted_full.load(Relaxed), 1);
        assert_eq!(counts.0.accepted_resumed.load(Relaxed), 2);
        assert_eq!(counts.1.connected_resumed.load(Relaxed), 2);
    });
}

/// Both ends of a connection, after their handshake: the caller's, and the called one's.
async fn both_ends() -> (Box<TlsStream>, Box<TlsStream>) {
    let ca = Ca::new("root");
    let (orders, shop) = (identity(&ca, "orders", &[&ca]), identity(&ca, "shop", &[&ca]));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (pace, expected) = (Rc::new(Pace::default()), id("orders"));
    let accepting = async {
        let (stream, _) = listener.accept().await.unwrap();
        let (mut stream, _) = accept(&orders, &pace, stream, LIMIT).await.unwrap();
        stream.write_all(b"settings").await.unwrap();
        stream.flush().await.unwrap();
        stream
    };
    let calling = async {
        let stream = TcpStream::connect(address).await.unwrap();
        let (mut stream, _) =
            connect(&shop, &pace, stream, address, &expected, LIMIT).await.unwrap();
        let mut first = [0; 8];
        stream.read_exact(&mut first).await.unwrap();
        assert_eq!(&first, b"settings");
        stream
    };
    let (called, caller) = futures::join!(accepting, calling);
    (caller, called)
}

/// Bytes that show when some are missing, repeated or out of order.
fn numbered(count: usize) -> Vec<u8> {
    (0..count as u32).flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_be_bytes()).collect()
}

#[test]
fn bytes_arrive_whole_and_in_order_whatever_the_sizes_of_reads_and_writes() {
    run(async {
        for (write, read) in
            [(1, 300_000), (70_000, 1_000), (300_000, 17), (9, 9), (16_384, 65_536)]
        {
            let (mut caller, mut called) = both_ends().await;
            let all = numbered(if write.min(read) < 10 { 20_000 } else { 400_000 });
            let writing = async {
                for part in all.chunks(write) {
                    called.write_all(part).await.unwrap();
                    if write > 1 {
                        called.flush().await.unwrap();
                    }
                }
                called.shutdown().await.unwrap();
            };
            let reading = async {
                let (mut got, mut part) = (Vec::new(), vec![0; read]);
                loop {
                    match caller.read(&mut part).await.unwrap() {
                        0 => return got,
                        n => got.extend_from_slice(&part[..n]),
                    }
                }
            };
            let ((), got) = futures::join!(writing, reading);
            assert!(got == all, "{} of {} bytes, {write} and {read}", got.len(), all.len());
            // The other half is still open.
            caller.write_all(b"and back").await.unwrap();
            caller.flush().await.unwrap();
            let mut back = [0; 8];
            called.read_exact(&mut back).await.unwrap();
            assert_eq!(&back, b"and back");
        }
    });
}

/// What TLS holds has not been taken by the peer: only what the socket takes says that somebody reads.
#[test]
fn a_peer_that_reads_nothing_is_noticed_whatever_tls_holds_for_it() {
    const PIECE: usize = 100_000;
    run(async {
        let (mut caller, called) = both_ends().await;
        let watch = ConnectionWatch::new(false);
        let mut io = Io::new(Transport::Tls(called), Bytes::new()).watched(Arc::clone(&watch));
        let mut offer = async |bytes: &[u8]| {
            poll_fn(|cx| {
                let flushed = match Pin::new(&mut io).poll_write(cx, bytes) {
                    Poll::Ready(written) => {
                        assert!(written.unwrap() <= PIECE);
                        Pin::new(&mut io).poll_flush(cx).map(|flushed| flushed.unwrap())
                    }
                    Poll::Pending => Poll::Pending,
                };
                Poll::Ready(flushed.is_ready())
            })
            .await
        };
        assert!(offer(&[7; 10]).await && watch.take_moved() && !watch.is_blocked());
        // Until the system holds no more.
        let mut offered = 0;
        while offer(&[7; PIECE]).await {
            assert!(!watch.is_blocked());
            offered += 1;
            assert!(offered < 1_000);
        }
        assert!(watch.is_blocked());
        watch.take_moved();
        // Taken, and not moved.
        assert!(!offer(&[7; PIECE]).await);
        assert!(watch.is_blocked() && !watch.take_moved());
        let mut part = vec![0; PIECE];
        let mut reading = Box::pin(async {
            loop {
                assert!(caller.read(&mut part).await.unwrap() > 0);
            }
        });
        while watch.is_blocked() {
            let _reads_on = timeout(Duration::from_millis(10), &mut reading).await;
            offer(&[]).await;
        }
        assert!(watch.take_moved());
    });
}

#[test]
fn a_connection_that_is_cut_is_no_end_and_what_came_before_counts() {
    run(async {
        let (mut caller, called) = both_ends().await;
        let mut raw = TcpStream::from_std(
            called.tcp().as_fd().try_clone_to_owned().map(std::net::TcpStream::from).unwrap(),
        )
        .unwrap();
        let mut called = called;
        called.write_all(b"whole").await.unwrap();
        called.flush().await.unwrap();
        // No record that anybody has encrypted.
        raw.write_all(&[23, 3, 3, 0, 20]).await.unwrap();
        raw.write_all(&[7; 20]).await.unwrap();
        let mut read = [0; 64];
        assert_eq!(caller.read(&mut read).await.unwrap(), 5);
        assert_eq!(caller.read(&mut read).await.unwrap_err().kind(), io::ErrorKind::InvalidData);

        let (mut caller, called) = both_ends().await;
        drop(called);
        assert_eq!(caller.read(&mut read).await.unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
    });
}

#[test]
fn another_identity_is_refused_even_where_a_ticket_would_do() {
    run(async {
        let ca = Ca::new("root");
        let (orders, shop) = (identity(&ca, "orders", &[&ca]), identity(&ca, "shop", &[&ca]));
        let called = Called::new().await;
        let (_, connected) = called.call(&orders, &shop, "orders").await;
        connected.unwrap();
        let (_, connected) = called.call(&orders, &shop, "ledger").await;
        let (reason, detail) = detail(connected);
        assert_eq!(reason, Reason::UpstreamIdentityMismatch);
        assert!(detail.contains("bank/sa/orders where") && detail.contains("ledger"), "{detail}");
        assert_eq!(shop.counts().connected_resumed.load(Relaxed), 0);
    });
}

#[test]
fn an_untrusted_peer_is_refused_by_either_side() {
    run(async {
        let (ca, other) = (Ca::new("root"), Ca::new("other"));
        let orders = identity(&ca, "orders", &[&ca]);
        let called = Called::new().await;
        // It trusts us, we don't trust it.
        let outside = identity(&other, "shop", &[&ca, &other]);
        let (accepted, connected) = called.call(&orders, &outside, "orders").await;
        let failed = accepted.unwrap_err();
        assert_eq!(failed.reason, Reason::TlsHandshakeFailed);
        assert_eq!(failed.detail, "no root of the trust bundle issued the certificate");
        let (reason, detail_) = detail(connected);
        assert_eq!(reason, Reason::UpstreamTlsFailed);
        assert!(detail_.contains("refused this proxy: UnknownCA"), "{detail_}");
        // And the other way round.
        let outside = identity(&other, "shop", &[&other]);
        let (accepted, connected) = called.call(&orders, &outside, "orders").await;
        assert!(accepted.unwrap_err().detail.contains("UnknownCA"));
        assert_eq!(detail(connected).0, Reason::UpstreamTlsFailed);
    });
}

#[test]
fn no_certificate_is_no_way_in() {
    run(async {
        let ca = Ca::new("root");
        let orders = identity(&ca, "orders", &[&ca]);
        let called = Called::new().await;
        let trust = orders.trust().unwrap();
        let anonymous =
            ClientCredentials::new(None, trust, RequiredIdentity::Exactly(id("orders")), &ALPN)
                .unwrap();
        let calling = async {
            let stream = TcpStream::connect(called.address()).await.unwrap();
            let connector = TlsConnector::from(anonymous.config);
            let mut stream = connector.connect(filed_under(called.address()), stream).await?;
            stream.read(&mut [0]).await
        };
        let (accepted, read) = futures::join!(called.accept(&orders), calling);
        assert_eq!(accepted.unwrap_err().detail, "no client certificate");
        assert!(describe(&read.unwrap_err()).1.contains("CertificateRequired"));
    });
}

#[test]
fn a_ticket_is_worth_nothing_after_its_root_is_gone() {
    run(async {
        let (old, new) = (Ca::new("old"), Ca::new("new"));
        let orders = identity(&new, "orders", &[&old, &new]);
        let shop = identity(&old, "shop", &[&old, &new]);
        let called = Called::new().await;
        let (accepted, _) = called.call(&orders, &shop, "orders").await;
        accepted.unwrap();
        // The bundle alone has changed: keys of tickets still work, the chain does not.
        orders.trust_only(&bundle(&[&new]));
        let (accepted, connected) = called.call(&orders, &shop, "orders").await;
        let failed = accepted.unwrap_err();
        assert_eq!(failed.detail, "no root of the trust bundle issued the certificate");
        assert_eq!(detail(connected).0, Reason::UpstreamTlsFailed);
        // As it happens in life: tickets are gone as well.
        orders.set_bundle(&bundle(&[&new])).unwrap();
        let (accepted, _) = called.call(&orders, &shop, "orders").await;
        assert_eq!(accepted.unwrap_err().reason, Reason::TlsHandshakeFailed);
        assert_eq!(orders.counts().accepted_resumed.load(Relaxed), 0);
    });
}

#[test]
fn a_callers_ticket_for_a_proof_that_holds_no_longer_is_forgotten() {
    run(async {
        let (old, new) = (Ca::new("old"), Ca::new("new"));
        let orders = identity(&old, "orders", &[&old, &new]);
        let shop = identity(&new, "shop", &[&old, &new]);
        let called = Called::new().await;
        let (_, connected) = called.call(&orders, &shop, "orders").await;
        connected.unwrap();
        shop.trust_only(&bundle(&[&new]));
        let (_, connected) = called.call(&orders, &shop, "orders").await;
        assert!(matches!(connected, Err(ConnectRefused::Stale)), "{connected:?}");
        shop.set_bundle(&bundle(&[&new])).unwrap();
        let (_, connected) = called.call(&orders, &shop, "orders").await;
        assert_eq!(detail(connected).0, Reason::UpstreamTlsFailed);
    });
}

#[test]
fn a_ticket_is_worth_nothing_after_the_end_of_its_leaf() {
    run(async {
        let ca = Ca::new("root");
        let orders = identity(&ca, "orders", &[&ca]);
        let called = Called::new().await;
        let shop = Identity::testing("bank", "shop");
        let end = unix_now() + 2;
        let leaf = Leaf { to: end, ..Leaf::of(id("shop").as_str()) };
        let (key, chain) = ca.issue(leaf);
        shop.install(key, chain, bundle(&[&ca]), unix_now()).unwrap();
        // A caller that keeps its tickets longer than ours do.
        let own = shop.current().unwrap();
        let demand = RequiredIdentity::Exactly(id("orders"));
        let caller =
            ClientCredentials::new(Some(&own), shop.trust().unwrap(), demand, &ALPN).unwrap();
        let mut config = (*caller.config).clone();
        config.resumption = Resumption::in_memory_sessions(8);
        let connector = TlsConnector::from(Arc::new(config));
        let call = || async {
            let stream = TcpStream::connect(called.address()).await.unwrap();
            let name = filed_under(called.address());
            let mut stream = connector.connect(name, stream).await.unwrap();
            let _ = stream.read(&mut [0; 8]).await;
            resumed(stream.get_ref().1)
        };
        let (accepted, _) = futures::join!(called.accept(&orders), call());
        assert_eq!(accepted.unwrap().until, end);
        while unix_now() <= end {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let (accepted, was_resumed) = futures::join!(called.accept(&orders), call());
        assert!(was_resumed, "the ticket itself was good");
        let detail = accepted.unwrap_err().detail;
        assert!(detail.starts_with("the certificate expired"), "{detail}");
        // And ours does not even begin.
        let why = shop.current().err().unwrap();
        assert!(why.starts_with("the certificate expired"), "{why}");
    });
}
