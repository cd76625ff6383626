//! The `kube-coders` command as it is shipped.

use std::process::ExitCode;

/// A call allocates some thirty small things, and its threads take turns.
#[cfg(feature = "mimalloc")]
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    kube_coders::Program::new().main()
}
