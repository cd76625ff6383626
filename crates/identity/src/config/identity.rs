//! How the plugin identifies users: the conf's `identity`.

use std::path::PathBuf;

use reqwest::Url;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use super::super::claims::{Claims, ClaimsError, Wanted};
use super::super::identity_error::IdentityError;
use super::super::identity_headers::{IdentityHeaders, TokenSources};
use super::super::keys::Source;
use super::super::token::{CHECKED_CLAIMS, Expected};
use super::super::userinfo::{self, UserinfoError};
use super::object::Object;

/// The path of a provider's discovery document, after its issuer (OpenID Connect
/// Discovery 1.0, section 4).
const WELL_KNOWN: &str = "/.well-known/openid-configuration";

/// How long an issuer, an audience or an address may be, in bytes.
const MAX_TEXT: usize = 2048;

/// How many audiences, or names of claims, can be listed.
const MAX_LIST: usize = 64;

/// The party that the runner trusts to say who a user is.
///
/// ```
/// use apisix_plugin_runner::config::parse_conf;
/// use kube_coders_identity::identity_error::IdentityError;
/// use kube_coders_identity::identity_headers::IdentityHeaders;
/// use kube_coders_identity::{IdentityConfig, UserUpstreamConfig};
///
/// let conf = br#"{"identity": {"trust": "gateway"}, "upstream": "http://code-{sub}:8443"}"#;
/// let identity = parse_conf::<UserUpstreamConfig>(conf)?.identity;
/// assert!(matches!(identity, IdentityConfig::Gateway));
/// assert_eq!(identity.look_at(&IdentityHeaders::default()), Err(IdentityError::NoUserinfo));
/// # Ok::<(), apisix_plugin_runner::ConfError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Object<IdentityFields>")]
pub enum IdentityConfig {
    /// The gateway's: its openid-connect plugin wrote `X-Userinfo`.
    Gateway,
    /// A token's, once its issuer's signature is checked.
    Verified(Box<Verified>),
}

/// Which tokens are believed.
///
/// ```
/// use apisix_plugin_runner::config::parse_conf;
/// use kube_coders_identity::{IdentityConfig, UserUpstreamConfig};
///
/// let conf = br#"{
///     "identity": {"trust": "verified", "issuer": "https://id.example.com", "audience": ["apisix"]},
///     "upstream": "http://code-{sub}:8443"
/// }"#;
/// let IdentityConfig::Verified(verified) = parse_conf::<UserUpstreamConfig>(conf)?.identity else {
///     panic!("the conf says \"verified\"")
/// };
/// assert_eq!(verified.keys.discovery.path(), "/.well-known/openid-configuration");
/// # Ok::<(), apisix_plugin_runner::ConfError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Verified {
    /// The headers that may hold the token, in the order in which they are searched.
    pub sources: TokenSources,
    /// What the token must say about its issuer and its audience.
    pub expected: Expected,
    /// The source of the issuer's keys.
    pub keys: Source,
    /// The claims that `X-Userinfo` may add.
    pub userinfo_claims: Box<[Box<str>]>,
}

impl Verified {
    /// Adds to a token's claims what the userinfo may add, if it is of the same subject. The
    /// token's own claims win.
    ///
    /// # Errors
    ///
    /// A userinfo that can't be decoded, or is of another subject.
    pub fn with_userinfo(
        &self,
        mut claims: Claims,
        userinfo: Option<&[u8]>,
        wanted: &Wanted,
    ) -> Result<Claims, IdentityError> {
        let Some(userinfo) = userinfo else { return Ok(claims) };
        let others = match userinfo::decode(userinfo, wanted) {
            Ok(others) => others,
            Err(UserinfoError::Claims(ClaimsError::Subject)) => return Err(IdentityError::Mismatch),
            Err(error) => return Err(error.into()),
        };
        if others.subject() != claims.subject() {
            return Err(IdentityError::Mismatch);
        }
        claims.add(others, &self.userinfo_claims);
        Ok(claims)
    }
}

impl IdentityConfig {
    /// The headers in which a token is looked for.
    pub fn token_sources(&self) -> &TokenSources {
        static NONE: TokenSources = TokenSources::none();
        match self {
            Self::Gateway => &NONE,
            Self::Verified(verified) => &verified.sources,
        }
    }

    /// The issuer of the tokens; `None` if the gateway is trusted, which names none.
    pub fn issuer(&self) -> Option<&str> {
        match self {
            Self::Gateway => None,
            Self::Verified(verified) => Some(&verified.expected.issuer),
        }
    }

