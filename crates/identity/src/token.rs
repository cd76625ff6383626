//! A signed token: a JWT in its compact form (RFC 7519, RFC 7515).
//!
//! Nothing of a token is believed before its signature is checked, and the token
//! has no say in how: the algorithms are ours, the key is one of the issuer's,
//! and a key or an address in its own header (`jwk`, `jku`, `x5u`, `x5c`) is
//! ignored. What can be refused without a key is refused first, so
//! that a token for another audience never makes us ask the issuer for new keys.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

use super::claims::{self, Claim, Claims, ClaimsError, Wanted};
use super::json_object::object_from_slice;

/// How long a token may be, in bytes: as long as a userinfo.
pub const MAX_TOKEN: usize = 64 * 1024;

/// How far the issuer's clock and ours may differ.
pub const LEEWAY: Duration = Duration::from_secs(30);

/// The algorithms that a token may be signed with (RFC 7518, section 3.1, and
/// RFC 8037). No secret is shared with an issuer, so no HMAC is among them.
const ALGORITHMS: [(&str, Algorithm); 9] = [
    ("RS256", Algorithm::RS256),
    ("RS384", Algorithm::RS384),
    ("RS512", Algorithm::RS512),
    ("PS256", Algorithm::PS256),
    ("PS384", Algorithm::PS384),
    ("PS512", Algorithm::PS512),
    ("ES256", Algorithm::ES256),
    ("ES384", Algorithm::ES384),
    ("EdDSA", Algorithm::EdDSA),
];

/// The claims of a token that name its issuer, its audience and its lifetime (RFC
/// 7519, section 4.1; OpenID Connect Core 1.0, section 2).
pub const CHECKED_CLAIMS: [&str; 6] = ["iss", "aud", "azp", "exp", "nbf", "iat"];

/// The algorithm of this name, if a token may be signed with it.
///
/// ```
/// use kube_coders_identity::token::algorithm;
///
/// assert!(algorithm("ES256").is_some());
/// assert_eq!(algorithm("HS256"), None, "the runner shares no secret with an issuer");
/// ```
pub fn algorithm(name: &str) -> Option<Algorithm> {
    ALGORITHMS.iter().find(|(known, _)| *known == name).map(|(_, algorithm)| *algorithm)
}

/// What a token must say about itself.
///
/// ```
/// use kube_coders_identity::token::Expected;
///
/// // A token that `https://id.example.com` issued for the client `apisix`.
/// let expected = Expected {
///     issuer: "https://id.example.com".into(),
///     audience: ["apisix".into()].into(),
///     authorized_parties: [].into(),
/// };
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// What `iss` is.
    pub issuer: Box<str>,
    /// One of these is in `aud`.
    pub audience: Box<[Box<str>]>,
    /// Or `azp` is one of these.
    pub authorized_parties: Box<[Box<str>]>,
}

/// A token whose signature was not checked.
///
/// ```
/// use jsonwebtoken::Algorithm;
/// use kube_coders_identity::claims::Wanted;
/// use kube_coders_identity::keys::{KeySet, verify_with_set};
/// use kube_coders_identity::token::Token;
/// use kube_coders_test_support::{Signer, key_set};
///
/// let signer = Signer::new("key-1", Algorithm::ES256);
/// let text = signer.token(&serde_json::json!({"sub": "alice"}));
/// let token = Token::decode(text.as_bytes(), &Wanted::new([]))?;
/// assert_eq!(token.key_id.as_deref(), Some("key-1"), "as the token claims");
///
/// let keys = KeySet::decode(key_set(&[signer]).as_bytes()).expect("a set of keys");
/// assert_eq!(verify_with_set(&keys, token)?.claims.subject(), "alice");
/// # Ok::<(), kube_coders_identity::token::TokenError>(())
/// ```
#[derive(Debug)]
pub struct Token<'t> {
    /// The algorithm that the token claims to be signed with: one of the asymmetric ones that are allowed.
    pub algorithm: Algorithm,
    /// Which of the issuer's keys the token claims to be signed with.
    pub key_id: Option<Box<str>>,
    claims: Claims,
    /// What is signed.
    message: &'t [u8],
    signature: &'t str,
}

