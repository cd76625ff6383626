//! Which users are admitted: `allow` and `deny`.

use std::collections::BTreeSet;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer};
use serde_json::Value;
use thiserror::Error;

use super::claims::{Claim, ClaimPath, Claims, Found};

/// How many values one list may have.
const MAX_VALUES: usize = 10_000;

/// Rules about identities, as they are written in `allow` and `deny`.
///
/// ```
/// use kube_coders_identity::policy::Rules;
///
/// let allow: Rules = serde_json::from_str(r#"{"groups": ["/developers"]}"#)?;
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, expecting = "an object")]
pub struct Rules {
    /// Groups, byte for byte as in the claim. Keycloak's begin with `/` if its mapper writes
    /// full paths. By default the policy does not look at groups.
    #[serde(default)]
    groups: Option<Values>,
    /// Roles, byte for byte. By default the policy does not look at roles.
    #[serde(default)]
    roles: Option<Values>,
    /// Subjects, byte for byte. By default the policy does not look at subjects.
    #[serde(default)]
    subjects: Option<Values>,
}

/// Which claims hold groups and roles, as written in `claims`: paths
/// such as `resource_access.apisix.roles`.
///
/// ```
/// use kube_coders_identity::policy::ClaimPaths;
///
/// let paths: ClaimPaths = serde_json::from_str(r#"{"roles": "resource_access.apisix.roles"}"#)?;
/// # Ok::<(), serde_json::Error>(())
/// ```
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields, default, expecting = "an object")]
pub struct ClaimPaths {
    /// `groups` by default.
    groups: ClaimPath,
    /// `realm_access.roles` by default, in which Keycloak has the realm's roles.
    roles: ClaimPath,
}

impl Default for ClaimPaths {
    fn default() -> Self {
        let path = |text| ClaimPath::parse(text).expect("a claim's path");
        Self { groups: path("groups"), roles: path("realm_access.roles") }
    }
}

impl<'de> Deserialize<'de> for ClaimPath {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let path = match Value::deserialize(deserializer)? {
            Value::String(text) => Self::parse(&text),
            // For names that have dots in them, such as those of other providers' claims.
            Value::Array(names) => {
                let names: Option<Vec<_>> = names.iter().map(|name| name.as_str().map(Box::from)).collect();
                names.and_then(Self::of_names)
            }
            _ => None,
        };
        path.ok_or_else(|| {
            D::Error::custom("not a claim: a name, names with dots between them, or a list of names")
        })
    }
}

/// Texts, some of which an identity must have, or none.
#[derive(Debug)]
struct Values(BTreeSet<Box<str>>);

impl<'de> Deserialize<'de> for Values {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let values = Vec::<Box<str>>::deserialize(deserializer)?;
        if values.len() > MAX_VALUES {
            return Err(D::Error::custom(format_args!("at most {MAX_VALUES} can be listed")));
        }
        if values.iter().any(|value| value.is_empty()) {
            return Err(D::Error::custom("an empty text is in the list"));
        }
        Ok(Self(values.into_iter().collect()))
    }
}

/// What a rule looks at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RuleKind {
    Groups,
    Roles,
    Subjects,
}

impl RuleKind {
    fn name(self) -> &'static str {
        match self {
            Self::Groups => "groups",
            Self::Roles => "roles",
            Self::Subjects => "subjects",
        }
    }
}

/// The rules of a conf.
///
/// ```
/// use kube_coders_identity::claims::{Wanted, decode};
/// use kube_coders_identity::policy::{ClaimPaths, Policy, Rules};
///
/// let allow: Rules = serde_json::from_str(r#"{"groups": ["/developers"]}"#).expect("rules");
/// let policy = Policy::new(allow, Rules::default(), ClaimPaths::default())?;
/// let wanted = Wanted::new(policy.claim_names());
/// let claims = decode(br#"{"sub": "alice", "groups": ["/developers"]}"#, &wanted).expect("claims");
/// assert_eq!(policy.decide(&claims), Ok(()));
/// # Ok::<(), String>(())
/// ```
#[derive(Debug)]
pub struct Policy {
    allow: Vec<(RuleKind, Values)>,
    deny: Vec<(RuleKind, Values)>,
    paths: ClaimPaths,
}

