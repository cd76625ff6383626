//! TLS to workspaces: the trusted certificates, and a stream with TLS or without.

use std::fmt;
use std::io;
use std::path::Path;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{WebPkiServerVerifier, verify_server_name};
use rustls::crypto::{CryptoProvider, aws_lc_rs, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use rustls_platform_verifier::BuilderVerifierExt as _;
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use apisix_plugin_runner::HostName;
use kube_coders_identity::read_pem_file;

/// Which certificates a workspace may show.
#[derive(Clone, Debug, Default)]
pub(crate) enum CertificateTrust {
    /// Those that the system trusts.
    #[default]
    System,
    /// Only those of these roots, and the listed certificates themselves.
    Only(Arc<ListedCertificates>),
    /// Any certificate. A machine on the network path can then pose as the workspace.
    Any,
}

/// The certificates of a file.
#[derive(Debug)]
pub(crate) struct ListedCertificates {
    roots: Arc<RootCertStore>,
    all: Vec<CertificateDer<'static>>,
}

/// Why a file gives no certificates to trust.
#[derive(Debug, Error)]
pub(crate) enum CertificateTrustError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("the file contains no certificate in PEM form")]
    NoCertificate,
    #[error("certificate number {number} of the file can't be used: {why}")]
    Unusable { number: usize, why: String },
}

impl CertificateTrust {
    /// The certificates of a file in PEM form.
    pub(crate) fn read(path: &Path) -> Result<Self, CertificateTrustError> {
        let pem = read_pem_file(path)?;
        let (mut roots, mut all) = (RootCertStore::empty(), Vec::new());
        for (certificate, number) in CertificateDer::pem_slice_iter(&pem).zip(1..) {
            let unusable = |why| CertificateTrustError::Unusable { number, why };
            let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
            roots.add(certificate.clone()).map_err(|error| unusable(error.to_string()))?;
            all.push(certificate);
        }
        if roots.is_empty() {
            Err(CertificateTrustError::NoCertificate)
        } else {
            Ok(Self::Only(Arc::new(ListedCertificates { roots: Arc::new(roots), all })))
        }
    }
}

/// Makes connections to workspaces secure.
pub(crate) struct Tls {
    trust: CertificateTrust,
    /// Made at the first use, because a system without certificates may never need it.
    connector: OnceLock<TlsConnector>,
}

impl Tls {
    pub(crate) fn new(trust: CertificateTrust) -> Self {
        Self { trust, connector: OnceLock::new() }
    }

    /// Shakes hands with the workspace of this name.
    pub(crate) async fn connect(&self, stream: TcpStream, host: &HostName) -> io::Result<WorkspaceStream> {
        let name = ServerName::try_from(host.as_str()).map_err(io::Error::other)?.to_owned();
        let connector = match self.connector.get() {
            Some(connector) => connector.clone(),
            None => {
                let made = self.trust.connector().map_err(io::Error::other)?;
                self.connector.get_or_init(|| made).clone()
            }
        };
        Ok(WorkspaceStream::Tls(Box::new(connector.connect(name, stream).await?)))
    }
}

impl CertificateTrust {
    fn connector(&self) -> Result<TlsConnector, rustls::Error> {
        let provider = Arc::new(aws_lc_rs::default_provider());
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()?;
        let config = match self {
            Self::System => builder.with_platform_verifier()?.with_no_client_auth(),
            Self::Only(listed) => {
                let roots = Arc::clone(&listed.roots);
                let by_roots =
                    WebPkiServerVerifier::builder_with_provider(roots, Arc::clone(&provider)).build();
                let by_roots = by_roots.map_err(|error| rustls::Error::General(error.to_string()))?;
                let verifier = ListedOrIssued { listed: Arc::clone(listed), by_roots };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier)).with_no_client_auth()
            }
            Self::Any => builder
                .dangerous()
                .with_custom_certificate_verifier(Arc::new(AnyCertificate(provider)))
                .with_no_client_auth(),
        };
        Ok(TlsConnector::from(Arc::new(config)))
    }
}

/// Accepts certificates that a listed CA has issued, and a certificate that is listed itself:
/// code-server's own self-signed one marks itself as a CA, which no server's may. A listed
/// certificate has the workspace's name, too, and its dates are not checked.
#[derive(Debug)]
struct ListedOrIssued {
    listed: Arc<ListedCertificates>,
    by_roots: Arc<WebPkiServerVerifier>,
}

impl ServerCertVerifier for ListedOrIssued {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        if self.listed.all.contains(end_entity) {
            verify_server_name(&ParsedCertificate::try_from(end_entity)?, name)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.by_roots.verify_server_cert(end_entity, intermediates, name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_roots.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.by_roots.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.by_roots.supported_verify_schemes()
    }
}

/// Accepts any certificate, because the administrator chose so.
struct AnyCertificate(Arc<CryptoProvider>);

impl fmt::Debug for AnyCertificate {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("AnyCertificate")
    }
}

impl ServerCertVerifier for AnyCertificate {
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
pub(crate) enum WorkspaceStream {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

impl WorkspaceStream {
    /// The TCP connection.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Plain(stream) => stream,
            Self::Tls(stream) => stream.get_ref().0,
        }
    }

    /// Whether no bytes wait that were read from the TCP connection but not from this
    /// stream.
    pub(crate) fn is_drained(&mut self) -> bool {
        match self {
            Self::Plain(_) => true,
            Self::Tls(stream) => {
                let state = stream.get_mut().1.process_new_packets();
                state.is_ok_and(|state| state.plaintext_bytes_to_read() == 0 && !state.peer_has_closed())
            }
        }
    }
}

impl AsyncRead for WorkspaceStream {
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

impl AsyncWrite for WorkspaceStream {
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
