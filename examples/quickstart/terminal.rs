//! What the quickstart tells the person who started it.

use std::io::{self, Write as _};

/// Prints a line on standard output.
pub(crate) fn say(line: &str) {
    let mut out = io::stdout().lock();
    // If the reader of our output has closed it, there is no one to tell.
    let _ = writeln!(out, "{line}").and_then(|()| out.flush());
}
