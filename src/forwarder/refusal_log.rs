//! A limit for the log lines about refused requests.

use std::collections::HashMap;
use std::mem;
use std::sync::Mutex;
use std::time::Duration;

use tokio::time::Instant;

use crate::locks::lock;

/// The time in which each cause has its lines.
const PERIOD: Duration = Duration::from_secs(60);

/// The lines of a cause that needs no valid stamp. One shows a mistake in the setup, and a few
/// show which requests it affects.
const LINES_OF_STRANGERS: u64 = 10;

/// The lines of a cause that only a request with a valid stamp has: those that an administrator
/// searches for by request id.
const LINES_OF_STAMPED: u64 = 1000;

/// How many causes are counted apart. All causes are constants of the program.
const MAX_CAUSES: usize = 128;

/// Says which refusals are logged.
#[derive(Default)]
pub(super) struct RefusalLog(Mutex<HashMap<Cause, CausePeriod>>);

/// Why a request was refused, in few enough variants.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub(super) enum Cause {
    /// The text of an error without values of the request.
    Stranger(String),
    Stamped(&'static str),
}

struct CausePeriod {
    since: Instant,
    lines: u64,
    left_out: u64,
}

impl RefusalLog {
    /// Counts a refusal. If it is to be logged, returns how many of its cause were left out
    /// since the last line.
    pub(super) fn note(&self, cause: Cause) -> Option<u64> {
        let now = Instant::now();
        let most = match cause {
            Cause::Stranger(_) => LINES_OF_STRANGERS,
            Cause::Stamped(_) => LINES_OF_STAMPED,
        };
        let mut causes = lock(&self.0);
        if causes.len() >= MAX_CAUSES && !causes.contains_key(&cause) {
            causes.retain(|_, period| now < period.since + PERIOD);
            if causes.len() >= MAX_CAUSES {
                return None;
            }
        }
        let period = causes.entry(cause).or_insert(CausePeriod { since: now, lines: 0, left_out: 0 });
        if now >= period.since + PERIOD {
            (period.since, period.lines) = (now, 0);
        }
        if period.lines >= most {
            period.left_out += 1;
            return None;
        }
        period.lines += 1;
        Some(mem::take(&mut period.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn each_cause_has_its_lines_in_a_minute() {
        let log = RefusalLog::default();
        let lines = |cause: &Cause| (0..5000).filter(|_| log.note(cause.clone()).is_some()).count() as u64;
        let (missing, malformed) = (Cause::Stranger("a".into()), Cause::Stranger("b".into()));
        assert_eq!(lines(&missing), LINES_OF_STRANGERS);
        assert_eq!(lines(&malformed), LINES_OF_STRANGERS);
        assert_eq!(lines(&Cause::Stamped("workspace-failed")), LINES_OF_STAMPED);
        assert_eq!(log.note(missing.clone()), None);
        tokio::time::advance(PERIOD).await;
        assert_eq!(log.note(missing.clone()), Some(5001 - LINES_OF_STRANGERS));
        assert_eq!(log.note(missing), Some(0));
    }

    #[tokio::test(start_paused = true)]
    async fn a_crowd_of_causes_fills_no_memory() {
        let log = RefusalLog::default();
        for number in 0..10_000 {
            log.note(Cause::Stranger(number.to_string()));
        }
        assert_eq!(lock(&log.0).len(), MAX_CAUSES);
    }
}
