//! Since when workspaces have been starting, for the page that users see meanwhile.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::time::Instant;

use super::pool::Destination;
use crate::locks::lock;

/// How many starting workspaces are remembered.
const MAX_STARTING: usize = 10_000;

/// After how long without a request a start counts as a new one. The waiting page sends a
/// request every 5 s.
const FORGOTTEN: Duration = Duration::from_secs(60);

/// Workspaces that have not answered yet.
#[derive(Default)]
pub(crate) struct StartTimes {
    starts: Mutex<HashMap<Destination, StartTime>>,
    /// Whether there are any: most of the time there are none.
    is_any: AtomicBool,
}

#[derive(Clone, Copy)]
struct StartTime {
    since: Instant,
    asked: Instant,
}

impl StartTimes {
    /// Notes that a workspace does not answer, and says for how long.
    pub(crate) fn waited(&self, destination: &Destination) -> Duration {
        let now = Instant::now();
        let mut starts = self.starts();
        if starts.len() >= MAX_STARTING && !starts.contains_key(destination) {
            starts.retain(|_, start| now < start.asked + FORGOTTEN);
            if starts.len() >= MAX_STARTING {
                starts.clear();
            }
        }
        let start = starts.entry(destination.clone()).or_insert(StartTime { since: now, asked: now });
        if now >= start.asked + FORGOTTEN {
            start.since = now;
        }
        start.asked = now;
        let waited = now - start.since;
        self.is_any.store(true, Ordering::Relaxed);
        waited
    }

    /// Notes that a workspace answers.
    pub(crate) fn answers(&self, destination: &Destination) {
        if self.is_any.load(Ordering::Relaxed) {
            let mut starts = self.starts();
            starts.remove(destination);
            self.is_any.store(!starts.is_empty(), Ordering::Relaxed);
        }
    }

    fn starts(&self) -> MutexGuard<'_, HashMap<Destination, StartTime>> {
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
    async fn a_start_is_counted_from_the_first_who_asked() {
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
        for number in 0..2 * MAX_STARTING + 5 {
            starting.waited(&workspace(number));
        }
        assert!(starting.starts().len() <= MAX_STARTING);
    }
}
