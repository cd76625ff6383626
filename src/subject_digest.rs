//! Keyed digests of subjects: what a browser keeps of its user, and no workspace can make.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::Sha256;

use crate::route::key_file::KeyBytes;
use crate::route::own_cookies::MARKER_COOKIE;

/// How long a browser keeps the marker: the longest time that browsers allow (RFC 6265bis,
/// section 5.5).
const MARKER_LIFE: Duration = Duration::from_secs(400 * 86_400);

/// How many bytes of a marker say which key it was made with, and how many are the digest.
const KEY_ID: usize = 4;
const DIGEST: usize = 16;

/// What is before the digested text, so that no digest of one kind is one of another.
const KEY_ID_PURPOSE: &[u8] = b"kube-coders key id";
const MARKER_PURPOSE: &[u8] = b"kube-coders browser marker";
const LOG_PURPOSE: &[u8] = b"kube-coders log";

/// A user, by the word of an issuer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct IssuedSubject<'s> {
    /// Empty if the conf names none, because it trusts the gateway.
    pub(crate) issuer: &'s str,
    pub(crate) subject: &'s str,
}

/// What a browser's marker says about its last user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum LastUser {
    Same,
    /// The same, by a key that makes no new markers.
    SameByFormerKey,
    Other,
    /// The marker is missing, repeated or malformed.
    Unknown,
    /// The marker was made with a key that this runner does not have.
    UnknownKey,
}

/// The key that makes digests, and the former ones that are still accepted.
#[derive(Clone)]
pub(crate) struct SubjectKeys {
    current: SubjectKey,
    former: Vec<SubjectKey>,
}

#[derive(Clone)]
struct SubjectKey {
    keyed: Hmac<Sha256>,
    id: [u8; KEY_ID],
}

impl SubjectKeys {
    pub(crate) fn new(current: &KeyBytes, former: &[KeyBytes]) -> Self {
        Self { current: SubjectKey::new(current), former: former.iter().map(SubjectKey::new).collect() }
    }

    /// The `Set-Cookie` value that marks a browser as this user's.
    pub(crate) fn marking_cookie(&self, subject: IssuedSubject<'_>) -> String {
        let (marker, life) = (self.current.marker(subject), MARKER_LIFE.as_secs());
        format!("{MARKER_COOKIE}={marker}; Path=/; Secure; HttpOnly; SameSite=Lax; Max-Age={life}")
    }

    /// What log lines show of a subject: 16 hexadecimal digits, by which two lines of one user
    /// are found, and no user.
    pub(crate) fn log_digest(&self, subject: &str) -> String {
        let keyed = self.current.keyed.clone().chain_update(LOG_PURPOSE).chain_update(subject);
        let digest = keyed.finalize().into_bytes();
        let first = digest.first_chunk().expect("the digest is longer");
        format!("{:016x}", u64::from_be_bytes(*first))
    }

    /// Compares a user with the last one of a browser that sent these values of the marker's
    /// cookie.
    pub(crate) fn last_user<'c>(
        &self,
        mut values: impl Iterator<Item = &'c [u8]>,
        subject: IssuedSubject<'_>,
    ) -> LastUser {
        let (Some(value), None) = (values.next(), values.next()) else { return LastUser::Unknown };
        let Some(bytes) = URL_SAFE_NO_PAD.decode(value).ok().filter(|bytes| bytes.len() == KEY_ID + DIGEST)
        else {
            return LastUser::Unknown;
        };
        let (id, digest) = bytes.split_at(KEY_ID);
        // Ids are short, so two keys can have the same.
        if self.current.made(id, digest, subject) {
            return LastUser::Same;
        }
        if self.former.iter().any(|key| key.made(id, digest, subject)) {
            return LastUser::SameByFormerKey;
        }
        let mut known = std::iter::once(&self.current).chain(&self.former);
        if known.any(|key| key.id == id) { LastUser::Other } else { LastUser::UnknownKey }
    }
}

impl SubjectKey {
    fn new(key: &KeyBytes) -> Self {
        let keyed: Hmac<Sha256> =
            Hmac::new_from_slice(key.as_bytes()).expect("HMAC takes a key of any length");
        let digest = keyed.clone().chain_update(KEY_ID_PURPOSE).finalize().into_bytes();
        let id = *digest.first_chunk().expect("the digest is longer");
        Self { keyed, id }
    }