    /// The claims that `X-Userinfo` may add to a token's.
    pub fn userinfo_claims(&self) -> &[Box<str>] {
        match self {
            Self::Gateway => &[],
            Self::Verified(verified) => &verified.userinfo_claims,
        }
    }

    /// The claims to read: what is checked, and what is needed.
    pub fn wanted<'a>(&self, needed: impl Iterator<Item = &'a str>) -> Wanted {
        match self {
            Self::Gateway => Wanted::new(needed),
            Self::Verified(_) => Wanted::new(CHECKED_CLAIMS.into_iter().chain(needed)),
        }
    }

    /// Checks that there is something to believe.
    pub fn look_at(&self, presented: &IdentityHeaders<'_>) -> Result<(), IdentityError> {
        match self {
            Self::Gateway if presented.userinfo.is_none() => Err(IdentityError::NoUserinfo),
            Self::Verified(_) if presented.token.is_none() => Err(IdentityError::NoToken),
            _ => Ok(()),
        }
    }
}

/// `identity` as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct IdentityFields {
    /// `"gateway"` or `"verified"`. Has no default: the administrator decides whom to
    /// trust.
    trust: Trust,
    /// The `iss` of the tokens, byte for byte. Needed for `verified`.
    #[serde(default)]
    issuer: Option<Text>,
    /// The URL of the issuer's discovery document; by default the issuer with
    /// `/.well-known/openid-configuration` appended.
    #[serde(default)]
    discovery: Option<Text>,
    /// The headers that may hold the token; the first that is there counts. By
    /// default `x-raw-id-token`, `x-access-token`, and `authorization`, whose
    /// token has `Bearer` before it.
    #[serde(default)]
    token: Option<TokenSources>,
    /// A token is for us if one of these is in its `aud`. This or `azp` is needed
    /// for `verified`: the issuer signs tokens for other clients too.
    #[serde(default)]
    audience: Option<List>,
    /// A token is for us, too, if its `azp` is one of these. None by default.
    #[serde(default)]
    azp: Option<List>,
    /// Whether the host of `discovery` may be asked without TLS; `false` by
    /// default. No other host ever is.
    #[serde(default)]
    allow_http: Option<bool>,
    /// A file with the certificates, in PEM form, that alone are trusted for the
    /// issuer; by default the system's are. It is read at each fetch.
    #[serde(default)]
    ca_file: Option<PathBuf>,
    /// The claims that an `X-Userinfo` of the token's own `sub` may add if the token
    /// lacks them. None by default: `X-Userinfo` is not signed.
    #[serde(default)]
    userinfo_claims: Option<List>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Trust {
    Gateway,
    Verified,
}

impl<'de> Deserialize<'de> for Trust {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Value::deserialize(deserializer)?.as_str() {
            Some("gateway") => Ok(Self::Gateway),
            Some("verified") => Ok(Self::Verified),
            _ => Err(D::Error::custom("trust is \"gateway\" or \"verified\"")),
        }
    }
}

/// A text that is there.
struct Text(Box<str>);

impl<'de> Deserialize<'de> for Text {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Box::<str>::deserialize(deserializer)?;
        match text.len() {
            1..=MAX_TEXT => Ok(Self(text)),
            _ => Err(D::Error::custom(format_args!("a text must have 1 to {MAX_TEXT} bytes"))),
        }
    }
}

/// Some texts.
struct List(Box<[Box<str>]>);

impl<'de> Deserialize<'de> for List {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let texts = Vec::<Text>::deserialize(deserializer)?;
        if texts.len() > MAX_LIST {
            return Err(D::Error::custom(format_args!("at most {MAX_LIST} can be listed")));
        }
        Ok(Self(texts.into_iter().map(|Text(text)| text).collect()))
    }
}

impl TryFrom<Object<IdentityFields>> for IdentityConfig {
    type Error = String;

    fn try_from(Object(fields): Object<IdentityFields>) -> Result<Self, String> {
        match fields.trust {
            Trust::Gateway => match fields.first_of_verified() {
                Some(field) => Err(format!("`{field}` is allowed only if trust is \"verified\"")),
                None => Ok(Self::Gateway),
            },
            Trust::Verified => Ok(Self::Verified(Box::new(fields.verified()?))),
        }
    }
}

