//! Why a request goes to no workspace, and what the client is told.

use thiserror::Error;

use super::decision::DecisionError;
use super::identity::IdentityError;
use crate::refusal::Refusal;
use crate::resolver::ResolveError;

/// How many headers the gateway shows at most (GATEWAY.md, HTTPReqCall). It hides
/// those behind them, and the ones that its own plugins add come last.
pub(crate) const MAX_FRAME_HEADERS: usize = 100;

/// Why a request goes to no workspace.
#[derive(Clone, Debug, Error)]
pub(crate) enum Refused {
    #[error("the request has {MAX_FRAME_HEADERS} headers or more, and the gateway hides the rest")]
    TooManyHeaders,
    #[error("a page of another origin opens a WebSocket")]
    ForeignOrigin,
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error(transparent)]
    Decision(#[from] DecisionError),
    #[error(transparent)]
    Resolve(#[from] ResolveError),
}

impl Refused {
    /// The answer to the client.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::TooManyHeaders => Refusal::TooManyHeaders,
            Self::ForeignOrigin => Refusal::ForeignOrigin,
            Self::Identity(error) => error.refusal(),
            Self::Decision(error) => error.refusal(),
            Self::Resolve(ResolveError::NotFound) => Refusal::WorkspaceNotFound,
            Self::Resolve(ResolveError::Unavailable) => Refusal::ResolverUnavailable,
        }
    }

    /// Whether the same identity headers come to the same for a while, however
    /// clocks go on and whatever keys come.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::Identity(error) => error.is_lasting(),
            Self::Decision(_) => true,
            Self::TooManyHeaders | Self::ForeignOrigin | Self::Resolve(_) => false,
        }
    }
}