/// Which rule turned an identity away.
///
/// ```
/// use kube_coders_identity::claims::{Wanted, decode};
/// use kube_coders_identity::policy::{ClaimPaths, Denied, Policy, Rules};
///
/// let deny: Rules = serde_json::from_str(r#"{"subjects": ["mallory"]}"#).expect("rules");
/// let policy = Policy::new(Rules::default(), deny, ClaimPaths::default())?;
/// let claims = decode(br#"{"sub": "mallory"}"#, &Wanted::new([])).expect("claims");
/// assert_eq!(policy.decide(&claims), Err(Denied::OneOf("subjects")));
/// # Ok::<(), String>(())
/// ```
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum Denied {
    /// `allow` has this list, and the identity has none of its values.
    #[error("allow.{0}: the identity has none of them")]
    NoneOf(&'static str),
    /// `deny` has this list, and the identity has one of its values.
    #[error("deny.{0}: the identity has one of them")]
    OneOf(&'static str),
    /// A claim that can't be compared must not get a user past `deny`.
    #[error("deny.{0}: the claim is neither a text nor a list of texts")]
    Unreadable(&'static str),
}

impl Rules {
    /// The rules that are there.
    fn into_list(self) -> Vec<(RuleKind, Values)> {
        let kinds = [
            (RuleKind::Groups, self.groups),
            (RuleKind::Roles, self.roles),
            (RuleKind::Subjects, self.subjects),
        ];
        kinds.into_iter().filter_map(|(kind, values)| Some((kind, values?))).collect()
    }
}

impl Policy {
    /// Puts the rules together. An empty list within `allow` is a mistake: it
    /// reads as if it admitted all users, and would admit none.
    pub fn new(allow: Rules, deny: Rules, paths: ClaimPaths) -> Result<Self, String> {
        let allow = allow.into_list();
        if let Some((kind, _)) = allow.iter().find(|(_, Values(values))| values.is_empty()) {
            let name = kind.name();
            return Err(format!(
                "allow.{name} is empty, which admits no user: leave it out to admit all users"
            ));
        }
        let mut deny = deny.into_list();
        deny.retain(|(_, Values(values))| !values.is_empty());
        Ok(Self { allow, deny, paths })
    }

    /// Says no, and by which rule, or nothing.
    pub fn decide(&self, claims: &Claims) -> Result<(), Denied> {
        for (kind, values) in &self.deny {
            match self.has_any(*kind, values, claims) {
                Some(false) => {}
                Some(true) => return Err(Denied::OneOf(kind.name())),
                None => return Err(Denied::Unreadable(kind.name())),
            }
        }
        match self.allow.iter().find(|(kind, values)| self.has_any(*kind, values, claims) != Some(true)) {
            Some((kind, _)) => Err(Denied::NoneOf(kind.name())),
            None => Ok(()),
        }
    }

    /// The top-level claims that the rules look at.
    pub fn claim_names(&self) -> impl Iterator<Item = &str> {
        let kinds = self.allow.iter().chain(&self.deny);
        kinds.filter_map(|(kind, _)| self.path(*kind)).map(ClaimPath::name)
    }

    /// Whether there is no rule at all.
    pub fn is_empty(&self) -> bool {
        self.allow.is_empty() && self.deny.is_empty()
    }

    /// The claims that the rules look at, each once.
    pub fn paths(&self) -> Vec<&ClaimPath> {
        let mut paths: Vec<_> =
            self.allow.iter().chain(&self.deny).filter_map(|(kind, _)| self.path(*kind)).collect();
        paths.sort_by_key(|path| path.name());
        paths.dedup();
        paths
    }

    /// The values that a rule lists, and the identity's own, which may be none.
    ///
    /// ```
    /// use kube_coders_identity::claims::{Wanted, decode};
    /// use kube_coders_identity::policy::{ClaimPaths, Denied, Policy, Rules};
    ///
    /// let allow: Rules = serde_json::from_str(r#"{"groups": ["/developers"]}"#).expect("rules");
    /// let policy = Policy::new(allow, Rules::default(), ClaimPaths::default())?;
    /// let claims = decode(br#"{"groups": ["developers"]}"#, &Wanted::new(["groups"])).expect("claims");
    /// let listed = policy.listed(Denied::NoneOf("groups"), &claims);
    /// assert_eq!(listed, (vec!["/developers"], vec!["developers"]));
    /// # Ok::<(), String>(())
    /// ```
    pub fn listed<'p>(&'p self, denied: Denied, claims: &'p Claims) -> (Vec<&'p str>, Vec<&'p str>) {
        let (rules, name) = match denied {
            Denied::NoneOf(name) => (&self.allow, name),
            Denied::OneOf(name) | Denied::Unreadable(name) => (&self.deny, name),
        };
        let Some((kind, Values(values))) = rules.iter().find(|(kind, _)| kind.name() == name) else {
            return (Vec::new(), Vec::new());
        };
        let found = match self.path(*kind) {
            None => vec![claims.subject()],
            Some(path) if path.name() == "sub" => claims.text(path).into_iter().collect(),
            Some(path) => match claims.find(path) {
                Found::Claim(Claim::Text(text)) => vec![&**text],
                Found::Claim(Claim::List(list)) => list.iter().filter_map(Claim::as_text).collect(),
                _ => Vec::new(),
            },
        };
        (values.iter().map(|value| &**value).collect(), found)
    }

    fn path(&self, kind: RuleKind) -> Option<&ClaimPath> {
        match kind {
            RuleKind::Groups => Some(&self.paths.groups),
            RuleKind::Roles => Some(&self.paths.roles),
            RuleKind::Subjects => None,
        }
    }

    /// Whether an identity has any of these. `None` if its claim is neither a text nor a
    /// list of texts, and no readable part of it is listed.
    fn has_any(&self, kind: RuleKind, Values(values): &Values, claims: &Claims) -> Option<bool> {
        let Some(path) = self.path(kind) else { return Some(values.contains(claims.subject())) };
        if path.name() == "sub" {
            return Some(claims.text(path).is_some_and(|text| values.contains(text)));
        }
        match claims.find(path) {
            Found::Nothing => Some(false),
            Found::NoObject => None,
            Found::Claim(Claim::Text(text)) => Some(values.contains(text)),
            Found::Claim(Claim::List(list)) => {
                let has = |claim: &Claim| matches!(claim, Claim::Text(text) if values.contains(text));
                if list.iter().any(has) {
                    return Some(true);
                }
                list.iter().all(|claim| matches!(claim, Claim::Text(_))).then_some(false)
            }
            Found::Claim(_) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::claims::{self, Wanted};
    use super::*;
    use apisix_plugin_runner::config::parse_conf;

    #[derive(Deserialize)]
    struct Conf {
        #[serde(default)]
        allow: Rules,
        #[serde(default)]
        deny: Rules,
        #[serde(default)]
        claims: ClaimPaths,
    }

    fn policy(conf: &str) -> Result<Policy, String> {
        let Conf { allow, deny, claims } =
            parse_conf::<Conf>(conf.as_bytes()).map_err(|error| error.to_string())?;
        Policy::new(allow, deny, claims)
    }

    #[track_caller]
    fn check(conf: &str, claims: &str, expected: Result<(), Denied>) {
        let policy = policy(conf).unwrap();
        let claims = claims::decode(claims.as_bytes(), &Wanted::new(policy.claim_names())).unwrap();
        assert_eq!(policy.decide(&claims), expected, "{conf}");
    }

    #[track_caller]
    fn refused(conf: &str, expected: &str) {
        let error = policy(conf).unwrap_err();
        assert_eq!(error.rsplit_once(" (line ").map_or(&*error, |(message, _)| message), expected, "{conf}");
    }

    const ALICE: &str = r#"{"sub": "alice", "groups": ["/developers", "/seoul"],
        "realm_access": {"roles": ["coder"]}, "resource_access": {"apisix": {"roles": ["admin"]}}}"#;

    #[test]
    fn without_rules_every_user_is_admitted() {
        for conf in ["{}", r#"{"allow": {}, "deny": {}}"#, r#"{"deny": {"subjects": []}}"#] {
            check(conf, ALICE, Ok(()));
            check(conf, r#"{"sub": "bob"}"#, Ok(()));
            assert!(policy(conf).unwrap().is_empty());
        }
    }

    #[test]
    fn values_of_one_key_are_alternatives_and_keys_are_all_required() {
        check(r#"{"allow": {"groups": ["/ops", "/developers"]}}"#, ALICE, Ok(()));
        check(r#"{"allow": {"groups": ["/ops"]}}"#, ALICE, Err(Denied::NoneOf("groups")));
        check(r#"{"allow": {"groups": ["/developers"], "roles": ["coder"]}}"#, ALICE, Ok(()));
        check(
            r#"{"allow": {"groups": ["/developers"], "roles": ["root"]}}"#,
            ALICE,
            Err(Denied::NoneOf("roles")),
        );
        check(r#"{"allow": {"subjects": ["bob", "alice"]}}"#, ALICE, Ok(()));
        check(r#"{"allow": {"subjects": ["bob"]}}"#, ALICE, Err(Denied::NoneOf("subjects")));
    }

    #[test]
    fn deny_wins() {
        check(
            r#"{"allow": {"subjects": ["alice"]}, "deny": {"subjects": ["alice"]}}"#,
            ALICE,
            Err(Denied::OneOf("subjects")),
        );
        check(r#"{"deny": {"groups": ["/seoul"]}}"#, ALICE, Err(Denied::OneOf("groups")));
        check(r#"{"deny": {"roles": ["root"], "groups": ["/ops"]}}"#, ALICE, Ok(()));
    }

    #[test]
    fn values_are_compared_byte_for_byte() {
        for group in ["developers", "/Developers", "/developers/", "/developers/a", "/develop"] {
            check(
                &format!(r#"{{"allow": {{"groups": ["{group}"]}}}}"#),
                ALICE,
                Err(Denied::NoneOf("groups")),
            );
        }
    }

    #[test]
    fn claim_names_can_be_set() {
        let conf = r#"{"allow": {"roles": ["admin"]}, "claims": {"roles": "resource_access.apisix.roles"}}"#;
        check(conf, ALICE, Ok(()));
        check(conf, r#"{"sub": "bob", "realm_access": {"roles": ["admin"]}}"#, Err(Denied::NoneOf("roles")));
        check(r#"{"allow": {"groups": ["alice"]}, "claims": {"groups": "sub"}}"#, ALICE, Ok(()));
        let one = r#"{"sub": "bob", "groups": "/developers"}"#;
        check(r#"{"allow": {"groups": ["/developers"]}}"#, one, Ok(()));
    }

    #[test]
    fn an_unreadable_claim_is_denied() {
        let (allow, deny) = (r#"{"allow": {"roles": ["a"]}}"#, r#"{"deny": {"roles": ["a"]}}"#);
        for roles in ["7", "{}", "null", "[\"b\", 7]", "[[\"a\"]]", "{\"a\": 1}"] {
            let claims = format!(r#"{{"sub": "alice", "realm_access": {{"roles": {roles}}}}}"#);
            check(allow, &claims, Err(Denied::NoneOf("roles")));
            check(deny, &claims, Err(Denied::Unreadable("roles")));
        }
        check(deny, r#"{"sub": "alice", "realm_access": ["a"]}"#, Err(Denied::Unreadable("roles")));
        check(deny, r#"{"sub": "alice", "realm_access": {"roles": [7, "a"]}}"#, Err(Denied::OneOf("roles")));
        for missing in [r#"{"sub": "alice"}"#, r#"{"sub": "alice", "realm_access": {}}"#] {
            check(allow, missing, Err(Denied::NoneOf("roles")));
            check(deny, missing, Ok(()));
        }
    }

    #[test]
    fn a_claim_with_dots_in_its_name_is_found_by_a_list() {
        let conf = r#"{"claims": {"groups": ["https://a.test/groups"], "roles": ["access", "a.b", "roles"]},
                       "allow": {"groups": ["x"], "roles": ["y"]}}"#;
        check(conf, r#"{"https://a.test/groups": ["x"], "access": {"a.b": {"roles": ["y"]}}}"#, Ok(()));
        check(conf, r#"{"https://a": {"test/groups": ["x"]}}"#, Err(Denied::NoneOf("groups")));
        for path in [r#"[]"#, r#"[""]"#, r#"["a", 1]"#, "7"] {
            refused(
                &format!(r#"{{"claims": {{"roles": {path}}}}}"#),
                "claims.roles: not a claim: a name, names with dots between them, or a list of names",
            );
        }
    }

    #[test]
    fn mistakes_are_refused_without_their_content() {
        for name in ["groups", "roles", "subjects"] {
            refused(
                &format!(r#"{{"allow": {{"{name}": []}}}}"#),
                &format!("allow.{name} is empty, which admits no user: leave it out to admit all users"),
            );
        }
        refused(
            r#"{"allow": {"users": []}}"#,
            "allow.users: unknown field, expected one of `groups`, `roles`, `subjects`",
        );
        refused(r#"{"allow": {"groups": "s3cret"}}"#, "allow.groups: invalid type: string, expected a list");
        refused(r#"{"deny": {"roles": ["a", ""]}}"#, "deny.roles: an empty text is in the list");
        refused(
            r#"{"claims": {"roles": "s3cret..x"}}"#,
            "claims.roles: not a claim: a name, names with dots between them, or a list of names",
        );
        refused(
            &format!(r#"{{"deny": {{"roles": [{}]}}}}"#, vec!["\"a\""; 10_001].join(",")),
            "deny.roles: at most 10000 can be listed",
        );
    }

    #[test]
    fn a_denial_names_its_rule() {
        assert_eq!(Denied::NoneOf("groups").to_string(), "allow.groups: the identity has none of them");
        assert_eq!(Denied::OneOf("roles").to_string(), "deny.roles: the identity has one of them");
        assert_eq!(
            Denied::Unreadable("roles").to_string(),
            "deny.roles: the claim is neither a text nor a list of texts"
        );
    }
}
