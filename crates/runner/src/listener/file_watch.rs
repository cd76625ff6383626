//! Notices that a socket's file is gone, or that nothing listens at it any more.

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::inotify;
use rustix::io::read;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;
use tokio_util::sync::CancellationToken;

use crate::listener::event_descriptor::register;
use crate::listener::socket_file::{PathOwner, Watched};
use crate::listener::takeover::Succession;

/// How often the file is looked at if the kernel reports nothing: on a file system without
/// inotify, such as one that another machine changes.
const LOOK: Duration = Duration::from_secs(1);

/// How often the file is looked at in addition to the kernel's events, which do not report
/// that a folder above was renamed, or that a file system was mounted over it.
const UNSEEN: Duration = Duration::from_secs(10);

/// How often another runner's socket is tried until that runner has said that it serves.
/// A runner that is killed leaves its file without an event.
const PROBE: Duration = Duration::from_secs(1);

/// Returns when a socket's file is gone, or leads nowhere because the runner that had
/// taken it over was killed; never once everything is to end.
///
/// `on_taken` runs when another runner takes the path over.
pub(crate) async fn gone(
    watched: &Watched,
    succession: &Succession,
    stop: &CancellationToken,
    on_taken: impl Fn(),
) {
    let events = FolderEvents::new(watched.folder());
    let mut successors = succession.changes();
    let mut is_logged = false;
    loop {
        match watched.owner() {
            PathOwner::ThisRunner => is_logged = false,
            PathOwner::OtherRunner if succession.is_ready() => is_logged = true,
            PathOwner::OtherRunner => {
                if !is_logged {
                    on_taken();
                }
                is_logged = true;
                if watched.leads_nowhere().await {
                    return;
                }
            }
            PathOwner::None => return,
        }
        let is_other_runners = watched.owner() == PathOwner::OtherRunner;
        let next = async {
            match &events {
                // A killed successor leaves no event.
                Ok(events) if is_other_runners => tokio::select! {
                    () = events.next() => {}
                    // Its end closes the takeover's connection.
                    _ = successors.changed() => {}
                    () = sleep(PROBE) => {}
                },
                Ok(events) => tokio::select! {
                    () = events.next() => {}
                    () = sleep(UNSEEN) => {}
                },
                Err(_) => sleep(LOOK).await,
            }
        };
        if stop.run_until_cancelled(next).await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

/// The kernel's word that a name in a folder has come, gone or changed (inotify(7)).
struct FolderEvents(AsyncFd<OwnedFd>);

impl FolderEvents {
    fn new(folder: &Path) -> io::Result<Self> {
        let descriptor = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
        let changes = inotify::WatchFlags::CREATE
            | inotify::WatchFlags::DELETE
            | inotify::WatchFlags::MOVED_FROM
            | inotify::WatchFlags::MOVED_TO
            | inotify::WatchFlags::DELETE_SELF
            | inotify::WatchFlags::MOVE_SELF;
        inotify::add_watch(&descriptor, folder, changes)?;
        Ok(Self(register(descriptor)?))
    }

    /// Returns after the next changes, and discards them.
    async fn next(&self) {
        let forget = |descriptor: &OwnedFd| {
            let mut events = [0; 4096];
            Ok(read(descriptor, &mut events[..])?)
        };
        // An event that can't be read must not make this loop spin.
        if self.0.async_io(Interest::READABLE, forget).await.is_err() {
            sleep(LOOK).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::listener::socket_file::SocketFile;

    #[tokio::test]
    async fn a_file_that_goes_is_noticed_by_the_event() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("runner.sock");
        let file = SocketFile { path: path.clone(), mode: 0o600, owner: None, group: None };
        let (_listener, bound) = file.bind().unwrap();
        let (watched, succession, stop) = (bound.watched(), Succession::new(None), CancellationToken::new());
        let mut gone = std::pin::pin!(gone(&watched, &succession, &stop, || panic!("not taken over")));
        assert!(crate::single_poll::now_or_never(gone.as_mut()).is_none());
        std::fs::write(folder.path().join("other"), "").unwrap();
        tokio::task::yield_now().await;
        assert!(
            crate::single_poll::now_or_never(gone.as_mut()).is_none(),
            "another file's change is no reason"
        );
        std::fs::remove_file(path).unwrap();
        gone.await;
    }
}
