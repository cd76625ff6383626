//! The process that a gateway starts and ends, above the one that serves.
//!
//! On a reload a gateway ends what it started with SIGTERM, and a second later with
//! SIGKILL (docs/gateway.md, Spawned by the gateway), and tunnels are to live on for longer.
//! So the process that the gateway knows, the keeper, serves nothing itself: it starts the
//! runner as its child, passes the runner's log on, and may end at any time. The runner
//! notices that end immediately, because its standard input ends with the keeper, and drains
//! on its own.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd as _;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use apisix_plugin_runner::listener::{Shutdown, Signals, death_of};
use rustix::process::Pid;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::unix::pipe;
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{error, info, warn};

/// This program, even if another one is at its path by now (proc(5)).
const OURSELVES: &str = "/proc/self/exe";

/// How long the last lines of a runner that has ended may take.
const LAST_LINES: Duration = Duration::from_secs(1);

/// What a keeper says to its runner when it was told to end.
const STOP: u8 = b'S';

/// Listens to the keeper at the other end of standard input: the keeper says that it was
/// told to end, or ends without a word because the gateway has ended or the keeper was
/// killed. Then no gateway will start a successor, and `alone` is cancelled.
pub(crate) fn listen_to_keeper(
    shutdown: &Shutdown,
    alone: &CancellationToken,
) -> io::Result<impl Future<Output = ()> + use<>> {
    let mut keeper = pipe::Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
    let (shutdown, alone) = (shutdown.clone(), alone.clone());
    Ok(async move {
        match keeper.read_u8().await {
            Ok(STOP) => info!("told to end by its keeper"),
            _ => {
                warn!("the process that keeps this runner is gone");
                alone.cancel();
            }
        }
        shutdown.stop.cancel();
    })
}

/// What ended a keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum KeeperEnd {
    /// It was told to end, or its gateway has ended: the runner drains on its own.
    Left,
    /// The runner beneath it has ended.
    Ended(ExitStatus),
}

/// The destination of the runner's log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Log {
    /// Through the keeper. A gateway takes the process that it started for alive as long
    /// as any process holds its pipe, so the runner must not hold it.
    PassedOn,
    /// The destination of the keeper's own log, also after the keeper's end.
    Same,
}

/// Starts a runner with these arguments and keeps it until it ends, this process is told to
/// end, or the parent of this process ends.
///
/// Without a gateway `parent` is `None`: the process that started this one may end immediately.
pub(crate) async fn keep(arguments: &[OsString], log: Log, parent: Option<Pid>) -> io::Result<KeeperEnd> {
    let mut signals = Signals::new()?;
    let mut runner = start(arguments, log)?;
    info!(runner = runner.id(), "started the process that serves; this one keeps it");
    let mut word = runner.stdin.take();
    let log = log_of(&mut runner);
    let ended = async {
        let mut log = pin!(log);
        let ended = tokio::select! {
            ended = runner.wait() => ended,
            // Its output can end before it does.
            () = &mut log => return runner.wait().await,
        };
        // Passes the runner's last lines on before this process ends.
        let _ = timeout(LAST_LINES, log).await;
        ended
    };
    tokio::select! {
        ended = ended => {
            let ended = ended?;
            error!(status = %ended, "the process that serves has ended");
            Ok(KeeperEnd::Ended(ended))
        }
        signal = signals.next() => {
            if let Some(word) = &mut word {
                // A runner that does not read it ends with us.
                let _ = word.write_all(&[STOP]).await;
            }
            info!(signal, "told to end: what is open goes on in a process of its own");
            Ok(KeeperEnd::Left)
        }
        parent = death_of(parent) => {
            warn!(parent = parent.as_raw_nonzero(), "the gateway that started this runner is gone");
            Ok(KeeperEnd::Left)
        }
    }
}

#[allow(clippy::disallowed_methods)] // the one place that starts a process
fn start(arguments: &[OsString], log: Log) -> io::Result<Child> {
    let output = || match log {
        Log::PassedOn => Stdio::piped(),
        Log::Same => Stdio::inherit(),
    };
    Command::new(OURSELVES)
        .arg0(std::env::args_os().next().unwrap_or_else(|| OURSELVES.into()))
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(output())
        .stderr(output())
        .process_group(0)
        .spawn()
}

/// Passes on what the runner says.
fn log_of(runner: &mut Child) -> impl Future<Output = ()> + use<> {
    let (said, errors) = (runner.stdout.take(), runner.stderr.take());
    async move {
        tokio::join!(pass_on(said, tokio::io::stdout()), pass_on(errors, tokio::io::stderr()));
    }
}

async fn pass_on(from: Option<impl AsyncRead + Unpin>, mut to: impl AsyncWrite + Unpin) {
    let Some(mut from) = from else { return };
    if let Err(error) = tokio::io::copy(&mut from, &mut to).await {
        warn!(%error, "passing the runner's log on");
        // The runner must not wait for a reader of its log.
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    }
}
