//! A runner within this process, with plugins that the binary does not have.

use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;

use kube_coders::{Program, ProgramError};
use tempfile::TempDir;
use tokio::sync::oneshot;

use crate::peer::{Peer, until};
use crate::program::listen_address;

pub(crate) struct Served {
    pub(crate) socket: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    serving: Option<JoinHandle<Result<(), ProgramError>>>,
    _folder: TempDir,
}

impl Served {
    pub(crate) fn start(command: Program, args: &[&str]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let socket = folder.path().join("runner.sock");
        let address = listen_address(&socket);
        let fixed = ["--listen-address", &address, "--forwarder-address", "127.0.0.1:0"];
        // The workspaces of tests are on loopback, and have names.
        let fixed = fixed.into_iter().chain(["--drain-deadline", "1s", "--allow-address", "127.0.0.0/8"]);
        let args: Vec<String> = fixed.chain(args.iter().copied()).map(str::to_owned).collect();
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
            let stopped = async { drop(stopped.await) };
            runtime.unwrap().block_on(command.serve(args, stopped))
        });
        until("a runner that listens", || {
            assert!(!serving.is_finished(), "the runner did not start");
            UnixStream::connect(&socket).ok()
        });
        Self { socket, stop: Some(stop), serving: Some(serving), _folder: folder }
    }

    #[track_caller]
    pub(crate) fn connect(&self) -> Peer {
        Peer::connect(&self.socket)
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let _ = self.stop.take().map(|stop| stop.send(()));
        let ended = self.serving.take().map(JoinHandle::join);
        if !std::thread::panicking() {
            ended.unwrap().unwrap().unwrap();
        }
    }
}
