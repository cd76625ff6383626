//! Workspaces at https://.

use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use rustls::ServerConfig;
use rustls::crypto::aws_lc_rs;
use rustls::pki_types::PrivateKeyDer;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

use super::super::*;
use super::harness::*;
use crate::resolver::NameServers;
use crate::testing::NameServer;
use crate::upstream::Upstream;

/// A workspace with a certificate of its own making.
struct Secure {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    pem: tempfile::NamedTempFile,
    upstream: Upstream,
}

impl Secure {
    async fn new() -> Self {
        let made = rcgen::generate_simple_self_signed(["code-alice.test".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let mut pem = tempfile::NamedTempFile::new().unwrap();
        pem.write_all(made.cert.pem().as_bytes()).unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let upstream = format!("https://code-alice.test:{port}").parse().unwrap();
        Self { listener, acceptor: TlsAcceptor::from(Arc::new(config)), pem, upstream }
    }

    async fn accept(&self) -> std::io::Result<TlsStream<TcpStream>> {
        let (stream, _) = within(self.listener.accept()).await?;
        within(self.acceptor.accept(stream)).await
    }

    fn get(&self, served: &Served, more: &str) -> String {
        let stamp = served.key.make(&self.upstream, SystemTime::now() + Duration::from_secs(60));
        format!("GET / HTTP/1.1\r\nHost: coders.test\r\nX-Kube-Coders-Stamp: {stamp}\r\n{more}\r\n")
    }
}

async fn head(stream: &mut TlsStream<TcpStream>) -> String {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.push(within(stream.read_u8()).await.unwrap());
    }
    String::from_utf8(head).unwrap()
}

/// A forwarder that finds `code-alice.test` on loopback.
async fn served(trust: Trust) -> (Served, NameServer) {
    let names = NameServer::start().await.unwrap();
    names.set("code-alice.test", ["127.0.0.1".parse::<IpAddr>().unwrap()]);
    let servers = NameServers::Listed(vec![names.address()]);
    (Served::asking(&servers, trust, ForwarderLimits::default(), DRAIN).await, names)
}

#[tokio::test]
async fn a_workspace_is_known_by_its_certificate_and_asked_by_its_name() {
    let workspace = Secure::new().await;
    for trust in [Trust::read(workspace.pem.path()).unwrap(), Trust::Anybody] {
        let (served, _names) = served(trust).await;
        let mut gateway = served.connect().await;
        gateway.write(workspace.get(&served, "")).await;
        let mut inside = workspace.accept().await.unwrap();
        assert_eq!(inside.get_ref().1.server_name(), Some("code-alice.test"));
        // The host that the browser asked for stays: editors compare it with `Origin`.
        assert_eq!(head(&mut inside).await, "GET / HTTP/1.1\r\nHost: coders.test\r\n\r\n");
        inside.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello").await.unwrap();
        inside.flush().await.unwrap();
        assert_eq!(gateway.response().await.1, "hello");
        // The same connection takes the next request, and becomes a tunnel.
        gateway.write(workspace.get(&served, "Connection: Upgrade\r\nUpgrade: echo/1\r\n")).await;
        assert!(head(&mut inside).await.contains("Upgrade: echo/1\r\n"));
        let agreed =
            b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\nfirst";
        inside.write_all(agreed).await.unwrap();
        inside.flush().await.unwrap();
        gateway.head().await;
        assert_eq!(gateway.exactly(5).await, "first");
        gateway.write("hello").await;
        let mut read = [0; 5];
        within(inside.read_exact(&mut read)).await.unwrap();
        assert_eq!(&read, b"hello");
        gateway.finish_writing().await;
        assert_eq!(within(inside.read(&mut read)).await.unwrap(), 0);
        inside.write_all(b"bye").await.unwrap();
        inside.shutdown().await.unwrap();
        assert_eq!(gateway.rest().await, "bye");
    }
}

#[tokio::test]
async fn a_workspace_with_a_certificate_of_nobody_gets_nothing() {
    let (workspace, other) = (Secure::new().await, Secure::new().await);
    for trust in [Trust::System, Trust::read(other.pem.path()).unwrap()] {
        let (served, _names) = served(trust).await;
        let mut gateway = served.connect().await;
        gateway.write(workspace.get(&served, "")).await;
        assert!(workspace.accept().await.is_err());
        assert_refused(&gateway.response().await, 502, "workspace-failed");
    }
}

#[tokio::test]
async fn a_large_body_passes_through_tls() {
    const SIZE: usize = 8 << 20;
    let workspace = Secure::new().await;
    let (served, _names) = served(Trust::Anybody).await;
    let mut gateway = served.connect().await;
    gateway.write(workspace.get(&served, "")).await;
    let mut inside = workspace.accept().await.unwrap();
    head(&mut inside).await;
    let answering = tokio::spawn(async move {
        inside
            .write_all(format!("HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n").as_bytes())
            .await
            .unwrap();
        for number in 0..SIZE / 65_536 {
            inside.write_all(&[u8::try_from(number % 251).unwrap(); 65_536]).await.unwrap();
        }
        // rustls keeps what the connection did not take.
        inside.flush().await.unwrap();
        inside
    });
    gateway.head().await;
    let (mut read, mut early) = (vec![0; 65_536], gateway.read.as_slice().chain(&mut gateway.stream));
    for number in 0..SIZE / 65_536 {
        within(early.read_exact(&mut read)).await.unwrap();
        assert!(read.iter().all(|byte| usize::from(*byte) == number % 251), "piece {number}");
    }
    answering.await.unwrap();
}

#[test]
fn a_file_without_certificates_is_refused() {
    let mut file = tempfile::NamedTempFile::new().unwrap();
    let refused = |path: &std::path::Path| Trust::read(path).unwrap_err().to_string();
    assert_eq!(refused(file.path()), "no certificate in PEM form stands in it");
    file.write_all(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    assert_eq!(refused(file.path()), "no certificate in PEM form stands in it");
    assert_eq!(refused("/".as_ref()), "no file of at most 4 MiB");
    assert_eq!(refused("/nowhere".as_ref()), "No such file or directory (os error 2)");
}
