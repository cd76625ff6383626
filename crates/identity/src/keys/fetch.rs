//! Asking an issuer for its keys: OpenID discovery, then the JWKS that it names.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use reqwest::dns::Resolve;
use reqwest::redirect::{Attempt, Policy};
use reqwest::{Certificate, Client, ClientBuilder, Url};
use serde::Deserialize;
use thiserror::Error;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use super::super::json_object::object_from_slice;
use super::super::pem_file::read_pem_file;
use super::set::{KeySet, KeySetError};

/// How long discovery and keys may take together.
const FETCH_TIME: Duration = Duration::from_secs(10);

/// How long a connection to the issuer may take.
const CONNECT_TIME: Duration = Duration::from_secs(3);

/// How long a document of the issuer's may be, in bytes: discovery documents and
/// key sets have a few KiB, with certificate chains some tens.
const MAX_BODY: usize = 512 * 1024;

/// How many redirects of an issuer we follow.
const MAX_REDIRECTS: usize = 3;

/// The source of an issuer's keys, and what is trusted on the way.
///
/// ```
/// use kube_coders_identity::Url;
/// use kube_coders_identity::keys::Source;
///
/// let discovery = "http://keycloak.login.svc:8080/realms/dev/.well-known/openid-configuration";
/// let source = Source {
///     issuer: "https://id.example.com/realms/dev".into(),
///     discovery: Url::parse(discovery).expect("a URL"),
///     allow_http: true,
///     ca_file: None,
/// };
/// assert!(source.may_ask(&source.discovery));
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Source {
    /// The `iss` of its tokens.
    pub issuer: Box<str>,
    /// The address of the issuer's discovery document.
    pub discovery: Url,
    /// Whether the host of `discovery` may be asked without TLS.
    pub allow_http: bool,
    /// The only certificates that are trusted, or `None` for the system's.
    pub ca_file: Option<PathBuf>,
}

/// The part of a discovery document that counts (OpenID Connect Discovery 1.0,
/// section 3).
#[derive(Deserialize)]
struct Discovery {
    #[serde(default)]
    issuer: Option<String>,
    jwks_uri: String,
}

/// What an issuer gave.
///
/// ```
/// use std::sync::Arc;
///
/// use kube_coders_identity::keys::Source;
/// use reqwest::dns::Resolve;
///
/// /// The number of keys that an issuer publishes now.
/// async fn count(source: &Source, names: &Arc<dyn Resolve>) -> Option<usize> {
///     let fetched = source.fetch(names).await.ok()?;
///     Some(fetched.keys.len())
/// }
/// ```
pub struct Fetched {
    /// The keys that can check signatures; at least one.
    pub keys: KeySet,
    /// What its discovery document calls itself, if that is not what the conf does.
    pub other_issuer: Option<String>,
}

