//! TLS to workspaces: whom it trusts, and the stream under it or without it.

use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_platform_verifier::BuilderVerifierExt as _;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::pem_file::read_pem_file;
use crate::upstream::HostName;

/// Whose certificates a workspace may show.
#[derive(Clone, Debug, Default)]
pub(crate) enum Trust {
    /// The system's.
    #[default]
    System,
    /// These only.
    Only(Arc<RootCertStore>),
    /// Anybody's: whoever is on the way can be the workspace.
    Anybody,
}

/// Why a file gives no certificates to trust.
#[derive(Debug, Error)]
pub(crate) enum TrustError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("no certificate in PEM form stands in it")]
    NoCertificate,
    #[error("its certificate number {number} can't be used: {why}")]
    Unusable { number: usize, why: String },
}

impl Trust {
    /// The certificates of a file in PEM form.
    pub(crate) fn read(path: &Path) -> Result<Self, TrustError> {
        let pem = read_pem_file(path)?;
        let mut roots = RootCertStore::empty();
        for (certificate, number) in CertificateDer::pem_slice_iter(&pem).zip(1..) {
            let unusable = |why| TrustError::Unusable { number, why };
            let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
            roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
        }
        if roots.is_empty() { Err(TrustError::NoCertificate) } else { Ok(Self::Only(Arc::new(roots))) }
    }
}

/// Makes connections to workspaces secure.
pub(super) struct Tls {
    trust: Trust,
    /// Made when it is first needed: a system without certificates may never need it.
    connector: OnceLock<TlsConnector>,
}

impl Tls {
    pub(super) fn new(trust: Trust) -> Self {
        Self { trust, connector: OnceLock::new() }
    }

    /// Shakes hands with the workspace of this name.
    pub(super) async fn connect(&self, stream: TcpStream, host: &HostName) -> io::Result<Stream> {
        let name = ServerName::try_from(host.as_str()).map_err(io::Error::other)?.to_owned();
        let connector = match self.connector.get() {
            Some(connector) => connector.clone(),
            None => {
                let made = self.trust.connector().map_err(io::Error::other)?;
                self.connector.get_or_init(|| made).clone()
            }
        };
        Ok(Stream::Tls(Box::new(connector.connect(name, stream).await?)))
    }
}

impl Trust {
    fn connector(&self) -> Result<TlsConnector, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let config = match self {
            Self::System => builder.with_platform_verifier()?.with_no_client_auth(),
            Self::Only(roots) => builder.with_root_certificates(Arc::clone(roots)).with_no_client_auth(),
            Self::Anybody => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(NoQuestions(provider)))
                .with_no_client_auth(),
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// Takes any certificate, because the operator says so.
struct NoQuestions(Arc<CryptoProvider>);

impl fmt::Debug for NoQuestions {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("NoQuestions")
    }
}

impl ServerCertVerifier for NoQuestions {
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
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls12_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        verify_tls13_signature(message, certificate, signed, &self.0.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// A connection to a workspace, with TLS or without.
#[derive(Debug)]
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl Stream {
    /// The connection beneath.
    pub(super) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Whether nothing waits that was taken from the connection beneath, and not read
    /// of this one yet.
    pub(super) fn is_drained(&mut self) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Tls(stream) => {
                let state = stream.get_mut().1.process_new_packets();
                state.is_ok_and(|state| state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed())
            }
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_read(context, buffer),
            Self::Tls(stream) => Pin::new(stream).poll_read(context, buffer),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_write(context, bytes),
            Self::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_flush(context),
            Self::Tls(stream) => Pin::new(stream).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(context),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(context),
        }
    }
}
