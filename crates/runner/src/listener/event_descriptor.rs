//! A descriptor of the kernel's whose readiness is an event, such as a pidfd.

use std::io;
use std::os::fd::OwnedFd;

use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime.
pub(crate) fn register(descriptor: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // The replacement is an unsafe function, for types whose descriptor can change. An
    // `OwnedFd` keeps its descriptor until it is dropped.
    #[allow(deprecated)]
    AsyncFd::with_interest(descriptor, Interest::READABLE)
}
