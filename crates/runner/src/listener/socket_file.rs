//! The unix socket's file. It is bound in the same folder under another name, and then
//! renamed to its path, so there is never a moment without a listener.

use std::fs;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _, chown};
use std::os::unix::net::UnixListener as StdListener;
use std::path::{Path, PathBuf};
use std::time::Duration;

use thiserror::Error;
use tokio::net::{UnixListener, UnixStream};
use tokio::time::timeout;

/// How long a socket's path may be, in bytes (unix(7): 108 with a NUL).
const MAX_PATH: usize = 107;

/// How long it may take to see whether a process listens.
const LOOK: Duration = Duration::from_secs(1);

/// How often to try a lock that another process has, and the pause in between.
const LOCK_TRIES: usize = 20;
const LOCK_PAUSE: Duration = Duration::from_millis(2);

/// Where a unix socket is made, and who may open it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct SocketFile {
    /// Its path.
    pub(crate) path: PathBuf,
    /// Permission bits. To connect takes the right to write.
    pub(crate) mode: u32,
    /// The number of its owner, or the user of this process.
    pub(crate) owner: Option<u32>,
    /// The number of its group, or the group of this process.
    pub(crate) group: Option<u32>,
}

/// A socket that listens in the folder of its path under another name, which no client
/// knows yet. Removed on drop.
#[derive(Debug)]
pub(crate) struct PreparedFile {
    listener: StdListener,
    temporary: PathBuf,
    made: Watched,
}

/// A socket's file as it was made; removed on drop if it is still the same.
#[derive(Debug)]
pub(crate) struct BoundFile(Watched);

/// Where a socket's file is now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum PathOwner {
    ThisRunner,
    /// Another runner has taken the path over.
    OtherRunner,
    /// There is no file at the path.
    None,
}

/// A socket's file: its path, and what tells it from other files.
#[derive(Clone, Debug)]
pub(crate) struct Watched {
    path: PathBuf,
    device: u64,
    inode: u64,
}

impl Watched {
    /// PathOwner file is at the path. A path that can't be looked at counts as ours.
    pub(crate) fn owner(&self) -> PathOwner {
        match fs::symlink_metadata(&self.path) {
            Ok(there) if there.dev() == self.device && there.ino() == self.inode => PathOwner::ThisRunner,
            Ok(_) => PathOwner::OtherRunner,
            Err(error) if error.kind() == io::ErrorKind::NotFound => PathOwner::None,
            Err(_) => PathOwner::ThisRunner,
        }
    }

    /// The folder of the file.
    pub(crate) fn folder(&self) -> &Path {
        match self.path.parent() {
            Some(folder) if !folder.as_os_str().is_empty() => folder,
            _ => Path::new("."),
        }
    }

    /// Whether nothing listens at the file at the path.
    pub(crate) async fn leads_nowhere(&self) -> bool {
        let connected = timeout(LOOK, UnixStream::connect(&self.path)).await;
        // A link may lead to nothing at all.
        let kinds = [io::ErrorKind::ConnectionRefused, io::ErrorKind::NotFound];
        matches!(connected, Ok(Err(error)) if kinds.contains(&error.kind()))
    }
}

impl BoundFile {
    /// The mark by which the file is recognised later.
    pub(crate) fn watched(&self) -> Watched {
        self.0.clone()
    }
}

/// Why there is no socket.
///
/// ```
/// use apisix_plugin_runner::listener::BindError;
/// use apisix_plugin_runner::{RunError, Settings, Start};
///
/// # tokio::runtime::Runtime::new().unwrap().block_on(async {
/// let settings = Settings::new("/nonexistent/runner.sock");
/// let prepared = Start::at(&settings).await.prepare();
/// assert!(matches!(prepared, Err(RunError::Socket { error: BindError::NoFolder, .. })));
/// # });
/// ```
#[derive(Debug, Error)]
pub enum BindError {
    /// The path is too long for a unix socket.
    #[error(
        "the path is {0} bytes long (its folder with 11 more, for the name that the socket has at first), and a unix socket's has at most {MAX_PATH}"
    )]
    TooLong(usize),
    /// The path ends in a folder.
    #[error("the path has no file name")]
    NoName,
    /// The folder does not exist.
    #[error("its folder does not exist: make it, or choose another path")]
    NoFolder,
    /// The folder is not writable.
    #[error("the user of this process may not write to its folder")]
    ClosedFolder,
    /// The path belongs to something other than a socket.
    #[error("something else than a socket stands at the path: it is not replaced")]
    NotASocket,
    /// The system refuses a step.
    #[error("{doing}: {error}")]
    Io {
        /// The step.
        doing: &'static str,
        /// What the system said.
        error: io::Error,
    },
}

