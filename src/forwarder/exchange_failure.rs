//! What can go wrong with a request, whose fault it is, and how the client is answered.

use std::io;
use std::time::Duration;

use thiserror::Error;

use super::http::chunked::ChunkError;
use super::http::framing::FramingError;
use super::http::head::HeadError;
use super::http::headers::NamedError;
use super::relay::PassError;
use super::stamped_request::RequestError;
use super::workspace::connection::ConnectError;
use crate::refusal::Refusal;
use crate::resolver::ResolveError;

/// How many interim responses (1xx) one request may get. Servers send one or two.
pub(super) const MAX_INTERIM: usize = 16;

/// Why a request gets no response from a workspace.
#[derive(Debug, Error)]
pub(super) enum ExchangeFailure {
    #[error("request: {0}")]
    Request(#[from] RequestError),
    #[error("request: {0}")]
    Body(ChunkError),
    /// Such a worker would stay in the browser and answer the next user of this origin.
    #[error(
        "request: a service worker's script whose scope would be the whole origin or the applications behind the editor's port proxy"
    )]
    SharedWorker,
    #[error("request: the head was not complete in time")]
    Late,
    #[error("request: nothing of the body arrived for {0:?}")]
    LateBody(Duration),
    #[error("gateway: the limit of {0} requests under way and tunnels is reached")]
    Busy(usize),
    #[error("subject: the limit of {0} requests under way and tunnels is reached")]
    SubjectBusy(usize),
    /// Few places are left, and they are for subjects that have fewer.
    #[error(
        "subject: it has {open} requests under way and tunnels, and {free} places are left for all subjects"
    )]
    UnfairShare { open: usize, free: usize },
    #[error("resolver: {0}")]
    Resolve(#[from] ResolveError),
    #[error("workspace: {0}")]
    Connect(#[from] ConnectError),
    /// The workspace has taken nothing of the request.
    #[error("workspace: it accepted nothing of the request within {0:?}")]
    Silent(Duration),
    /// The workspace has taken the request, or a part of it, and may be working on it.
    #[error("workspace: no response head within {0:?}")]
    Unanswered(Duration),
    /// Not a byte of the request was written.
    #[error("workspace: {0}")]
    Unsent(#[source] io::Error),
    #[error("workspace: {0}")]
    Broken(#[source] io::Error),
    /// The workspace, or a proxy before it, answered 503 without a page for people.
    #[error("workspace: status 503 without a page")]
    NotReady,
    #[error("workspace: {0}")]
    Response(#[from] ResponseError),
    /// No client is left to answer.
    #[error("gateway: it closed the connection before the response was complete")]
    Gone,
    /// The response has begun, so no refusal can be sent.
    #[error("{0}")]
    BrokenOff(String),
}

/// Why a workspace's response is not passed on.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(super) enum ResponseError {
    #[error("{0}")]
    Head(#[from] HeadError),
    #[error("{0}")]
    Framing(#[from] FramingError),
    #[error("{0}")]
    Named(#[from] NamedError),
    #[error("an upgrade that the request did not ask for")]
    UnaskedUpgrade,
    #[error("more than {MAX_INTERIM} interim responses")]
    Interim,
    #[error("the head was not complete in time")]
    Late,
}

impl ExchangeFailure {
    /// The rest of a workspace's response is missing or malformed.
    pub(super) fn broken_off(error: &PassError) -> Self {
        Self::BrokenOff(format!("workspace: {error}"))
    }

    /// This failure after something of a response was sent.
    pub(super) fn behind_a_beginning(self) -> Self {
        match self {
            Self::Gone | Self::BrokenOff(_) => self,
            other => Self::BrokenOff(other.to_string()),
        }
    }

    /// The refusal that the client gets, or `None` if it can get none.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        Some(match self {
            Self::Request(RequestError::Stamp { .. }) => Refusal::StampRefused,
            Self::Request(RequestError::Head(HeadError::TooLong)) => Refusal::HeadTooLong,
            Self::Request(RequestError::Head(HeadError::TooManyFields)) => Refusal::TooManyHeaders,
            Self::SharedWorker => Refusal::WorkerRefused,
            Self::Request(_) | Self::Body(_) => Refusal::RequestMalformed,
            Self::Late | Self::LateBody(_) => Refusal::RequestLate,
            Self::Busy(_) | Self::Connect(ConnectError::NoMeans(_)) => Refusal::RunnerBusy,
            Self::SubjectBusy(_) | Self::UnfairShare { .. } => Refusal::TooManyConnections,
            Self::Resolve(ResolveError::NotFound) => Refusal::WorkspaceNotFound,
            Self::Resolve(ResolveError::NotAllowed) => Refusal::AddressNotAllowed,
            Self::Resolve(ResolveError::Unavailable) => Refusal::ResolverUnavailable,
            Self::Connect(ConnectError::Tls(_)) => Refusal::WorkspaceFailed,
            Self::Connect(_) | Self::Silent(_) | Self::NotReady => Refusal::WorkspaceStarting,
            Self::Unanswered(_) => Refusal::WorkspaceTimeout,
            Self::Unsent(_) | Self::Broken(_) | Self::Response(_) => Refusal::WorkspaceFailed,
            Self::Gone | Self::BrokenOff(_) => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forwarder::http::framing::Framing;
    use crate::route::stamp::StampError;

    #[track_caller]
    fn check(failure: impl Into<ExchangeFailure>, code: &str, text: &str) {
        let failure = failure.into();
        let told = failure.refusal().map_or("", Refusal::code);
        assert_eq!((told, failure.to_string().as_str()), (code, text));
    }

    #[test]
    fn failures_are_refused_and_worded_by_whose_they_are() {
        let wait = Duration::from_secs(6);
        let reset = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let stamp = |error| RequestError::Stamp { error, framing: Framing::None, is_last: false };
        check(stamp(StampError::Missing), "stamp-refused", "request: no stamp");
        check(stamp(StampError::Expired), "stamp-refused", "request: expired");
        check(
            ExchangeFailure::SharedWorker,
            "worker-refused",
            "request: a service worker's script whose scope would be the whole origin or the applications behind the editor's port proxy",
        );
        check(RequestError::Connect, "request-malformed", "request: the method is CONNECT");
        check(
            RequestError::from(HeadError::TooManyFields),
            "too-many-headers",
            "request: the head has more than 200 header lines",
        );
        check(ExchangeFailure::Late, "request-late", "request: the head was not complete in time");
        check(ExchangeFailure::LateBody(wait), "request-late", "request: nothing of the body arrived for 6s");
        check(
            ExchangeFailure::Busy(7),
            "runner-busy",
            "gateway: the limit of 7 requests under way and tunnels is reached",
        );
        check(
            ExchangeFailure::SubjectBusy(7),
            "too-many-connections",
            "subject: the limit of 7 requests under way and tunnels is reached",
        );
        check(
            ExchangeFailure::UnfairShare { open: 7, free: 5 },
            "too-many-connections",
            "subject: it has 7 requests under way and tunnels, and 5 places are left for all subjects",
        );
        check(ResolveError::NotFound, "workspace-not-found", "resolver: the name does not exist");
        check(ResolveError::Unavailable, "resolver-unavailable", "resolver: no name server could say");
        check(ConnectError::Timeout(wait), "workspace-starting", "workspace: no connection within 6s");
        check(
            ConnectError::Refused(reset()),
            "workspace-starting",
            "workspace: no connection: connection refused",
        );
        check(
            ConnectError::Tls(reset()),
            "workspace-failed",
            "workspace: no TLS connection: connection refused",
        );
        let no_means = ConnectError::from(io::Error::from_raw_os_error(nix::libc::EMFILE));
        check(
            no_means,
            "runner-busy",
            "workspace: this machine can't open another connection: Too many open files (os error 24)",
        );
        check(
            ExchangeFailure::Silent(wait),
            "workspace-starting",
            "workspace: it accepted nothing of the request within 6s",
        );
        check(
            ExchangeFailure::Unanswered(wait),
            "workspace-timeout",
            "workspace: no response head within 6s",
        );
        check(ExchangeFailure::NotReady, "workspace-starting", "workspace: status 503 without a page");
        check(ExchangeFailure::Broken(reset()), "workspace-failed", "workspace: connection refused");
        check(
            ResponseError::UnaskedUpgrade,
            "workspace-failed",
            "workspace: an upgrade that the request did not ask for",
        );
        check(
            ExchangeFailure::Gone,
            "",
            "gateway: it closed the connection before the response was complete",
        );
        check(ExchangeFailure::broken_off(&PassError::Ended), "", "workspace: the body ended too early");
        check(
            ExchangeFailure::Unanswered(wait).behind_a_beginning(),
            "",
            "workspace: no response head within 6s",
        );
        check(
            ExchangeFailure::Gone.behind_a_beginning(),
            "",
            "gateway: it closed the connection before the response was complete",
        );
    }
}