/// The parts of a token's header that count; all others are read over.
#[derive(Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: Option<Box<str>>,
    #[serde(default)]
    typ: Option<String>,
    #[serde(default)]
    crit: Option<IgnoredAny>,
}

/// The claims that say what a token is for.
#[derive(Deserialize)]
struct TokenPurpose {
    /// Keycloak's kind of token, which has the same `typ` in its header for all kinds.
    #[serde(default)]
    typ: Option<String>,
    /// A logout token or another security event (RFC 8417, section 2.2).
    #[serde(default, deserialize_with = "is_there")]
    events: bool,
}

fn is_there<'de, D: Deserializer<'de>>(deserializer: D) -> Result<bool, D::Error> {
    IgnoredAny::deserialize(deserializer).map(|_| true)
}

impl TokenPurpose {
    /// Refresh, logout and action tokens, and others that Keycloak may come to have, identify
    /// no user.
    fn check(&self) -> Result<(), TokenError> {
        let is_identity = |typ: &str| {
            ["Bearer", "ID"].iter().any(|known| typ.eq_ignore_ascii_case(known)) || is_token_type(typ)
        };
        let is_known = self.typ.as_deref().is_none_or(is_identity);
        if is_known && !self.events { Ok(()) } else { Err(TokenError::Purpose) }
    }
}

impl<'t> Token<'t> {
    /// Reads a token without checking anything that takes a key or a clock.
    pub fn decode(text: &'t [u8], wanted: &Wanted) -> Result<Self, TokenError> {
        if text.len() > MAX_TOKEN {
            return Err(TokenError::TooLong);
        }
        let text = str::from_utf8(text).map_err(|_| TokenError::Opaque)?;
        let (header, payload, signature) = parts(text)?;
        let header = decode_header(header)?;
        let algorithm = algorithm(&header.alg).ok_or(TokenError::Algorithm)?;
        if header.crit.is_some() {
            return Err(TokenError::Critical);
        }
        if !header.typ.as_deref().is_none_or(is_token_type) {
            return Err(TokenError::Type);
        }
        let json = URL_SAFE_NO_PAD.decode(payload).map_err(|_| TokenError::Payload)?;
        let claims = claims::decode(&json, wanted)?;
        let purpose: TokenPurpose = object_from_slice(&json).map_err(|_| TokenError::Purpose)?;
        purpose.check()?;
        let message = &text.as_bytes()[..text.len() - signature.len() - 1];
        Ok(Self { algorithm, key_id: header.kid, claims, message, signature })
    }

    /// Checks the token's issuer, its audience, and whether it is valid now, given in
    /// seconds since 1970. Returns the time at which it expires.
    pub fn check(&self, expected: &Expected, now: f64) -> Result<f64, TokenError> {
        let leeway = LEEWAY.as_secs_f64();
        if self.claims.claim("iss") != Some(&Claim::Text(expected.issuer.clone())) {
            return Err(TokenError::Issuer);
        }
        if !expected.admits(self.claims.claim("aud"), self.claims.claim("azp")) {
            return Err(TokenError::Audience);
        }
        let expires = match self.claims.claim("exp") {
            Some(Claim::Number(expires)) => *expires,
            _ => return Err(TokenError::NoExpiry),
        };
        if now >= expires + leeway {
            return Err(TokenError::Expired);
        }
        for (name, error) in [("nbf", TokenError::NotYetValid), ("iat", TokenError::FromTheFuture)] {
            match self.claims.claim(name) {
                None => {}
                Some(Claim::Number(from)) if *from <= now + leeway => {}
                Some(_) => return Err(error),
            }
        }
        Ok(expires)
    }

    /// The claims, if this key made the signature.
    pub fn verify(self, key: &jsonwebtoken::DecodingKey) -> Result<Claims, Self> {
        match jsonwebtoken::crypto::verify(self.signature, self.message, key, self.algorithm) {
            Ok(true) => Ok(self.claims),
            Ok(false) | Err(_) => Err(self),
        }
    }

