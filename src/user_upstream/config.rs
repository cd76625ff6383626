//! The plugin's conf in a route.

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::Decision;
use super::identity::Wanted;
use super::remembered::Remembered;
use super::template::Template;

/// `{"identity": {"trust": "gateway"}, "upstream": "http://code-{sub}:8443"}`.
///
/// No message of its own repeats a value of a conf that is refused.
#[derive(Deserialize)]
#[serde(from = "Fields")]
pub(crate) struct UserUpstreamConfig {
    pub(crate) identity: IdentityConfig,
    pub(crate) upstream: Template,
    /// The claims that the upstream needs.
    pub(crate) wanted: Wanted,
    /// Of each identity that was seen, who it is and where they go.
    pub(crate) remembered: Remembered<Decision>,
}

/// The conf as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct Fields {
    identity: IdentityConfig,
    upstream: Template,
}

impl From<Fields> for UserUpstreamConfig {
    fn from(Fields { identity, upstream }: Fields) -> Self {
        let wanted = Wanted::new(upstream.claim_names());
        Self { identity, upstream, wanted, remembered: Remembered::new() }
    }
}

/// How the plugin knows who is asking.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub(crate) struct IdentityConfig {
    /// Has no default: to believe a header is the operator's decision.
    pub(crate) trust: Trust,
}

/// Whose word is believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Trust {
    /// The gateway's: its openid-connect plugin wrote `X-Userinfo`.
    Gateway,
}

impl<'de> Deserialize<'de> for Trust {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)?.as_str() {
            Some("gateway") => Ok(Self::Gateway),
            Some("verified") => Err(D::Error::custom(
                "\"verified\" is not there yet: use \"gateway\", with APISIX 3.17 or later and openid-connect before this plugin",
            )),
            _ => Err(D::Error::custom("trust is \"gateway\"")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plugin::parse_conf;

    #[track_caller]
    fn refused(conf: &str, expected: &str) {
        let error = parse_conf::<UserUpstreamConfig>(conf.as_bytes()).err().unwrap().to_string();
        let (message, _position) = error.rsplit_once(" (line ").unwrap_or((&error, ""));
        assert_eq!(message, expected, "{conf}");
    }

    #[test]
    fn the_least_that_works_is_read() {
        let conf = r#"{"identity": {"trust": "gateway"}, "upstream": "http://code-{sub}:8443"}"#;
        let config = parse_conf::<UserUpstreamConfig>(conf.as_bytes()).unwrap();
        assert_eq!(config.identity.trust, Trust::Gateway);
        assert_eq!(config.upstream, Template::parse("http://code-{sub}:8443").unwrap());
        assert_eq!(config.wanted, Wanted::new(["sub"]));
    }

    #[test]
    fn trust_has_no_default() {
        refused("{}", "missing field `identity`");
        refused(r#"{"identity": {}, "upstream": "http://a:1"}"#, "identity: missing field `trust`");
        refused(r#"{"identity": {"trust": "gateway"}}"#, "missing field `upstream`");
    }

    #[test]
    fn verified_is_not_there_yet() {
        refused(
            r#"{"identity": {"trust": "verified"}, "upstream": "http://a:1"}"#,
            "identity.trust: \"verified\" is not there yet: use \"gateway\", with APISIX 3.17 or later and openid-connect before this plugin",
        );
    }

    #[test]
    fn unknown_trust_is_refused_without_its_content() {
        for trust in ["\"s3cret\"", "7123", "null", "[\"gateway\"]", "\"Gateway\"", "\"\""] {
            refused(
                &format!("{{\"identity\": {{\"trust\": {trust}}}}}"),
                "identity.trust: trust is \"gateway\"",
            );
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        refused(r#"{"upstreams": 1}"#, "upstreams: unknown field, expected `identity` or `upstream`");
        refused(
            r#"{"identity": {"trust": "gateway", "issuer": "https://x"}}"#,
            "identity.issuer: unknown field, expected `trust`",
        );
    }

    #[test]
    fn another_type_is_refused_without_its_content() {
        for (value, kind) in [
            ("\"s3cret\"", "string"),
            ("7123", "integer"),
            ("-7", "integer"),
            ("1.5", "floating point"),
            ("true", "boolean"),
            ("null", "null"),
        ] {
            let expected = format!("invalid type: {kind}, expected an object");
            refused(&format!("{{\"identity\": {value}}}"), &format!("identity: {expected}"));
            refused(value, &expected);
        }
        refused(
            "{\"upstream\": [1]}",
            "upstream: an upstream is a string, such as \"http://code-{sub}:8443\"",
        );
    }

    #[test]
    fn a_wrong_upstream_is_refused_with_its_place() {
        refused(r#"{"upstream": "http://code-{sub:8443"}"#, "upstream: the `{` at byte 12 is never closed");
        refused(
            r#"{"upstream": "https://code-{sub}:8443"}"#,
            "upstream: https upstreams are not there yet: use http://",
        );
    }
}
