//! A limit for log lines that every connection could cause.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::locks::lock;

/// The shortest time between two lines about one key.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// The most keys that may have a line in that time.
const MAX_THINGS: usize = 1024;

/// Says when it is time for a line in the log: once a minute for each key.
///
/// The number of keys is bounded. If there are too many, a new key gets no line. No key makes
/// room for another within its minute, because a crowd of keys would then get a line each.
#[derive(Debug)]
pub(crate) struct LogThrottle<K>(Mutex<HashMap<K, LoggedKey>>);

#[derive(Debug)]
struct LoggedKey {
    events: u64,
    logged: Instant,
}

impl LoggedKey {
    fn is_quiet(&self, now: Instant) -> bool {
        now < self.logged + LOG_EVERY
    }
}

impl<K> Default for LogThrottle<K> {
    fn default() -> Self {
        Self(Mutex::default())
    }
}

impl<K: Eq + Hash> LogThrottle<K> {
    /// Counts an event. Returns how many there were with this key, if it is time for a line.
    pub(crate) fn note(&self, key: K) -> Option<u64> {
        let now = Instant::now();
        let mut keys = lock(&self.0);
        if let Some(known) = keys.get_mut(&key) {
            known.events += 1;
            if known.is_quiet(now) {
                return None;
            }
            known.logged = now;
            return Some(known.events);
        }
        if keys.len() >= MAX_THINGS {
            keys.retain(|_, known| known.is_quiet(now));
        }
        if keys.len() >= MAX_THINGS {
            return None;
        }
        keys.insert(key, LoggedKey { events: 1, logged: now });
        Some(1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_key_gets_a_line_a_minute_that_counts_its_events() {
        let throttle = LogThrottle::default();
        assert_eq!([throttle.note(1), throttle.note(2)], [Some(1), Some(1)]);
        for _ in 1..60 {
            tokio::time::advance(Duration::from_secs(1)).await;
            assert_eq!(throttle.note(1), None);
        }
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!([throttle.note(1), throttle.note(2)], [Some(61), Some(2)]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_keys_fills_neither_memory_nor_log() {
        let throttle = LogThrottle::default();
        for _ in 0..2 {
            let lines = (0..10_000).filter(|key| throttle.note(*key).is_some()).count();
            assert_eq!(lines, MAX_THINGS);
            assert_eq!(lock(&throttle.0).len(), MAX_THINGS);
            tokio::time::advance(LOG_EVERY).await;
        }
    }
}
