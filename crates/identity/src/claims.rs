//! The claims about a user, from a userinfo or a token.
//!
//! Only the wanted claims are kept; the rest is skipped. No error repeats any part of
//! a claim.

use std::collections::BTreeMap;
use std::fmt;

use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use thiserror::Error;

use super::label::MAX_VALUE;

/// The claim that identifies the user (OpenID Connect Core 1.0, section 2).
const SUBJECT: &str = "sub";

/// The claim with the user's name (OpenID Connect Core 1.0, section
/// 5.1).
const USERNAME: &str = "preferred_username";

/// Reads an object of claims and keeps the wanted ones.
///
/// ```
/// use kube_coders_identity::claims::{Wanted, decode};
///
/// let claims = decode(br#"{"sub": "alice", "email": "alice@example.com"}"#, &Wanted::new(["email"]))?;
/// assert!(claims.subject() == "alice" && claims.claim("email").is_some());
/// # Ok::<(), kube_coders_identity::claims::ClaimsError>(())
/// ```
pub fn decode(json: &[u8], wanted: &Wanted) -> Result<Claims, ClaimsError> {
    // Serde's JSON does not look into the strings that it reads over.
    let json = str::from_utf8(json).map_err(|_| ClaimsError::NotJson)?;
    let mut repeated = false;
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let claims = ClaimsSeed { wanted, repeated: &mut repeated }.deserialize(&mut deserializer);
    let claims = claims.and_then(|claims| deserializer.end().map(|()| claims));
    claims.map_err(|error| match error.classify() {
        Category::Data if repeated => ClaimsError::Repeated,
        Category::Data => ClaimsError::NotObject,
        _ => ClaimsError::NotJson,
    })
}

/// The top-level claims to keep; always with the subject and the user name.
///
/// ```
/// use kube_coders_identity::claims::Wanted;
///
/// let wanted = Wanted::new(["groups"]);
/// assert!(wanted.adds("groups") && !wanted.adds("picture"));
/// assert!(!wanted.adds("sub"), "the subject is read, and no other source may add it");
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Wanted(Box<[Box<str>]>);

impl Wanted {
    /// Keeps the claims of these names besides `sub` and `preferred_username`.
    pub fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut all: Vec<Box<str>> = vec![SUBJECT.into(), USERNAME.into()];
        for name in names {
            if !all.iter().any(|known| **known == *name) {
                all.push(name.into());
            }
        }
        Self(all.into())
    }

    /// Whether a claim of this name is kept, and another source may add it.
    pub fn adds(&self, name: &str) -> bool {
        name != SUBJECT && self.0.iter().any(|known| **known == *name)
    }
}

/// The wanted claims of one identity.
///
/// ```
/// use kube_coders_identity::claims::{ClaimPath, Wanted, decode};
///
/// let json = br#"{"sub": "alice", "realm_access": {"roles": ["dev"]}, "team": {"name": "blue"}}"#;
/// let claims = decode(json, &Wanted::new(["team"]))?.with_subject()?;
/// let team = ClaimPath::parse("team.name").expect("a path");
/// assert_eq!((claims.subject(), claims.text(&team)), ("alice", Some("blue")));
/// # Ok::<(), kube_coders_identity::claims::ClaimsError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct Claims {
    subject: Box<str>,
    others: Vec<(Box<str>, Claim)>,
}

impl Claims {
    /// Accepts the claims only if they have a subject of 1 to 255 characters.
    pub fn with_subject(self) -> Result<Self, ClaimsError> {
        match self.subject() {
            "" => Err(ClaimsError::Subject),
            subject if subject.len() > MAX_VALUE && subject.chars().count() > MAX_VALUE => {
                Err(ClaimsError::Subject)
            }
            _ => Ok(self),
        }
    }