impl IdentityFields {
    /// The first field that is there and belongs to `verified`.
    fn first_of_verified(&self) -> Option<&'static str> {
        let there = [
            ("issuer", self.issuer.is_some()),
            ("discovery", self.discovery.is_some()),
            ("token", self.token.is_some()),
            ("audience", self.audience.is_some()),
            ("azp", self.azp.is_some()),
            ("allow_http", self.allow_http.is_some()),
            ("ca_file", self.ca_file.is_some()),
            ("userinfo_claims", self.userinfo_claims.is_some()),
        ];
        there.into_iter().find(|(_, is_there)| *is_there).map(|(field, _)| field)
    }

    fn verified(self) -> Result<Verified, String> {
        let Some(Text(issuer)) = self.issuer else {
            return Err("`issuer` is missing: the `iss` of the tokens".to_owned());
        };
        let audience = self.audience.map_or_else(Box::default, |List(list)| list);
        let authorized_parties = self.azp.map_or_else(Box::default, |List(list)| list);
        if audience.is_empty() && authorized_parties.is_empty() {
            return Err(
                "`audience` and `azp` are missing: without them, a token for any client of the issuer would be accepted"
                    .to_owned()
            );
        }
        let (field, address) = match self.discovery {
            Some(Text(address)) => ("discovery", String::from(address)),
            None => ("issuer", format!("{}{WELL_KNOWN}", issuer.trim_end_matches('/'))),
        };
        let keys = Source {
            issuer: issuer.clone(),
            discovery: discovery(field, &address)?,
            allow_http: self.allow_http.unwrap_or_default(),
            ca_file: self.ca_file,
        };
        if !keys.may_ask(&keys.discovery) {
            return Err(format!(
                "`{field}` has no TLS, so an attacker on the network could supply other keys: use https, or set \
                 \"allow_http\": true if the network is safe"
            ));
        }
        Ok(Verified {
            sources: self.token.unwrap_or_default(),
            expected: Expected { issuer, audience, authorized_parties },
            keys,
            userinfo_claims: self.userinfo_claims.map_or_else(Box::default, |List(list)| list),
        })
    }
}