impl SocketFile {
    /// Listens at the path, in place of the runner that did so before.
    pub(crate) fn bind(&self) -> Result<(UnixListener, BoundFile), BindError> {
        self.prepare()?.take_path()
    }

    /// Does all that can fail before the path is taken from the runner that has it.
    pub(crate) fn prepare(&self) -> Result<PreparedFile, BindError> {
        if fs::symlink_metadata(&self.path).is_ok_and(|there| !there.file_type().is_socket()) {
            return Err(BindError::NotASocket);
        }
        let temporary = self.temporary_path()?;
        let listener = StdListener::bind(&temporary).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => BindError::NoFolder,
            io::ErrorKind::PermissionDenied => BindError::ClosedFolder,
            _ => BindError::Io { doing: "binding", error },
        })?;
        let made = self.furnish(&temporary).inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })?;
        Ok(PreparedFile { listener, temporary, made })
    }

    /// Gives the file its owner and mode before a client can find it by its path.
    fn furnish(&self, temporary: &Path) -> Result<Watched, BindError> {
        let failed = |doing| move |error| BindError::Io { doing, error };
        if self.owner.is_some() || self.group.is_some() {
            chown(temporary, self.owner, self.group)
                .map_err(failed("setting the socket's owner and group"))?;
        }
        // The mode comes last: a change of owner may clear bits of it.
        fs::set_permissions(temporary, fs::Permissions::from_mode(self.mode))
            .map_err(failed("setting the socket's mode"))?;
        let made = fs::symlink_metadata(temporary).map_err(failed("looking at the new socket"))?;
        Ok(Watched { path: self.path.clone(), device: made.dev(), inode: made.ino() })
    }

    fn temporary_path(&self) -> Result<PathBuf, BindError> {
        if self.path.file_name().is_none() {
            return Err(BindError::NoName);
        }
        // Two runners on a shared volume may have the same process id, each in its own container.
        let random = getrandom::u32()
            .map_err(|error| BindError::Io { doing: "naming the new socket", error: error.into() })?;
        let temporary = self.path.with_file_name(format!(".kc{random:08x}"));
        let longest = self.path.as_os_str().len().max(temporary.as_os_str().len());
        if longest > MAX_PATH {
            return Err(BindError::TooLong(longest));
        }
        Ok(temporary)
    }
}

impl PreparedFile {
    /// Takes the path.
    pub(crate) fn take_path(self) -> Result<(UnixListener, BoundFile), BindError> {
        let _locked = lock_folder(&self.made.path);
        self.take_locked_path()
    }

    /// Takes the path in a folder that the caller has locked, or could not lock.
    pub(crate) fn take_locked_path(self) -> Result<(UnixListener, BoundFile), BindError> {
        let failed = |doing| move |error| BindError::Io { doing, error };
        let listener = self.listener.try_clone().map_err(failed("listening"))?;
        listener.set_nonblocking(true).map_err(failed("making the socket non-blocking"))?;
        let listener = UnixListener::from_std(listener).map_err(failed("listening"))?;
        fs::rename(&self.temporary, &self.made.path).map_err(failed("renaming the socket to its path"))?;
        Ok((listener, BoundFile(self.made.clone())))
    }
}

impl Drop for PreparedFile {
    fn drop(&mut self) {
        // The file is gone if it has been renamed to its path.
        let _ = fs::remove_file(&self.temporary);
    }
}

