//! What a call is made with, and what becomes of it.

use thiserror::Error;

use super::exchange::ForwardedRequest;
use super::{MAX_BODY, READ};
use crate::connection::ReadError;
use crate::wire::Malformed;

/// A route with a runner's plugins.
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

    /// The same with one plugin more: its name and its conf, a JSON text.
    #[must_use]
    pub fn plugin(mut self, name: &str, conf: &str) -> Self {
        self.confs.push((name.to_owned(), conf.to_owned()));
        self
    }

    /// The same, letting requests pass as if there were no plugin when the
    /// runner fails.
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
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// It goes on to the upstream.
    Forward(ForwardedRequest),
    /// The client gets this, and no upstream is asked.
    Answer(Answer),
}

impl Outcome {
    /// The answer's status; `None` where the request goes on.
    #[must_use]
    pub fn status(&self) -> Option<u16> {
        match self {
            Self::Forward(_) => None,
            Self::Answer(answer) => Some(answer.status),
        }
    }
}

/// An answer to the client, or an upstream's response.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// Names in lower case, repeated ones in their order.
    pub headers: Vec<(String, Vec<u8>)>,
    /// Empty where there is none.
    pub body: Vec<u8>,
}

impl Answer {
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
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum CallError {
    /// Nobody listens, or not in time.
    #[error("connecting to the runner: {0}")]
    Connect(std::io::Error),
    /// The runner closed the connection instead of answering.
    #[error("the runner closed the connection instead of answering")]
    Closed,
    /// The runner did not answer within a gateway's 60 s.
    #[error("the runner did not answer within {} s", READ.as_secs())]
    Timeout,
    /// The runner does not know the conf token, whatever it was just given.
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

impl From<Malformed> for CallError {
    fn from(malformed: Malformed) -> Self {
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
