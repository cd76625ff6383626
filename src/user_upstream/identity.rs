//! Who is asking: the claims in the gateway's `X-Userinfo`.
//!
//! The header is base64 of a JSON object. Only the claims that somebody wants
//! are kept; the rest is read over. No error repeats anything of it.

use std::collections::BTreeMap;
use std::fmt;

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use serde::de::{self, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::error::Category;
use thiserror::Error;

use super::label::MAX_VALUE;

/// The header in which openid-connect passes the userinfo on.
const USERINFO: &[u8] = b"x-userinfo";

/// How long the header's value may be, in bytes: 12 KiB of JSON, which is more
/// than fits into nginx's default header buffers beside anything else.
pub(crate) const MAX_USERINFO: usize = 16 * 1024;

/// The claim that says who somebody is (OpenID Connect Core 1.0, section 2).
const SUBJECT: &str = "sub";

/// The claim that says what somebody is called (OpenID Connect Core 1.0, section
/// 5.1).
const USERNAME: &str = "preferred_username";

/// Finds the one identity header among a request's headers, given by name and
/// value.
pub(crate) fn find<'a>(
    headers: impl IntoIterator<Item = (&'a [u8], &'a [u8])>,
) -> Result<&'a [u8], IdentityError> {
    let mut found = None;
    for (name, value) in headers {
        if name.len() != USERINFO.len() {
            continue;
        }
        if name.eq_ignore_ascii_case(USERINFO) {
            if found.replace(value).is_some() {
                return Err(Malformed::Twice.into());
            }
        } else if is_twin(name) {
            return Err(Malformed::Twin.into());
        }
    }
    found.ok_or(IdentityError::Missing)
}

/// Whether a name would be taken for the identity header's by whatever reads `_`
/// as `-`, as CGI and its heirs do (RFC 3875, section 4.1.18).
fn is_twin(name: &[u8]) -> bool {
    let plain = |byte: &u8| if *byte == b'_' { b'-' } else { byte.to_ascii_lowercase() };
    name.iter().map(plain).eq(USERINFO.iter().copied())
}

/// Reads the identity header's value and keeps the wanted claims.
pub(crate) fn decode(value: &[u8], wanted: &Wanted) -> Result<Claims, Malformed> {
    if value.len() > MAX_USERINFO {
        return Err(Malformed::TooLong);
    }
    let json = decode_base64(value)?;
    // Serde's JSON does not look into the strings that it reads over.
    let json = str::from_utf8(&json).map_err(|_| Malformed::NotJson)?;
    let mut repeated = false;
    let mut deserializer = serde_json::Deserializer::from_str(json);
    let claims = ClaimsSeed { wanted, repeated: &mut repeated }.deserialize(&mut deserializer);
    let claims = claims.and_then(|claims| deserializer.end().map(|()| claims));
    let claims = claims.map_err(|error| match error.classify() {
        Category::Data if repeated => Malformed::RepeatedClaim,
        Category::Data => Malformed::NotObject,
        _ => Malformed::NotJson,
    })?;
    match claims.subject() {
        "" => Err(Malformed::Subject),
        subject if subject.len() > MAX_VALUE && subject.chars().count() > MAX_VALUE => {
            Err(Malformed::Subject)
        }
        _ => Ok(claims),
    }
}

const EITHER_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, EITHER_PADDING);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, EITHER_PADDING);

fn decode_base64(value: &[u8]) -> Result<Vec<u8>, Malformed> {
    // The gateway writes the standard alphabet; a value of both is neither.
    STANDARD.decode(value).or_else(|_| URL_SAFE.decode(value)).map_err(|_| Malformed::NotBase64)
}

/// The top-level claims to keep; always with the subject and the user name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Wanted(Box<[Box<str>]>);

impl Wanted {
    pub(crate) fn new<'a>(names: impl IntoIterator<Item = &'a str>) -> Self {
        let mut all: Vec<Box<str>> = vec![SUBJECT.into(), USERNAME.into()];
        for name in names {
            if !all.iter().any(|known| **known == *name) {
                all.push(name.into());
            }
        }
        Self(all.into())
    }
}

/// The wanted claims of one identity.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Claims {
    subject: Box<str>,
    others: Vec<(Box<str>, Claim)>,
}

impl Claims {
    /// The subject: 1 to 255 characters.
    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }

    /// The user name, which is no identity: its owner may change it.
    pub(crate) fn username(&self) -> Option<&str> {
        match self.others.iter().find(|(name, _)| **name == *USERNAME)? {
            (_, Claim::Text(text)) => Some(text),
            _ => None,
        }
    }

    /// The claim at a path, if it was wanted and is there; the subject is no part
    /// of it.
    pub(crate) fn get(&self, path: &ClaimPath) -> Option<&Claim> {
        let (_, first) = self.others.iter().find(|(name, _)| *name == path.name)?;
        path.inner.iter().try_fold(first, |claim, name| match claim {
            Claim::Object(fields) => fields.get(name),
            _ => None,
        })
    }

    /// The text at a path.
    pub(crate) fn text(&self, path: &ClaimPath) -> Option<&str> {
        if *path.name == *SUBJECT {
            return path.inner.is_empty().then_some(&self.subject);
        }
        match self.get(path)? {
            Claim::Text(text) => Some(text),
            _ => None,
        }
    }
}

