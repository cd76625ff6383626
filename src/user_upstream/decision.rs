//! Where an identity goes: nothing but claims and conf decides it.

use thiserror::Error;
use tokio::time::Instant;

use super::claims::Claims;
use super::config::UserUpstreamConfig;
use super::label::MAX_VALUE;
use super::policy::Denied;
use super::template::RenderError;
use crate::refusal::Refusal;
use crate::upstream::Upstream;

/// Who is asking, as the workspace will see them, and where they go.
#[derive(Debug)]
pub(crate) struct Decision {
    /// With the subject, which a header can hold.
    pub(crate) upstream: Upstream,
    /// The user name, if there is one of up to 255 characters that a header can hold.
    pub(crate) username: Option<Box<str>>,
    /// When the token's time is over, if it was a token's word.
    pub(crate) good_until: Option<Instant>,
}

impl Decision {
    pub(crate) fn of(config: &UserUpstreamConfig, claims: &Claims) -> Result<Self, DecisionError> {
        if !is_header_text(claims.subject()) {
            return Err(DecisionError::Subject);
        }
        config.policy.decide(claims)?;
        let upstream = config.upstream.render(claims)?.with_timeouts(config.timeouts);
        let upstream = match config.upstream_mode {
            Some(mode) => upstream.in_mode(mode),
            None => upstream,
        };
        Ok(Self {
            upstream: upstream.for_subject(claims.subject()).expect("a subject that is 1 to 255 characters"),
            username: claims.username().filter(|name| is_short_header_text(name)).map(Box::from),
            good_until: None,
        })
    }
}

/// Whether a text can stand in a header as it is. A user name is its owner's to
/// choose, and no reason to turn them away.
fn is_header_text(text: &str) -> bool {
    // Spaces around it are not the value's (RFC 9110, section 5.5), so " a" would arrive as "a".
    !text.is_empty() && text.trim() == text && !text.chars().any(char::is_control)
}

/// Whether a text can stand in a header, and is no longer than a subject: names are
/// remembered, and their owners choose them.
fn is_short_header_text(text: &str) -> bool {
    is_header_text(text) && text.chars().nth(MAX_VALUE).is_none()
}

/// Why an identity goes nowhere.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum DecisionError {
    #[error("`sub` can't stand in a header: it has control characters, or spaces around it")]
    Subject,
    #[error(transparent)]
    Denied(#[from] Denied),
    #[error(transparent)]
    Render(#[from] RenderError),
}

impl DecisionError {
    /// The answer to the client.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::Subject => Refusal::IdentityMalformed,
            Self::Denied(_) => Refusal::NotAllowed,
            Self::Render(_) => Refusal::NoWorkspaceName,
        }
    }
}
