//! The plugin's conf in a route.

use std::fmt;
use std::marker::PhantomData;

use serde::de::value::MapAccessDeserializer;
use serde::de::{self, MapAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::identity::Wanted;
use super::template::Template;

/// `{"identity": {"trust": "gateway"}, "upstream": "http://code-{sub}:8443"}`.
///
/// No message about a conf that is refused repeats a value in it, which may be a
/// secret.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(from = "Fields")]
pub(crate) struct UserUpstreamConfig {
    pub(crate) identity: IdentityConfig,
    pub(crate) upstream: Template,
    /// The claims that the upstream needs.
    pub(crate) wanted: Wanted,
}

/// The conf as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    #[serde(deserialize_with = "object")]
    identity: IdentityConfig,
    upstream: Template,
}

impl From<Fields> for UserUpstreamConfig {
    fn from(Fields { identity, upstream }: Fields) -> Self {
        let wanted = Wanted::new(upstream.claim_names());
        Self { identity, upstream, wanted }
    }
}

/// How the plugin knows who is asking.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
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
            Some("verified") => Err(de::Error::custom(
                "\"verified\" is not there yet: use \"gateway\", with APISIX 3.17 or later and openid-connect before this plugin",
            )),
            _ => Err(de::Error::custom("trust is \"gateway\"")),
        }
    }
}

/// Reads an object into a type. Serde's own message for anything else would
/// repeat what stands there.
fn object<'de, D: Deserializer<'de>, T: Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    deserializer.deserialize_any(Object(PhantomData))
}

struct Object<T>(PhantomData<T>);

impl<T> Object<T> {
    fn refuse<E: de::Error>() -> Result<T, E> {
        Err(E::custom("an object belongs here"))
    }
}

impl<'de, T: Deserialize<'de>> Visitor<'de> for Object<T> {
    type Value = T;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, map: A) -> Result<T, A::Error> {
        T::deserialize(MapAccessDeserializer::new(map))
    }

    fn visit_str<E: de::Error>(self, _: &str) -> Result<T, E> {
        Self::refuse()
    }

    fn visit_bool<E: de::Error>(self, _: bool) -> Result<T, E> {
        Self::refuse()
    }

    fn visit_i64<E: de::Error>(self, _: i64) -> Result<T, E> {
        Self::refuse()
    }

    fn visit_u64<E: de::Error>(self, _: u64) -> Result<T, E> {
        Self::refuse()
    }

    fn visit_f64<E: de::Error>(self, _: f64) -> Result<T, E> {
        Self::refuse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn refused(conf: &str, expected: &str) {
        let error = serde_json::from_str::<UserUpstreamConfig>(conf).unwrap_err().to_string();
        let (message, _position) = error.rsplit_once(" at line ").unwrap_or((&error, ""));
        assert_eq!(message, expected, "{conf}");
    }

    #[test]
    fn the_least_that_works_is_read() {
        let conf = r#"{"identity": {"trust": "gateway"}, "upstream": "http://code-{sub}:8443"}"#;
        let expected = UserUpstreamConfig {
            identity: IdentityConfig { trust: Trust::Gateway },
            upstream: Template::parse("http://code-{sub}:8443").unwrap(),
            wanted: Wanted::new(["sub"]),
        };
        assert_eq!(serde_json::from_str::<UserUpstreamConfig>(conf).unwrap(), expected);
    }

    #[test]
    fn trust_has_no_default() {
        refused("{}", "missing field `identity`");
        refused(r#"{"identity": {}, "upstream": "http://a:1"}"#, "missing field `trust`");
        refused(r#"{"identity": {"trust": "gateway"}}"#, "missing field `upstream`");
    }

    #[test]
    fn verified_is_not_there_yet() {
        refused(
            r#"{"identity": {"trust": "verified"}, "upstream": "http://a:1"}"#,
            "\"verified\" is not there yet: use \"gateway\", with APISIX 3.17 or later and openid-connect before this plugin",
        );
    }

    #[test]
    fn unknown_trust_is_refused_without_its_content() {
        for trust in ["\"s3cret\"", "7123", "null", "[\"gateway\"]", "\"Gateway\"", "\"\""] {
            refused(&format!("{{\"identity\": {{\"trust\": {trust}}}}}"), "trust is \"gateway\"");
        }
    }

    #[test]
    fn unknown_fields_are_refused() {
        refused(r#"{"upstreams": 1}"#, "unknown field `upstreams`, expected `identity` or `upstream`");
        refused(
            r#"{"identity": {"trust": "gateway", "issuer": "https://x"}}"#,
            "unknown field `issuer`, expected `trust`",
        );
    }

    #[test]
    fn another_type_is_refused_without_its_content() {
        for value in ["\"s3cret\"", "7123", "-7", "1.5", "true"] {
            refused(&format!("{{\"identity\": {value}}}"), "an object belongs here");
        }
        refused("{\"identity\": []}", "invalid type: sequence, expected an object");
        refused("{\"identity\": null}", "invalid type: null, expected an object");
        refused("{\"upstream\": [1]}", "an upstream is a string, such as \"http://code-{sub}:8443\"");
    }

    #[test]
    fn a_wrong_upstream_is_refused_with_its_place() {
        refused(r#"{"upstream": "http://code-{sub:8443"}"#, "the `{` at byte 12 is never closed");
        refused(
            r#"{"upstream": "https://code-{sub}:8443"}"#,
            "https upstreams are not there yet: use http://",
        );
    }

    #[test]
    fn a_message_ends_with_the_position() {
        let error = serde_json::from_str::<UserUpstreamConfig>("{\n \"identity\": 7}").unwrap_err();
        assert_eq!(error.to_string(), "an object belongs here at line 2 column 14");
    }
}
