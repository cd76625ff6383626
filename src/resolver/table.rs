//! What is known of names, each for as long as it is good.

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Instant;

use crate::upstream::HostName;

/// Into how many parts the table is cut, so that two lookups rarely meet at one
/// lock.
const SHARDS: usize = 16;

/// A name's addresses, at least one, or `None` if it does not exist.
pub(super) type Known = Option<Arc<[IpAddr]>>;

/// Names and what is known of them, bounded in number: no more than asked for,
/// but for one name a shard.
pub(super) struct Table {
    shards: [RwLock<HashMap<HostName, Entry>>; SHARDS],
    hasher: RandomState,
    /// How many names all shards hold together: they do not fill evenly.
    names: AtomicUsize,
    max_names: usize,
}

struct Entry {
    known: Known,
    good_until: Instant,
}

impl Table {
    pub(super) fn new(max_names: usize) -> Self {
        Self { shards: Default::default(), hasher: RandomState::new(), names: AtomicUsize::new(0), max_names }
    }

    /// What is known of a name now; `None` if nothing is.
    pub(super) fn get(&self, name: &HostName, now: Instant) -> Option<Known> {
        let shard = self.shard(name).read().unwrap_or_else(PoisonError::into_inner);
        let entry = shard.get(name)?;
        (now < entry.good_until).then(|| entry.known.clone())
    }

    pub(super) fn insert(&self, name: HostName, known: Known, good_until: Instant, now: Instant) {
        let mut shard = self.shard(&name).write().unwrap_or_else(PoisonError::into_inner);
        let before = shard.len();
        if self.names.load(Ordering::Relaxed) >= self.max_names && !shard.contains_key(&name) {
            make_room(&mut shard, now);
        }
        shard.insert(name, Entry { known, good_until });
        if shard.len() > before {
            self.names.fetch_add(shard.len() - before, Ordering::Relaxed);
        } else {
            self.names.fetch_sub(before - shard.len(), Ordering::Relaxed);
        }
    }

    fn shard(&self, name: &HostName) -> &RwLock<HashMap<HostName, Entry>> {
        let hash = self.hasher.hash_one(name);
        &self.shards[usize::try_from(hash % SHARDS as u64).expect("smaller than the number of shards")]
    }
}

/// Takes out what is no longer good, and of the rest every eighth name, so that
/// the walk over all of them is rare even while everything is good.
fn make_room(shard: &mut HashMap<HostName, Entry>, now: Instant) {
    let mut seen = 0_usize;
    shard.retain(|_, entry| {
        seen += 1;
        now < entry.good_until && !seen.is_multiple_of(8)
    });
    if seen < 8 {
        shard.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn name(number: usize) -> HostName {
        format!("code-{number}.test").parse().unwrap()
    }

    fn known(number: u8) -> Known {
        Some([IpAddr::from([127, 0, 0, number])].into())
    }

    fn names(table: &Table) -> usize {
        table.shards.iter().map(|shard| shard.read().unwrap().len()).sum()
    }

    #[test]
    fn a_name_is_known_until_it_is_not_good() {
        let (table, start) = (Table::new(100), Instant::now());
        let second = Duration::from_secs(1);
        table.insert(name(1), known(1), start + second, start);
        table.insert(name(2), None, start + second, start);
        assert_eq!(table.get(&name(1), start), Some(known(1)));
        assert_eq!(table.get(&name(2), start), Some(None));
        assert_eq!(table.get(&name(3), start), None);
        assert_eq!(table.get(&name(1), start + second), None);
        assert_eq!(table.get(&name(2), start + second), None);
    }

    #[test]
    fn a_newer_answer_takes_the_place_of_an_older() {
        let (table, start) = (Table::new(100), Instant::now());
        let later = start + Duration::from_secs(1);
        table.insert(name(1), known(1), later, start);
        table.insert(name(1), known(2), later, start);
        assert_eq!(table.get(&name(1), start), Some(known(2)));
        assert_eq!(names(&table), 1);
    }

    #[test]
    fn names_are_bounded_in_number() {
        for limit in [1, 16, 100, 1000] {
            let (table, start) = (Table::new(limit), Instant::now());
            for number in 0..5000 {
                table.insert(name(number), known(1), start + Duration::from_secs(1), start);
                assert_eq!(table.get(&name(number), start), Some(known(1)));
            }
            assert!(names(&table) <= limit + SHARDS, "{limit}");
            assert_eq!(names(&table), table.names.load(Ordering::Relaxed));
            assert!(names(&table) > limit / 2, "{limit}");
        }
    }

    #[test]
    fn as_many_names_as_asked_for_are_kept() {
        let (table, start) = (Table::new(10_000), Instant::now());
        let later = start + Duration::from_secs(1);
        for number in 0..10_000 {
            table.insert(name(number), known(1), later, start);
        }
        assert!((0..10_000).all(|number| table.get(&name(number), start).is_some()));
    }

    #[test]
    fn what_is_no_longer_good_makes_room() {
        let (table, start) = (Table::new(1600), Instant::now());
        let (soon, later) = (start + Duration::from_secs(1), start + Duration::from_secs(2));
        for number in 0..1000 {
            table.insert(name(number), known(1), soon, start);
        }
        for number in 1000..4000 {
            table.insert(name(number), known(1), later, soon);
        }
        assert!((0..1000).all(|number| table.get(&name(number), soon).is_none()));
        assert!(names(&table) <= 1600 + SHARDS);
    }
}
