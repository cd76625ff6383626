//! Identities that were read already, with what came of them.
//!
//! A browser sends hundreds of requests with one and the same identity headers,
//! and to read and check them again is the most expensive part of a call. The
//! headers themselves are not kept, only a keyed hash of them: a dump of the
//! memory holds no token, and without the key no client can make two headers collide.

use std::hash::{BuildHasherDefault, Hash, Hasher};

use siphasher::sip128::{Hasher128 as _, SipHasher24};
use tokio::time::Instant;

use crate::bounded_map::{BoundedMap, bounded_map};

/// A keyed hash over identity headers: SipHash-2-4 with 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Digest(u128);

impl Hash for Digest {
    fn hash<H: Hasher>(&self, state: &mut H) {
        // Without the key no client can choose any part of it.
        state.write_u64(self.0 as u64);
    }
}

/// The hash of what is a hash already.
#[derive(Default)]
pub(super) struct AsItIs(u64);

impl Hasher for AsItIs {
    fn write(&mut self, _: &[u8]) {
        unreachable!("a digest writes one number");
    }

    fn write_u64(&mut self, number: u64) {
        self.0 = number;
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The key of all digests.
pub(super) struct DigestKey(SipHasher24);

impl DigestKey {
    /// A random key of this process.
    pub(super) fn new() -> Result<Self, getrandom::Error> {
        let mut key = [0; 16];
        getrandom::fill(&mut key)?;
        Ok(Self(SipHasher24::new_with_key(&key)))
    }

    /// The digest of identity headers, each there or not, under a conf.
    pub(super) fn digest(&self, conf: u64, headers: [Option<&[u8]>; 2]) -> Digest {
        let mut keyed = self.0;
        keyed.write_u64(conf);
        for header in headers {
            // With its length before it, no header can reach into the next.
            keyed.write_u64(header.map_or(u64::MAX, |header| header.len() as u64));
            keyed.write(header.unwrap_or_default());
        }
        Digest(keyed.finish128().as_u128())
    }
}

/// What came of the identity headers that were used last.
pub(super) struct DigestCache<V: Clone>(BoundedMap<Digest, DigestEntry<V>, BuildHasherDefault<AsItIs>>);

#[derive(Clone)]
struct DigestEntry<V> {
    outcome: V,
    good_until: Option<Instant>,
}

impl<V: Clone> DigestCache<V> {
    /// A memory that holds `capacity` identities as long as they are in use, and
    /// never more than an eighth above that.
    pub(super) fn new(capacity: usize) -> Self {
        Self(bounded_map(capacity))
    }

    /// What came of these headers, while that is good.
    pub(super) fn get(&self, digest: Digest, now: Instant) -> Option<V> {
        let DigestEntry { outcome, good_until } = self.0.get(&digest)?;
        good_until.is_none_or(|until| now < until).then_some(outcome)
    }

    /// Remembers what came of them, until then or for as long as there is room.
    pub(super) fn insert(&self, digest: Digest, outcome: V, good_until: Option<Instant>) {
        self.0.insert(digest, DigestEntry { outcome, good_until });
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const CAPACITY: usize = 4096;

    fn get(cache: &DigestCache<u64>, value: u64, reads: &mut usize) -> u64 {
        let digest = Digest(u128::from(value).wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835));
        cache.get(digest, Instant::now()).unwrap_or_else(|| {
            *reads += 1;
            cache.insert(digest, value, None);
            value
        })
    }

    #[test]
    fn as_many_as_there_is_room_for_are_read_once() {
        let (cache, mut reads) = (DigestCache::new(CAPACITY), 0);
        for round in 0..3 {
            for value in 0..CAPACITY as u64 {
                assert_eq!(get(&cache, value, &mut reads), value);
            }
            assert!(reads < CAPACITY + CAPACITY / 100, "round {round}: {reads}");
        }
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let (cache, mut reads) = (DigestCache::new(CAPACITY), 0);
        get(&cache, 0, &mut reads);
        for value in 1..50_000 {
            get(&cache, value, &mut reads);
            get(&cache, 0, &mut reads);
        }
        assert_eq!(reads, 50_000, "the one that is used was read once");
        let held = cache.0.len();
        assert!((CAPACITY..=CAPACITY * 9 / 8).contains(&held), "{held}");
    }

    #[tokio::test(start_paused = true)]
    async fn an_entry_with_an_end_is_good_until_then() {
        let cache = DigestCache::new(CAPACITY);
        let digest = DigestKey::new().unwrap().digest(0, [Some(b"a"), Some(b"b")]);
        let second = Duration::from_secs(1);
        cache.insert(digest, 1, Some(Instant::now() + second));
        assert_eq!(cache.get(digest, Instant::now()), Some(1));
        tokio::time::advance(second).await;
        assert_eq!(cache.get(digest, Instant::now()), None);
        cache.insert(digest, 2, None);
        tokio::time::advance(second * 1_000_000).await;
        assert_eq!(cache.get(digest, Instant::now()), Some(2));
    }

    #[test]
    fn headers_do_not_reach_into_each_other() {
        let made = DigestKey::new().unwrap();
        let headers: [[Option<&[u8]>; 2]; 8] = [
            [None, None],
            [Some(b""), None],
            [None, Some(b"")],
            [Some(b""), Some(b"")],
            [Some(b"ab"), None],
            [None, Some(b"ab")],
            [Some(b"a"), Some(b"b")],
            [Some(b"ab"), Some(b"")],
        ];
        let digests: Vec<_> =
            (0..2).flat_map(|conf| headers.map(|headers| made.digest(conf, headers))).collect();
        for (at, digest) in digests.iter().enumerate() {
            assert!(!digests[..at].contains(digest), "{at}");
            assert_eq!(made.digest((at / headers.len()) as u64, headers[at % headers.len()]), *digest);
        }
    }

    #[test]
    fn no_other_key_gives_the_same_digest() {
        let [one, other] = [(); 2].map(|()| DigestKey::new().unwrap().digest(0, [Some(b"a"), None]));
        assert_ne!(one, other);
    }
}
