//! A test that can't run here says so, is counted, and can be forbidden to skip.

use std::fs::OpenOptions;
use std::io::Write as _;

/// Says why a test does not run, and notes it in the file that
/// `KUBE_CODERS_SKIPPED` names. With `KUBE_CODERS_NO_SKIP=1` it fails instead.
#[track_caller]
pub(crate) fn skip(why: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    let line = format!("skipped: {test}: {why}");
    let forbidden = std::env::var("KUBE_CODERS_NO_SKIP").is_ok_and(|set| set == "1");
    assert!(!forbidden, "{line}");
    // To the terminal and past the harness, which keeps what a passing test prints to itself.
    let _ = writeln!(std::io::stderr(), "{line}");
    if let Some(file) = std::env::var_os("KUBE_CODERS_SKIPPED") {
        let mut file = OpenOptions::new().create(true).append(true).open(file).unwrap();
        file.write_all(format!("{line}\n").as_bytes()).unwrap();
    }
}
