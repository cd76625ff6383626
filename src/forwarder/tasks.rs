//! The tasks of a forwarder, and their end.

use std::future::Future;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// All tasks other than the accept loop. The drain waits for them, and drops those that are
/// left at its deadline.
pub(super) struct ForwarderTasks {
    tracker: TaskTracker,
    deadline: CancellationToken,
    drain: DrainStart,
}

/// The start of a drain, for tasks that end before its deadline by themselves.
#[derive(Clone, Default)]
pub(super) struct DrainStart {
    has_begun: CancellationToken,
    most: Arc<OnceLock<Duration>>,
}

impl DrainStart {
    /// Waits for a random part of the drain, from half of it to all of it. If all tunnels were
    /// closed at the deadline, all clients would connect again in the same moment.
    pub(super) async fn part(&self) {
        self.has_begun.cancelled().await;
        let most = self.most.get().copied().unwrap_or_default();
        tokio::time::sleep(most / 2 + (most / 2).mul_f64(random_part())).await;
    }
}

/// A random number from 0 to 1.
pub(super) fn random_part() -> f64 {
    let mut bytes = [0; 4];
    // Without random numbers all wait equally long, which is no error.
    let _ = getrandom::fill(&mut bytes);
    f64::from(u32::from_ne_bytes(bytes)) / f64::from(u32::MAX)
}

impl ForwarderTasks {
    pub(super) fn new() -> Self {
        Self { tracker: TaskTracker::new(), deadline: CancellationToken::new(), drain: DrainStart::default() }
    }

    /// Ends all tasks when the guard is dropped.
    pub(super) fn end_on_drop(&self) -> DropGuard {
        self.deadline.clone().drop_guard()
    }

    /// Spawns a task that is dropped at the deadline.
    pub(super) fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let deadline = self.deadline.clone();
        self.tracker.spawn(async move {
            tokio::select! {
                () = task => {}
                () = deadline.cancelled() => {}
            }
        });
    }

    /// Spawns a task that ends by itself soon after the deadline.
    pub(super) fn spawn_closing<T: Future<Output = ()> + Send + 'static>(
        &self,
        task: impl FnOnce(CancellationToken, DrainStart) -> T,
    ) {
        self.tracker.spawn(task(self.deadline.clone(), self.drain.clone()));
    }

    /// Waits for all tasks, at most this long, and then ends those that are left.
    pub(super) async fn finish(&self, drain: Duration) {
        self.tracker.close();
        let _ = self.drain.most.set(drain);
        self.drain.has_begun.cancel();
        if tokio::time::timeout(drain, self.tracker.wait()).await.is_err() {
            tracing::info!(tasks = self.tracker.len(), "drain deadline: closing what is still open");
            self.deadline.cancel();
            self.tracker.wait().await;
        }
    }
}
