//! Identities that were read already, with what came of them.
//!
//! A browser sends hundreds of requests with one and the same identity header,
//! and what it means under one conf never changes: to read it again is the most
//! expensive part of a call. Only what was read without error is remembered.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::sync::{Arc, Mutex, PoisonError};

/// How many identities are remembered for one conf: the users who are at work at
/// one gateway at one time.
const CAPACITY: usize = 4096;

/// How long an identity header may be and still be remembered, in bytes. With
/// the capacity it bounds the memory of a conf, to 16 MiB and what comes of each;
/// headers are about 1 KiB long.
const MAX_VALUE: usize = 4096;

/// How many parts have a lock of their own, so that calls seldom meet at one.
const SHARDS: usize = 16;

/// How many identities one generation of a shard holds; there are two.
const GENERATION: usize = CAPACITY / SHARDS / 2;

/// What came of each of the identity headers that were used last.
pub(crate) struct Remembered<V> {
    /// Keyed at random, so that nobody can choose values which meet.
    hasher: RandomState,
    shards: [Mutex<Shard<V>>; SHARDS],
}

/// Two generations: what is used moves to the young one, and when that is full
/// the old one goes, with all that was not used since.
struct Shard<V> {
    young: Generation<V>,
    old: Generation<V>,
}

type Generation<V> = HashMap<u64, Entry<V>>;

struct Entry<V> {
    value: Box<[u8]>,
    outcome: Arc<V>,
}

impl<V> Remembered<V> {
    pub(crate) fn new() -> Self {
        let shard = || Mutex::new(Shard { young: Generation::new(), old: Generation::new() });
        Self { hasher: RandomState::new(), shards: std::array::from_fn(|_| shard()) }
    }

    /// What came of this very value, from memory or from `read`.
    pub(crate) fn get_or_read<E>(
        &self,
        value: &[u8],
        read: impl FnOnce() -> Result<V, E>,
    ) -> Result<Arc<V>, E> {
        if value.len() > MAX_VALUE {
            return read().map(Arc::new);
        }
        let hash = self.hasher.hash_one(value);
        let shard =
            &self.shards[usize::try_from(hash % SHARDS as u64).expect("less than the number of shards")];
        // A panic elsewhere leaves a whole entry or none.
        let found = shard.lock().unwrap_or_else(PoisonError::into_inner).get(hash, value);
        if let Some((outcome, _forgotten)) = found {
            return Ok(outcome);
        }
        let outcome = Arc::new(read()?);
        let entry = Entry { value: value.into(), outcome: Arc::clone(&outcome) };
        let dropped = shard.lock().unwrap_or_else(PoisonError::into_inner).insert(hash, entry);
        // Freed here, after the lock.
        drop(dropped);
        Ok(outcome)
    }
}

impl<V> Shard<V> {
    /// What came of it, and what is forgotten for remembering it longer.
    fn get(&mut self, hash: u64, value: &[u8]) -> Option<(Arc<V>, Generation<V>)> {
        // Two values may have one hash, so the hash only says where to look.
        let is_it = |entry: &&Entry<V>| *entry.value == *value;
        if let Some(entry) = self.young.get(&hash) {
            return Some(entry).filter(is_it).map(|entry| (Arc::clone(&entry.outcome), Generation::new()));
        }
        let outcome = self.old.get(&hash).filter(is_it).map(|entry| Arc::clone(&entry.outcome))?;
        let entry = self.old.remove(&hash).expect("it was just found");
        let forgotten = self.insert(hash, entry);
        Some((outcome, forgotten))
    }

    /// Returns the generation that is forgotten for it, to be freed after the lock.
    fn insert(&mut self, hash: u64, entry: Entry<V>) -> Generation<V> {
        let mut forgotten = Generation::new();
        if self.young.len() >= GENERATION {
            forgotten = std::mem::replace(&mut self.old, std::mem::take(&mut self.young));
        }
        self.young.insert(hash, entry);
        forgotten
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(remembered: &Remembered<u64>, value: u64, reads: &mut usize) -> u64 {
        let read = || {
            *reads += 1;
            Ok::<_, ()>(value)
        };
        *remembered.get_or_read(&value.to_be_bytes(), read).unwrap()
    }

    #[test]
    fn a_value_that_is_used_is_read_once_and_nobody_gets_anothers() {
        let (remembered, mut reads) = (Remembered::new(), 0);
        for round in 0..3 {
            for value in 0..500 {
                assert_eq!(get(&remembered, value, &mut reads), value);
            }
            assert_eq!(reads, 500, "round {round}");
        }
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let (remembered, mut reads) = (Remembered::new(), 0);
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
        assert!((CAPACITY / 2..=CAPACITY).contains(&held), "{held}");
    }

    #[test]
    fn errors_and_long_values_are_not_remembered() {
        let remembered = Remembered::<u8>::new();
        assert_eq!(remembered.get_or_read(b"a", || Err("malformed")), Err("malformed"));
        assert_eq!(remembered.get_or_read(b"a", || Ok::<_, ()>(1)).as_deref(), Ok(&1));
        let long = [b'a'; MAX_VALUE + 1];
        for expected in [1, 2] {
            assert_eq!(remembered.get_or_read(&long, || Ok::<_, ()>(expected)).as_deref(), Ok(&expected));
        }
    }
}
