//! The plugin's conf in a route.

mod identity;
mod object;
mod timeout;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::claims::Wanted;
use super::keys::{CaFileError, read_ca_file};
use super::login_link::LoginLink;
use super::policy::{ClaimPaths, Policy, Rules};
use super::template::Template;
use apisix_plugin_runner::CookieNames;
use apisix_plugin_runner::upstream::{Timeouts, UpstreamMode};
pub use identity::{IdentityConfig, Verified};
use object::Object;
use timeout::TimeoutFields;

/// `{"identity": {"trust": "gateway"}, "upstream": "http://code-{sub}:8443"}`.
///
/// | field | type | default | refused when prepared |
/// |---|---|---|---|
/// | `identity.trust` | `"gateway"` or `"verified"` | none | missing, or anything else |
/// | `identity.issuer` | text, 1 to 2048 bytes | none | missing for `verified`; it and the fields below together with `gateway` |
/// | `identity.discovery` | http or https URL | the issuer and `/.well-known/openid-configuration` | no URL, one with a password, plain http without `allow_http` |
/// | `identity.token` | list of 1 to 8 header names | `x-raw-id-token`, `x-access-token`, `authorization` | none, twice, with `_`, `x-userinfo`, or a header that says something else |
/// | `identity.audience` | list of up to 64 texts | empty | empty together with `azp` |
/// | `identity.azp` | list of up to 64 texts | empty | as `audience` |
/// | `identity.allow_http` | truth value | `false` | |
/// | `identity.ca_file` | path of a PEM file | the system's certificates | unreadable, over 4 MiB, or without a certificate |
/// | `identity.userinfo_claims` | list of up to 64 texts | empty | an empty text, `sub`, or a claim that nothing reads |
/// | `upstream` | template: scheme, host name with `{claim}`s, port | none | missing, or not a template: the message names the position |
/// | `allow.groups`, `.roles`, `.subjects` | lists of up to 10,000 texts | not asked | an empty list, or an empty text |
/// | `deny.groups`, `.roles`, `.subjects` | lists of up to 10,000 texts | empty | an empty text |
/// | `claims.groups`, `claims.roles` | path of a claim: names with dots between, or a list of names | `groups`, `realm_access.roles` | no path |
/// | `remove_cookies` | list of up to 64 names of cookies | `session` | no name of a cookie |
/// | `timeout.connect`, `.send`, `.read` | duration with its unit, 1 ms to 1 day | the forwarder's settings | anything else |
/// | `upstream_mode` | `"forward"` or `"direct"` | the setting `--upstream-mode` | anything else |
/// | `login` | path with one `/` before it, or https URL | `/logout` | anything else |
///
/// An unknown field and a wrong type are refused too. The error names the field
/// and its place; no message repeats a value of a conf that is refused.
///
/// ```
/// use apisix_plugin_runner::config::parse_conf;
/// use kube_coders_identity::UserUpstreamConfig;
///
/// let conf = br#"{"identity": {"trust": "gateway"}, "upstream": "http://code-{sub}"}"#;
/// let error = parse_conf::<UserUpstreamConfig>(conf).err().map(|error| error.field);
/// assert_eq!(error.as_deref(), Some("upstream"), "the port is missing");
/// ```
#[derive(Deserialize)]
#[serde(try_from = "Object<ConfFields>")]
pub struct UserUpstreamConfig {
    /// Which source of claims is believed.
    pub identity: IdentityConfig,
    /// The upstream of a user, with holes for claims.
    pub upstream: Template,
    /// Which users may use a workspace: `allow`, `deny` and `claims` of the conf.
    pub policy: Policy,
    /// The cookies that the workspace must not receive.
    pub remove_cookies: CookieNames,
    /// The link on a rejection page by which the user signs in again.
    pub login: LoginLink,
    /// The waits for a workspace that differ from the forwarder's settings.
    pub timeouts: Timeouts,
    /// How requests reach the workspace; `None` leaves it to the setting `--upstream-mode`.
    pub upstream_mode: Option<UpstreamMode>,
    /// The claims that anything of this needs.
    pub wanted: Wanted,
}

/// The conf as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
struct ConfFields {
    /// What identifies users.
    identity: IdentityConfig,
    /// The destination of requests, for example `http://code-{sub}:8443`: a scheme, a host
    /// name that may contain claims, and a port.
    upstream: Template,
    /// Which users are admitted. By default, and if empty, all users with a known identity.
    #[serde(default)]
    allow: Object<Rules>,
    /// Which users are refused, whatever `allow` says. Empty by default.
    #[serde(default)]
    deny: Object<Rules>,
    /// The claims that contain groups and roles; `groups` and `realm_access.roles` by
    /// default.
    #[serde(default)]
    claims: Object<ClaimPaths>,
    /// The cookies that no workspace receives, with their numbered chunks; by default
    /// `session`, which is openid-connect's.
    #[serde(default)]
    remove_cookies: CookieNames,
    /// The target of the pages' link to sign in again; `/logout` by default.
    #[serde(default)]
    login: LoginLink,
    /// How long to wait for workspaces; by default as long as the forwarder's settings
    /// say.
    #[serde(default)]
    timeout: Object<TimeoutFields>,
    /// How requests get to their workspaces, which the route is made for; by default as
    /// the runner's settings say.
    #[serde(default)]
    upstream_mode: Option<ConfMode>,
}

