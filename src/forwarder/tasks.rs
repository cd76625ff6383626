//! The tasks of a forwarder, and their end.

use std::future::Future;
use std::time::Duration;

use tokio_util::sync::{CancellationToken, DropGuard};
use tokio_util::task::TaskTracker;

/// All tasks other than the accept loop. The drain waits for them, and drops those that are
/// left at its deadline.
pub(super) struct ForwarderTasks {
    tracker: TaskTracker,
    deadline: CancellationToken,
}

impl ForwarderTasks {
    pub(super) fn new() -> Self {
        Self { tracker: TaskTracker::new(), deadline: CancellationToken::new() }
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
        task: impl FnOnce(CancellationToken) -> T,
    ) {
        self.tracker.spawn(task(self.deadline.clone()));
    }

    /// Waits for all tasks, at most this long, and then ends those that are left.
    pub(super) async fn finish(&self, drain: Duration) {
        self.tracker.close();
        if tokio::time::timeout(drain, self.tracker.wait()).await.is_err() {
            tracing::info!(tasks = self.tracker.len(), "drain deadline: closing what is still open");
            self.deadline.cancel();
            self.tracker.wait().await;
        }
    }
}
