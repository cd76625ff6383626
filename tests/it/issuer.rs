//! An issuer on loopback: discovery, keys, and all that can go wrong with it.

use std::collections::HashMap;
use std::convert::Infallible;
use std::future::pending;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use rcgen::{CertifiedKey, generate_simple_self_signed};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::ServerConfig;
use tokio_rustls::rustls::pki_types::PrivateKeyDer;

use kube_coders_test_support::{Signer, claims, key_set};

/// Where the discovery document is.
pub(crate) const DISCOVERY: &str = "/.well-known/openid-configuration";

/// What the issuer does when it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    Answer,
    /// Takes the question and never answers.
    Hang,
    Fail,
}

/// A page of the issuer's in place of its usual one.
#[derive(Clone, Debug)]
pub(crate) enum Page {
    Text(String),
    Redirect(String),
}

/// Runs until it is dropped.
pub(crate) struct Issuer {
    address: SocketAddr,
    scheme: &'static str,
    /// The certificate to trust, in PEM form; empty without TLS.
    pub(crate) certificate: String,
    shared: Arc<Shared>,
    _serving: JoinSet<()>,
}

struct Shared {
    state: Mutex<State>,
    mode: watch::Sender<Mode>,
    asked: watch::Sender<HashMap<String, usize>>,
}

struct State {
    url: String,
    signers: Vec<Signer>,
    pages: HashMap<String, Page>,
}

impl Issuer {
    /// Speaks HTTP without TLS, and signs with these keys, the first by default.
    pub(crate) async fn start(signers: &[Signer]) -> Self {
        Self::serve(signers, "http", None, String::new()).await
    }

    /// Speaks HTTPS with a certificate of its own for 127.0.0.1.
    pub(crate) async fn start_tls(signers: &[Signer]) -> Self {
        let CertifiedKey { cert, signing_key } =
            generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::try_from(signing_key.serialize_der()).unwrap();
        let config = ServerConfig::builder().with_no_client_auth();
        let config = config.with_single_cert(vec![cert.der().clone()], key).unwrap();
        Self::serve(signers, "https", Some(Arc::new(config).into()), cert.pem()).await
    }

    async fn serve(
        signers: &[Signer],
        scheme: &'static str,
        tls: Option<TlsAcceptor>,
        certificate: String,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let url = format!("{scheme}://{address}");
        let state = State { url, signers: signers.to_vec(), pages: HashMap::new() };
        let shared = Arc::new(Shared {
            state: Mutex::new(state),
            mode: watch::Sender::new(Mode::Answer),
            asked: watch::Sender::new(HashMap::new()),
        });
        let mut serving = JoinSet::new();
        serving.spawn(accept(listener, tls, Arc::clone(&shared)));
        Self { address, scheme, certificate, shared, _serving: serving }
    }

    /// What stands in its tokens' `iss`.
    pub(crate) fn url(&self) -> String {
        format!("{}://{}", self.scheme, self.address)
    }

    /// The conf's `identity` for it.
    pub(crate) fn identity(&self) -> String {
        json!({"trust": "verified", "issuer": self.url(), "audience": ["apisix"], "allow_http": true})
            .to_string()
    }

    /// A good token of the first key.
    pub(crate) fn token(&self, subject: &str) -> String {
        let signer = self.state(|state| state.signers[0].clone());
        signer.token(&claims(&self.url(), subject))
    }

    pub(crate) fn set_signers(&self, signers: &[Signer]) {
        self.state(|state| state.signers = signers.to_vec());
    }

    pub(crate) fn set_page(&self, path: &str, page: Page) {
        self.state(|state| state.pages.insert(path.to_owned(), page));
    }

    pub(crate) fn set_mode(&self, mode: Mode) {
        self.shared.mode.send_replace(mode);
    }

    /// How often this was asked for.
    pub(crate) fn asked(&self, path: &str) -> usize {
        self.shared.asked.borrow().get(path).copied().unwrap_or_default()
    }

    /// Waits until this was asked for so often.
    pub(crate) async fn until_asked(&self, path: &str, times: usize) {
        let mut asked = self.shared.asked.subscribe();
        asked.wait_for(|asked| asked.get(path).copied().unwrap_or_default() >= times).await.unwrap();
    }

    fn state<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.shared.state.lock().unwrap())
    }
}

async fn accept(listener: TcpListener, tls: Option<TlsAcceptor>, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        let Ok((stream, _)) = listener.accept().await else { continue };
        let (tls, shared) = (tls.clone(), Arc::clone(&shared));
        connections.spawn(async move {
            match tls {
                None => converse(stream, shared).await,
                Some(tls) => {
                    if let Ok(stream) = tls.accept(stream).await {
                        converse(stream, shared).await;
                    }
                }
            }
        });
        while connections.try_join_next().is_some() {}
    }
}

async fn converse(stream: impl AsyncRead + AsyncWrite + Unpin, shared: Arc<Shared>) {
    let answer = service_fn(|request: Request<Incoming>| {
        let shared = Arc::clone(&shared);
        async move { Ok::<_, Infallible>(shared.answer(request.uri().path()).await) }
    });
    let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await;
}

impl Shared {
    async fn answer(&self, path: &str) -> Response<Full<Bytes>> {
        self.asked.send_modify(|asked| *asked.entry(path.to_owned()).or_default() += 1);
        let mode = *self.mode.borrow();
        match mode {
            Mode::Answer => self.page(path),
            Mode::Hang => pending().await,
            Mode::Fail => response(500, "broken"),
        }
    }

    fn page(&self, path: &str) -> Response<Full<Bytes>> {
        let state = self.state.lock().unwrap();
        match (state.pages.get(path), path) {
            (Some(Page::Text(text)), _) => response(200, text),
            (Some(Page::Redirect(location)), _) => {
                let mut response = response(302, "");
                response.headers_mut().insert("location", location.parse().unwrap());
                response
            }
            (None, DISCOVERY) => {
                let document = json!({"issuer": state.url, "jwks_uri": format!("{}/keys", state.url)});
                response(200, &document.to_string())
            }
            (None, "/keys") => response(200, &key_set(&state.signers)),
            (None, _) => response(404, "nothing here"),
        }
    }
}

fn response(status: u16, text: &str) -> Response<Full<Bytes>> {
    Response::builder().status(status).body(Full::new(Bytes::from(text.to_owned()))).unwrap()
}