/// The value of a claim.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Claim {
    Text(Box<str>),
    List(Vec<Claim>),
    Object(BTreeMap<Box<str>, Claim>),
    /// A number, a truth value, or null.
    Other,
}

/// Where a claim stands: `sub`, or `resource_access.apisix.roles`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct ClaimPath {
    name: Box<str>,
    inner: Box<[Box<str>]>,
}

impl ClaimPath {
    /// A path, or `None` if a name in it is empty or holds anything but visible
    /// ASCII, or a brace.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let is_allowed = |byte: u8| byte.is_ascii_graphic() && byte != b'{' && byte != b'}';
        if !text.bytes().all(is_allowed) || text.split('.').any(str::is_empty) {
            return None;
        }
        let mut names = text.split('.').map(Box::from);
        Some(Self { name: names.next()?, inner: names.collect() })
    }

    /// The top-level claim that the path starts in.
    pub(crate) fn name(&self) -> &str {
        &self.name
    }
}

/// Why a request has no usable identity.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum IdentityError {
    #[error("the request has no identity header")]
    Missing,
    #[error(transparent)]
    Malformed(#[from] Malformed),
}

/// What is wrong with an identity header.
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub(crate) enum Malformed {
    #[error("the identity header is there twice")]
    Twice,
    #[error("a header has the identity header's name with `_` for `-`")]
    Twin,
    #[error("the identity header is longer than {MAX_USERINFO} bytes")]
    TooLong,
    #[error("the identity header is not base64")]
    NotBase64,
    #[error("the identity header holds no JSON")]
    NotJson,
    #[error("the identity header holds no JSON object")]
    NotObject,
    #[error("the identity header has a claim twice")]
    RepeatedClaim,
    #[error("the identity header's `sub` is missing, or not a text of 1 to 255 characters")]
    Subject,
}

