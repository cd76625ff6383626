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

use super::harness::*;
use crate::forwarder::{CertificateTrust, ForwarderLimits};
use crate::resolver::NameServers;
use apisix_plugin_runner::Upstream;
use kube_coders_test_support::NameServer;

/// A workspace with a certificate of its own making.
struct Secure {
    listener: TcpListener,
    acceptor: TlsAcceptor,
    pem: tempfile::NamedTempFile,
    upstream: Upstream,
}

impl Secure {
    async fn new() -> Self {
        Self::showing("code-alice.test", Ipv4Addr::LOCALHOST, 0).await
    }

    /// `code-alice.test` with a certificate for this name, at this address.
    async fn showing(name: &str, ip: Ipv4Addr, port: u16) -> Self {
        Self::with_certificate(rcgen::generate_simple_self_signed([name.to_owned()]).unwrap(), ip, port).await
    }

    /// As code-server makes its own certificate: it is marked as a CA's.
    async fn self_made(name: &str) -> Self {
        let mut parameters = rcgen::CertificateParams::new([name.to_owned()]).unwrap();
        parameters.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
        let signing_key = rcgen::KeyPair::generate().unwrap();
        let cert = parameters.self_signed(&signing_key).unwrap();
        Self::with_certificate(rcgen::CertifiedKey { cert, signing_key }, Ipv4Addr::LOCALHOST, 0).await
    }

