//! What ends the process: signals, and the end of whoever started it.

use std::io;
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::unistd::{Pid, getppid};
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::interval;
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};

/// How often it is looked whether the gateway still lives. A gateway that dies
/// without a word leaves what it started orphaned for at most this long.
const PARENT_CHECK: Duration = Duration::from_millis(250);

/// What a keeper says to its runner when it was told to end.
pub(crate) const STOP: u8 = b'S';

/// How everything is told to end.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shutdown {
    /// Stop accepting, finish what is in flight.
    pub(crate) stop: CancellationToken,
    /// Do not even finish.
    pub(crate) now: CancellationToken,
    /// Nobody will come who takes over.
    pub(crate) alone: CancellationToken,
}

/// SIGTERM and SIGINT, and SIGHUP: the terminal has gone.
pub(crate) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Option<Signal>,
}

impl Signals {
    pub(crate) fn new() -> io::Result<Self> {
        let hang_up = match is_hang_up_ignored() {
            true => None,
            false => Some(signal(SignalKind::hangup())?),
        };
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, hang_up })
    }

    /// The name of the next one.
    pub(crate) async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
            () = received(&mut self.hang_up) => "SIGHUP",
        }
    }
}

/// Returns once the signal comes; never where none is listened for.
async fn received(signal: &mut Option<Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

/// Whether whoever started this process wants it to outlive the terminal, as `nohup`
/// does (proc(5), `SigIgn`: a bit for each signal, from the first on).
fn is_hang_up_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored & 1 << (nix::libc::SIGHUP - 1) != 0
}

impl Shutdown {
    /// Listens for signals: the first drains, the second ends at once.
    pub(crate) fn on_signals(&self) -> io::Result<impl Future<Output = ()> + use<>> {
        let mut signals = Signals::new()?;
        let shutdown = self.clone();
        Ok(async move {
            loop {
                let signal = signals.next().await;
                // A keeper's word may have been the first.
                if shutdown.stop.is_cancelled() {
                    info!(signal, "told to end at once");
                    return shutdown.now.cancel();
                }
                info!(signal, "told to end; a second signal does not wait for what is open");
                shutdown.stop.cancel();
            }
        })
    }

    /// Listens to the keeper at the other end of standard input: it says that it was
    /// told to end, or ends without a word because the gateway has, or was killed.
    pub(crate) fn on_keeper(&self) -> io::Result<impl Future<Output = ()> + use<>> {
        let mut keeper = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
        let shutdown = self.clone();
        Ok(async move {
            let said = keeper.read_u8().await;
            match said {
                Ok(STOP) => info!("told to end by its keeper"),
                _ => {
                    warn!("the process that keeps this runner is gone");
                    shutdown.alone.cancel();
                }
            }
            shutdown.stop.cancel();
        })
    }
}

/// Returns once this process has another parent than it had; never without one.
pub(crate) async fn death_of(parent: Option<Pid>) -> Pid {
    let Some(parent) = parent else { return std::future::pending().await };
    let mut ticks = interval(PARENT_CHECK);
    while getppid() == parent {
        ticks.tick().await;
    }
    parent
}

#[cfg(test)]
mod tests {
    use tokio::time::timeout;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn only_a_parent_that_there_was_can_be_gone() {
        let day = Duration::from_secs(86_400);
        assert!(timeout(day, death_of(None)).await.is_err());
        assert!(timeout(day, death_of(Some(getppid()))).await.is_err());
        let nobody = Pid::from_raw(i32::MAX);
        assert_eq!(timeout(PARENT_CHECK, death_of(Some(nobody))).await, Ok(nobody));
    }
}
