//! Keys of an issuer, made when the test starts, and tokens signed with them.

use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, crypto};
use rcgen::{
    KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519, PKCS_RSA_SHA256, RsaKeySize,
};
use serde_json::{Value, json};

/// A private key, its id, and the algorithm that it is used with.
#[derive(Clone)]
pub struct Signer {
    /// Its id in the set of keys.
    pub id: String,
    /// The algorithm that it signs with.
    pub algorithm: Algorithm,
    key: EncodingKey,
}

impl Signer {
    /// A new key.
    ///
    /// # Panics
    ///
    /// If no key can be generated.
    #[must_use]
    pub fn new(id: &str, algorithm: Algorithm) -> Self {
        let key = match algorithm {
            Algorithm::ES256 => EncodingKey::from_ec_der(&generate(&PKCS_ECDSA_P256_SHA256)),
            Algorithm::ES384 => EncodingKey::from_ec_der(&generate(&PKCS_ECDSA_P384_SHA384)),
            Algorithm::EdDSA => EncodingKey::from_ed_der(&ed_key(&generate(&PKCS_ED25519))),
            _ => {
                let pair =
                    KeyPair::generate_rsa_for(&PKCS_RSA_SHA256, RsaKeySize::_2048).expect("a test's key");
                EncodingKey::from_rsa_der(rsa_key(pair.serialized_der()))
            }
        };
        Self { id: id.to_owned(), algorithm, key }
    }

    /// One RSA key for all tests that need no other: it takes long to make one.
    pub fn rsa() -> &'static Self {
        static KEY: OnceLock<Signer> = OnceLock::new();
        KEY.get_or_init(|| Self::new("rsa-1", Algorithm::RS256))
    }

    /// The public half, as a set of keys contains it.
    pub fn jwk(&self) -> Value {
        let mut jwk =
            serde_json::to_value(Jwk::from_encoding_key(&self.key, self.algorithm).expect("a test's key"))
                .expect("a test's key");
        jwk["kid"] = json!(self.id);
        jwk["use"] = json!("sig");
        jwk
    }

    /// A token with these claims, whose header says what is true.
    pub fn token(&self, claims: &Value) -> String {
        let name = format!("{:?}", self.algorithm);
        self.token_with(&json!({"alg": name, "kid": self.id, "typ": "JWT"}), &claims.to_string())
    }

    /// A token with this header and payload, signed with the key's own algorithm.
    pub fn token_with(&self, header: &Value, payload: &str) -> String {
        let message = message(&header.to_string(), payload);
        format!("{message}.{}", self.sign(&message))
    }

    /// The signature of a message, as a token contains it.
    pub fn sign(&self, message: &str) -> String {
        crypto::sign(message.as_bytes(), &self.key, self.algorithm).expect("a test's key")
    }
}

fn generate(algorithm: &'static rcgen::SignatureAlgorithm) -> Vec<u8> {
    KeyPair::generate_for(algorithm).expect("a test's key").serialize_der()
}

/// The RSA key (RFC 8017, A.1.2) within its PKCS #8 envelope (RFC 5958), which
/// takes 26 bytes before a key of 2048 bits.
fn rsa_key(pkcs8: &[u8]) -> &[u8] {
    assert_eq!(pkcs8[22..24], [0x04, 0x82], "an octet string with the key");
    &pkcs8[26..]
}

/// An Ed25519 key in the short envelope (RFC 8410, section 7), which is the one
/// that jsonwebtoken tells by its length, from the one with the public key.
fn ed_key(pkcs8: &[u8]) -> Vec<u8> {
    assert_eq!(pkcs8[..5], [0x30, 0x51, 0x02, 0x01, 0x01], "version 2, with the public key");
    [&[0x30, 0x2e, 0x02, 0x01, 0x00], &pkcs8[5..48]].concat()
}

/// What is signed of a token.
pub fn message(header: &str, payload: &str) -> String {
    format!("{}.{}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload))
}

/// A set of keys as an issuer publishes it.
pub fn key_set(signers: &[Signer]) -> String {
    json!({"keys": signers.iter().map(Signer::jwk).collect::<Vec<_>>()}).to_string()
}

/// Seconds since 1970.
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).expect("a test's key").as_secs()
}

/// The claims of a good token of an issuer.
pub fn claims(issuer: &str, subject: &str) -> Value {
    json!({
        "iss": issuer, "aud": "apisix", "sub": subject, "exp": now() + 300, "iat": now(),
        "preferred_username": subject, "groups": ["/developers"],
    })
}
