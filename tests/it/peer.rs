//! A connection to a runner that says what it likes.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use crate::wire::{Frame, Prepare};

/// How long a test waits for what must happen before it fails.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Peer(UnixStream);

impl Peer {
    #[track_caller]
    pub(crate) fn connect(socket: &Path) -> Self {
        let stream = UnixStream::connect(socket).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        Self(stream)
    }

    #[track_caller]
    pub(crate) fn write(&mut self, bytes: &[u8]) {
        self.0.write_all(bytes).unwrap();
    }

    #[track_caller]
    pub(crate) fn send(&mut self, frame: &Frame) {
        self.write(&frame.bytes());
    }

    /// The next frame; `None` where the runner has closed the connection.
    #[track_caller]
    pub(crate) fn receive(&mut self) -> Option<Frame> {
        let mut header = [0; 4];
        match self.0.read_exact(&mut header) {
            Ok(()) => {}
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return None,
            // What it had not read yet when it closed.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => return None,
            Err(error) => panic!("{error}"),
        }
        let [kind, high, middle, low] = header;
        let length = u32::from_be_bytes([0, high, middle, low]);
        let mut payload = vec![0; usize::try_from(length).unwrap()];
        self.0.read_exact(&mut payload).unwrap();
        Some(Frame::new(kind, payload))
    }

    #[track_caller]
    pub(crate) fn ask(&mut self, frame: &Frame) -> Frame {
        self.send(frame);
        self.receive().expect("an answer")
    }

    /// The token for one plugin with its conf.
    #[track_caller]
    pub(crate) fn prepare(&mut self, plugin: &str, conf: &str) -> u32 {
        self.ask(&Prepare::new("route#1#ext-plugin-pre-req#1", &[(plugin, conf)]).frame()).token()
    }

    /// Sends and closes one way, if the runner has not closed the other already.
    pub(crate) fn finish_writing_after(&mut self, frame: &Frame) {
        let _ = self.0.write_all(&frame.bytes());
        self.finish_writing();
    }

    pub(crate) fn finish_writing(&self) {
        let _ = self.0.shutdown(Shutdown::Write);
    }
}

/// Tries until it succeeds. For a state that has no event, such as another process's.
#[track_caller]
pub(crate) fn until<T>(what: &str, mut tried: impl FnMut() -> Option<T>) -> T {
    let since = Instant::now();
    loop {
        if let Some(done) = tried() {
            return done;
        }
        assert!(since.elapsed() < PATIENCE, "never happened: {what}");
        std::thread::yield_now();
    }
}

impl From<UnixStream> for Peer {
    fn from(stream: UnixStream) -> Self {
        Self(stream)
    }
}