    /// The subject, empty if it is missing or not a text.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// The user name, which is no identity: its owner may change it.
    pub fn username(&self) -> Option<&str> {
        match self.claim(USERNAME)? {
            Claim::Text(text) => Some(text),
            _ => None,
        }
    }

    /// A top-level claim that was wanted, but the subject.
    pub fn claim(&self, name: &str) -> Option<&Claim> {
        self.others.iter().find(|(known, _)| **known == *name).map(|(_, claim)| claim)
    }

    /// Adds the claims of these names that are not there yet.
    pub fn add(&mut self, others: Self, names: &[Box<str>]) {
        for (name, claim) in others.others {
            if names.contains(&name) && self.claim(&name).is_none() {
                self.others.push((name, claim));
            }
        }
    }

    /// The claim at a path, if it was wanted and is there; the subject is no part
    /// of it.
    pub fn find(&self, path: &ClaimPath) -> Found<'_> {
        let Some(mut found) = self.claim(&path.name) else { return Found::Nothing };
        for name in &path.inner {
            let Claim::Object(fields) = found else { return Found::NoObject };
            let Some(inner) = fields.get(name) else { return Found::Nothing };
            found = inner;
        }
        Found::Claim(found)
    }

    /// The text at a path.
    pub fn text(&self, path: &ClaimPath) -> Option<&str> {
        if *path.name == *SUBJECT {
            return path.inner.is_empty().then_some(&self.subject);
        }
        match self.find(path) {
            Found::Claim(Claim::Text(text)) => Some(text),
            _ => None,
        }
    }
}

/// What is at a path.
///
/// ```
/// use kube_coders_identity::claims::{ClaimPath, Found, Wanted, decode};
///
/// let claims = decode(br#"{"sub": "alice", "team": "blue"}"#, &Wanted::new(["team"]))?;
/// let found = |path: &str| ClaimPath::parse(path).map(|path| claims.find(&path));
/// assert!(matches!(found("team"), Some(Found::Claim(_))));
/// assert_eq!(found("team.name"), Some(Found::NoObject));
/// assert_eq!(found("other"), Some(Found::Nothing));
/// # Ok::<(), kube_coders_identity::claims::ClaimsError>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Found<'c> {
    /// The claim's value.
    Claim(&'c Claim),
    /// An object on the way, or the claims themselves, have no such name.
    Nothing,
    /// A value on the way is not an object.
    NoObject,
}

/// The value of a claim.
///
/// ```
/// use kube_coders_identity::claims::{Claim, Wanted, decode};
///
/// let claims = decode(br#"{"sub": "alice", "team": "blue", "age": 7}"#, &Wanted::new(["team", "age"]))?;
/// assert_eq!(claims.claim("team"), Some(&Claim::Text("blue".into())));
/// assert_eq!(claims.claim("age"), Some(&Claim::Number(7.0)));
/// # Ok::<(), kube_coders_identity::claims::ClaimsError>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub enum Claim {
    /// A JSON string.
    Text(Box<str>),
    /// A JSON number, with the precision of a double.
    Number(f64),
    /// A JSON array.
    List(Vec<Claim>),
    /// A JSON object.
    Object(BTreeMap<Box<str>, Claim>),
    /// A truth value or null.
    Other,
}

impl Claim {
    /// The text of a claim that is one.
    pub fn as_text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// The path of a claim: `sub`, or `resource_access.apisix.roles`.
///
/// ```
/// use kube_coders_identity::claims::ClaimPath;
///
/// let path = ClaimPath::parse("resource_access.apisix.roles").expect("a path");
/// assert_eq!((path.name(), &*path.to_string()), ("resource_access", "resource_access.apisix.roles"));
/// assert_eq!(ClaimPath::parse("two..dots"), None);
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ClaimPath {
    name: Box<str>,
    inner: Box<[Box<str>]>,
}

impl ClaimPath {
    /// A path, or `None` if a name in it is empty or holds anything but visible
    /// ASCII, or a brace.
    pub fn parse(text: &str) -> Option<Self> {
        let is_allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'{' && byte != b'}';
        if !text.bytes().all(is_allowed) {
            return None;
        }
        Self::of_names(text.split('.').map(Box::from))
    }

