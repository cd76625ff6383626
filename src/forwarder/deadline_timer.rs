//! A timer for a deadline that moves.

use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::time::{Instant, Sleep, sleep};

/// A timer for a deadline that is polled often and mostly moves away. The timer is reset
/// only when it has run out or would run out too late.
pub(super) struct DeadlineTimer(Pin<Box<Sleep>>);

impl DeadlineTimer {
    pub(super) fn new(first: Duration) -> Self {
        Self(Box::pin(sleep(first)))
    }

    /// Ready once this deadline is over.
    pub(super) fn poll_over(&mut self, deadline: Instant, context: &mut Context<'_>) -> Poll<()> {
        if deadline < self.0.deadline() {
            self.0.as_mut().reset(deadline);
        }
        loop {
            ready!(self.0.as_mut().poll(context));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            self.0.as_mut().reset(deadline);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_runs_out_at_the_deadline_wherever_that_has_moved() {
        let (start, second) = (Instant::now(), Duration::from_secs(1));
        let mut timer = DeadlineTimer::new(10 * second);
        for deadline in [start + 20 * second, start + 25 * second, start + 26 * second] {
            poll_fn(|context| timer.poll_over(deadline, context)).await;
            assert_eq!(Instant::now(), deadline);
        }
        let pending = poll_fn(|context| Poll::Ready(timer.poll_over(start + 99 * second, context))).await;
        assert!(pending.is_pending());
        poll_fn(|context| timer.poll_over(start + 30 * second, context)).await;
        assert_eq!(Instant::now(), start + 30 * second);
    }
}
