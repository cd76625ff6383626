//! `kube-coders install`: the program puts a copy of itself somewhere.
//!
//! An image from scratch has no `cp`, and a gateway that starts the runner needs the
//! program in its own container: an init container copies it into a volume of both.

use std::fs::{self, File, Permissions};
use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use thiserror::Error;

/// All users may run the copy, and only its owner may change it.
const MODE: u32 = 0o755;

/// Why there is no copy.
#[derive(Debug, Error)]
pub(crate) enum InstallError {
    #[error("finding out which program this is: {0}")]
    Source(io::Error),
    #[error("{}: {error}", .target.display())]
    Target { target: PathBuf, error: io::Error },
}

/// Copies this program to `target`, or into the folder `target` under its own name. What
/// was there is replaced in one step, even while it runs.
pub(crate) fn install(target: &Path) -> Result<(), InstallError> {
    let program = std::env::current_exe().map_err(InstallError::Source)?;
    let name = program.file_name().unwrap_or_else(|| "kube-coders".as_ref());
    let target = if target.is_dir() { target.join(name) } else { target.to_owned() };
    copy(&program, &target).map_err(|error| InstallError::Target { target, error })
}

fn copy(program: &Path, target: &Path) -> io::Result<()> {
    let mut unfinished = target.as_os_str().to_owned();
    // Every init container is process 1 of its own.
    unfinished.push(format!(".{:016x}", getrandom::u64()?));
    let unfinished = PathBuf::from(unfinished);
    // A file that another process has begun, or left, must stay.
    let mut file = File::create_new(&unfinished)?;
    let copied = (|| {
        io::copy(&mut File::open(program)?, &mut file)?;
        fs::set_permissions(&unfinished, Permissions::from_mode(MODE))?;
        fs::rename(&unfinished, target)
    })();
    if copied.is_err() {
        // The first error is reported; that of the clean-up says nothing new.
        let _ = fs::remove_file(&unfinished);
    }
    copied
}
