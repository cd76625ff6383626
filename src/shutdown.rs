//! What ends the process: signals, and the death of the gateway that started it.

use std::io;
use std::time::Duration;

use nix::unistd::{Pid, getppid};
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often a runner looks whether its gateway still lives. A gateway that dies
/// without a word leaves it orphaned for at most this long.
const PARENT_CHECK: Duration = Duration::from_secs(1);

/// The two ways in which everything is told to end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shutdown {
    /// Stop accepting, finish what is in flight.
    pub(crate) stop: CancellationToken,
    /// Do not even finish.
    pub(crate) now: CancellationToken,
}

impl Shutdown {
    /// Listens for SIGTERM and SIGINT: the first drains, the second ends at once.
    pub(crate) fn on_signals(&self) -> io::Result<impl Future<Output = ()> + use<>> {
        let mut terminate = signal(SignalKind::terminate())?;
        let mut interrupt = signal(SignalKind::interrupt())?;
        let shutdown = self.clone();
        Ok(async move {
            for token in [shutdown.stop, shutdown.now] {
                let name = tokio::select! {
                    _ = terminate.recv() => "SIGTERM",
                    _ = interrupt.recv() => "SIGINT",
                };
                info!(signal = name, "told to end");
                token.cancel();
            }
        })
    }

    /// Returns, after telling everything to stop, once this process has another
    /// parent than it had: the gateway that started it is gone.
    pub(crate) async fn on_death_of(&self, parent: Pid) {
        let mut ticks = interval(PARENT_CHECK);
        while getppid() == parent {
            ticks.tick().await;
        }
        warn!(parent = parent.as_raw(), "the gateway that started this runner is gone");
        self.stop.cancel();
    }
}
