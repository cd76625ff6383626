//! What a call is made with, and what becomes of it.

use std::time::Duration;

use apisix_ext_plugin::payload::MalformedPayload;
use serde::Serialize;
use thiserror::Error;

use super::exchange::ForwardedRequest;
use crate::connection::ReadError;

/// How long a gateway waits for an answer (docs/gateway.md, Connections).
pub(super) const READ: Duration = Duration::from_secs(60);

/// How large a request's body may be for a plugin that asks for it.
pub(super) const MAX_BODY: usize = 16 * 1024 * 1024;

/// A route with a runner's plugins.
///
/// ```
/// use apisix_plugin_runner::gateway::Route;
///
/// let route = Route::new("greetings")
///     .plugin("greet", r#"{"header": "x-name"}"#)
///     .plugin("body-guard", r#"{"most": 1024}"#);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    pub(super) id: String,
    pub(super) confs: Vec<(String, String)>,
    pub(super) allow_degradation: bool,
}

impl Route {
    /// A route without plugins that answers 503 when the runner fails.
    #[must_use]
    pub fn new(id: &str) -> Self {
        Self { id: id.to_owned(), confs: Vec::new(), allow_degradation: false }
    }

    /// Adds a plugin with its conf, a JSON text.
    #[must_use]
    pub fn plugin(mut self, name: &str, conf: &str) -> Self {
        self.confs.push((name.to_owned(), conf.to_owned()));
        self
    }

    /// Adds a plugin with a conf that is written as JSON.
    ///
    /// ```
    /// use apisix_plugin_runner::gateway::Route;
    ///
    /// #[derive(serde::Serialize)]
    /// struct GreetConfig { header: &'static str }
    ///
    /// let route = Route::new("greetings").plugin_with("greet", &GreetConfig { header: "x-name" });
    /// ```
    ///
    /// # Panics
    ///
    /// If the conf has no JSON text.
    #[must_use]
    pub fn plugin_with(self, name: &str, conf: &impl Serialize) -> Self {
        let conf = serde_json::to_string(conf).expect("a conf that can be written as JSON");
        self.plugin(name, &conf)
    }

    /// Lets requests pass as if there were no plugin when the runner fails.
    #[must_use]
    pub fn allow_degradation(mut self) -> Self {
        self.allow_degradation = true;
        self
    }

    pub(super) fn key(&self) -> String {
        format!("route#{}#ext-plugin-pre-req#1", self.id)
    }
}

/// What became of a client's request.
///
/// ```
/// use apisix_plugin_runner::gateway::{ClientRequest, Gateway, Outcome, Route};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// // The runner has no such plugin, so the gateway gets no conf token.
/// let route = Route::new("r").plugin("missing", "null");
/// match Gateway::new().call(&route, &ClientRequest::get("/")).await {
///     Outcome::Forward(forwarded) => panic!("sent to the upstream: {forwarded:?}"),
///     Outcome::Answer(answer) => assert_eq!(answer.status, 503),
/// }
/// # });
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on to the upstream.
    Forward(ForwardedRequest),
    /// The client gets this, and no upstream is asked.
    Answer(ClientResponse),
}

impl Outcome {
    /// The request that goes on.
    ///
    /// # Panics
    ///
    /// If the client got an answer instead.
    #[must_use]
    #[track_caller]
    pub fn forwarded(self) -> ForwardedRequest {
        match self {
            Self::Forward(forwarded) => forwarded,
            Self::Answer(answer) => panic!("the request does not go on: {answer:?}"),
        }
    }

    /// The answer that the client got.
    ///
    /// # Panics
    ///
    /// If the request goes on.
    #[must_use]
    #[track_caller]
    pub fn answered(self) -> ClientResponse {
        match self {
            Self::Answer(answer) => answer,
            Self::Forward(forwarded) => panic!("the request goes on: {forwarded:?}"),
        }
    }

    /// The answer's status; `None` if the request goes on.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Forward(_) => None,
            Self::Answer(answer) => Some(answer.status),
        }
    }
}

/// An answer to the client, or an upstream's response.
///
/// ```
/// use apisix_plugin_runner::gateway::ClientResponse;
///
/// let mut response = ClientResponse::new(200);
/// response.headers.push(("content-type".to_owned(), b"text/html".to_vec()));
/// assert_eq!(response.header("content-type"), Some(&b"text/html"[..]));
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClientResponse {
    /// The status.
    pub status: u16,
    /// Names in lower case, repeated ones in their order.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Empty if there is none.
    pub body: Vec<u8>,
}

impl ClientResponse {
    /// An answer without headers and body.
    #[must_use]
    pub fn new(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new() }
    }

    /// The first value of a header, by its name in lower case.
    #[must_use]
    pub fn header(&self, name: &str) -> Option<&[u8]> {
        self.headers.iter().find(|(known, _)| known == name).map(|(_, value)| &value[..])
    }
}

/// Why a call to the runner failed, as a gateway would log it.
///
/// ```
/// use apisix_plugin_runner::gateway::{CallError, Gateway};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let error = Gateway::connect("/nonexistent/runner.sock").probe().await.unwrap_err();
/// assert!(matches!(error, CallError::Connect(_)), "{error}");
/// # });
/// ```
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CallError {
    /// No runner listens, or it does not accept in time.
    #[error("connecting to the runner: {0}")]
    Connect(std::io::Error),
    /// The runner closed the connection instead of answering.
    #[error("the runner closed the connection instead of answering")]
    Closed,
    /// The runner did not answer within a gateway's 60 s.
    #[error("the runner did not answer within {} s", READ.as_secs())]
    Timeout,
    /// The runner does not know the conf token that it has just given.
    #[error("the runner does not know the conf token that it gave")]
    UnknownToken,
    /// The runner answered with an error.
    #[error("the runner answered with error {0}")]
    Refused(u8),
    /// The runner's answer is not what the protocol says.
    #[error("the runner's answer is malformed: {0}")]
    Malformed(Box<str>),
    /// The runner asked for a body that is too large.
    #[error("the request's body is over {MAX_BODY} bytes")]
    BodyTooLarge,
}

impl From<MalformedPayload> for CallError {
    fn from(malformed: MalformedPayload) -> Self {
        Self::Malformed(malformed.to_string().into())
    }
}

impl From<ReadError> for CallError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Header(error) => Self::Malformed(error.to_string().into()),
            ReadError::Slow => Self::Timeout,
            ReadError::Cut | ReadError::Io(_) => Self::Closed,
        }
    }
}
