//! Maps that hold a bounded number of entries. If a map is full, the entries that are not
//! in use make room.

use std::hash::{BuildHasher, Hash, RandomState};

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{Lifecycle, OptionsBuilder, UnitWeighter};

/// How many parts have a lock of their own, so that two calls rarely meet at one lock.
const SHARDS: usize = 16;

/// A map that many threads share. Its lifecycle may pin entries, which never make room.
pub(crate) type BoundedMap<K, V, B = RandomState, L = DefaultLifecycle<K, V>> =
    Cache<K, V, UnitWeighter, B, L>;

/// A map that has room for `capacity` entries, rounded up to a multiple of 128. It holds at
/// most an eighth more, except if more entries than that are pinned.
pub(crate) fn bounded_map<K, V, B, L>(capacity: usize) -> BoundedMap<K, V, B, L>
where
    K: Eq + Hash,
    V: Clone,
    B: BuildHasher + Clone + Default,
    L: Lifecycle<K, V> + Clone + Default,
{
    // Keys do not fill the shards evenly: an eighth more holds them all.
    let capacity = capacity.next_multiple_of(8 * SHARDS) / 8 * 9;
    let options = OptionsBuilder::new()
        .estimated_items_capacity(capacity)
        .weight_capacity(capacity as u64)
        .shards(SHARDS)
        .build()
        .expect("both capacities are set");
    Cache::with_options(options, UnitWeighter, B::default(), L::default())
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    const CAPACITY: usize = 1280;

    #[test]
    fn entries_are_bounded_in_number_and_those_in_use_stay() {
        let map: BoundedMap<usize, usize> = bounded_map(CAPACITY);
        map.insert(0, 0);
        for key in 1..10 * CAPACITY {
            map.insert(key, key);
            assert_eq!(map.get(&key), Some(key));
            assert_eq!(map.get(&0), Some(0), "it is in use at {key}");
        }
        assert!((CAPACITY..=CAPACITY * 9 / 8).contains(&map.len()), "{}", map.len());
    }

    #[test]
    fn pinned_entries_stay_even_if_there_are_too_many() {
        #[derive(Clone, Default)]
        struct Shared;

        impl Lifecycle<usize, Arc<usize>> for Shared {
            type RequestState = ();

            fn is_pinned(&self, _: &usize, value: &Arc<usize>) -> bool {
                Arc::strong_count(value) > 1
            }
        }

        let map: BoundedMap<usize, Arc<usize>, RandomState, Shared> = bounded_map(CAPACITY);
        let held: Vec<_> = (0..2 * CAPACITY).map(Arc::new).collect();
        for value in &held {
            map.insert(**value, Arc::clone(value));
        }
        assert_eq!(map.len(), 2 * CAPACITY);
        drop(held);
        map.insert(2 * CAPACITY, Arc::new(0));
        assert!(map.len() < 2 * CAPACITY);
    }
}
