//! Why an identity goes to no workspace, and which refusal says so.

use thiserror::Error;

use crate::refusal::Refusal;
use kube_coders_identity::policy::Denied;
use kube_coders_identity::template::RenderError;

/// Why an identity goes nowhere.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum DecisionError {
    #[error("`sub` can't be a header's value: it has control characters, or spaces around it")]
    Subject,
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Render(#[from] RenderError),
}

impl DecisionError {
    /// The answer to the client.
    pub(super) fn refusal(&self) -> Refusal {
        match self {
            Self::Subject => Refusal::IdentityMalformed,
            Self::Denied(_) => Refusal::NotAllowed,
            Self::Render(_) => Refusal::NoWorkspaceName,
        }
    }
}
