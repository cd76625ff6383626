//! Numbers that are written in digits and nothing else: `parse` would take a sign.

use std::str::FromStr;

/// Whether a text is one ASCII digit or more.
///
/// ```
/// use kube_coders_identity::is_digits;
///
/// assert!(is_digits(b"8443") && !is_digits(b"+8443") && !is_digits(b""));
/// ```
#[must_use]
pub fn is_digits(text: &[u8]) -> bool {
    !text.is_empty() && text.iter().all(u8::is_ascii_digit)
}

/// The number that these digits say, if they say one that fits.
///
/// ```
/// use kube_coders_identity::parse_digits;
///
/// assert_eq!(parse_digits::<u16>(b"8443"), Some(8443));
/// assert_eq!(parse_digits::<u16>(b"70000"), None);
/// ```
#[must_use]
pub fn parse_digits<N: FromStr>(text: &[u8]) -> Option<N> {
    if !is_digits(text) {
        return None;
    }
    str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_a_number_and_nothing_else_is() {
        assert_eq!(parse_digits(b"0080"), Some(80_u16));
        for text in ["", "+1", "-1", " 1", "1 ", "1_0", "65536", "\u{661}"] {
            assert_eq!(parse_digits::<u16>(text.as_bytes()), None, "{text:?}");
        }
    }
}
