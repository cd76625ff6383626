//! The gateway's `X-Userinfo`: base64 of an object of claims, unsigned.

use base64::Engine as _;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use thiserror::Error;

use super::claims::{self, Claims, ClaimsError, Wanted};

/// How long the header's value may be, in bytes: 48 KiB of JSON, for a user in some hundred
/// groups with long paths. The gateway writes the header itself, so no limit of nginx is lower.
pub const MAX_USERINFO: usize = 64 * 1024;

const EITHER_PADDING: GeneralPurposeConfig =
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, EITHER_PADDING);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, EITHER_PADDING);

/// Reads the header's value and keeps the wanted claims.
///
/// ```
/// use kube_coders_identity::claims::Wanted;
/// use kube_coders_identity::userinfo::decode;
///
/// let claims = decode(b"eyJzdWIiOiAiYWxpY2UifQ==", &Wanted::new([]))?;
/// assert_eq!(claims.subject(), "alice");
/// # Ok::<(), kube_coders_identity::userinfo::UserinfoError>(())
/// ```
pub fn decode(value: &[u8], wanted: &Wanted) -> Result<Claims, UserinfoError> {
    if value.len() > MAX_USERINFO {
        return Err(UserinfoError::TooLong);
    }
    // The gateway writes the standard alphabet; a value of both is neither.
    let json = STANDARD.decode(value).or_else(|_| URL_SAFE.decode(value));
    let json = json.map_err(|_| UserinfoError::NotBase64)?;
    Ok(claims::decode(&json, wanted)?.with_subject()?)
}

/// What is wrong with a userinfo.
///
/// ```
/// use kube_coders_identity::claims::Wanted;
/// use kube_coders_identity::userinfo::{UserinfoError, decode};
///
/// assert_eq!(decode(b"{\"sub\"", &Wanted::new([])), Err(UserinfoError::NotBase64));
/// ```
#[derive(Clone, Copy, Debug, Error, PartialEq, Eq)]
pub enum UserinfoError {
    /// Nothing of the header was read.
    #[error(
        "x-userinfo is longer than {MAX_USERINFO} bytes: the user may have too many groups or roles in it"
    )]
    TooLong,
    /// The header's value can't be decoded.
    #[error("x-userinfo is not base64")]
    NotBase64,
    /// The decoded header holds no usable claims.
    #[error("x-userinfo: {0}")]
    Claims(#[from] ClaimsError),
}

#[cfg(test)]
mod tests {
    use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE, URL_SAFE_NO_PAD};
    use proptest::prelude::*;

    use super::*;

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
        assert_eq!(decode(mixed.as_bytes(), &wanted), Err(UserinfoError::NotBase64));
    }

    #[test]
    fn other_text_than_base64_is_refused() {
        for value in ["e", "e30 ", " e30", "e30\n", "e30==", "e3=0", "=", "e30=e30=", "{}", "e31", "\0"] {
            let claims = decode(value.as_bytes(), &Wanted::new([]));
            assert_eq!(claims, Err(UserinfoError::NotBase64), "{value:?}");
        }
        assert_eq!(decode(b"\xff\xff\xff\xff", &Wanted::new([])), Err(UserinfoError::NotBase64));
    }

    #[test]
    fn a_text_that_is_too_long_is_refused() {
        let userinfo =
            |length| STANDARD.encode(format!("{{\"sub\":\"a\",\"x\":\"{}\"}}", "x".repeat(length)));
        let around = r#"{"sub":"a","x":""}"#.len();
        let fits = userinfo(48 * 1024 - around);
        assert_eq!(decode(fits.as_bytes(), &Wanted::new([])).unwrap().subject(), "a");
        let longer = userinfo(48 * 1024 + 1 - around);
        assert_eq!(decode(longer.as_bytes(), &Wanted::new([])), Err(UserinfoError::TooLong));
    }

    #[test]
    fn errors_say_what_is_wrong() {
        for (error, expected) in [
            (
                UserinfoError::TooLong,
                "x-userinfo is longer than 65536 bytes: the user may have too many groups or roles in it",
            ),
            (UserinfoError::NotBase64, "x-userinfo is not base64"),
            (ClaimsError::Repeated.into(), "x-userinfo: a claim is there twice"),
        ] {
            assert_eq!(error.to_string(), expected);
        }
    }

    proptest! {
        #[test]
        fn any_bytes_are_claims_or_refused(bytes in any::<Vec<u8>>()) {
            let _ = decode(&bytes, &Wanted::new([]));
            let _ = decode(STANDARD.encode(&bytes).as_bytes(), &Wanted::new([]));
        }
    }
}
