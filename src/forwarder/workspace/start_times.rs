//! Since when workspaces have been starting, for the page that users see meanwhile.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use quick_cache::unsync::Cache;
use tokio::time::Instant;

use super::pool::Destination;
use crate::locks::lock;

/// How many starting workspaces are remembered.
const MAX_STARTING: usize = 10_000;

/// After how long without a request a start counts as a new one. The waiting page sends a
/// request every 5 s.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Workspaces that have not answered yet. If there are too many, those that no user asks for
/// make room.
pub(crate) struct StartTimes {
    /// Under one lock, and not a `BoundedMap`, because `is_any` changes with it.
    starts: Mutex<Cache<Destination, StartTime>>,
    /// Whether there are any: most of the time there are none.
    is_any: AtomicBool,
}

#[derive(Clone, Copy)]
struct StartTime {
    since: Instant,
    asked: Instant,
}

impl Default for StartTimes {
    fn default() -> Self {
        Self { starts: Mutex::new(Cache::new(MAX_STARTING)), is_any: AtomicBool::new(false) }
    }
}

impl StartTimes {
    /// Notes that a workspace does not answer, and says for how long.
    pub(crate) fn waited(&self, destination: &Destination) -> Duration {
        let now = Instant::now();
        let mut starts = self.starts();
        if let Some(mut start) = starts.get_mut(destination) {
            if now >= start.asked + FORGOTTEN {
                start.since = now;
            }
            start.asked = now;
            return now - start.since;
        }
        starts.insert(destination.clone(), StartTime { since: now, asked: now });
        self.is_any.store(true, Ordering::Relaxed);
        Duration::ZERO
    }

    /// Notes that a workspace answers.
    pub(crate) fn answers(&self, destination: &Destination) {
        if self.is_any.load(Ordering::Relaxed) {
            let mut starts = self.starts();
            starts.remove(destination);
            self.is_any.store(!starts.is_empty(), Ordering::Relaxed);
        }
    }

    fn starts(&self) -> MutexGuard<'_, Cache<Destination, StartTime>> {
        lock(&self.starts)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn workspace(number: usize) -> Destination {
        Destination::of(&format!("http://code-{number}:1").parse().unwrap())
    }

    #[tokio::test(start_paused = true)]
    async fn a_start_is_counted_from_the_first_request() {
        let (starting, second) = (StartTimes::default(), Duration::from_secs(1));
        assert_eq!(starting.waited(&workspace(1)), Duration::ZERO);
        tokio::time::advance(5 * second).await;
        assert_eq!(starting.waited(&workspace(1)), 5 * second);
        assert_eq!(starting.waited(&workspace(2)), Duration::ZERO);
        tokio::time::advance(59 * second).await;
        assert_eq!(starting.waited(&workspace(1)), 64 * second);
        starting.answers(&workspace(2));
        starting.answers(&workspace(1));
        assert!(!starting.is_any.load(Ordering::Relaxed));
        assert_eq!(starting.waited(&workspace(1)), Duration::ZERO);
        tokio::time::advance(60 * second).await;
        assert_eq!(starting.waited(&workspace(1)), Duration::ZERO, "the last request is too long ago");
    }

    #[tokio::test(start_paused = true)]
    async fn starts_are_bounded_in_number() {
        let starting = StartTimes::default();
        let second = Duration::from_secs(1);
        starting.waited(&workspace(0));
        tokio::time::advance(5 * second).await;
        for number in 1..2 * MAX_STARTING + 5 {
            starting.waited(&workspace(number));
            assert_eq!(starting.waited(&workspace(0)), 5 * second, "a user waits for it");
        }
        assert_eq!(starting.starts().len(), MAX_STARTING);
    }
}
