//! A key in a file: the administrator's own, or one next to the socket. The first runner at
//! a path makes that file and every later one reads it, so that what one makes with the key
//! is valid for the other.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use nix::libc;
use thiserror::Error;

use apisix_plugin_runner::read_bounded;

/// How many bytes a key has at least: HMAC-SHA256 is as strong as its hash is long (RFC 2104,
/// section 3).
pub(crate) const MIN_KEY: usize = 32;

/// How large a key's file may be, in bytes: a key, not a disk.
const MAX_KEY_FILE: u64 = 64 * 1024;

/// Why there is no key.
#[derive(Debug, Error)]
pub(crate) enum KeyError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("not a file")]
    NotAFile,
    #[error("{0} bytes, more than {MAX_KEY_FILE}")]
    TooLong(u64),
    #[error("{0} bytes, less than {MIN_KEY}")]
    TooShort(usize),
    #[error("others than its owner may read or change it (mode {0:04o}): make it 0600")]
    Open(u32),
    #[error("it belongs to user {0}, not to the one who runs this")]
    Foreign(u32),
}

/// The bytes of a key, at least 32.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct KeyBytes(Box<[u8]>);

impl KeyBytes {
    /// A key; `None` for one of less than 32 bytes.
    pub(crate) fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= MIN_KEY).then(|| Self(bytes.into()))
    }

    pub(crate) fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for KeyBytes {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("KeyBytes(…)")
    }
}

/// The key in the administrator's file.
pub(crate) fn read_key(file: &Path) -> Result<ConfiguredKey, KeyError> {
    // Without the flag, opening a pipe would wait for its writer.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(file)?;
    let is_open_to_all = file.metadata()?.mode() & 0o007 != 0;
    Ok(ConfiguredKey { key: key_in(file)?, is_open_to_all })
}

/// A key from the administrator's file.
#[derive(Clone, Debug)]
pub(crate) struct ConfiguredKey {
    pub(crate) key: KeyBytes,
    /// Whether every user of the machine may read or change its file.
    pub(crate) is_open_to_all: bool,
}

fn key_in(file: File) -> Result<KeyBytes, KeyError> {
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(KeyError::NotAFile);
    }
    if metadata.len() > MAX_KEY_FILE {
        return Err(KeyError::TooLong(metadata.len()));
    }
    let secret = read_bounded(file, MAX_KEY_FILE)?;
    KeyBytes::new(&secret).ok_or(KeyError::TooShort(secret.len()))
}

/// The path of the stamps' key of the runners at a socket's path.
pub(crate) fn default_key_file(socket: &Path) -> PathBuf {
    beside(socket, ".key")
}

/// The path of the subjects' key of the runners at a socket's path.
pub(crate) fn default_subject_key_file(socket: &Path) -> PathBuf {
    beside(socket, ".subject-key")
}

fn beside(socket: &Path, suffix: &str) -> PathBuf {
    let mut name = socket.as_os_str().to_owned();
    name.push(suffix);
    name.into()
}

/// The key next to a socket, made if it is missing.
pub(crate) fn read_or_make_key(file: &Path) -> Result<KeyBytes, KeyError> {
    match fs::symlink_metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => make_key(file)?,
        Err(error) => return Err(error.into()),
        Ok(_) => {}
    }
    // Look at the open file: a user who may write to the folder could replace the file
    // between a look at its path and the opening.
    let flags = libc::O_NONBLOCK | libc::O_NOFOLLOW;
    let file = OpenOptions::new().read(true).custom_flags(flags).open(file);
    let file = file.map_err(|error| match error.raw_os_error() {
        Some(libc::ELOOP) => KeyError::NotAFile,
        _ => error.into(),
    })?;
    let there = file.metadata()?;
    if !there.is_file() {
        return Err(KeyError::NotAFile);
    }
    // The owner of another user's key could make stamps.
    if there.uid() != nix::unistd::geteuid().as_raw() {
        return Err(KeyError::Foreign(there.uid()));
    }
    if there.mode() & 0o077 != 0 {
        return Err(KeyError::Open(there.mode() & 0o777));
    }
    key_in(file)
}

/// Makes a key's file, complete from its first moment, unless another process was faster.
fn make_key(file: &Path) -> Result<(), KeyError> {
    let mut secret = [0; MIN_KEY];
    getrandom::fill(&mut secret).map_err(io::Error::from)?;
    let suffix = getrandom::u64().map_err(io::Error::from)?;
    let temporary = file.with_extension(format!("{suffix:016x}"));
    let made =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).and_then(|mut made| {
            made.write_all(&secret)?;
            made.sync_all()?;
            match fs::hard_link(&temporary, file) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
                linked => linked,
            }
        });
    let _ = fs::remove_file(&temporary);
    Ok(made?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn all_runners_at_a_socket_have_one_key() {
        let folder = tempfile::tempdir().unwrap();
        let file = default_key_file(&folder.path().join("runner.sock"));
        assert_eq!(file, folder.path().join("runner.sock.key"));
        let keys: Vec<_> = std::thread::scope(|scope| {
            let makers: Vec<_> = (0..8).map(|_| scope.spawn(|| read_or_make_key(&file).unwrap())).collect();
            makers.into_iter().map(|maker| maker.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]), "one key for all");
        assert_ne!(keys[0].as_bytes(), [0; MIN_KEY]);
        assert_eq!(fs::metadata(&file).unwrap().mode() & 0o777, 0o600);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1, "nothing else is left");
    }

    #[test]
    fn a_key_that_others_could_have_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("key");
        fs::write(&file, [7; MIN_KEY]).unwrap();
        let refused = |expected: &str| assert_eq!(read_or_make_key(&file).unwrap_err().to_string(), expected);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o640)).unwrap();
        refused("others than its owner may read or change it (mode 0640): make it 0600");
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
        assert!(read_or_make_key(&file).is_ok());
        fs::write(&file, [7; MIN_KEY - 1]).unwrap();
        refused("31 bytes, less than 32");
        fs::write(&file, vec![7; 64 * 1024 + 1]).unwrap();
        refused("65537 bytes, more than 65536");
        let elsewhere = folder.path().join("elsewhere");
        fs::rename(&file, &elsewhere).unwrap();
        symlink(&elsewhere, &file).unwrap();
        refused("not a file");
        if nix::unistd::geteuid().is_root() {
            fs::remove_file(&file).unwrap();
            fs::write(&file, [7; MIN_KEY]).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
            std::os::unix::fs::chown(&file, Some(65_534), None).unwrap();
            refused("it belongs to user 65534, not to the one who runs this");
        }
    }
}
