//! A process between the quickstart and each code-server. It ends the code-server when the
//! quickstart has ended, however that happened: the pipe to it is closed then.

use std::ffi::OsString;
use std::io;
use std::os::fd::AsFd as _;
use std::os::unix::process::ExitStatusExt as _;
use std::process::{ExitCode, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use tokio::io::AsyncReadExt as _;
use tokio::net::unix::pipe::Receiver;
use tokio::process::Command;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;

/// How long the program may take to end before it is killed.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs a program, with its arguments, in this process's group until it ends or until standard
/// input, a pipe, does.
///
/// # Errors
///
/// The program can't be started, or standard input is no pipe.
pub(crate) async fn supervise(program: &[OsString]) -> io::Result<ExitCode> {
    let (name, arguments) = program.split_first().ok_or(io::ErrorKind::InvalidInput)?;
    // The group is told to end together, and this process ends last.
    let _terminate = signal(SignalKind::terminate())?;
    let mut child = Command::new(name).args(arguments).stdin(Stdio::null()).spawn()?;
    let mut stdin = Receiver::from_owned_fd(io::stdin().as_fd().try_clone_to_owned()?)?;
    let mut nothing = [0];
    tokio::select! {
        status = child.wait() => {
            let status = status?;
            tell_group(Signal::SIGTERM);
            let code = status.code().or_else(|| Some(128 + status.signal()?)).unwrap_or(1);
            return Ok(ExitCode::from(u8::try_from(code).unwrap_or(1)));
        }
        _ = stdin.read(&mut nothing) => {}
    }
    tell_group(Signal::SIGTERM);
    if timeout(PATIENCE, child.wait()).await.is_err() {
        tell_group(Signal::SIGKILL);
    }
    Ok(ExitCode::SUCCESS)
}

fn tell_group(signal: Signal) {
    // The group may have ended just now.
    let _ = killpg(Pid::from_raw(0), signal);
}
