//! Why a user's identity is not known.

use thiserror::Error;

use super::identity_headers::HeadersError;
use super::keys::VerifyError;
use super::token::TokenError;
use super::userinfo::UserinfoError;

/// Why a user's identity is not known.
///
/// ```
/// use kube_coders_identity::identity_error::IdentityError;
/// use kube_coders_identity::token::TokenError;
///
/// let expired = IdentityError::from(TokenError::Expired);
/// assert!(expired.is_lasting(), "it stays expired");
/// assert!(!IdentityError::from(TokenError::NotYetValid).is_lasting());
/// ```
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum IdentityError {
    /// The gateway is trusted, and the request does not carry its header.
    #[error("the request has no x-userinfo")]
    NoUserinfo,
    /// A token is required, and none of the headers that may hold one is there.
    #[error("the request has no token in any header of identity.token")]
    NoToken,
    /// The headers could be read in more than one way.
    #[error(transparent)]
    Headers(#[from] HeadersError),
    /// `x-userinfo` can't be decoded.
    #[error(transparent)]
    Userinfo(#[from] UserinfoError),
    /// The token is rejected.
    #[error(transparent)]
    Token(#[from] TokenError),
    /// The two sources of claims describe different users.
    #[error("x-userinfo has another `sub` than the token")]
    Mismatch,
    /// The issuer's keys could not be fetched, so no signature can be checked.
    #[error("the issuer's keys are not available")]
    KeysUnavailable,
}

impl From<VerifyError> for IdentityError {
    fn from(error: VerifyError) -> Self {
        match error {
            VerifyError::KeysUnavailable => Self::KeysUnavailable,
            VerifyError::Token(error) => Self::Token(error),
        }
    }
}

impl IdentityError {
    /// Whether the same headers lead to this error again, even after a moment and with new
    /// keys.
    pub fn is_lasting(&self) -> bool {
        match self {
            Self::Token(error) => {
                !matches!(error, TokenError::UnknownKey | TokenError::NotYetValid | TokenError::FromTheFuture)
            }
            Self::Mismatch => true,
            _ => false,
        }
    }
}
