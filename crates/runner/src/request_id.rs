//! The id that ties the page or problem document of a refused request to a line of the
//! log.

use std::time::Duration;

/// How long an answer waits for the gateway to tell the request's id.
pub const REQUEST_ID_WAIT: Duration = Duration::from_millis(500);

/// How long an id may be and still be shown, in bytes.
const MAX_LENGTH: usize = 128;

/// The given id if it is fit to be shown, else a random one.
///
/// ```
/// use apisix_plugin_runner::request_id::shown_request_id;
///
/// assert_eq!(shown_request_id(Some(b"4f1c2a")), "4f1c2a");
/// assert_eq!(shown_request_id(Some(b"two\nlines")).len(), 32);
/// ```
pub fn shown_request_id(given: Option<&[u8]>) -> String {
    given.and_then(sane_request_id).map_or_else(random_request_id, str::to_owned)
}

/// The id, if it is visible ASCII of at most 128 bytes.
fn sane_request_id(id: &[u8]) -> Option<&str> {
    let sane = (1..=MAX_LENGTH).contains(&id.len()) && id.iter().all(u8::is_ascii_graphic);
    std::str::from_utf8(id).ok().filter(|_| sane)
}

/// A random id of 32 hexadecimal digits, the form of the gateway's own ids.
///
/// ```
/// use apisix_plugin_runner::request_id::random_request_id;
///
/// let id = random_request_id();
/// assert!(id.len() == 32 && id.bytes().all(|byte| byte.is_ascii_hexdigit()));
/// ```
pub fn random_request_id() -> String {
    let mut bytes = [0; 16];
    // Without random numbers the id is all zeros: it names a request, it guards nothing.
    let _ = getrandom::fill(&mut bytes);
    format!("{:032x}", u128::from_be_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_that_is_not_to_be_shown_is_replaced() {
        let longest = "x".repeat(MAX_LENGTH);
        assert_eq!(shown_request_id(Some(longest.as_bytes())), longest);
        for given in [
            None,
            Some(&b""[..]),
            Some(b"a b"),
            Some(b"a\n"),
            Some("ü".as_bytes()),
            Some(&[b'x'; MAX_LENGTH + 1]),
        ] {
            let shown = shown_request_id(given);
            assert!(shown.len() == 32 && shown.bytes().all(|byte| byte.is_ascii_hexdigit()), "{shown}");
        }
    }
}