    async fn with_certificate(made: rcgen::CertifiedKey<rcgen::KeyPair>, ip: Ipv4Addr, port: u16) -> Self {
        let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let mut pem = tempfile::NamedTempFile::new().unwrap();
        pem.write_all(made.cert.pem().as_bytes()).unwrap();
        let listener = TcpListener::bind((ip, port)).await.unwrap();
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
async fn served(trust: CertificateTrust) -> (Served, NameServer) {
    served_with(trust, ForwarderLimits::default()).await
}

async fn served_with(trust: CertificateTrust, limits: ForwarderLimits) -> (Served, NameServer) {
    let names = NameServer::start().await.unwrap();
    names.set("code-alice.test", ["127.0.0.1".parse::<IpAddr>().unwrap()]);
    let servers = NameServers::Listed(vec![names.address()]);
    (Served::asking(&servers, trust, limits, DRAIN).await, names)
}

#[tokio::test]
async fn a_workspace_is_known_by_its_certificate_and_asked_by_its_name() {
    let workspace = Secure::new().await;
    for trust in [CertificateTrust::read(workspace.pem.path()).unwrap(), CertificateTrust::Any] {
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
async fn a_workspace_with_an_untrusted_certificate_gets_nothing() {
    let (workspace, other) = (Secure::new().await, Secure::new().await);
    for trust in [CertificateTrust::System, CertificateTrust::read(other.pem.path()).unwrap()] {
        let (served, _names) = served(trust).await;
        let mut gateway = served.connect().await;
        gateway.write(workspace.get(&served, "")).await;
        assert!(workspace.accept().await.is_err());
        assert_refused(&gateway.response().await, 502, "workspace-failed");
    }
}

#[tokio::test]
async fn a_good_certificate_of_another_name_is_none() {
    let workspace = Secure::showing("code-bob.test", Ipv4Addr::LOCALHOST, 0).await;
    let (served, _names) = served(CertificateTrust::read(workspace.pem.path()).unwrap()).await;
    let mut gateway = served.connect().await;
    gateway.write(workspace.get(&served, "")).await;
    assert!(workspace.accept().await.is_err());
    assert_refused(&gateway.response().await, 502, "workspace-failed");
}

#[tokio::test]
async fn a_self_made_certificate_is_accepted_if_it_is_listed_itself() {
    let (workspace, other) =
        (Secure::self_made("code-alice.test").await, Secure::self_made("code-alice.test").await);
    let wrong_name = Secure::self_made("code-bob.test").await;
    for (shown, listed, is_good) in
        [(&workspace, &workspace, true), (&workspace, &other, false), (&wrong_name, &wrong_name, false)]
    {
        let (served, _names) = served(CertificateTrust::read(listed.pem.path()).unwrap()).await;
        let mut gateway = served.connect().await;
        gateway.write(shown.get(&served, "")).await;
        if is_good {
            let mut inside = shown.accept().await.unwrap();
            head(&mut inside).await;
            inside.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await.unwrap();
            inside.flush().await.unwrap();
            assert_eq!(gateway.response().await.1, "ok");
        } else {
            assert!(shown.accept().await.is_err());
            assert_refused(&gateway.response().await, 502, "workspace-failed");
        }
    }
}

/// Who is not the workspace at one of its addresses does not keep its users from the
/// others.
#[tokio::test]
async fn the_next_address_is_tried_where_no_handshake_succeeds() {
    let good = Secure::new().await;
    let port = good.listener.local_addr().unwrap().port();
    let bad = Secure::showing("code-bob.test", Ipv4Addr::new(127, 0, 0, 2), port).await;
    let (served, names) = served(CertificateTrust::read(good.pem.path()).unwrap()).await;
    names.set("code-alice.test", ["127.0.0.2", "127.0.0.1"].map(|ip| ip.parse::<IpAddr>().unwrap()));
    // Name servers turn the order.
    for _ in 0..2 {
        let mut gateway = served.connect().await;
        gateway.write(good.get(&served, "Connection: close\r\n")).await;
        let refusing = async { while bad.accept().await.is_err() {} };
        let answering = async {
            let mut inside = good.accept().await.unwrap();
            head(&mut inside).await;
            inside
                .write_all(b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\nok")
                .await
                .unwrap();
            inside.flush().await.unwrap();
            assert_eq!(gateway.response().await.1, "ok");
        };
        tokio::select! {
            () = refusing => panic!("a certificate of another name was taken"),
            () = answering => {}
        }
    }
}

/// What is behind an answer may have been decrypted with it, and stands in no socket.
#[tokio::test]
async fn nothing_behind_an_answer_is_taken_for_the_next() {
    const SIZE: usize = 12_000;
    let workspace = Secure::new().await;
    let (served, _names) = served(CertificateTrust::Any).await;
    let mut gateway = served.connect().await;
    gateway.write(workspace.get(&served, "")).await;
    let mut inside = workspace.accept().await.unwrap();
    head(&mut inside).await;
    let body = "x".repeat(SIZE);
    let answer = format!(
        "HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\n\r\n{body}HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil"
    );
    inside.write_all(answer.as_bytes()).await.unwrap();
    inside.flush().await.unwrap();
    assert_eq!(gateway.response().await.1.len(), SIZE);
    gateway.write(workspace.get(&served, "")).await;
    let mut second = workspace.accept().await.unwrap();
    head(&mut second).await;
    second.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngood").await.unwrap();
    second.flush().await.unwrap();
    assert_eq!(gateway.response().await.1, "good");
}

/// rustls takes what the connection beneath does not.
#[tokio::test]
async fn a_workspace_within_tls_that_reads_nothing_holds_no_place_for_ever() {
    let limits = ForwarderLimits { send: Duration::from_millis(300), ..ForwarderLimits::default() };
    let workspace = Secure::new().await;
    let (served, _names) = served_with(CertificateTrust::Any, limits).await;
    for is_tunnel in [false, true] {
        let mut gateway = served.connect().await;
        let more = if is_tunnel {
            "Connection: Upgrade\r\nUpgrade: echo/1\r\n"
        } else {
            "Content-Length: 1000000000\r\n"
        };
        let upstream = workspace.upstream.clone().for_subject("alice").unwrap();
        let stamp = served.key.make(&upstream, SystemTime::now() + Duration::from_secs(60));
        let request =
            format!("POST / HTTP/1.1\r\nHost: coders.test\r\nX-Kube-Coders-Stamp: {stamp}\r\n{more}\r\n");
        gateway.write(request).await;
        let mut inside = workspace.accept().await.unwrap();
        head(&mut inside).await;
        if is_tunnel {
            let agreed =
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n";
            inside.write_all(agreed).await.unwrap();
            inside.flush().await.unwrap();
            gateway.head().await;
        }
        fill(&mut gateway).await;
        drop(gateway);
        until_nothing_is_open(&served).await;
        drop(inside);
    }
}

#[tokio::test]
async fn a_large_body_passes_through_tls() {
    const SIZE: usize = 8 << 20;
    let workspace = Secure::new().await;
    let (served, _names) = served(CertificateTrust::Any).await;
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
    let refused = |path: &std::path::Path| CertificateTrust::read(path).unwrap_err().to_string();
    assert_eq!(refused(file.path()), "the file contains no certificate in PEM form");
    let good = rcgen::generate_simple_self_signed(["a.test".to_owned()]).unwrap().cert.pem();
    file.write_all(good.as_bytes()).unwrap();
    file.write_all(b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n").unwrap();
    let told = refused(file.path());
    assert!(told.starts_with("certificate number 2 of the file can't be used: "), "{told}");
    assert_eq!(refused("/".as_ref()), "no file of at most 4 MiB");
    assert_eq!(refused("/nowhere".as_ref()), "No such file or directory (os error 2)");
}
