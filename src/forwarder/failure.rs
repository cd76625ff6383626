//! What can go wrong with a request, whose fault it is, and what the client is told.

use std::io;
use std::time::Duration;

use thiserror::Error;

use super::asked::AskedError;
use super::chunked::ChunkError;
use super::framing::FramingError;
use super::head::HeadError;
use super::headers::NamedError;
use super::relay::PassError;
use super::workspace::ConnectError;
use crate::refusal::Refusal;
use crate::resolver::ResolveError;

/// How many interim responses (1xx) one request may get. Servers send one or two.
pub(super) const MAX_INTERIM: usize = 16;

/// Why a request gets no response from a workspace.
#[derive(Debug, Error)]
pub(super) enum Failure {
    #[error("request: {0}")]
    Asked(#[from] AskedError),
    #[error("request: {0}")]
    Body(ChunkError),
    #[error("request: its head was not whole in time")]
    Late,
    #[error("request: nothing came of its body for {0:?}")]
    LateBody(Duration),
    #[error("gateway: {0} requests under way and tunnels, as many as there may be")]
    Busy(usize),
    #[error("subject: {0} requests under way and tunnels, as many as there may be")]
    SubjectBusy(usize),
    #[error("resolver: {0}")]
    Resolve(#[from] ResolveError),
    #[error("workspace: {0}")]
    Connect(#[from] ConnectError),
    #[error("workspace: no response head within {0:?}")]
    Silent(Duration),
    /// Not a byte was written on its connection.
    #[error("workspace: {0}")]
    Unsent(#[source] io::Error),
    #[error("workspace: {0}")]
    Broken(#[source] io::Error),
    /// Its own word, or that of something before it, in no form for a person.
    #[error("workspace: status 503 and no page")]
    NotReady,
    #[error("workspace: {0}")]
    Response(#[from] ResponseError),
    /// Nobody is there who could be answered.
    #[error("gateway: gone before the response was whole")]
    Gone,
    /// A response that has begun can't be taken back.
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
    #[error("an upgrade that nobody asked for")]
    UnaskedUpgrade,
    #[error("more than {MAX_INTERIM} interim responses")]
    Interim,
    #[error("its head was not whole in time")]
    Late,
}

impl Failure {
    /// What is wrong with the rest of a workspace's response.
    pub(super) fn broken_off(error: &PassError) -> Self {
        Self::BrokenOff(format!("workspace: {error}"))
    }

    /// The same failure, where something of a response has gone out before it.
    pub(super) fn behind_a_beginning(self) -> Self {
        match self {
            Self::Gone | Self::BrokenOff(_) => self,
            other => Self::BrokenOff(other.to_string()),
        }
    }

    /// The response to the client; `None` where there is no use in one.
    pub(super) fn refusal(&self) -> Option<Refusal> {
        Some(match self {
            Self::Asked(AskedError::Stamp { .. }) => Refusal::StampRefused,
            Self::Asked(AskedError::Head(HeadError::TooLong | HeadError::TooManyFields)) => {
                Refusal::TooManyHeaders
            }
            Self::Asked(_) | Self::Body(_) => Refusal::RequestMalformed,
            Self::Late | Self::LateBody(_) => Refusal::RequestLate,
            Self::Busy(_) | Self::Connect(ConnectError::NoMeans(_)) => Refusal::RunnerBusy,
            Self::SubjectBusy(_) => Refusal::TooManyConnections,
            Self::Resolve(ResolveError::NotFound) => Refusal::WorkspaceNotFound,
            Self::Resolve(ResolveError::Unavailable) => Refusal::ResolverUnavailable,
            Self::Connect(ConnectError::Tls(_)) => Refusal::WorkspaceFailed,
            Self::Connect(_) | Self::Silent(_) | Self::NotReady => Refusal::WorkspaceStarting,
            Self::Unsent(_) | Self::Broken(_) | Self::Response(_) => Refusal::WorkspaceFailed,
            Self::Gone | Self::BrokenOff(_) => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::forwarder::framing::Framing;
    use crate::stamp::StampError;

    #[track_caller]
    fn check(failure: impl Into<Failure>, code: &str, text: &str) {
        let failure = failure.into();
        let told = failure.refusal().map_or("", Refusal::code);
        assert_eq!((told, failure.to_string().as_str()), (code, text));
    }

    #[test]
    fn failures_are_refused_and_worded_by_whose_they_are() {
        let wait = Duration::from_secs(6);
        let reset = || io::Error::from(io::ErrorKind::ConnectionRefused);
        let stamp = |error| AskedError::Stamp { error, framing: Framing::None, is_last: false };
        check(stamp(StampError::Missing), "stamp-refused", "request: no stamp");
        check(stamp(StampError::Expired), "stamp-refused", "request: expired");
        check(AskedError::Connect, "request-malformed", "request: the method is CONNECT");
        check(
            AskedError::from(HeadError::TooManyFields),
            "too-many-headers",
            "request: the head has more than 200 header lines",
        );
        check(Failure::Late, "request-late", "request: its head was not whole in time");
        check(Failure::LateBody(wait), "request-late", "request: nothing came of its body for 6s");
        check(
            Failure::Busy(7),
            "runner-busy",
            "gateway: 7 requests under way and tunnels, as many as there may be",
        );
        check(
            Failure::SubjectBusy(7),
            "too-many-connections",
            "subject: 7 requests under way and tunnels, as many as there may be",
        );
        check(ResolveError::NotFound, "workspace-not-found", "resolver: the name does not exist");
        check(ResolveError::Unavailable, "resolver-unavailable", "resolver: no name server could say");
        check(ConnectError::Timeout(wait), "workspace-starting", "workspace: no connection within 6s");
        check(
            ConnectError::Refused(reset()),
            "workspace-starting",
            "workspace: no connection: connection refused",
        );
        check(ConnectError::Tls(reset()), "workspace-failed", "workspace: no TLS: connection refused");
        let no_means = ConnectError::from(io::Error::from_raw_os_error(nix::libc::EMFILE));
        check(
            no_means,
            "runner-busy",
            "workspace: this machine has no means for a connection: Too many open files (os error 24)",
        );
        check(Failure::Silent(wait), "workspace-starting", "workspace: no response head within 6s");
        check(Failure::NotReady, "workspace-starting", "workspace: status 503 and no page");
        check(Failure::Broken(reset()), "workspace-failed", "workspace: connection refused");
        check(
            ResponseError::UnaskedUpgrade,
            "workspace-failed",
            "workspace: an upgrade that nobody asked for",
        );
        check(Failure::Gone, "", "gateway: gone before the response was whole");
        check(Failure::broken_off(&PassError::Ended), "", "workspace: the body ended too early");
        check(Failure::Silent(wait).behind_a_beginning(), "", "workspace: no response head within 6s");
        check(Failure::Gone.behind_a_beginning(), "", "gateway: gone before the response was whole");
    }
}
