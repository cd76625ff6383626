//! Why a name has no address.

use thiserror::Error;

/// Why a name has no address.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum ResolveError {
    #[error("the name does not exist")]
    NotFound,
    #[error("no name server could say")]
    Unavailable,
    #[error(
        "the name has only addresses that no workspace has, such as loopback or the machine's own; \
         --allow-address permits them"
    )]
    NotAllowed,
}
