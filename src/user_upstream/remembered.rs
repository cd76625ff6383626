//! Identities that were read already, with what came of them.
//!
//! A browser sends hundreds of requests with one and the same identity headers,
//! and to read and check them again is the most expensive part of a call. The
//! headers themselves are not kept, only a keyed hash of them: a dump of the
//! memory holds no token, and nobody without the key can make two headers meet.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use siphasher::sip128::{Hasher128 as _, SipHasher24};
use std::hash::Hasher as _;
use tokio::time::Instant;

/// How many parts have a lock of their own, so that calls seldom meet at one.
const SHARDS: usize = 16;

/// A keyed hash over identity headers: SipHash-2-4 with 128 bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Digest(u128);

/// What came of the identity headers that were used last.
pub(crate) struct Remembered<V> {
    keyed: SipHasher24,
    shards: [Mutex<Shard<V>>; SHARDS],
    /// How many identities one generation of a shard holds; there are two.
    generation: usize,
}

/// Two generations: what is used moves to the young one, and when that is full
/// the old one goes, with all that was not used since.
struct Shard<V> {
    young: Generation<V>,
    old: Generation<V>,
}

type Generation<V> = HashMap<Digest, Entry<V>>;

struct Entry<V> {
    outcome: V,
    good_until: Option<Instant>,
}

impl<V: Clone> Remembered<V> {
    /// A memory that holds `capacity` identities as long as they are in use, and
    /// never more than two and a quarter times as many.
    pub(crate) fn new(capacity: usize) -> Result<Self, getrandom::Error> {
        let mut key = [0; 16];
        getrandom::fill(&mut key)?;
        let shard = || Mutex::new(Shard { young: Generation::new(), old: Generation::new() });
        Ok(Self {
            keyed: SipHasher24::new_with_key(&key),
            shards: std::array::from_fn(|_| shard()),
            // Digests do not fill the shards evenly: an eighth more holds them all.
            generation: capacity.div_ceil(SHARDS) * 9 / 8,
        })
    }

    /// The digest of identity headers, each there or not.
    pub(crate) fn digest(&self, headers: [Option<&[u8]>; 2]) -> Digest {
        let mut keyed = self.keyed;
        for header in headers {
            // With its length before it, no header can reach into the next.
            keyed.write_u64(header.map_or(u64::MAX, |header| header.len() as u64));
            keyed.write(header.unwrap_or_default());
        }
        Digest(keyed.finish128().as_u128())
    }

    /// What came of these headers, while that is good.
    pub(crate) fn get(&self, digest: Digest, now: Instant) -> Option<V> {
        // A panic elsewhere leaves a whole entry or none.
        let mut shard = self.shard(digest).lock().unwrap_or_else(PoisonError::into_inner);
        let found = shard.get(digest, self.generation);
        drop(shard);
        // What is forgotten for remembering it longer is freed here, after the lock.
        let (outcome, good_until, _forgotten) = found?;
        good_until.is_none_or(|until| now < until).then_some(outcome)
    }

    /// Remembers what came of them, until then or for as long as there is room.
    pub(crate) fn insert(&self, digest: Digest, outcome: V, good_until: Option<Instant>) {
        let entry = Entry { outcome, good_until };
        let mut shard = self.shard(digest).lock().unwrap_or_else(PoisonError::into_inner);
        let forgotten = shard.insert(digest, entry, self.generation);
        drop(shard);
        drop(forgotten);
    }

    fn shard(&self, digest: Digest) -> &Mutex<Shard<V>> {
        let Digest(bits) = digest;
        &self.shards[usize::try_from(bits % SHARDS as u128).expect("less than the number of shards")]
    }
}

impl<V: Clone> Shard<V> {
    /// What came of it, until when that is good, and what is forgotten for
    /// remembering it longer.
    fn get(&mut self, digest: Digest, most: usize) -> Option<(V, Option<Instant>, Generation<V>)> {
        if let Some(entry) = self.young.get(&digest) {
            return Some((entry.outcome.clone(), entry.good_until, Generation::new()));
        }
        let entry = self.old.remove(&digest)?;
        let (outcome, good_until) = (entry.outcome.clone(), entry.good_until);
        Some((outcome, good_until, self.insert(digest, entry, most)))
    }

    /// Returns the generation that is forgotten for it, to be freed after the lock.
    fn insert(&mut self, digest: Digest, entry: Entry<V>, most: usize) -> Generation<V> {
        let mut forgotten = Generation::new();
        if self.young.len() >= most {
            forgotten = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
        }
        self.young.insert(digest, entry);
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    const CAPACITY: usize = 4096;

    fn get(remembered: &Remembered<u64>, value: u64, reads: &mut usize) -> u64 {
        let digest = remembered.digest([Some(&value.to_be_bytes()), None]);
        remembered.get(digest, Instant::now()).unwrap_or_else(|| {
            *reads += 1;
            remembered.insert(digest, value, None);
            value
        })
    }

    #[test]
    fn as_many_as_there_is_room_for_are_read_once() {
        let (remembered, mut reads) = (Remembered::new(CAPACITY).unwrap(), 0);
        for round in 0..3 {
            for value in 0..CAPACITY as u64 {
                assert_eq!(get(&remembered, value, &mut reads), value);
            }
            assert!(reads < CAPACITY + CAPACITY / 100, "round {round}: {reads}");
        }
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let (remembered, mut reads) = (Remembered::new(CAPACITY).unwrap(), 0);
        get(&remembered, 0, &mut reads);
        for value in 1..50_000 {
            get(&remembered, value, &mut reads);
            get(&remembered, 0, &mut reads);
        }
        assert_eq!(reads, 50_000, "the one that is used was read once");
        let held = |shard: &Mutex<Shard<u64>>| {
            let shard = shard.lock().unwrap();
            shard.young.len() + shard.old.len()
        };
        let held: usize = remembered.shards.iter().map(held).sum();
        assert!((CAPACITY..=CAPACITY * 9 / 4).contains(&held), "{held}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_has_an_end_is_good_until_then() {
        let remembered = Remembered::new(CAPACITY).unwrap();
        let digest = remembered.digest([Some(b"a"), Some(b"b")]);
        let second = Duration::from_secs(1);
        remembered.insert(digest, 1, Some(Instant::now() + second));
        assert_eq!(remembered.get(digest, Instant::now()), Some(1));
        tokio::time::advance(second).await;
        assert_eq!(remembered.get(digest, Instant::now()), None);
        remembered.insert(digest, 2, None);
        tokio::time::advance(second * 1_000_000).await;
        assert_eq!(remembered.get(digest, Instant::now()), Some(2));
    }

    #[test]
    fn headers_do_not_reach_into_each_other() {
        let remembered = Remembered::<()>::new(CAPACITY).unwrap();
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
        let digests: Vec<_> = headers.iter().map(|headers| remembered.digest(*headers)).collect();
        for (at, digest) in digests.iter().enumerate() {
            assert!(!digests[..at].contains(digest), "{at}");
            assert_eq!(remembered.digest(headers[at]), *digest);
        }
    }

    #[test]
    fn nobody_else_can_say_what_a_digest_is() {
        let memories = [Remembered::<()>::new(1).unwrap(), Remembered::<()>::new(1).unwrap()];
        let [one, other] = memories.map(|remembered| remembered.digest([Some(b"a"), None]));
        assert_ne!(one, other);
    }
}
