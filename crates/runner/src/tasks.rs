//! Background work of plugins that ends with the runner.

use std::future::Future;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Starts background tasks for a plugin. The runner drops each of them when it ends,
/// after the plugins' `stop` hooks.
///
/// ```
/// # use std::time::Duration;
/// # use apisix_plugin_runner::{Action, Plugin, PluginError, Request, Tasks};
/// # struct Refresher;
/// impl Plugin for Refresher {
/// #   const NAME: &'static str = "refresher";
/// #   type Config = ();
///     async fn start(&self, tasks: &Tasks) -> Result<(), PluginError> {
///         tasks.spawn(async {
///             loop {
///                 // refresh something
///                 tokio::time::sleep(Duration::from_secs(60)).await;
///             }
///         });
///         Ok(())
///     }
/// #   async fn on_request(&self, (): &(), _: &mut Request<'_>) -> Result<Action, PluginError> { Ok(Action::Continue) }
/// }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Tasks {
    tracker: TaskTracker,
    end: CancellationToken,
}

impl Tasks {
    /// Starts a task on the current runtime. The task is dropped when the runner ends.
    pub fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        let end = self.end.clone();
        self.tracker.spawn(async move {
            end.run_until_cancelled(task).await;
        });
    }

    /// Drops all tasks and waits until they are gone.
    pub(crate) async fn end(&self) {
        self.end.cancel();
        self.tracker.close();
        self.tracker.wait().await;
    }
}

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end.cancel();
    }
}

/// Drops a plugin's tasks when the runner itself is dropped without an orderly end.
pub(crate) struct EndOnDrop(pub(crate) Tasks);

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_task_ends_with_the_runner() {
        struct DropSignal(Option<tokio::sync::oneshot::Sender<()>>);
        impl Drop for DropSignal {
            fn drop(&mut self) {
                let _ = self.0.take().map(|signal| signal.send(()));
            }
        }
        let (dropped, was_dropped) = tokio::sync::oneshot::channel();
        let (tasks, signal) = (Tasks::default(), DropSignal(Some(dropped)));
        tasks.spawn(async move {
            let _signal = signal;
            std::future::pending::<()>().await;
        });
        tasks.end().await;
        assert_eq!(was_dropped.await, Ok(()));
    }
}
