//! What the log says of a limit on connections: not a line for each one that is closed.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;
use tracing::warn;

/// How long nothing more is said of a limit.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// A limit, and how often it made a connection end without an answer.
#[derive(Debug)]
pub struct LimitLog {
    limit: usize,
    /// The flag that raises it.
    cure: &'static str,
    state: Mutex<LimitState>,
}

#[derive(Debug, Default)]
struct LimitState {
    turned_away: u64,
    logged: Option<Instant>,
}

impl LimitLog {
    /// A limit, and the flag that raises it.
    #[must_use]
    pub fn new(limit: usize, cure: &'static str) -> Self {
        Self { limit, cure, state: Mutex::default() }
    }

    /// Notes that a connection is closed.
    pub fn turn_away(&self) {
        let (limit, cure) = (self.limit, self.cure);
        if let Some(turned_away) = self.note(Instant::now()) {
            warn!(limit, turned_away, cure, "connection closed: the limit is reached");
        }
    }

    /// How many there were, if it is time to say so.
    fn note(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.turned_away += 1;
        if state.logged.is_some_and(|logged| now < logged + LOG_EVERY) {
            return None;
        }
        state.logged = Some(now);
        Some(state.turned_away)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_is_told_once_a_minute_with_how_many_it_cost() {
        let (log, start) = (LimitLog::new(2, "--max"), Instant::now());
        assert_eq!(log.note(start), Some(1));
        for second in 1..60 {
            assert_eq!(log.note(start + Duration::from_secs(second)), None);
        }
        assert_eq!(log.note(start + LOG_EVERY), Some(61));
    }
}