    /// The path of these names. No name may be empty.
    pub fn of_names(names: impl IntoIterator<Item = Box<str>>) -> Option<Self> {
        let mut names = names.into_iter();
        let path = Self { name: names.next()?, inner: names.collect() };
        let is_whole = !path.name.is_empty() && path.inner.iter().all(|name| !name.is_empty());
        is_whole.then_some(path)
    }

    /// The top-level claim that the path starts in.
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl fmt::Display for ClaimPath {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(&self.name)?;
        self.inner.iter().try_for_each(|name| write!(formatter, ".{name}"))
    }
}

/// Why there are no claims.
///
/// ```
/// use kube_coders_identity::claims::{ClaimsError, Wanted, decode};
///
/// let decoded = |json: &str| decode(json.as_bytes(), &Wanted::new([]));
/// assert_eq!(decoded(r#"{"sub": "alice", "sub": "bob"}"#), Err(ClaimsError::Repeated));
/// assert_eq!(decoded("{}").and_then(|claims| claims.with_subject()), Err(ClaimsError::Subject));
/// ```
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum ClaimsError {
    /// The text does not parse as JSON, or is not UTF-8.
    #[error("not JSON")]
    NotJson,
    /// The text is JSON of another type.
    #[error("not a JSON object")]
    NotObject,
    /// One object has two members of the same name, so readers could disagree about its value.
    #[error("a claim is there twice")]
    Repeated,
    /// The claims name no user: `sub` is what identifies one.
    #[error("`sub` is missing, or not a text of 1 to 255 characters")]
    Subject,
}

/// Reads the object of all claims.
struct ClaimsSeed<'a> {
    wanted: &'a Wanted,
    /// Set if the error is a repeated name: serde's own has no kinds.
    repeated: &'a mut bool,
}

impl<'de> DeserializeSeed<'de> for ClaimsSeed<'_> {
    type Value = Claims;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Claims, D::Error> {
        deserializer.deserialize_map(self)
    }
}

impl<'de> Visitor<'de> for ClaimsSeed<'_> {
    type Value = Claims;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("an object of claims")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Claims, A::Error> {
        let mut subject = None;
        let mut others: Vec<(Box<str>, Claim)> = Vec::with_capacity(self.wanted.0.len() - 1);
        while let Some(at) = map.next_key_seed(NameSeed(self.wanted))? {
            let Some(at) = at else {
                map.next_value::<IgnoredAny>()?;
                continue;
            };
            let claim = map.next_value_seed(ClaimSeed { repeated: self.repeated })?;
            let name = &self.wanted.0[at];
            let is_repeated = if at == 0 {
                subject.replace(claim).is_some()
            } else {
                others.push((name.clone(), claim));
                others[..others.len() - 1].iter().any(|(known, _)| known == name)
            };
            if is_repeated {
                *self.repeated = true;
                return Err(de::Error::custom("repeated"));
            }
        }
        // A subject that is not a text counts as missing.
        let subject = match subject {
            Some(Claim::Text(text)) => text,
            _ => Box::default(),
        };
        Ok(Claims { subject, others })
    }
}

/// Reads a claim's name as its place among the wanted ones.
struct NameSeed<'a>(&'a Wanted);

impl<'de> DeserializeSeed<'de> for NameSeed<'_> {
    type Value = Option<usize>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Option<usize>, D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for NameSeed<'_> {
    type Value = Option<usize>;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a claim's name")
    }

    fn visit_str<E>(self, text: &str) -> Result<Option<usize>, E> {
        Ok(self.0.0.iter().position(|name| **name == *text))
    }
}

/// Reads one claim's value; a name twice in an object is refused.
struct ClaimSeed<'a> {
    repeated: &'a mut bool,
}

