//! The parts that read what clients send, for `crate::fuzzing`.

use jsonwebtoken::DecodingKey;

use super::HostTemplate;
use super::claims::Wanted;
use super::identity_headers::{self, TokenSources};
use super::template::Template;
use super::token::{CHECKED_CLAIMS, Expected, Token};
use super::userinfo;

/// The subject of a userinfo.
pub fn userinfo(value: &[u8]) -> Option<String> {
    // The name may be anything, too.
    let sources = TokenSources::default();
    let _ = identity_headers::find(|_| std::iter::once(value), [value], &sources, &[]);
    let claims = userinfo::decode(value, &Wanted::new(["groups", "realm_access"])).ok()?;
    Some(claims.subject().to_owned())
}

/// Whether this token would be believed.
pub fn token_is_believed(text: &[u8], key: &DecodingKey) -> bool {
    let wanted = Wanted::new(CHECKED_CLAIMS.into_iter().chain(["groups"]));
    let Ok(token) = Token::decode(text, &wanted) else { return false };
    let expected = Expected {
        issuer: "https://a".into(),
        audience: ["b".into()].into(),
        authorized_parties: Box::default(),
    };
    // Checked or not, it must not come through.
    let _ = token.check(&expected, 1_700_000_000.0);
    token.verify(key).is_ok()
}

/// The host name that a template makes of a value.
pub fn rendered(template: &str, value: &str) -> Option<String> {
    let _ = Template::parse(template);
    let name = HostTemplate::parse(template).ok()?.render_value(value).ok()?;
    Some(name.as_str().to_owned())
}