/// Why there are no keys.
#[derive(Debug, Error)]
pub enum FetchError {
    #[error("{0}")]
    CaFile(#[from] CaFileError),
    #[error("starting: {}", chain(.0))]
    Client(reqwest::Error),
    #[error("starting: a bug")]
    Task,
    #[error("{what} at {url}: {}", chain(.error))]
    Request { what: &'static str, url: Url, error: reqwest::Error },
    #[error("{what} at {url}: status {status}")]
    Status { what: &'static str, url: Url, status: u16 },
    #[error("{what} at {url}: longer than {MAX_BODY} bytes")]
    TooLong { what: &'static str, url: Url },
    #[error("discovery at {0}: not a JSON object with a text in `jwks_uri`")]
    NoDiscovery(Url),
    #[error("discovery at {0}: its `jwks_uri` is not a URL")]
    NoUrl(Url),
    #[error("{0} has no TLS: identity.allow_http permits that only for the host of identity.discovery")]
    WithoutTls(Url),
    #[error("keys at {url}: {error}")]
    Keys { url: Url, error: KeySetError },
    #[error("no answer within {} s", FETCH_TIME.as_secs())]
    Silent,
}

impl FetchError {
    /// Whether the issuer answered, and the answer has no usable keys. Otherwise there was no
    /// answer: the network, or a server that reports a fault of its own.
    pub fn is_without_keys(&self) -> bool {
        match self {
            Self::Status { status, .. } => {
                // Of those, 408, 425 and 429 ask to try again later.
                (300..500).contains(status) && !matches!(status, 408 | 425 | 429)
            }
            Self::Request { error, .. } => error.is_redirect(),
            Self::TooLong { .. }
            | Self::NoDiscovery(_)
            | Self::NoUrl(_)
            | Self::WithoutTls(_)
            | Self::Keys { .. } => true,
            Self::CaFile(_) | Self::Client(_) | Self::Task | Self::Silent => false,
        }
    }
}

/// Why a file gives no certificates to trust.
///
/// ```
/// use std::path::Path;
///
/// use kube_coders_identity::keys::read_ca_file;
///
/// let error = read_ca_file(Path::new("/nonexistent.pem")).unwrap_err();
/// assert!(error.to_string().starts_with("identity.ca_file: "));
/// ```
#[derive(Debug, Error)]
#[error("identity.ca_file: {0}")]
pub struct CaFileError(String);

/// An error with its causes: reqwest's own text stops at the first.
fn chain(error: &reqwest::Error) -> String {
    let mut text = String::new();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = if text.is_empty() { error.to_string() } else { format!("{text}: {error}") };
        cause = error.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

/// Reads the certificates of a file in PEM form.
///
/// ```
/// use kube_coders_identity::keys::read_ca_file;
///
/// let folder = tempfile::tempdir()?;
/// let file = folder.path().join("ca.pem");
/// std::fs::write(&file, "no certificate")?;
/// assert!(read_ca_file(&file).is_err());
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn read_ca_file(path: &Path) -> Result<Vec<Certificate>, CaFileError> {
    let pem = read_pem_file(path).map_err(|error| CaFileError(error.to_string()))?;
    match Certificate::from_pem_bundle(&pem) {
        Ok(certificates) if !certificates.is_empty() => Ok(certificates),
        _ => Err(CaFileError("the file has no certificate in PEM form".to_owned())),
    }
}

impl Source {
    /// Asks for the keys once.
    pub async fn fetch(&self, names: &Arc<dyn Resolve>) -> Result<Fetched, FetchError> {
        timeout(FETCH_TIME, self.ask(names)).await.unwrap_or(Err(FetchError::Silent))
    }

    async fn ask(&self, names: &Arc<dyn Resolve>) -> Result<Fetched, FetchError> {
        // A client of its own each time sees certificates that were changed. It reads
        // them from the disk, which calls must not wait for.
        let (source, names) = (self.clone(), Arc::clone(names));
        let client = spawn_blocking(move || source.client(&names)).await.map_err(|_| FetchError::Task)??;
        let document = self.get(&client, "discovery", &self.discovery).await?;
        let discovery: Discovery =
            object_from_slice(&document).map_err(|_| FetchError::NoDiscovery(self.discovery.clone()))?;
        let url = Url::parse(&discovery.jwks_uri).map_err(|_| FetchError::NoUrl(self.discovery.clone()))?;
        let keys = self.get(&client, "keys", &url).await?;
        let keys = KeySet::decode(&keys).map_err(|error| FetchError::Keys { url, error })?;
        let named = discovery.issuer.unwrap_or_default();
        Ok(Fetched { keys, other_issuer: Some(named).filter(|named| **named != *self.issuer) })
    }

    fn client(&self, names: &Arc<dyn Resolve>) -> Result<Client, FetchError> {
        let trusted = match &self.ca_file {
            Some(file) => Some(read_ca_file(file)?),
            None => None,
        };
        let without_tls = self.discovery.scheme() == "http";
        match self.builder(names, trusted).build() {
            // Many images have no certificates, and need none for an issuer in the cluster.
            Err(_) if without_tls && self.ca_file.is_none() => {
                self.builder(names, Some(Vec::new())).build().map_err(FetchError::Client)
            }
            built => built.map_err(FetchError::Client),
        }
    }

    /// A client that trusts these certificates, or the system's.
    fn builder(&self, names: &Arc<dyn Resolve>, trusted: Option<Vec<Certificate>>) -> ClientBuilder {
        let source = self.clone();
        let builder = Client::builder()
            .http1_only()
            // No variable of the environment may redirect us to a proxy.
            .no_proxy()
            .referer(false)
            .connect_timeout(CONNECT_TIME)
            .user_agent(concat!("kube-coders/", env!("CARGO_PKG_VERSION")))
            .redirect(Policy::custom(move |attempt| source.redirect(attempt)))
            .dns_resolver(Arc::clone(names));
        match trusted {
            Some(certificates) => builder.tls_certs_only(certificates),
            None => builder,
        }
    }

    fn redirect(&self, attempt: Attempt<'_>) -> reqwest::redirect::Action {
        if attempt.previous().len() > MAX_REDIRECTS {
            return attempt.error(format!("more than {MAX_REDIRECTS} redirects"));
        }
        if !self.may_ask(attempt.url()) {
            let error = FetchError::WithoutTls(attempt.url().clone());
            return attempt.error(error);
        }
        attempt.follow()
    }

    /// Whether a URL has TLS, or the administrator permits it without.
    pub fn may_ask(&self, url: &Url) -> bool {
        match url.scheme() {
            "https" => true,
            "http" => self.allow_http && url.host() == self.discovery.host(),
            _ => false,
        }
    }

    async fn get(&self, client: &Client, what: &'static str, url: &Url) -> Result<Vec<u8>, FetchError> {
        if !self.may_ask(url) {
            return Err(FetchError::WithoutTls(url.clone()));
        }
        let failed = |error: reqwest::Error| FetchError::Request {
            what,
            url: url.clone(),
            error: error.without_url(),
        };
        let mut response = client.get(url.clone()).send().await.map_err(failed)?;
        if response.status() != reqwest::StatusCode::OK {
            return Err(FetchError::Status { what, url: url.clone(), status: response.status().as_u16() });
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(failed)? {
            if body.len() + chunk.len() > MAX_BODY {
                return Err(FetchError::TooLong { what, url: url.clone() });
            }
            body.extend_from_slice(&chunk);
        }
        Ok(body)
    }
}