fn discovery(field: &str, address: &str) -> Result<Url, String> {
    let url = Url::parse(address).ok().filter(|url| matches!(url.scheme(), "http" | "https"));
    let Some(url) = url else {
        return Err(match field {
            "issuer" => "`issuer` is not a URL, so `discovery` must name its discovery document".to_owned(),
            _ => format!("`{field}` is not an http or https URL"),
        });
    };
    if !url.username().is_empty() || url.password().is_some() {
        return Err(format!("`{field}` contains a user or a password, which would be logged"));
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;
    use apisix_plugin_runner::config::parse_conf;
    use http::HeaderName;

    fn verified(fields: &str) -> Verified {
        let conf = format!(r#"{{"trust": "verified", {fields}}}"#);
        match parse_conf::<IdentityConfig>(conf.as_bytes()).unwrap() {
            IdentityConfig::Verified(verified) => *verified,
            IdentityConfig::Gateway => panic!("{conf}"),
        }
    }

    #[track_caller]
    fn refused(conf: &str, expected: &str) {
        let error = parse_conf::<IdentityConfig>(conf.as_bytes()).unwrap_err().to_string();
        let (message, _position) = error.rsplit_once(" (line ").unwrap_or((&error, ""));
        assert_eq!(message, expected, "{conf}");
    }

    #[track_caller]
    fn refused_verified(fields: &str, expected: &str) {
        refused(&format!(r#"{{"trust": "verified", {fields}}}"#), expected);
    }

    #[test]
    fn verified_has_defaults() {
        let verified = verified(r#""issuer": "https://key.example.com/realms/dev", "audience": ["apisix"]"#);
        let names: Vec<_> = verified.sources.names().iter().map(HeaderName::as_str).collect();
        assert_eq!(names, ["x-raw-id-token", "x-access-token", "authorization"]);
        assert_eq!(
            verified.keys.discovery.as_str(),
            "https://key.example.com/realms/dev/.well-known/openid-configuration"
        );
        assert_eq!(*verified.expected.issuer, *"https://key.example.com/realms/dev");
        assert_eq!(*verified.expected.audience, [Box::from("apisix")]);
        assert_eq!(*verified.expected.authorized_parties, []);
        assert!(!verified.keys.allow_http && verified.keys.ca_file.is_none());
        assert!(verified.userinfo_claims.is_empty());
    }

    #[test]
    fn every_field_can_be_set() {
        let verified = verified(
            r#""issuer": "key", "discovery": "http://keycloak.keycloak/d", "allow_http": true, "token": ["x-t"],
               "audience": ["a", "b"], "azp": ["c"], "ca_file": "/ca.pem", "userinfo_claims": ["groups"]"#,
        );
        assert_eq!(verified.sources.names()[0].as_str(), "x-t");
        assert_eq!(verified.keys.discovery.as_str(), "http://keycloak.keycloak/d");
        assert_eq!(*verified.expected.audience, [Box::from("a"), Box::from("b")]);
        assert_eq!(*verified.expected.authorized_parties, [Box::from("c")]);
        assert_eq!(verified.keys.ca_file, Some(PathBuf::from("/ca.pem")));
        assert_eq!(*verified.userinfo_claims, [Box::from("groups")]);
    }

    #[test]
    fn an_issuer_with_a_slash_is_found_too() {
        let verified = verified(r#""issuer": "https://key.example.com/", "audience": ["a"]"#);
        assert_eq!(
            verified.keys.discovery.as_str(),
            "https://key.example.com/.well-known/openid-configuration"
        );
        assert_eq!(*verified.expected.issuer, *"https://key.example.com/");
    }

    #[test]
    fn missing_fields_of_verified_are_asked_for() {
        refused_verified(r#""audience": ["a"]"#, "`issuer` is missing: the `iss` of the tokens");
        let missing = "`audience` and `azp` are missing: without them, a token for any client of the issuer would be accepted";
        refused_verified(r#""issuer": "https://a""#, missing);
        refused_verified(r#""issuer": "https://a", "audience": []"#, missing);
        verified(r#""issuer": "https://a", "azp": ["apisix"]"#);
    }

    #[test]
    fn plain_http_takes_the_operators_word() {
        for (fields, field) in [
            (r#""issuer": "http://a", "audience": ["a"]"#, "issuer"),
            (r#""issuer": "https://a", "discovery": "http://a/d", "audience": ["a"]"#, "discovery"),
            (
                r#""issuer": "https://a", "discovery": "http://a/d", "allow_http": false, "audience": ["a"]"#,
                "discovery",
            ),
        ] {
            refused_verified(
                fields,
                &format!(
                    "`{field}` has no TLS, so an attacker on the network could supply other keys: use https, or set \"allow_http\": true if the network is safe"
                ),
            );
        }
    }

    #[test]
    fn an_invalid_address_is_refused_without_its_content() {
        refused_verified(
            r#""issuer": "s3cret", "audience": ["a"]"#,
            "`issuer` is not a URL, so `discovery` must name its discovery document",
        );
        for discovery in ["s3cret", "ftp://s3cret", "http:", "file:///s3cret", "https://"] {
            refused_verified(
                &format!(r#""issuer": "https://a", "discovery": "{discovery}", "audience": ["a"]"#),
                "`discovery` is not an http or https URL",
            );
        }
        refused_verified(
            r#""issuer": "https://a", "discovery": "https://me:s3cret@a/d", "audience": ["a"]"#,
            "`discovery` contains a user or a password, which would be logged",
        );
    }

    #[test]
    fn trust_is_one_of_two_and_refused_without_its_content() {
        for trust in ["\"s3cret\"", "7123", "null", "[\"gateway\"]", "\"Gateway\"", "\"\""] {
            refused(&format!("{{\"trust\": {trust}}}"), "trust: trust is \"gateway\" or \"verified\"");
        }
        refused("{}", "missing field `trust`");
    }

    #[test]
    fn fields_of_verified_are_refused_with_trust_gateway() {
        for (field, value) in [
            ("issuer", "\"https://a\""),
            ("discovery", "\"https://a\""),
            ("token", "[\"x-t\"]"),
            ("audience", "[]"),
            ("azp", "[]"),
            ("allow_http", "false"),
            ("ca_file", "\"/a\""),
            ("userinfo_claims", "[]"),
        ] {
            refused(
                &format!(r#"{{"trust": "gateway", "{field}": {value}}}"#),
                &format!("`{field}` is allowed only if trust is \"verified\""),
            );
        }
    }

    #[test]
    fn texts_and_lists_are_bounded() {
        refused_verified(r#""issuer": """#, "issuer: a text must have 1 to 2048 bytes");
        refused_verified(
            &format!(r#""issuer": "{}""#, "a".repeat(2049)),
            "issuer: a text must have 1 to 2048 bytes",
        );
        refused_verified(r#""audience": [""]"#, "audience[0]: a text must have 1 to 2048 bytes");
        refused_verified(r#""audience": "a""#, "audience: invalid type: string, expected a list");
        refused_verified(
            &format!(r#""azp": [{}]"#, vec!["\"a\""; 65].join(",")),
            "azp: at most 64 can be listed",
        );
    }
}