    /// An unverified claim: to be shown, never to decide.
    pub fn claim(&self, name: &str) -> Option<&Claim> {
        self.claims.claim(name)
    }

    /// The unverified claims: to be shown, never to decide.
    pub fn unverified(self) -> Claims {
        self.claims
    }
}

impl Expected {
    fn admits(&self, audience: Option<&Claim>, authorized_party: Option<&Claim>) -> bool {
        let is_ours = |claim: &Claim, ours: &[Box<str>]| match claim {
            Claim::Text(text) => ours.contains(text),
            _ => false,
        };
        let in_audience = match audience {
            Some(Claim::List(list)) => list.iter().any(|claim| is_ours(claim, &self.audience)),
            Some(one) => is_ours(one, &self.audience),
            None => false,
        };
        in_audience || authorized_party.is_some_and(|party| is_ours(party, &self.authorized_parties))
    }
}

/// Whether a text has a token in it that names this issuer. No signature is checked: use it
/// only to keep a token from others, never to believe it.
///
/// ```
/// use kube_coders_identity::token::has_token_of;
/// use kube_coders_test_support::{Signer, claims};
///
/// let signer = Signer::new("key-1", jsonwebtoken::Algorithm::ES256);
/// let value = format!("Bearer {}", signer.token(&claims("https://id.example.com", "alice")));
/// assert!(has_token_of(value.as_bytes(), "https://id.example.com"));
/// assert!(!has_token_of(value.as_bytes(), "https://other.example.com"));
/// ```
pub fn has_token_of(text: &[u8], issuer: &str) -> bool {
    #[derive(Deserialize)]
    struct Issued {
        iss: String,
    }
    let is_between = |byte: &u8| !byte.is_ascii_alphanumeric() && !b"-_.".contains(byte);
    text.split(is_between).any(|word| {
        let payload = word.split(|byte| *byte == b'.').nth(1).unwrap_or_default();
        let json = URL_SAFE_NO_PAD.decode(payload).unwrap_or_default();
        object_from_slice::<Issued>(&json).is_ok_and(|issued| issued.iss == issuer)
    })
}

/// Cuts a token at its dots.
fn parts(text: &str) -> Result<(&str, &str, &str), TokenError> {
    let mut parts = text.split('.');
    match (parts.next(), parts.next(), parts.next(), parts.next(), parts.next(), parts.next()) {
        (Some(header), Some(payload), Some(signature), None, ..) => Ok((header, payload, signature)),
        // The compact form of an encrypted token (RFC 7516, section 7.1).
        (.., Some(_), None) => Err(TokenError::Encrypted),
        _ => Err(TokenError::Opaque),
    }
}

fn decode_header(text: &str) -> Result<Header, TokenError> {
    let json = URL_SAFE_NO_PAD.decode(text).map_err(|_| TokenError::Opaque)?;
    object_from_slice(&json).map_err(|_| TokenError::Header)
}

/// Whether this type of token identifies a user: other types are signed with
/// the same keys and mean something else (RFC 8725, section 3.11).
fn is_token_type(typ: &str) -> bool {
    let short = match typ.split_at_checked("application/".len()) {
        Some((prefix, rest)) if prefix.eq_ignore_ascii_case("application/") => rest,
        _ => typ,
    };
    short.eq_ignore_ascii_case("JWT") || short.eq_ignore_ascii_case("at+jwt")
}

