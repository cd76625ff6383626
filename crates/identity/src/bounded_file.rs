//! Input of which no more than so much is read.

use std::io::{self, Read};

/// Reads all of a source that holds at most `limit` bytes, and of a longer one nothing.
///
/// # Errors
///
/// The source can't be read, or holds more.
pub fn read_bounded(source: impl Read, limit: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    source.take(limit + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > limit {
        return Err(io::Error::other(format!("longer than {limit} bytes")));
    }
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_too_long_is_refused() {
        assert_eq!(read_bounded(&b"abc"[..], 3).unwrap(), b"abc");
        let error = read_bounded(io::repeat(0), 3).unwrap_err();
        assert_eq!(error.to_string(), "longer than 3 bytes");
    }
}
