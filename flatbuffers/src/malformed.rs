//! Results of reading a payload: a name with its value, or an error.

use thiserror::Error;

/// A payload that is not what its kind says.
///
/// ```
/// use apisix_ext_plugin::payload::{MalformedPayload, RequestCall};
///
/// // The first four bytes lead to the table, and byte 9 is not there.
/// let error = RequestCall::decode(&[9, 0, 0, 0]).unwrap_err();
/// assert_eq!(error, MalformedPayload::OutOfBounds { at: 9 });
/// ```
#[derive(Clone, Debug, Error, PartialEq, Eq)]
pub enum MalformedPayload {
    /// A reference leads out of the payload.
    #[error("malformed payload: what stands at byte {at} reaches beyond the end")]
    OutOfBounds {
        /// The position of the reference, in bytes.
        at: usize,
    },
    /// A list has too many entries.
    #[error("malformed payload: a list of {entries} entries")]
    TooMany {
        /// The number of entries that the list claims.
        entries: usize,
    },
    /// The verifier of the FlatBuffers library rejects the payload.
    #[error("malformed payload: {0}")]
    Unverified(Box<str>),
}

/// A name with its value.
///
/// ```
/// use apisix_ext_plugin::payload::NameValue;
///
/// let set: NameValue<'_> = (b"x-user", Some(b"alice"));
/// let removed: NameValue<'_> = (b"x-userinfo", None);
/// ```
pub type NameValue<'f> = (&'f [u8], Option<&'f [u8]>);