/// A mode by its name.
struct ConfMode(UpstreamMode);

impl<'de> Deserialize<'de> for ConfMode {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<str>::deserialize(deserializer)?.parse().map(Self).map_err(D::Error::custom)
    }
}

impl TryFrom<Object<ConfFields>> for UserUpstreamConfig {
    type Error = String;

    fn try_from(Object(fields): Object<ConfFields>) -> Result<Self, String> {
        let ConfFields {
            identity,
            upstream,
            allow,
            deny,
            claims,
            remove_cookies,
            login,
            timeout,
            upstream_mode,
        } = fields;
        let policy = Policy::new(allow.0, deny.0, claims.0)?;
        let wanted = identity.wanted(upstream.claim_names().chain(policy.claim_names()));
        if let Some(at) = identity.userinfo_claims().iter().position(|name| !wanted.adds(name)) {
            return Err(format!(
                "identity.userinfo_claims[{at}] is `sub`, or not a top-level claim that the template or a rule reads"
            ));
        }
        Ok(Self {
            identity,
            upstream,
            policy,
            remove_cookies,
            login,
            timeouts: timeout.0.into(),
            upstream_mode: upstream_mode.map(|ConfMode(mode)| mode),
            wanted,
        })
    }
}

impl UserUpstreamConfig {
    /// Checks that the files which the conf names can be used.
    pub fn check_files(&self) -> Result<(), CaFileError> {
        match &self.identity {
            IdentityConfig::Verified(verified) => match &verified.keys.ca_file {
                Some(file) => read_ca_file(file).map(|_| ()),
                None => Ok(()),
            },
            IdentityConfig::Gateway => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use apisix_plugin_runner::config::parse_conf;

    fn config(conf: &str) -> UserUpstreamConfig {
        parse_conf::<UserUpstreamConfig>(conf.as_bytes()).unwrap()
    }

    #[track_caller]
    fn refused(conf: &str, expected: &str) {
        let error = parse_conf::<UserUpstreamConfig>(conf.as_bytes()).err().unwrap().to_string();
        let (message, _position) = error.rsplit_once(" (line ").unwrap_or((&error, ""));
        assert_eq!(message, expected, "{conf}");
    }

    #[test]
    fn the_least_that_works_is_read() {
        let config = config(r#"{"identity": {"trust": "gateway"}, "upstream": "http://code-{sub}:8443"}"#);
        assert_eq!(config.identity, IdentityConfig::Gateway);
        assert_eq!(config.upstream, Template::parse("http://code-{sub}:8443").unwrap());
        assert_eq!(config.wanted, Wanted::new(["sub"]));
        assert_eq!(config.remove_cookies, CookieNames::default());
        assert_eq!(config.login, LoginLink::default());
        assert!(config.policy.is_empty());
    }

    #[test]
    fn every_claim_that_is_needed_is_wanted() {
        let config = config(
            r#"{"identity": {"trust": "verified", "issuer": "https://a", "audience": ["a"]},
                "upstream": "http://code-{org.unit}:8443", "allow": {"groups": ["a"]}, "deny": {"roles": ["b"]}}"#,
        );
        let wanted = Wanted::new(["iss", "aud", "azp", "exp", "nbf", "iat", "org", "groups", "realm_access"]);
        assert_eq!(config.wanted, wanted);
    }

    #[test]
    fn missing_arguments_are_asked_for() {
        refused("{}", "missing field `identity`");
        refused(r#"{"identity": {}, "upstream": "http://a:1"}"#, "identity: missing field `trust`");
        refused(r#"{"identity": {"trust": "gateway"}}"#, "missing field `upstream`");
    }

    #[test]
    fn unknown_fields_are_refused() {
        refused(
            r#"{"upstreams": 1}"#,
            "upstreams: unknown field, expected one of `identity`, `upstream`, `allow`, `deny`, `claims`, `remove_cookies`, `login`, `timeout`, `upstream_mode`",
        );
        refused(
            r#"{"identity": {"trust": "gateway", "issuers": "https://x"}}"#,
            "identity.issuers: unknown field, expected one of `trust`, `issuer`, `discovery`, `token`, `audience`, `azp`, `allow_http`, `ca_file`, `userinfo_claims`",
        );
    }

    #[test]
    fn another_type_is_refused_without_its_content() {
        for (value, kind) in [
            ("\"s3cret\"", "string"),
            ("7123", "number"),
            ("-7", "number"),
            ("1.5", "number"),
            ("true", "boolean"),
            ("null", "null"),
        ] {
            refused(value, &format!("invalid type: {kind}, expected an object"));
            let conf = format!("{{\"identity\": {value}}}");
            refused(&conf, &format!("identity: invalid type: {kind}, expected an object"));
            let conf = format!("{{\"allow\": {value}}}");
            refused(&conf, &format!("allow: invalid type: {kind}, expected an object"));
            if kind != "string" {
                refused(
                    &format!("{{\"upstream\": {value}}}"),
                    "upstream: an upstream is a string, such as \"http://code-{sub}:8443\"",
                );
            }
        }
    }

    #[test]
    fn a_list_is_no_object() {
        let gateway = r#""identity": {"trust": "gateway"}, "upstream": "http://a:1""#;
        refused(&format!(r#"[{{{gateway}}}, "http://a:1"]"#), "invalid type: list, expected an object");
        refused(r#"{"identity": ["gateway"]}"#, "identity: invalid type: list, expected an object");
        for field in ["allow", "deny", "claims"] {
            refused(
                &format!(r#"{{{gateway}, "{field}": []}}"#),
                &format!("{field}: invalid type: list, expected an object"),
            );
        }
    }

    #[test]
    fn userinfo_adds_only_claims_that_are_read() {
        let conf = |names: &str| {
            format!(
                r#"{{"identity": {{"trust": "verified", "issuer": "https://a", "audience": ["a"],
                     "userinfo_claims": [{names}]}}, "upstream": "http://code-{{org}}:1", "allow": {{"roles": ["a"]}}}}"#
            )
        };
        config(&conf(r#""org", "realm_access", "preferred_username""#));
        for name in ["sub", "realm_access.roles", "groups"] {
            refused(
                &conf(&format!("\"org\", \"{name}\"")),
                "identity.userinfo_claims[1] is `sub`, or not a top-level claim that the template or a rule reads",
            );
        }
    }

    #[test]
    fn times_have_a_unit() {
        let with = |timeout: &str| {
            format!(
                r#"{{"identity": {{"trust": "gateway"}}, "upstream": "http://a:1", "timeout": {timeout}}}"#
            )
        };
        let second = Some(Duration::from_secs(1));
        let all = config(&with(r#"{"connect": "1s", "send": "1000ms", "read": "1s"}"#)).timeouts;
        assert_eq!(all, Timeouts { connect: second, send: second, read: second });
        assert_eq!(config(&with("{}")).timeouts, Timeouts::default());
        let unit = "not a duration with its unit, such as \"6s\", \"800ms\" or \"2m\"";
        refused(&with(r#"{"read": "5"}"#), &format!("timeout.read: {unit}"));
        refused(&with(r#"{"send": "0s"}"#), "timeout.send: a timeout is between 1 ms and 1 day");
        refused(&with(r#"{"connect": "2days"}"#), "timeout.connect: a timeout is between 1 ms and 1 day");
        refused(&with(r#"{"connect": 6}"#), "timeout.connect: invalid type: number, expected a string");
        refused(
            &with(r#"{"idle": "1s"}"#),
            "timeout.idle: unknown field, expected one of `connect`, `send`, `read`",
        );
    }

    #[test]
    fn a_wrong_upstream_is_refused_with_its_place() {
        refused(r#"{"upstream": "http://code-{sub:8443"}"#, "upstream: the `{` at byte 12 is never closed");
        refused(
            r#"{"upstream": "ftp://code-{sub}:8443"}"#,
            "upstream: an upstream starts with http:// or https://",
        );
    }

    /// The fields that a conf may have, by the word of what refuses others.
    fn known_fields(conf: &str, prefix: &str) -> Vec<String> {
        let error = parse_conf::<UserUpstreamConfig>(conf.as_bytes()).err().unwrap().to_string();
        let (_, expected) = error.split_once("expected ").unwrap();
        expected.split('`').skip(1).step_by(2).map(|field| format!("{prefix}{field}")).collect()
    }

    #[test]
    fn every_field_is_on_the_conf_s_page() {
        let fields = [
            known_fields(r#"{"x": 1}"#, ""),
            known_fields(r#"{"identity": {"x": 1}}"#, "identity."),
            known_fields(r#"{"claims": {"x": 1}}"#, "claims."),
            known_fields(r#"{"timeout": {"x": 1}}"#, "timeout."),
        ]
        .concat();
        let expected: Vec<_> = fields
            .iter()
            .filter(|field| !["identity", "claims", "timeout"].contains(&field.as_str()))
            .collect();
        assert!(expected.len() > 15, "{expected:?}");
        let page = include_str!("../../../docs/user-upstream.md");
        let (_, section) = page.split_once("## Fields of the conf").unwrap();
        let rows = section.split("\n## ").next().unwrap().lines().filter_map(|line| line.strip_prefix("| `"));
        let listed: Vec<_> = rows
            .flat_map(|row| {
                row.split(" | ").next().unwrap().split("`").map(str::to_owned).collect::<Vec<_>>()
            })
            .filter(|field| !field.trim_matches([',', ' ']).is_empty())
            .collect();
        for field in &expected {
            assert!(listed.contains(field), "{field} is not on the page");
        }
        for field in &listed {
            assert!(expected.contains(&field), "the conf has no {field}");
        }
    }
}
