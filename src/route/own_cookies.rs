//! The product's own cookies, which no workspace gets or sets.

/// The cookie that holds the marker of a browser's user. Browsers accept a cookie with this
/// prefix only over HTTPS, for the one host, and for all paths (RFC 6265bis, section 4.1.3.2).
pub(crate) const MARKER_COOKIE: &str = "__Host-kube-coders-user";

/// The start of the names of all our cookies, in lower case.
const OWN_COOKIE: &[u8] = b"__host-kube-coders";

/// Whether a cookie is ours, by its name or the start of its line.
pub(crate) fn is_own_cookie(cookie: &[u8]) -> bool {
    cookie.get(..OWN_COOKIE.len()).is_some_and(|start| start.eq_ignore_ascii_case(OWN_COOKIE))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_cookies_are_known_by_the_start_of_their_names() {
        for own in [MARKER_COOKIE, "__Host-kube-coders-user=x", "__HOST-Kube-Coders"] {
            assert!(is_own_cookie(own.as_bytes()), "{own}");
        }
        for other in ["", "__Host-", "__Host-kube-coder", "kube-coders-user", "session"] {
            assert!(!is_own_cookie(other.as_bytes()), "{other}");
        }
    }
}
