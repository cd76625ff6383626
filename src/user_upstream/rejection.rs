//! Why a request goes to no workspace, and what the client is told.

use thiserror::Error;

use super::decision_error::DecisionError;
use crate::refusal::Refusal;
use crate::resolver::ResolveError;
use apisix_plugin_runner::{MAX_FRAME_HEADERS, Upstream};
use kube_coders_identity::claims::ClaimsError;
use kube_coders_identity::identity_error::IdentityError;
use kube_coders_identity::token::TokenError;
use kube_coders_identity::userinfo::UserinfoError;

/// Why a request goes to no workspace.
#[derive(Clone, Debug, Error)]
pub(crate) enum Rejection {
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

/// A rejection, and of whom as far as that was known.
#[derive(Clone, Debug)]
pub(crate) struct UserRejection {
    pub(crate) rejection: Rejection,
    pub(crate) user: RejectedUser,
}

/// Whose request was rejected.
#[derive(Clone, Debug, Default)]
pub(crate) enum RejectedUser {
    #[default]
    Unknown,
    /// The issuer's or the gateway's word was believed, and there is no upstream.
    Subject(Box<str>),
    Upstream(Box<Upstream>),
}

impl UserRejection {
    pub(super) fn of_subject(rejection: Rejection, subject: &str) -> Self {
        Self { rejection, user: RejectedUser::Subject(subject.into()) }
    }

    pub(super) fn of_upstream(rejection: Rejection, upstream: &Upstream) -> Self {
        Self { rejection, user: RejectedUser::Upstream(Box::new(upstream.clone())) }
    }
}

impl From<Rejection> for UserRejection {
    fn from(rejection: Rejection) -> Self {
        Self { rejection, user: RejectedUser::Unknown }
    }
}

impl Rejection {
    /// The answer to the client.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::TooManyHeaders => Refusal::TooManyHeaders,
            Self::ForeignOrigin => Refusal::ForeignOrigin,
            Self::Identity(error) => identity_refusal(error),
            Self::Decision(error) => error.refusal(),
            Self::Resolve(ResolveError::NotFound) => Refusal::WorkspaceNotFound,
            Self::Resolve(ResolveError::NotAllowed) => Refusal::AddressNotAllowed,
            Self::Resolve(ResolveError::Unavailable) => Refusal::ResolverUnavailable,
        }
    }

    /// Whether the same identity headers give the same rejection for a while, whatever the
    /// time and whichever keys arrive.
    pub(super) fn is_lasting(&self) -> bool {
        match self {
            Self::Identity(error) => error.is_lasting(),
            Self::Decision(_) => true,
            Self::TooManyHeaders | Self::ForeignOrigin | Self::Resolve(_) => false,
        }
    }
}

fn identity_refusal(error: &IdentityError) -> Refusal {
    match error {
        IdentityError::NoUserinfo | IdentityError::NoToken => Refusal::IdentityMissing,
        IdentityError::Userinfo(UserinfoError::Claims(ClaimsError::Subject))
        | IdentityError::Token(TokenError::Claims(ClaimsError::Subject)) => Refusal::NoWorkspaceName,
        IdentityError::Userinfo(UserinfoError::TooLong) | IdentityError::Token(TokenError::TooLong) => {
            Refusal::IdentityTooLarge
        }
        IdentityError::Headers(_) | IdentityError::Userinfo(_) => Refusal::IdentityMalformed,
        IdentityError::Token(_) => Refusal::TokenInvalid,
        IdentityError::Mismatch => Refusal::IdentityMismatch,
        IdentityError::KeysUnavailable => Refusal::KeysUnavailable,
    }
}
