//! The keys of an issuer, as its JWKS gives them (RFC 7517).

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::crypto::{CryptoProvider, aws_lc};
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::Value;
use thiserror::Error;

use super::super::json_object::object_from_slice;
use super::super::token::{Token, algorithm};

/// How many keys of a set are kept: providers publish a handful.
const MAX_KEYS: usize = 256;

/// How long an RSA modulus is at least, in bytes (RFC 7518, section 3.3: 2048 bits).
const MIN_MODULUS: usize = 256;

/// The keys of an issuer that can check signatures.
///
/// ```
/// use jsonwebtoken::Algorithm;
/// use kube_coders_identity::KeySet;
/// use kube_coders_test_support::{Signer, key_set};
///
/// let text = key_set(&[Signer::new("key-1", Algorithm::ES256)]);
/// assert_eq!(KeySet::decode(text.as_bytes()).map(|keys| keys.len()), Ok(1));
/// assert!(KeySet::decode(br#"{"keys": []}"#).is_err());
/// ```
#[derive(Default)]
pub struct KeySet(Vec<Key>);

/// One key of a set.
pub(super) struct Key {
    id: Option<Box<str>>,
    kind: KeyKind,
    /// The one algorithm that the issuer uses it with, if it says so.
    only: Option<Algorithm>,
    /// The key itself, to find it in the issuer's next set.
    material: AlgorithmParameters,
    pub(super) decoding: DecodingKey,
    pub(super) status: KeyStatus,
}

/// Whether the issuer still publishes the key that signed a token. All copies say the same.
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
/// let keys = KeySet::decode(key_set(&[signer]).as_bytes()).expect("a set of keys");
/// assert!(!verify_with_set(&keys, token)?.key.is_withdrawn());
/// # Ok::<(), kube_coders_identity::token::TokenError>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct KeyStatus(Arc<AtomicBool>);

impl KeyStatus {
    /// Whether the issuer has withdrawn the key. Tokens that it signed are no longer good.
    pub fn is_withdrawn(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }

    fn withdraw(&self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyKind {
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl KeyKind {
    fn fits(self, algorithm: Algorithm) -> bool {
        match algorithm {
            Algorithm::RS256
            | Algorithm::RS384
            | Algorithm::RS512
            | Algorithm::PS256
            | Algorithm::PS384
            | Algorithm::PS512 => self == Self::Rsa,
            Algorithm::ES256 => self == Self::P256,
            Algorithm::ES384 => self == Self::P384,
            Algorithm::EdDSA => self == Self::Ed25519,
            _ => false,
        }
    }
}

/// Why a text is not a set of keys.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum KeySetError {
    #[error("not a JSON object with a list `keys`")]
    NoSet,
    #[error(
        "none of the {0} keys can check a signature: an RSA key of 2048 bits or more, P-256, P-384 or Ed25519"
    )]
    NoKey(usize),
}

#[derive(Deserialize)]
struct Set {
    keys: Vec<Value>,
}

impl KeySet {
    /// Reads a JWKS. Keys for other purposes and of unknown kinds are left out.
    pub fn decode(json: &[u8]) -> Result<Self, KeySetError> {
        let set: Set = object_from_slice(json).map_err(|_| KeySetError::NoSet)?;
        let listed = set.keys.len();
        // Another crate in this program may have made both of its providers there,
        // and then jsonwebtoken would have none of its own accord.
        let _ = CryptoProvider::install_default(&aws_lc::DEFAULT_PROVIDER);
        let keys: Vec<_> = set.keys.into_iter().filter_map(Key::decode).take(MAX_KEYS).collect();
        if keys.is_empty() { Err(KeySetError::NoKey(listed)) } else { Ok(Self(keys)) }
    }

    /// How many keys can check a signature: never 0.
    #[allow(clippy::len_without_is_empty)] // a set without keys is an error of `decode`
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The keys that a token may be signed with, by its own word: those of its
    /// `kid`, or the only one for its algorithm if it names none (OpenID Connect
    /// Core 1.0, section 10.1).
    pub(super) fn candidates(&self, token: &Token<'_>) -> Vec<&Key> {
        let fitting = self.0.iter().filter(|key| key.fits(token.algorithm));
        match &token.key_id {
            Some(id) => fitting.filter(|key| key.id.as_ref() == Some(id)).collect(),
            None => {
                let all: Vec<_> = fitting.collect();
                if all.len() == 1 { all } else { Vec::new() }
            }
        }
    }

    /// Takes the place of an older set: keys of both keep their status, and the others of the
    /// older one are withdrawn.
    pub(super) fn replace(&mut self, older: &Self) {
        for old in &older.0 {
            let mut same = self.0.iter_mut().filter(|key| key.is_same(old)).peekable();
            if same.peek().is_none() {
                old.status.withdraw();
            }
            same.for_each(|key| key.status = old.status.clone());
        }
    }

    /// Withdraws all keys.
    pub(super) fn withdraw(&self) {
        self.0.iter().for_each(|key| key.status.withdraw());
    }
}

impl Key {
    fn decode(json: Value) -> Option<Self> {
        let jwk: Jwk = serde_json::from_value(json).ok()?;
        let common = &jwk.common;
        let is_for_signatures =
            common.public_key_use.as_ref().is_none_or(|for_what| *for_what == PublicKeyUse::Signature)
                && common
                    .key_operations
                    .as_ref()
                    .is_none_or(|operations| operations.contains(&KeyOperations::Verify));
        if !is_for_signatures {
            return None;
        }
        let kind = match &jwk.algorithm {
            AlgorithmParameters::RSA(rsa) if is_long_enough(&rsa.n) => KeyKind::Rsa,
            AlgorithmParameters::EllipticCurve(curve) => match curve.curve {
                EllipticCurve::P256 => KeyKind::P256,
                EllipticCurve::P384 => KeyKind::P384,
                _ => return None,
            },
            AlgorithmParameters::OctetKeyPair(pair) if pair.curve == EllipticCurve::Ed25519 => {
                KeyKind::Ed25519
            }
            _ => return None,
        };
        let only = match common.key_algorithm {
            // A key for an algorithm that is not in our list checks nothing.
            Some(named) => Some(algorithm(&named.to_string())?),
            None => None,
        };
        let decoding = DecodingKey::from_jwk(&jwk).ok()?;
        let (id, material) = (jwk.common.key_id.map(Box::from), jwk.algorithm);
        Some(Self { id, kind, only, material, decoding, status: KeyStatus::default() })
    }

    /// Whether the same tokens are good by both keys.
    fn is_same(&self, other: &Self) -> bool {
        self.id == other.id && self.only == other.only && self.material == other.material
    }

    fn fits(&self, algorithm: Algorithm) -> bool {
        self.kind.fits(algorithm) && self.only.is_none_or(|only| only == algorithm)
    }
}

fn is_long_enough(modulus: &str) -> bool {
    URL_SAFE_NO_PAD.decode(modulus).is_ok_and(|bytes| {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        // The highest bit counts: 2047 bits are too few.
        bytes.len() - zeros >= MIN_MODULUS && (bytes.len() - zeros > MIN_MODULUS || bytes[zeros] >= 0x80)
    })
}
