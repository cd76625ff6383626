//! Who is asking: from what a request presents to claims that are believed.

use std::time::Duration;

use thiserror::Error;

use super::claims::{Claims, ClaimsError, Wanted};
use super::config::Verified;
use super::keys::{Issuer, VerifyError};
use super::presented::{HeadersError, Presented};
use super::token::{Token, TokenError};
use super::userinfo::{self, UserinfoError};
use crate::refusal::Refusal;

/// What is said at most of how long a token is still good, in seconds. Nobody
/// remembers one for so long.
const MAX_GOOD_FOR: f64 = 86_400.0;

/// Claims that are believed.
#[derive(Debug, PartialEq)]
pub(crate) struct Identity {
    pub(crate) claims: Claims,
    /// How long a token is still good; `None` where there is none.
    pub(crate) good_for: Option<Duration>,
}

impl Identity {
    /// Believes the gateway's `X-Userinfo`.
    pub(crate) fn of_userinfo(presented: &Presented<'_>, wanted: &Wanted) -> Result<Self, IdentityError> {
        let userinfo = presented.userinfo.ok_or(IdentityError::NoUserinfo)?;
        Ok(Self { claims: userinfo::decode(userinfo, wanted)?, good_for: None })
    }

    /// Believes a token, if the issuer signed it, for us, and now is its time,
    /// given in seconds since 1970.
    pub(crate) async fn of_token(
        presented: &Presented<'_>,
        wanted: &Wanted,
        verified: &Verified,
        issuer: &Issuer,
        now: f64,
    ) -> Result<Self, IdentityError> {
        let token = presented.token.ok_or(IdentityError::NoToken)?;
        let token = Token::decode(token.text, wanted)?;
        let expires = token.check(&verified.expected, now)?;
        let claims = issuer.verify(token).await?;
        let claims = claims.with_subject().map_err(TokenError::Claims)?;
        let claims = with_userinfo(claims, presented.userinfo, wanted, verified)?;
        let good_for =
            Duration::try_from_secs_f64((expires - now).clamp(0.0, MAX_GOOD_FOR)).unwrap_or_default();
        Ok(Self { claims, good_for: Some(good_for) })
    }
}

/// Adds what the userinfo may add, if it is of the same subject. The token's own
/// claims stay: they are signed, and fresh where the userinfo is from the login.
pub(crate) fn with_userinfo(
    mut claims: Claims,
    userinfo: Option<&[u8]>,
    wanted: &Wanted,
    verified: &Verified,
) -> Result<Claims, IdentityError> {
    let Some(userinfo) = userinfo else { return Ok(claims) };
    let others = match userinfo::decode(userinfo, wanted) {
        Ok(others) => others,
        Err(UserinfoError::Claims(ClaimsError::Subject)) => return Err(IdentityError::Mismatch),
        Err(error) => return Err(error.into()),
    };
    if others.subject() != claims.subject() {
        return Err(IdentityError::Mismatch);
    }
    claims.add(others, &verified.userinfo_claims);
    Ok(claims)
}

/// Why nobody knows who is asking.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub(crate) enum IdentityError {
    #[error("the request has no x-userinfo")]
    NoUserinfo,
    #[error("the request has no token in any header of identity.token")]
    NoToken,
    #[error(transparent)]
    Headers(#[from] HeadersError),
    #[error(transparent)]
    Userinfo(#[from] UserinfoError),
    #[error(transparent)]
    Token(#[from] TokenError),
    #[error("x-userinfo has another `sub` than the token")]
    Mismatch,
    #[error("the issuer's keys can't be had")]
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
    /// The answer to the client.
    pub(crate) fn refusal(&self) -> Refusal {
        match self {
            Self::NoUserinfo | Self::NoToken => Refusal::IdentityMissing,
            Self::Userinfo(UserinfoError::Claims(ClaimsError::Subject))
            | Self::Token(TokenError::Claims(ClaimsError::Subject)) => Refusal::NoWorkspaceName,
            Self::Headers(_) | Self::Userinfo(_) | Self::Token(TokenError::TooLong) => {
                Refusal::IdentityMalformed
            }
            Self::Token(_) => Refusal::TokenInvalid,
            Self::Mismatch => Refusal::IdentityMismatch,
            Self::KeysUnavailable => Refusal::KeysUnavailable,
        }
    }

    /// Whether the same headers come to the same for a while, whoever's clock
    /// goes on and whatever keys come.
    pub(crate) fn is_lasting(&self) -> bool {
        match self {
            Self::Token(error) => {
                !matches!(error, TokenError::UnknownKey | TokenError::NotYetValid | TokenError::FromTheFuture)
            }
            Self::Mismatch => true,
            _ => false,
        }
    }
}
