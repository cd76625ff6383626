//! What ends the process: signals.

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tracing::info;

/// Tells all parts of a program to end.
///
/// ```no_run
/// use apisix_plugin_runner::Control;
/// use apisix_plugin_runner::listener::Shutdown;
///
/// # async fn run() -> std::io::Result<()> {
/// let shutdown = Shutdown::default();
/// tokio::spawn(shutdown.on_signals()?);
/// let control = Control::new(shutdown.stop, shutdown.now);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug, Default)]
pub struct Shutdown {
    /// Stop accepting, and finish what is in flight.
    pub stop: CancellationToken,
    /// End without finishing.
    pub now: CancellationToken,
}

/// The signals that end a program: SIGTERM, SIGINT, and SIGHUP if the terminal closes.
///
/// ```no_run
/// use apisix_plugin_runner::listener::Signals;
///
/// # async fn wait() -> std::io::Result<()> {
/// let mut signals = Signals::new()?;
/// println!("{} came", signals.next().await);
/// # Ok(())
/// # }
/// ```
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hang_up: Option<Signal>,
}

impl Signals {
    /// Listens for them.
    ///
    /// # Errors
    ///
    /// The system refuses to.
    pub fn new() -> io::Result<Self> {
        let hang_up = match is_hang_up_ignored() {
            true => None,
            false => Some(signal(SignalKind::hangup())?),
        };
        let (terminate, interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
        Ok(Self { terminate, interrupt, hang_up })
    }

    /// The name of the next one.
    pub async fn next(&mut self) -> &'static str {
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

/// Whether the process that started this one wants it to outlive the terminal, as `nohup`
/// does (proc(5), `SigIgn`: a bit for each signal, from the first on).
#[allow(clippy::disallowed_methods)] // the kernel's file is a page
fn is_hang_up_ignored() -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let ignored = ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).unwrap_or(0);
    ignored & 1 << (SignalKind::hangup().as_raw_value() - 1) != 0
}

impl Shutdown {
    /// Listens for signals: the first drains, the second ends immediately.
    ///
    /// # Errors
    ///
    /// The system refuses to.
    pub fn on_signals(&self) -> io::Result<impl Future<Output = ()> + use<>> {
        let mut signals = Signals::new()?;
        let shutdown = self.clone();
        Ok(async move {
            loop {
                let signal = signals.next().await;
                // A keeper's word may have been the first.
                if shutdown.stop.is_cancelled() {
                    info!(signal, "told to end immediately");
                    return shutdown.now.cancel();
                }
                info!(signal, "told to end; a second signal does not wait for what is open");
                shutdown.stop.cancel();
            }
        })
    }
}
