//! The process that a gateway starts and ends, above the one that serves.
//!
//! On a reload a gateway ends what it started with SIGTERM, and a second later with
//! SIGKILL (GATEWAY.md, Spawned by the gateway), and tunnels are to live on for longer.
//! So the process that it knows holds nothing that anybody could miss: it starts the
//! runner beneath itself, passes its log on, and may end at any time. The runner hears
//! of that end at once, since its standard input ends with it, and drains on its own.

use std::ffi::OsString;
use std::io;
use std::pin::pin;
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use nix::unistd::Pid;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _};
use tokio::process::{Child, Command};
use tokio::time::timeout;
use tracing::{error, info, warn};

use crate::shutdown::{STOP, Signals, death_of};

/// This program, even if another one stands at its path by now (proc(5)).
const OURSELVES: &str = "/proc/self/exe";

/// How long the last lines of a runner that has ended may take.
const LAST_LINES: Duration = Duration::from_secs(1);

/// What ended a keeper.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// It was told to end, or its gateway has ended: the runner drains on its own.
    Left,
    /// The runner beneath it has ended.
    Ended(ExitStatus),
}

/// Where the runner's log goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Log {
    /// Through the keeper. A gateway takes what it started for alive as long as
    /// anybody holds its pipe, so the runner must not.
    PassedOn,
    /// Where the keeper's own goes, also after its end.
    Same,
}

/// Starts a runner with these arguments and keeps it until one of the two ends, or
/// the parent that this process had.
///
/// Without a gateway there is none: whoever started this process may have had nothing
/// else to do.
pub(crate) async fn keep(arguments: &[OsString], log: Log, parent: Option<Pid>) -> io::Result<End> {
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
        // What it said last comes before its end, if anybody reads it.
        let _ = timeout(LAST_LINES, log).await;
        ended
    };
    tokio::select! {
        ended = ended => {
            let ended = ended?;
            error!(status = %ended, "the process that serves has ended");
            Ok(End::Ended(ended))
        }
        signal = signals.next() => {
            if let Some(word) = &mut word {
                // A runner that does not read it ends with us.
                let _ = word.write_all(&[STOP]).await;
            }
            info!(signal, "told to end: what is open goes on in a process of its own");
            Ok(End::Left)
        }
        parent = death_of(parent) => {
            warn!(parent = parent.as_raw(), "the gateway that started this runner is gone");
            Ok(End::Left)
        }
    }
}

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
        // It must not wait for somebody to read it.
        let _ = tokio::io::copy(&mut from, &mut tokio::io::sink()).await;
    }
}