/// Reads the object of all claims.
struct ClaimsSeed<'a> {
    wanted: &'a Wanted,
    /// Set where the error is a repeated name: serde's own has no kinds.
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
        // What is no text is refused with the empty one.
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

    fn visit_i64<E>(self, _: i64) -> Result<Claim, E> {
        Ok(Claim::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Claim, E> {
        Ok(Claim::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Claim, E> {
        Ok(Claim::Other)
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
    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    fn decode_json(json: impl AsRef<[u8]>) -> Result<Claims, Malformed> {
        let wanted = Wanted::new(["sub", "groups", "realm", "groups"]);
        decode(super::STANDARD.encode(json).as_bytes(), &wanted)
    }

    #[track_caller]
    fn check(json: impl AsRef<[u8]>, expected: Result<&str, Malformed>) {
        let claims = decode_json(json);
        assert_eq!(claims.as_ref().map(Claims::subject), expected.as_ref().map(|text| *text));
    }

    #[track_caller]
    fn text(json: &str, path: &str, expected: Option<&str>) {
        let claims = decode_json(json).unwrap();
        assert_eq!(claims.text(&ClaimPath::parse(path).unwrap()), expected);
    }

    #[track_caller]
    fn found(headers: &[(&str, &str)], expected: Result<&str, IdentityError>) {
        let headers = headers.iter().map(|(name, value)| (name.as_bytes(), value.as_bytes()));
        assert_eq!(find(headers), expected.map(str::as_bytes));
    }

    #[test]
    fn the_identity_header_is_found() {
        found(&[("host", "a"), ("x-userinfo", "b"), ("x-userinfos", "c")], Ok("b"));
        found(&[("X-Userinfo", "b")], Ok("b"));
        found(&[], Err(IdentityError::Missing));
        found(&[("x-user-inf", "b")], Err(IdentityError::Missing));
    }

    #[test]
    fn a_second_identity_header_is_refused() {
        found(&[("x-userinfo", "b"), ("x-userinfo", "b")], Err(Malformed::Twice.into()));
        found(&[("x-userinfo", "b"), ("X-USERINFO", "b")], Err(Malformed::Twice.into()));
    }

    #[test]
    fn an_underscore_twin_is_refused() {
        found(&[("x_userinfo", "b")], Err(Malformed::Twin.into()));
        found(&[("x-userinfo", "b"), ("X_Userinfo", "b")], Err(Malformed::Twin.into()));
        found(&[("X_Userinfo", "b"), ("x-userinfo", "b")], Err(Malformed::Twin.into()));
    }

    #[test]
    fn both_alphabets_are_read_padded_or_not() {
        let json = r#"{"sub":"김재훈","x":"~~~???>>>"}"#;
        let wanted = Wanted::new([]);
        for text in [
            super::STANDARD.encode(json),
            STANDARD_NO_PAD.encode(json),
            URL_SAFE.encode(json),
            URL_SAFE_NO_PAD.encode(json),
        ] {
            assert_eq!(decode(text.as_bytes(), &wanted).unwrap().subject(), "김재훈", "{text}");
        }
        let standard = super::STANDARD.encode(json);
        assert!(standard.contains('+') && standard.contains('/'), "{standard}");
        let mixed = standard.replacen('+', "-", 1);
        assert_eq!(decode(mixed.as_bytes(), &wanted), Err(Malformed::NotBase64));
    }

    #[test]
    fn what_is_no_base64_is_refused() {
        for value in ["e", "e30 ", " e30", "e30\n", "e30==", "e3=0", "=", "e30=e30=", "{}", "e31", "\0"] {
            assert_eq!(decode(value.as_bytes(), &Wanted::new([])), Err(Malformed::NotBase64), "{value:?}");
        }
        assert_eq!(decode(b"\xff\xff\xff\xff", &Wanted::new([])), Err(Malformed::NotBase64));
    }

    #[test]
    fn what_is_too_long_is_refused() {
        let json = |length| format!("{{\"sub\":\"a\",\"x\":\"{}\"}}", "x".repeat(length));
        let around = json(0).len();
        check(json(12 * 1024 - around), Ok("a"));
        check(json(12 * 1024 + 1 - around), Err(Malformed::TooLong));
    }

    #[test]
    fn what_is_no_json_object_is_refused() {
        for json in
            ["", "{", "{}{}", "{} x", "{\"sub\":\"a\",}", "{sub:1}", "{\"sub\":\"a\"}\0", "{\"\\ud800\":1}"]
        {
            check(json, Err(Malformed::NotJson));
        }
        check("{\"sub\":\"\\ud800\"}", Err(Malformed::NotJson));
        check(b"{\"sub\":\"a\",\"x\":\"\xff\"}", Err(Malformed::NotJson));
        check("\u{feff}{\"sub\":\"a\"}", Err(Malformed::NotJson));
        for json in ["[]", "7", "null", "\"{}\"", "[{\"sub\":\"a\"}]"] {
            check(json, Err(Malformed::NotObject));
        }
    }

    #[test]
    fn deep_json_is_refused_where_it_is_wanted() {
        let deep = |name: &str, depth| {
            format!("{{\"sub\":\"a\",\"{name}\":{}{}}}", "[".repeat(depth), "]".repeat(depth))
        };
        check(deep("groups", 100), Ok("a"));
        check(deep("groups", 200), Err(Malformed::NotJson));
        check(deep("other", 5000), Ok("a"));
    }

    #[test]
    fn a_repeated_claim_is_refused() {
        check(r#"{"sub":"a","sub":"a"}"#, Err(Malformed::RepeatedClaim));
        check(r#"{"sub":"a","s\u0075b":"b"}"#, Err(Malformed::RepeatedClaim));
        check(r#"{"sub":"a","groups":[],"groups":7}"#, Err(Malformed::RepeatedClaim));
        check(r#"{"sub":"a","realm":{"x":1,"x":2}}"#, Err(Malformed::RepeatedClaim));
        check(r#"{"sub":"a","groups":[{"x":1,"x":2}]}"#, Err(Malformed::RepeatedClaim));
        check(r#"{"sub":"a","other":1,"other":2}"#, Ok("a"));
    }

    #[test]
    fn the_subject_is_a_text_of_its_length() {
        for json in
            ["{}", r#"{"sub":""}"#, r#"{"sub":7}"#, r#"{"sub":null}"#, r#"{"sub":["a"]}"#, r#"{"Sub":"a"}"#]
        {
            check(json, Err(Malformed::Subject));
        }
        for (length, fits) in [(255, true), (256, false)] {
            for character in ["a", "김"] {
                let subject = character.repeat(length);
                let expected = if fits { Ok(&*subject) } else { Err(Malformed::Subject) };
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
            Claim::List(vec![Claim::Text("x".into()), Claim::Other, Claim::Object(BTreeMap::new())]);
        assert_eq!(groups.get(&ClaimPath::parse("groups").unwrap()), Some(&expected));
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (error, expected) in [
            (IdentityError::Missing, "the request has no identity header"),
            (Malformed::Twice.into(), "the identity header is there twice"),
            (Malformed::Twin.into(), "a header has the identity header's name with `_` for `-`"),
            (Malformed::TooLong.into(), "the identity header is longer than 16384 bytes"),
            (Malformed::NotBase64.into(), "the identity header is not base64"),
            (Malformed::NotJson.into(), "the identity header holds no JSON"),
            (Malformed::NotObject.into(), "the identity header holds no JSON object"),
            (Malformed::RepeatedClaim.into(), "the identity header has a claim twice"),
            (
                Malformed::Subject.into(),
                "the identity header's `sub` is missing, or not a text of 1 to 255 characters",
            ),
        ] {
            assert_eq!(error.to_string(), expected);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_claims_or_refused(bytes in any::<Vec<u8>>(), json in r#"(\{|\[)("sub":|"a"|[\[\]{}:,"\\u0-9]){0,20}"#) {
            let _ = decode(&bytes, &Wanted::new([]));
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