/// Keeps other runners from the socket's folder until it is dropped. `None` if the file
/// system has no locks, or another process keeps this one, as any process that may read the
/// folder can: no runner holds it for longer than a rename takes.
#[allow(clippy::disallowed_methods)] // at most LOCK_TRIES times, as a runner starts or ends
pub(crate) fn lock_folder(path: &Path) -> Option<fs::File> {
    let folder = fs::File::open(path.parent()?).ok()?;
    for _ in 0..LOCK_TRIES {
        match folder.try_lock() {
            Ok(()) => return Some(folder),
            Err(fs::TryLockError::WouldBlock) => std::thread::sleep(LOCK_PAUSE),
            Err(fs::TryLockError::Error(_)) => return None,
        }
    }
    None
}

impl Drop for BoundFile {
    /// A runner that took over has its own file at the path by now, which stays.
    fn drop(&mut self) {
        // Between the look and the removal, no other runner may rename its file to this path.
        let _locked = lock_folder(&self.0.path);
        if self.0.owner() == PathOwner::ThisRunner {
            let _ = fs::remove_file(&self.0.path);
        }
    }
}

#[cfg(test)]
#[allow(clippy::disallowed_methods)]
mod tests {
    use std::os::unix::net::UnixStream as StdUnixStream;

    use super::*;

    fn file(folder: &tempfile::TempDir, mode: u32) -> SocketFile {
        SocketFile { path: folder.path().join("runner.sock"), mode, owner: None, group: None }
    }

    #[tokio::test]
    async fn a_successor_takes_the_path_over_and_keeps_it() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = file(&folder, 0o600);
        let (first, first_file) = file.bind().expect("bound");
        let before = StdUnixStream::connect(&file.path).expect("the first listens");
        let (second, second_file) = file.bind().expect("bound again, while the first listener lives");
        let after = StdUnixStream::connect(&file.path).expect("the second listens");
        first.accept().await.expect("the first's own");
        second.accept().await.expect("the second's own");
        assert_eq!(
            (first_file.watched().owner(), second_file.watched().owner()),
            (PathOwner::OtherRunner, PathOwner::ThisRunner)
        );
        let watched = first_file.watched();
        drop((first, first_file));
        StdUnixStream::connect(&file.path).expect("the first took nothing with it");
        drop((second, second_file, before, after));
        assert_eq!(watched.owner(), PathOwner::None);
        assert_eq!(fs::read_dir(folder.path()).expect("the folder").count(), 0, "nothing is left behind");
    }

    #[tokio::test]
    async fn the_file_has_the_mode_that_was_asked_for() {
        let folder = tempfile::tempdir().expect("a folder");
        for mode in [0o600, 0o660, 0o666] {
            let file = file(&folder, mode);
            let (_listener, _bound) = file.bind().expect("bound");
            let permissions = fs::metadata(&file.path).expect("there").permissions();
            assert_eq!(permissions.mode() & 0o777, mode);
        }
    }

    #[tokio::test]
    async fn another_file_than_a_socket_is_not_replaced() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = file(&folder, 0o600);
        fs::write(&file.path, "precious").expect("written");
        let error = file.bind().expect_err("refused");
        assert_eq!(error.to_string(), "something else than a socket stands at the path: it is not replaced");
        assert_eq!(fs::read(&file.path).expect("still there"), b"precious");
    }

    #[tokio::test]
    async fn a_stale_socket_is_replaced_and_a_path_too_long_is_told() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = file(&folder, 0o600);
        drop(StdListener::bind(&file.path).expect("bound and gone"));
        assert!(StdUnixStream::connect(&file.path).is_err(), "nothing listens");
        let (_listener, _bound) = file.bind().expect("bound");
        StdUnixStream::connect(&file.path).expect("a listener");

        let long = SocketFile { path: folder.path().join("x".repeat(120)), ..file.clone() };
        let length = long.path.as_os_str().len();
        assert_eq!(
            long.bind().expect_err("too long").to_string(),
            format!(
                "the path is {length} bytes long (its folder with 11 more, for the name that the socket has at first), and a unix socket's has at most 107"
            )
        );
    }
}
