//! The `kube-coders` command as it is shipped.

use std::process::ExitCode;

fn main() -> ExitCode {
    kube_coders::Command::new().main()
}
