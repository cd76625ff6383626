//! The digest of a cache key, which the gateway's plugin computes too.

use http::Method;
use sha2::{Digest as _, Sha256};

use super::KeyParts;
use crate::accept;
use crate::headers::Headers;

/// The version of the digest's format.
const DIGEST_VERSION: &str = "1;";

impl KeyParts {
    /// A digest of the parts as a request has them. The gateway's plugin computes the same
    /// of the request that it saw, and caches a decision only if both are equal.
    ///
    /// Each name and value has its length before it, so that no value can reach into the
    /// next: two requests have one digest only if all parts are equal.
    pub(crate) fn digest(&self, method: &Method, headers: &Headers<'_>) -> [u8; 32] {
        let mut text = Vec::with_capacity(512);
        text.extend_from_slice(DIGEST_VERSION.as_bytes());
        count(&mut text, self.values.len());
        count(&mut text, self.presence.len());
        text.extend_from_slice(match self.has_navigation {
            true if accept::is_navigation(method.as_str(), |name| headers.first(name)) => b"navigation;",
            true => b"other;",
            false => b"any;",
        });
        for name in &self.values {
            sized(&mut text, name.as_str().as_bytes());
            count(&mut text, headers.named(name.as_str()).count());
            headers.named(name.as_str()).for_each(|value| sized(&mut text, value));
        }
        for name in &self.presence {
            sized(&mut text, name.as_str().as_bytes());
            text.push(if headers.first(name.as_str()).is_some() { b'+' } else { b'-' });
        }
        Sha256::digest(&text).into()
    }
}

fn count(text: &mut Vec<u8>, number: usize) {
    text.extend_from_slice(number.to_string().as_bytes());
    text.push(b';');
}

fn sized(text: &mut Vec<u8>, part: &[u8]) {
    text.extend_from_slice(part.len().to_string().as_bytes());
    text.push(b':');
    text.extend_from_slice(part);
}

#[cfg(test)]
mod tests {
    use http::HeaderName;

    use super::*;
    use crate::cache::CacheKey;

    #[test]
    fn different_requests_have_different_digests() {
        let parts = CacheKey::new(["x-a", "x-b"].map(HeaderName::from_static))
            .and_presence([HeaderName::from_static("x-c")])
            .and_navigation();
        let digest = |headers: &[(&'static str, &'static str)]| {
            let headers = headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes())).collect();
            parts.parts().digest(&Method::GET, &Headers::new(headers))
        };
        let requests: &[&[(&str, &str)]] = &[
            &[],
            &[("x-a", "")],
            &[("x-a", "1")],
            &[("x-b", "1")],
            &[("x-a", "1"), ("x-a", "1")],
            &[("x-a", "1"), ("x-b", "1")],
            &[("x-a", "11:1")],
            &[("x-a", "13:x-b1;1:1")],
            &[("x-c", "")],
            &[("accept", "text/html")],
        ];
        for (at, request) in requests.iter().enumerate() {
            for other in &requests[..at] {
                assert_ne!(digest(request), digest(other), "{request:?} {other:?}");
            }
        }
        assert_eq!(digest(&[("x-c", "1"), ("accept", "*/*")]), digest(&[("x-c", "2"), ("x-d", "1")]));
    }
}