/// Why a token is not believed.
///
/// ```
/// use kube_coders_identity::claims::Wanted;
/// use kube_coders_identity::token::{Token, TokenError};
///
/// let error = Token::decode(b"an-opaque-token", &Wanted::new([])).err();
/// assert_eq!(error, Some(TokenError::Opaque));
/// ```
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum TokenError {
    /// Nothing of the token was read.
    #[error("the token is longer than {MAX_TOKEN} bytes: the user may have too many groups or roles in it")]
    TooLong,
    /// The text does not have three parts with dots between them, or the first is not base64url.
    #[error(
        "the token is opaque and no JWT, so only its issuer can read it: let the gateway pass the ID token on \
         (set_raw_id_token_header: true), or let the issuer issue its access tokens as JWTs, and name that header in \
         identity.token"
    )]
    Opaque,
    /// The text has the five parts of an encrypted token.
    #[error("the token is encrypted (JWE): let the issuer sign tokens without encrypting them")]
    Encrypted,
    /// The first part is base64url, and not of the JSON that a header is made of.
    #[error("the token's header is not a JSON object with a text in `alg`, or has a member twice")]
    Header,
    /// The token is unsigned, signed with a shared secret, or signed in a way that is not supported.
    #[error("the token's `alg` is none of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 and EdDSA")]
    Algorithm,
    /// The issuer requires an extension to be understood (RFC 7515, section 4.1.11).
    #[error("the token's header has `crit`, which is not supported")]
    Critical,
    /// The token has another purpose than to identify a user.
    #[error("the token's `typ` is neither JWT nor at+jwt")]
    Type,
    /// The token is a refresh, logout or action token, or a security event, which the issuer
    /// signs with the same keys.
    #[error(
        "the token has `events` or a claim `typ` other than Bearer, ID, JWT and at+jwt, so it is no access or ID token"
    )]
    Purpose,
    /// The second part can't be decoded.
    #[error("the token's payload is not base64url")]
    Payload,
    /// The payload holds no usable claims.
    #[error("the token's payload: {0}")]
    Claims(#[from] ClaimsError),
    /// Another issuer made the token.
    #[error("the token's `iss` is not identity.issuer")]
    Issuer,
    /// The token was issued for another application.
    #[error("the token's `aud` has none of identity.audience, and its `azp` is none of identity.azp")]
    Audience,
    /// The token would be valid for ever.
    #[error("the token's `exp` is missing or not a number")]
    NoExpiry,
    /// `exp` passed [`LEEWAY`] ago or earlier.
    #[error("the token has expired")]
    Expired,
    /// `nbf` is ahead by more than [`LEEWAY`], or not a number.
    #[error("the token is not valid yet (`nbf`)")]
    NotYetValid,
    /// `iat` is ahead by more than [`LEEWAY`], or not a number.
    #[error("the token was issued in the future (`iat`)")]
    FromTheFuture,
    /// The known keys can't check this token; keys that are fetched later may.
    #[error("the issuer has no key for the token's `kid` and `alg`")]
    UnknownKey,
    /// None of the issuer's keys for this `kid` and `alg` made the signature.
    #[error("the token's signature is not the issuer's")]
    Signature,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;
    use kube_coders_test_support::{Signer, message};

    const NOW: f64 = 1_700_000_000.0;

    fn wanted() -> Wanted {
        Wanted::new(CHECKED_CLAIMS)
    }

    fn expected() -> Expected {
        Expected {
            issuer: "https://a".into(),
            audience: ["apisix".into()].into(),
            authorized_parties: ["party".into()].into(),
        }
    }

    fn text(header: &str, payload: &str) -> String {
        format!("{}.AAAA", message(header, payload))
    }

    #[track_caller]
    fn refused(text: &str, expected: TokenError) {
        assert_eq!(
            Token::decode(text.as_bytes(), &wanted()).map(|token| token.claims),
            Err(expected),
            "{text}"
        );
    }

    #[track_caller]
    fn check(claims: serde_json::Value, result: Result<f64, TokenError>) {
        let text = text(r#"{"alg":"RS256"}"#, &claims.to_string());
        let token = Token::decode(text.as_bytes(), &wanted()).unwrap();
        assert_eq!(token.check(&expected(), NOW), result, "{claims}");
    }

    #[test]
    fn every_algorithm_of_the_list_is_read_and_no_other() {
        for (name, algorithm) in ALGORITHMS {
            let text = text(&format!(r#"{{"alg":"{name}","kid":"1"}}"#), "{}");
            let token = Token::decode(text.as_bytes(), &wanted()).unwrap();
            assert_eq!((token.algorithm, token.key_id.as_deref()), (algorithm, Some("1")));
            // As jsonwebtoken calls it, too.
            assert_eq!(format!("{algorithm:?}"), name);
        }
        for name in ["none", "None", "HS256", "HS384", "HS512", "rs256", "ES512", "ES256K", "", "RS256 "] {
            refused(&text(&format!(r#"{{"alg":"{name}"}}"#), "{}"), TokenError::Algorithm);
        }
    }

    #[test]
    fn a_token_of_the_issuer_is_found_at_any_position() {
        let token = text(r#"{"alg":"none"}"#, r#"{"iss":"https://a","sub":"x"}"#);
        for value in [
            token.clone(),
            format!("Bearer {token}"),
            format!("bearer  {token} "),
            format!("DPoP {token}"),
            format!("Token token=\"{token}\", realm=x"),
            format!("Basic eDp5, Bearer {token}"),
        ] {
            assert!(has_token_of(value.as_bytes(), "https://a"), "{value}");
        }
        let other = text(r#"{"alg":"none"}"#, r#"{"iss":"https://a/b"}"#);
        for value in ["", "Basic eDp5", "Bearer a.b.c", "Bearer abc", "Bearer ..", &other] {
            assert!(!has_token_of(value.as_bytes(), "https://a"), "{value}");
        }
    }

    #[test]
    fn an_invalid_token_is_refused() {
        for opaque in ["", "abc", "a.b", "a.b.c.d", "a.b.c.d.e.f", "e30", "!!!.e30.AAAA"] {
            refused(opaque, TokenError::Opaque);
        }
        refused("a.b.c.d.e", TokenError::Encrypted);
        for header in [
            "",
            "7",
            "{}",
            r#"["RS256"]"#,
            r#"["RS256","1",null,null]"#,
            r#"{"alg":7}"#,
            r#"{"alg":"RS256","alg":"RS256"}"#,
            r#"{"alg":"RS256","kid":7}"#,
        ] {
            refused(&text(header, "{}"), TokenError::Header);
        }
        refused(&text(r#"{"alg":"RS256","crit":[]}"#, "{}"), TokenError::Critical);
        for typ in ["logout+jwt", "secevent+jwt", "dpop+jwt", "", "JWT "] {
            refused(&text(&format!(r#"{{"alg":"RS256","typ":"{typ}"}}"#), "{}"), TokenError::Type);
        }
        for typ in ["JWT", "jwt", "at+jwt", "application/at+JWT", "Application/jwt"] {
            let text = text(&format!(r#"{{"alg":"RS256","typ":"{typ}"}}"#), "{}");
            assert!(Token::decode(text.as_bytes(), &wanted()).is_ok(), "{typ}");
        }
        refused(&text(r#"{"alg":"RS256"}"#, "[]"), ClaimsError::NotObject.into());
        refused(&text(r#"{"alg":"RS256"}"#, r#"["ID"]"#), ClaimsError::NotObject.into());
        for purpose in [
            r#"{"sub":"a","typ":"Refresh"}"#,
            r#"{"sub":"a","typ":"Offline"}"#,
            r#"{"sub":"a","typ":"Logout"}"#,
            r#"{"sub":"a","typ":"execute-actions"}"#,
            r#"{"sub":"a","typ":"RegistrationAccessToken"}"#,
            r#"{"sub":"a","typ":"logout+jwt"}"#,
            r#"{"sub":"a","typ":""}"#,
            r#"{"sub":"a","typ":7}"#,
            r#"{"sub":"a","typ":["ID"]}"#,
            r#"{"sub":"a","typ":"ID","typ":"ID"}"#,
            r#"{"sub":"a","typ":"ID","events":{}}"#,
            r#"{"sub":"a","events":null}"#,
            r#"{"events":{"http://schemas.openid.net/event/backchannel-logout":{}},"sub":"a"}"#,
        ] {
            refused(&text(r#"{"alg":"RS256","typ":"JWT"}"#, purpose), TokenError::Purpose);
        }
        for purpose in
            ["{}", r#"{"typ":"ID"}"#, r#"{"typ":"Bearer"}"#, r#"{"typ":null}"#, r#"{"typ":"at+jwt"}"#]
        {
            assert!(
                Token::decode(text(r#"{"alg":"RS256"}"#, purpose).as_bytes(), &wanted()).is_ok(),
                "{purpose}"
            );
        }
        refused("eyJhbGciOiJSUzI1NiJ9.e3==.AAAA", TokenError::Payload);
        refused(&"a".repeat(MAX_TOKEN + 1), TokenError::TooLong);
    }

    #[test]
    fn times_are_checked_with_leeway() {
        let claims = |more: serde_json::Value| {
            let mut claims = json!({"iss": "https://a", "aud": "apisix", "exp": NOW + 60.0});
            claims.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            claims
        };
        check(claims(json!({})), Ok(NOW + 60.0));
        check(claims(json!({"exp": NOW - 29.5})), Ok(NOW - 29.5));
        check(claims(json!({"exp": NOW - 30.0})), Err(TokenError::Expired));
        check(claims(json!({"exp": -1})), Err(TokenError::Expired));
        for none in [json!(null), json!("1800000000"), json!(true), json!([1_800_000_000])] {
            check(claims(json!({"exp": none})), Err(TokenError::NoExpiry));
        }
        for (name, error) in [("nbf", TokenError::NotYetValid), ("iat", TokenError::FromTheFuture)] {
            check(claims(json!({name: NOW + 30.0})), Ok(NOW + 60.0));
            check(claims(json!({name: NOW + 31.0})), Err(error));
            check(claims(json!({name: "0"})), Err(error));
            check(claims(json!({name: null})), Err(error));
        }
    }

    #[test]
    fn it_is_for_us_by_audience_or_party() {
        let claims = |aud: serde_json::Value, azp: serde_json::Value| json!({"iss": "https://a", "exp": NOW, "aud": aud, "azp": azp});
        check(claims(json!("apisix"), json!(null)), Ok(NOW));
        check(claims(json!(["a", "apisix"]), json!("x")), Ok(NOW));
        check(claims(json!("a"), json!("party")), Ok(NOW));
        for (aud, azp) in [("a", "apisix"), ("party", "a"), ("apisix ", ""), ("Apisix", "Party")] {
            check(claims(json!(aud), json!(azp)), Err(TokenError::Audience));
        }
        for aud in [json!(null), json!([]), json!([["apisix"]]), json!({"apisix": 1}), json!(7)] {
            check(claims(aud, json!(null)), Err(TokenError::Audience));
        }
        check(json!({"iss": "https://b", "exp": NOW, "aud": "apisix"}), Err(TokenError::Issuer));
        check(json!({"iss": ["https://a"], "exp": NOW, "aud": "apisix"}), Err(TokenError::Issuer));
    }

    #[test]
    fn only_the_signature_makes_claims() {
        let (signer, other) = (Signer::rsa(), Signer::new("1", Algorithm::RS256));
        let text = signer.token(&json!({"sub": "alice"}));
        let key = |signer: &Signer| {
            jsonwebtoken::DecodingKey::from_jwk(&serde_json::from_value(signer.jwk()).unwrap()).unwrap()
        };
        let token = Token::decode(text.as_bytes(), &wanted()).unwrap();
        let token = token.verify(&key(&other)).unwrap_err();
        assert_eq!(token.verify(&key(signer)).unwrap().subject(), "alice");
    }

    #[test]
    fn an_opaque_token_is_refused_with_advice() {
        assert_eq!(
            TokenError::Opaque.to_string(),
            "the token is opaque and no JWT, so only its issuer can read it: let the gateway pass the ID token on \
             (set_raw_id_token_header: true), or let the issuer issue its access tokens as JWTs, and name that header in \
             identity.token"
        );
    }

    proptest! {
        #[test]
        fn any_bytes_are_a_token_or_refused(bytes in any::<Vec<u8>>(), header in "\\PC{0,40}", payload in "\\PC{0,40}") {
            let _ = Token::decode(&bytes, &wanted());
            let _ = Token::decode(text(&header, &payload).as_bytes(), &wanted());
            let _ = Token::decode(text(r#"{"alg":"RS256"}"#, &payload).as_bytes(), &wanted());
        }
    }
}
