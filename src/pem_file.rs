//! Files of certificates, as an operator names them.

use std::fs;
use std::io;
use std::path::Path;

/// How long such a file may be, in bytes: the roots of a whole system take about
/// 250 KiB.
const MAX_FILE: u64 = 4 * 1024 * 1024;

/// The text of a file that may hold certificates.
pub(crate) fn read_pem_file(path: &Path) -> io::Result<Vec<u8>> {
    let metadata = fs::metadata(path)?;
    if metadata.is_file() && metadata.len() <= MAX_FILE {
        fs::read(path)
    } else {
        Err(io::Error::other("no file of at most 4 MiB"))
    }
}
