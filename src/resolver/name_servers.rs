//! Which name servers a resolver asks.

use std::net::SocketAddr;

use hickory_resolver::net::NetError;
use thiserror::Error;

/// The source of names.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub(crate) enum NameServers {
    /// The system's resolv.conf and hosts file.
    System,
    /// These servers, over UDP, and over TCP if an answer is too long. There is no hosts file,
    /// and the system has no search domains.
    Listed(Vec<SocketAddr>),
}

/// Why names can't be looked up at all.
#[derive(Debug, Error)]
pub(crate) enum NameServersError {
    #[error("the system's name servers can't be read from /etc/resolv.conf: {0}")]
    System(NetError),
    #[error("no name server is listed")]
    None,
    #[error("names can't be looked up: {0}")]
    Start(NetError),
}
