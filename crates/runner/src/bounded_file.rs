//! Files and streams with a limit on their length.

use std::io::{self, Read};

/// Reads a whole file or stream, if it has at most `limit` bytes. Use it for files that a
/// conf names.
///
/// # Errors
///
/// The source can't be read, or is longer.
///
/// ```
/// # use apisix_plugin_runner::read_bounded;
/// assert_eq!(read_bounded(&b"abc"[..], 3)?, b"abc");
/// assert_eq!(read_bounded(&b"abc"[..], 2).unwrap_err().to_string(), "longer than 2 bytes");
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn read_bounded(source: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(limit.saturating_add(1)).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("longer than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_that_is_too_long_is_refused() {
        assert_eq!(read_bounded(&b"abc"[..], 3).unwrap(), b"abc");
        let error = read_bounded(io::repeat(0), 3).unwrap_err();
        assert_eq!(error.to_string(), "longer than 3 bytes");
    }
}