    fn mac(&self, IssuedSubject { issuer, subject }: IssuedSubject<'_>) -> Hmac<Sha256> {
        // The length says where the issuer ends.
        let length = u64::try_from(issuer.len()).unwrap_or(u64::MAX).to_be_bytes();
        let parts = [MARKER_PURPOSE, &length, issuer.as_bytes(), subject.as_bytes()];
        parts.iter().fold(self.keyed.clone(), Hmac::chain_update)
    }

    fn marker(&self, subject: IssuedSubject<'_>) -> String {
        let digest = self.mac(subject).finalize().into_bytes();
        URL_SAFE_NO_PAD.encode([&self.id[..], &digest[..DIGEST]].concat())
    }

    fn made(&self, id: &[u8], digest: &[u8], subject: IssuedSubject<'_>) -> bool {
        // The comparison takes the same time wherever the two differ.
        self.id == id && self.mac(subject).verify_truncated_left(digest).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(byte: u8) -> KeyBytes {
        KeyBytes::new(&[byte; 32]).unwrap()
    }

    fn subject<'s>(issuer: &'s str, subject: &'s str) -> IssuedSubject<'s> {
        IssuedSubject { issuer, subject }
    }

    const ALICE: IssuedSubject<'static> = IssuedSubject { issuer: "https://issuer", subject: "alice" };

    fn marker(keys: &SubjectKeys, subject: IssuedSubject<'_>) -> String {
        let cookie = keys.marking_cookie(subject);
        let value = cookie.strip_prefix("__Host-kube-coders-user=").unwrap();
        value.split(';').next().unwrap().to_owned()
    }

    fn last_user(keys: &SubjectKeys, values: &[&str], subject: IssuedSubject<'_>) -> LastUser {
        keys.last_user(values.iter().map(|value| value.as_bytes()), subject)
    }

    #[test]
    fn a_marker_is_its_users_and_no_other_ones() {
        let keys = SubjectKeys::new(&key(1), &[]);
        let marked = marker(&keys, ALICE);
        assert_eq!(last_user(&keys, &[&marked], ALICE), LastUser::Same);
        for other in [
            subject("https://issuer", "bob"),
            subject("https://other", "alice"),
            subject("", "alice"),
            subject("https://issuera", "lice"),
            subject("https://issue", "ralice"),
            subject("https://issuer", ""),
        ] {
            assert_eq!(last_user(&keys, &[&marked], other), LastUser::Other, "{other:?}");
            assert_ne!(marker(&keys, other), marked, "{other:?}");
        }
    }

    #[test]
    fn a_marker_that_is_not_one_says_nothing() {
        let keys = SubjectKeys::new(&key(1), &[]);
        let marked = marker(&keys, ALICE);
        let short = &marked[..marked.len() - 1];
        let long = format!("{marked}A");
        for values in [&[][..], &[""], &["alice"], &[short], &[&long], &["=="], &[&marked, &marked]] {
            assert_eq!(last_user(&keys, values, ALICE), LastUser::Unknown, "{values:?}");
        }
        // Another last character is another digest.
        let last = marked.chars().next_back().unwrap();
        let changed = format!("{short}{}", if last == 'A' { 'Q' } else { 'A' });
        assert_ne!(last_user(&keys, &[&changed], ALICE), LastUser::Same);
    }

    #[test]
    fn a_new_key_accepts_the_markers_of_the_former_one() {
        let (old, new) = (SubjectKeys::new(&key(1), &[]), SubjectKeys::new(&key(2), &[key(1)]));
        let marked = marker(&old, ALICE);
        assert_eq!(last_user(&new, &[&marked], ALICE), LastUser::SameByFormerKey);
        assert_eq!(last_user(&new, &[&marker(&new, ALICE)], ALICE), LastUser::Same);
        assert_eq!(last_user(&new, &[&marked], subject("https://issuer", "bob")), LastUser::Other);
        assert_eq!(last_user(&old, &[&marker(&new, ALICE)], ALICE), LastUser::UnknownKey);
    }
}
