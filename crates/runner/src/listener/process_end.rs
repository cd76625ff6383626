//! The end of another process, as an event.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::process::{Pid, PidfdFlags, getppid, pidfd_open};
use tokio::io::unix::AsyncFd;
use tokio::time::interval;

use crate::listener::event_descriptor::register;

/// How often the parent is looked at on a kernel without pidfds (before Linux 5.3).
const PARENT_CHECK: Duration = Duration::from_millis(250);

/// Returns once this process has another parent than this one. Never returns without a
/// parent.
///
/// ```
/// use apisix_plugin_runner::listener::death_of;
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// // Nothing is waited for here: this process is not its own parent.
/// let own = rustix::process::getpid();
/// assert_eq!(death_of(Some(own)).await, own);
/// # });
/// ```
pub async fn death_of(parent: Option<Pid>) -> Pid {
    let Some(parent) = parent else { return std::future::pending().await };
    end_of(parent, || getppid() != Some(parent)).await;
    parent
}

/// Returns once a process has ended. On a kernel without pidfds (before Linux 5.3), it asks
/// `has_ended` four times a second.
///
/// ```
/// use apisix_plugin_runner::listener::end_of;
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let mut child = std::process::Command::new("true").spawn()?;
/// let process = rustix::process::Pid::from_child(&child);
/// end_of(process, || false).await;
/// assert!(child.wait()?.success());
/// # Ok::<(), std::io::Error>(())
/// # }).unwrap();
/// ```
pub async fn end_of(process: Pid, has_ended: impl Fn() -> bool) {
    if let Ok(watched) = watched(process) {
        // The number could be another process's by now, so it is compared once more.
        if has_ended() {
            return;
        }
        let _ = watched.readable().await;
        return;
    }
    let mut looks = interval(PARENT_CHECK);
    while !has_ended() {
        looks.tick().await;
    }
}

/// A descriptor that becomes readable when the process ends.
fn watched(process: Pid) -> io::Result<AsyncFd<OwnedFd>> {
    register(pidfd_open(process, PidfdFlags::NONBLOCK)?)
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use crate::single_poll::now_or_never;

    #[tokio::test]
    #[allow(clippy::disallowed_methods)] // a test may start a process
    async fn the_end_of_a_process_is_an_event() {
        let mut child = std::process::Command::new("sleep").arg("1000").spawn().unwrap();
        let mut end = pin!(end_of(Pid::from_child(&child), || false));
        assert!(now_or_never(end.as_mut()).is_none());
        child.kill().unwrap();
        end.await;
        child.wait().unwrap();
    }

    #[tokio::test]
    async fn a_parent_that_is_another_by_now_has_ended() {
        let other = Pid::from_raw(i32::MAX).unwrap();
        assert_eq!(death_of(Some(other)).await, other);
        assert!(now_or_never(pin!(death_of(getppid()))).is_none());
        assert!(now_or_never(pin!(death_of(None))).is_none());
    }
}
