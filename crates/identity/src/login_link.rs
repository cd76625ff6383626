//! The target of a page's link to sign in again.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// openid-connect's own `logout_path`: after it, the next request leads to the login.
const DEFAULT: &str = "/logout";

/// How long a link may be, in bytes.
const MAX_LINK: usize = 2048;

/// A path at the gateway, or an https URL.
///
/// ```
/// use kube_coders_identity::LoginLink;
///
/// assert_eq!(LoginLink::default().as_str(), "/logout");
/// assert!(serde_json::from_str::<LoginLink>(r#""//elsewhere.example""#).is_err());
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LoginLink(Box<str>);

impl Default for LoginLink {
    fn default() -> Self {
        Self(DEFAULT.into())
    }
}

impl LoginLink {
    /// The link as the conf has it: visible ASCII, without escapes for HTML.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl<'de> Deserialize<'de> for LoginLink {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let link = Box::<str>::deserialize(deserializer)?;
        // Browsers read `//` and `/\` as the start of another host.
        let is_path = link.starts_with('/') && !link.starts_with("//");
        let is_plain = link.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\\');
        let is_url =
            link.strip_prefix("https://").is_some_and(|rest| !rest.is_empty() && !rest.starts_with('/'));
        if link.len() <= MAX_LINK && is_plain && (is_path || is_url) {
            Ok(Self(link))
        } else {
            Err(D::Error::custom(
                "not a link: a path that begins with one `/`, or a URL that begins with https://",
            ))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_stays_at_the_gateway_or_under_tls() {
        for link in ["/logout", "/", "/.apisix/logout?a=b&c", "https://key.example.com/logout"] {
            let json = serde_json::to_string(link).unwrap();
            assert_eq!(serde_json::from_str::<LoginLink>(&json).unwrap().as_str(), link);
        }
        let long = format!("/{}", "a".repeat(2048));
        for link in [
            "",
            "logout",
            "//evil.test",
            "/\\evil.test",
            "http://a",
            "https://",
            "https:///a",
            "javascript:alert(1)",
            "/a b",
            "/a\n",
            "/ü",
            "data:,",
            " /a",
            &long,
        ] {
            let json = serde_json::to_string(link).unwrap();
            assert_eq!(
                serde_json::from_str::<LoginLink>(&json).unwrap_err().to_string(),
                "not a link: a path that begins with one `/`, or a URL that begins with https://",
                "{link:?}",
            );
        }
    }

    #[test]
    fn the_default_is_openid_connects_own() {
        assert_eq!(LoginLink::default().as_str(), "/logout");
    }
}