impl<'de> DeserializeSeed<'de> for ClaimSeed<'_> {
    type Value = Claim;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Claim, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ClaimSeed<'_> {
    type Value = Claim;

    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str("a claim")
    }

    fn visit_str<E>(self, text: &str) -> Result<Claim, E> {
        Ok(Claim::Text(text.into()))
    }

    fn visit_bool<E>(self, _: bool) -> Result<Claim, E> {
        Ok(Claim::Other)
    }

    // As precise as JavaScript's numbers, which is what issuers write at least
    // (RFC 8259, section 6).
    fn visit_i64<E>(self, number: i64) -> Result<Claim, E> {
        Ok(Claim::Number(number as f64))
    }

    fn visit_u64<E>(self, number: u64) -> Result<Claim, E> {
        Ok(Claim::Number(number as f64))
    }

    fn visit_f64<E>(self, number: f64) -> Result<Claim, E> {
        Ok(Claim::Number(number))
    }

    fn visit_unit<E>(self) -> Result<Claim, E> {
        Ok(Claim::Other)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Claim, A::Error> {
        let mut list = Vec::new();
        while let Some(claim) = seq.next_element_seed(ClaimSeed { repeated: self.repeated })? {
            list.push(claim);
        }
        Ok(Claim::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Claim, A::Error> {
        let mut fields = BTreeMap::new();
        while let Some(name) = map.next_key::<Box<str>>()? {
            let claim = map.next_value_seed(ClaimSeed { repeated: self.repeated })?;
            if fields.insert(name, claim).is_some() {
                *self.repeated = true;
                return Err(de::Error::custom("repeated"));
            }
        }
        Ok(Claim::Object(fields))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode_json(json: impl AsRef<[u8]>) -> Result<Claims, ClaimsError> {
        let wanted = Wanted::new(["sub", "groups", "realm", "groups"]);
        decode(json.as_ref(), &wanted)?.with_subject()
    }

    #[track_caller]
    fn check(json: impl AsRef<[u8]>, expected: Result<&str, ClaimsError>) {
        let claims = decode_json(json);
        assert_eq!(claims.as_ref().map(Claims::subject), expected.as_ref().map(|text| *text));
    }

    #[track_caller]
    fn text(json: &str, path: &str, expected: Option<&str>) {
        let claims = decode_json(json).unwrap();
        assert_eq!(claims.text(&ClaimPath::parse(path).unwrap()), expected);
    }

    #[test]
    fn other_json_than_an_object_is_refused() {
        for json in
            ["", "{", "{}{}", "{} x", "{\"sub\":\"a\",}", "{sub:1}", "{\"sub\":\"a\"}\0", "{\"\\ud800\":1}"]
        {
            check(json, Err(ClaimsError::NotJson));
        }
        check("{\"sub\":\"\\ud800\"}", Err(ClaimsError::NotJson));
        check(b"{\"sub\":\"a\",\"x\":\"\xff\"}", Err(ClaimsError::NotJson));
        check("\u{feff}{\"sub\":\"a\"}", Err(ClaimsError::NotJson));
        for json in ["[]", "7", "null", "\"{}\"", "[{\"sub\":\"a\"}]"] {
            check(json, Err(ClaimsError::NotObject));
        }
    }

    #[test]
    fn deep_json_is_refused_where_it_is_wanted() {
        let deep = |name: &str, depth| {
            format!("{{\"sub\":\"a\",\"{name}\":{}{}}}", "[".repeat(depth), "]".repeat(depth))
        };
        check(deep("groups", 100), Ok("a"));
        check(deep("groups", 200), Err(ClaimsError::NotJson));
        check(deep("other", 5000), Ok("a"));
    }

    #[test]
    fn a_repeated_claim_is_refused() {
        check(r#"{"sub":"a","sub":"a"}"#, Err(ClaimsError::Repeated));
        check(r#"{"sub":"a","s\u0075b":"b"}"#, Err(ClaimsError::Repeated));
        check(r#"{"sub":"a","groups":[],"groups":7}"#, Err(ClaimsError::Repeated));
        check(r#"{"sub":"a","realm":{"x":1,"x":2}}"#, Err(ClaimsError::Repeated));
        check(r#"{"sub":"a","groups":[{"x":1,"x":2}]}"#, Err(ClaimsError::Repeated));
        check(r#"{"sub":"a","other":1,"other":2}"#, Ok("a"));
    }

    #[test]
    fn the_subject_is_a_text_of_its_length() {
        for json in
            ["{}", r#"{"sub":""}"#, r#"{"sub":7}"#, r#"{"sub":null}"#, r#"{"sub":["a"]}"#, r#"{"Sub":"a"}"#]
        {
            check(json, Err(ClaimsError::Subject));
        }
        for (length, fits) in [(255, true), (256, false)] {
            for character in ["a", "김"] {
                let subject = character.repeat(length);
                let expected = if fits { Ok(&*subject) } else { Err(ClaimsError::Subject) };
                check(format!("{{\"sub\":\"{subject}\"}}"), expected);
            }
        }
    }

    #[test]
    fn claims_are_found_by_path() {
        let json = r#"{"sub":"a","realm":{"x":{"y":"z"},"n":1},"preferred_username":"b","other":"c"}"#;
        text(json, "sub", Some("a"));
        text(json, "preferred_username", Some("b"));
        assert_eq!(decode_json(json).unwrap().username(), Some("b"));
        text(json, "realm.x.y", Some("z"));
        for path in ["sub.a", "realm", "realm.x", "realm.n", "realm.x.y.z", "realm.q", "groups", "other"] {
            text(json, path, None);
        }
        let groups = decode_json(r#"{"sub":"a","groups":["x",1,{}]}"#).unwrap();
        let expected =
            Claim::List(vec![Claim::Text("x".into()), Claim::Number(1.0), Claim::Object(BTreeMap::new())]);
        assert_eq!(groups.find(&ClaimPath::parse("groups").unwrap()), Found::Claim(&expected));
    }

    #[test]
    fn claims_of_another_are_added_by_name_and_never_replace() {
        let wanted = Wanted::new(["a", "b", "c"]);
        let mut claims = decode(br#"{"sub":"x","a":"1"}"#, &wanted).unwrap();
        let others = decode(br#"{"sub":"y","a":"2","b":"3","c":"4"}"#, &wanted).unwrap();
        claims.add(others, &["sub".into(), "a".into(), "b".into()]);
        assert_eq!(claims.subject(), "x");
        assert_eq!(claims.claim("a"), Some(&Claim::Text("1".into())));
        assert_eq!(claims.claim("b"), Some(&Claim::Text("3".into())));
        assert_eq!(claims.claim("c"), None);
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (error, expected) in [
            (ClaimsError::NotJson, "not JSON"),
            (ClaimsError::NotObject, "not a JSON object"),
            (ClaimsError::Repeated, "a claim is there twice"),
            (ClaimsError::Subject, "`sub` is missing, or not a text of 1 to 255 characters"),
        ] {
            assert_eq!(error.to_string(), expected);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_claims_or_refused(bytes in any::<Vec<u8>>(), json in r#"(\{|\[)("sub":|"a"|[\[\]{}:,"\\u0-9]){0,20}"#) {
            let _ = decode_json(&bytes);
            let _ = decode_json(&json);
        }

        #[test]
        fn any_subject_comes_through(subject in "\\PC{1,255}") {
            let json = serde_json::json!({"sub": subject, "more": [1, {"a": null}]}).to_string();
            let claims = decode_json(json);
            prop_assert_eq!(claims.as_ref().map(Claims::subject), Ok(&*subject));
        }
    }
}
