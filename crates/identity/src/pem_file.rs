//! Files of certificates, as an administrator names them.

use std::fs::File;
use std::io;
use std::path::Path;

use apisix_plugin_runner::read_bounded;

/// How long such a file may be, in bytes: the roots of a whole system take about
/// 250 KiB.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// Reads a file that may hold certificates.
///
/// ```
/// use std::path::Path;
///
/// use kube_coders_identity::read_pem_file;
///
/// assert!(read_pem_file(Path::new("/nonexistent.pem")).is_err());
/// ```
///
/// # Errors
///
/// The path leads to no readable file of at most 4 MiB.
pub fn read_pem_file(path: &Path) -> io::Result<Vec<u8>> {
    let wrong = || io::Error::other("no file of at most 4 MiB");
    // Opening a pipe would wait for its other end.
    if !path.metadata()?.is_file() {
        return Err(wrong());
    }
    let file = File::open(path)?;
    if file.metadata()?.len() > MAX_FILE {
        return Err(wrong());
    }
    read_bounded(file, MAX_FILE)
}
