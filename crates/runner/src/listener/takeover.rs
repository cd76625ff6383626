//! How a runner takes over from the runner that serves its socket, so that no connection
//! is closed that the gateway may be about to use.
//!
//! The successor connects to a socket of its own, `<socket>.takeover`, which only the
//! runner's user and root may open, and asks. The predecessor answers with the companion's
//! listener. Once the successor says that it serves, the predecessor hands over each
//! gateway connection between two calls; once the predecessor is told to stop, it also
//! hands over each companion connection between two requests. A call or request that is
//! under way, and an upgraded connection, stay with the predecessor to their end.
//!
//! A byte says what comes, and each descriptor has a byte of its own (unix(7),
//! `SCM_RIGHTS`), so that no descriptor is taken for another.

use std::io::ErrorKind::{ConnectionRefused, InvalidInput, NotFound, PermissionDenied};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::net::{TcpListener as StdTcpListener, TcpStream as StdTcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use rustix::process::geteuid;
use thiserror::Error;
use tokio::io::Interest;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::listener::admission::is_foreign_to_our_namespace;
use crate::locks::lock;

/// How long a predecessor may take to answer, and a successor to take what is handed
/// over, before it counts as hung.
const PATIENCE: Duration = Duration::from_secs(1);

/// How long a predecessor waits for a successor that is about to listen.
const ABOUT_TO_LISTEN: Duration = Duration::from_secs(2);

/// What a predecessor sends: first the forwarder's listener, or that it has none; then the
/// gateway's connections, and those to its own predecessors.
const LISTENER: u8 = b'L';
const NO_LISTENER: u8 = b'-';
const CALLS: u8 = b'C';
const REQUESTS: u8 = b'R';
const PREDECESSOR: u8 = b'P';

/// What a successor sends once it has seen whose runner it has reached.
const ASKS: u8 = b'A';

/// What a successor sends once it serves.
const LISTENS: u8 = b'S';

/// Whether a process of this user may take over. It receives connections of other users.
pub(crate) fn may_take_over(uid: u32) -> bool {
    (uid == geteuid().as_raw() || uid == 0) && !is_foreign_to_our_namespace(uid)
}

/// The path of the socket on which runners of this socket hand over.
pub(crate) fn takeover_path(socket: &Path) -> PathBuf {
    let mut path = socket.as_os_str().to_owned();
    path.push(".takeover");
    path.into()
}

/// What a runner knows of the runner that takes over from it.
///
/// ```
/// use std::sync::Arc;
///
/// use apisix_plugin_runner::listener::Succession;
/// use tokio::net::TcpStream;
///
/// /// What a companion does with a quiet connection while it drains.
/// async fn hand_over(succession: &Arc<Succession>, connection: TcpStream) {
///     succession.ready().await;
///     if succession.hand_over_requests(&connection).await {
///         drop(connection); // The next runner has it.
///     }
/// }
/// ```
pub struct Succession {
    state: watch::Sender<SuccessionState>,
    /// The companion's, as long as it listens.
    listener: Mutex<Option<OwnedFd>>,
}

#[derive(Clone, Debug, Default)]
pub(crate) struct SuccessionState {
    /// How many successors have asked and do not serve yet. One may fail before it serves.
    announced: usize,
    /// The successor that serves; the last one if several do.
    ready: Option<Arc<UnixStream>>,
}

impl Succession {
    /// A succession that hands this listener over first.
    #[must_use]
    pub fn new(listener: Option<OwnedFd>) -> Arc<Self> {
        Arc::new(Self { state: watch::Sender::default(), listener: Mutex::new(listener) })
    }

    /// Whether a successor serves, so that connections can be handed over.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.state.borrow().ready.is_some()
    }

    /// Notices when a successor comes, serves or goes.
    pub(crate) fn changes(&self) -> watch::Receiver<SuccessionState> {
        self.state.subscribe()
    }

    /// Waits until a successor serves.
    pub async fn ready(&self) {
        let mut state = self.state.subscribe();
        // The sender is ours, and so it lives.
        let _ = state.wait_for(|state| state.ready.is_some()).await;
    }

    /// Serves a successor's connection until the successor is gone.
    pub(crate) async fn attend(&self, stream: UnixStream) {
        let stream = Arc::new(stream);
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        // A successor that finds a runner of another user asks for nothing.
        if !matches!(receive(&stream).await, Ok((Some(ASKS), None))) {
            return;
        }
        info!(successor = pid, "another runner takes over");
        let announced = AnnouncedSuccessor::new(&self.state);
        if let Err(error) = self.converse(&stream, announced).await {
            debug!(%error, successor = pid, "the successor is lost");
        }
        self.forget(&stream);
    }

    async fn converse(&self, stream: &Arc<UnixStream>, announced: AnnouncedSuccessor<'_>) -> io::Result<()> {
        let listener = lock(&self.listener).as_ref().map(OwnedFd::try_clone).transpose()?;
        match &listener {
            Some(listener) => send(stream, LISTENER, Some(listener.as_fd())).await?,
            None => send(stream, NO_LISTENER, None).await?,
        }
        drop(listener);
        match receive(stream).await?.0 {
            Some(LISTENS) => self.state.send_modify(|state| state.ready = Some(Arc::clone(stream))),
            Some(_) => return Err(io::ErrorKind::InvalidData.into()),
            None => return Ok(()),
        }
        drop(announced);
        match receive(stream).await?.0 {
            Some(_) => Err(io::ErrorKind::InvalidData.into()),
            None => Ok(()),
        }
    }

    fn forget(&self, stream: &Arc<UnixStream>) {
        self.state.send_if_modified(|state| {
            let is_known = state.ready.as_ref().is_some_and(|known| Arc::ptr_eq(known, stream));
            if is_known {
                state.ready = None;
            }
            is_known
        });
    }

    /// Waits for a successor that serves: for this time, or for a moment if one is about to
    /// serve.
    pub(crate) async fn wait(&self, for_one: Duration) {
        let mut state = self.state.subscribe();
        let is_enough = |state: &SuccessionState| {
            let is_unawaited = for_one.is_zero() && state.announced == 0;
            state.ready.is_some() || is_unawaited
        };
        let patience = if for_one.is_zero() { ABOUT_TO_LISTEN } else { for_one };
        let _ = timeout(patience, state.wait_for(is_enough)).await;
    }

    /// Gives up the companion's listener. It lives as long as any process holds it.
    pub fn close_listener(&self) {
        // Closed after the lock is released.
        let _closed = lock(&self.listener).take();
    }

    /// Hands over a gateway connection to the runner's socket. `false` if no successor took
    /// it: it still belongs to the caller.
    pub(crate) async fn hand_over_calls(&self, connection: &UnixStream) -> bool {
        self.hand_over(CALLS, connection.as_fd()).await
    }

    /// Hands over a connection to the companion. `false` if no successor took it: it still
    /// belongs to the caller.
    pub async fn hand_over_requests(&self, connection: &TcpStream) -> bool {
        self.hand_over(REQUESTS, connection.as_fd()).await
    }

    /// Hands over the connection to a predecessor, with the connections that wait in it.
    pub(crate) async fn hand_over_predecessor(&self, predecessor: &Predecessor) -> bool {
        self.hand_over(PREDECESSOR, predecessor.0.as_fd()).await
    }

    async fn hand_over(&self, what: u8, connection: BorrowedFd<'_>) -> bool {
        let Some(stream) = self.state.borrow().ready.clone() else { return false };
        match timeout(PATIENCE, send(&stream, what, Some(connection))).await {
            Ok(Ok(())) => true,
            Ok(Err(error)) => {
                debug!(%error, "the successor is gone");
                self.forget(&stream);
                false
            }
            Err(_) => {
                warn!("the successor takes no connections: they are closed instead of handed over");
                self.forget(&stream);
                false
            }
        }
    }
}

/// A successor that has asked, until it serves or is gone.
struct AnnouncedSuccessor<'s>(&'s watch::Sender<SuccessionState>);

impl<'s> AnnouncedSuccessor<'s> {
    fn new(state: &'s watch::Sender<SuccessionState>) -> Self {
        state.send_modify(|state| state.announced += 1);
        Self(state)
    }
}

impl Drop for AnnouncedSuccessor<'_> {
    fn drop(&mut self) {
        self.0.send_modify(|state| state.announced -= 1);
    }
}

/// The connection to a predecessor, on which it hands its connections over.
#[derive(Clone, Debug)]
pub(crate) struct Predecessor(Arc<UnixStream>);

/// What a successor gets at first.
pub(crate) struct Inheritance {
    pub(crate) predecessor: Predecessor,
    /// The companion's, with the connections in its queue.
    pub(crate) listener: Option<StdTcpListener>,
}

/// What a predecessor hands over.
#[derive(Debug)]
pub(crate) enum Inherited {
    /// A connection of the gateway to the runner's socket, between two calls.
    Calls(UnixStream),
    /// A connection to the forwarder, between two requests.
    Requests(TcpStream),
    /// The connection to the predecessor's own predecessor.
    Predecessor(Predecessor),
}

/// Which runner serves the socket that a new runner is about to take.
pub(crate) enum Incumbent {
    None,
    /// A runner that hands over its connections.
    HandsOver(Inheritance),
    /// A runner that keeps them: it hangs, or takeover is switched off.
    Keeps,
    /// A runner of another user.
    Foreign,
}

/// Why nothing is handed over.
#[derive(Debug, Error)]
enum TakeoverError {
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("it belongs to user {0}, not to the user of this runner")]
    NotOurs(u32),
    #[error("it closed the connection")]
    Closed,
}

impl Incumbent {
    /// Asks the runner that serves the socket.
    pub(crate) async fn ask(socket: &Path) -> Self {
        let connected = timeout(PATIENCE, UnixStream::connect(takeover_path(socket))).await;
        let stream = match connected {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) if matches!(error.kind(), NotFound | ConnectionRefused | InvalidInput) => {
                return Self::without_takeover(socket).await;
            }
            Ok(Err(error)) if error.kind() == PermissionDenied => {
                warn!(%error, "the runner at this socket hands nothing over: its connections end with it");
                return Self::Foreign;
            }
            // Only a full queue makes a connect wait, or asks to come again.
            _ => {
                warn_of_hung(None);
                return Self::Keeps;
            }
        };
        let pid = stream.peer_cred().ok().and_then(|peer| peer.pid());
        match timeout(PATIENCE, Inheritance::from_predecessor(stream)).await {
            Ok(Ok(inheritance)) => Self::HandsOver(inheritance),
            Ok(Err(error)) => {
                warn!(%error, "the runner at this socket hands nothing over: its connections end with it");
                if matches!(error, TakeoverError::NotOurs(_)) { Self::Foreign } else { Self::Keeps }
            }
            Err(_) => {
                warn_of_hung(pid);
                Self::Keeps
            }
        }
    }

    /// No runner hands over. A runner may still serve the socket.
    async fn without_takeover(socket: &Path) -> Self {
        match timeout(PATIENCE, UnixStream::connect(socket)).await {
            Ok(Err(error)) if matches!(error.kind(), NotFound | ConnectionRefused | InvalidInput) => {
                Self::None
            }
            Ok(Err(error)) if error.kind() == PermissionDenied => {
                warn!(%error, "the runner at this socket hands nothing over: its connections end with it");
                Self::Foreign
            }
            Ok(Ok(stream)) => {
                let uid = stream.peer_cred().map_or(u32::MAX, |peer| peer.uid());
                warn!(uid, "the runner at this socket hands nothing over: its connections end with it");
                if may_take_over(uid) { Self::Keeps } else { Self::Foreign }
            }
            _ => {
                warn_of_hung(None);
                Self::Keeps
            }
        }
    }
}

fn warn_of_hung(predecessor: Option<i32>) {
    let cure = predecessor.map_or_else(|| "end its process".to_owned(), |pid| format!("kill -KILL {pid}"));
    warn!(
        predecessor,
        cure,
        "the previous runner is not responding, so nothing can be taken over from it: end its process, which may also hold the port of this runner's forwarder"
    );
}

impl Inheritance {
    async fn from_predecessor(predecessor: UnixStream) -> Result<Self, TakeoverError> {
        let peer = predecessor.peer_cred()?;
        if !may_take_over(peer.uid()) {
            return Err(TakeoverError::NotOurs(peer.uid()));
        }
        send(&predecessor, ASKS, None).await?;
        let listener = match receive(&predecessor).await? {
            (Some(LISTENER), Some(listener)) => Some(StdTcpListener::from(listener)),
            (Some(NO_LISTENER), None) => None,
            (None, None) => return Err(TakeoverError::Closed),
            _ => return Err(io::Error::from(io::ErrorKind::InvalidData).into()),
        };
        info!(predecessor = peer.pid(), "takes over from the runner at this socket");
        Ok(Self { predecessor: Predecessor(Arc::new(predecessor)), listener })
    }
}

impl Predecessor {
    /// Tells it that the successor serves.
    pub(crate) async fn listens(&self) {
        // A predecessor that is gone hands nothing over.
        let _ = timeout(PATIENCE, send(&self.0, LISTENS, None)).await;
    }

    /// What it hands over next; `None` once it has ended.
    pub(crate) async fn next(&self) -> Option<Inherited> {
        loop {
            let inherited = match receive(&self.0).await {
                Ok((Some(CALLS), Some(connection))) => unix(connection).map(Inherited::Calls),
                Ok((Some(REQUESTS), Some(connection))) => requests(connection),
                Ok((Some(PREDECESSOR), Some(connection))) => {
                    unix(connection).map(|stream| Inherited::Predecessor(Predecessor(Arc::new(stream))))
                }
                Ok((None, _)) => return None,
                Ok(_) => Err(io::ErrorKind::InvalidData.into()),
                Err(error) => {
                    debug!(%error, "the predecessor is lost");
                    return None;
                }
            };
            match inherited {
                Ok(inherited) => return Some(inherited),
                Err(error) => warn!(%error, "a connection that was handed over is lost"),
            }
        }
    }
}

fn unix(connection: OwnedFd) -> io::Result<UnixStream> {
    let stream = StdUnixStream::from(connection);
    stream.set_nonblocking(true)?;
    UnixStream::from_std(stream)
}

fn requests(connection: OwnedFd) -> io::Result<Inherited> {
    let stream = StdTcpStream::from(connection);
    stream.set_nonblocking(true)?;
    TcpStream::from_std(stream).map(Inherited::Requests)
}

async fn send(stream: &UnixStream, what: u8, descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let send_once = || {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        if let Some(descriptor) = &descriptor {
            let has_room = ancillary.push(SendAncillaryMessage::ScmRights(std::slice::from_ref(descriptor)));
            debug_assert!(has_room, "the space is for one descriptor");
        }
        let sent = sendmsg(stream, &[IoSlice::new(&[what])], &mut ancillary, SendFlags::NOSIGNAL)?;
        if sent == 1 { Ok(()) } else { Err(io::ErrorKind::WriteZero.into()) }
    };
    stream.async_io(Interest::WRITABLE, send_once).await
}

/// The next byte, and the descriptor that came with it; no byte at the end.
async fn receive(stream: &UnixStream) -> io::Result<(Option<u8>, Option<OwnedFd>)> {
    let receive_once = || {
        let mut byte = [0];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::CMSG_CLOEXEC;
        let received = recvmsg(stream, &mut [IoSliceMut::new(&mut byte)], &mut ancillary, flags)?;
        let mut descriptor = None;
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(mut descriptors) = message {
                descriptor = descriptors.next();
            }
        }
        Ok((if received.bytes == 1 { Some(byte[0]) } else { None }, descriptor))
    };
    stream.async_io(Interest::READABLE, receive_once).await
}

#[cfg(fuzzing)]
pub(crate) mod fuzzing;

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::pin::pin;

    use tokio::net::UnixListener;
    use tokio::task::JoinHandle;

    use super::*;
    use crate::single_poll::now_or_never;

    /// A predecessor at a socket, and a successor that has asked it.
    struct RunnerPair {
        succession: Arc<Succession>,
        attending: JoinHandle<()>,
        _folder: tempfile::TempDir,
    }

    impl Drop for RunnerPair {
        fn drop(&mut self) {
            self.attending.abort();
        }
    }

    impl RunnerPair {
        async fn new(listener: Option<OwnedFd>) -> (Self, Inheritance) {
            let folder = tempfile::tempdir().unwrap();
            let socket = folder.path().join("runner.sock");
            let file = UnixListener::bind(takeover_path(&socket)).unwrap();
            let succession = Succession::new(listener);
            let attends = Arc::clone(&succession);
            let attending = tokio::spawn(async move {
                let (stream, _) = file.accept().await.unwrap();
                attends.attend(stream).await;
            });
            let Incumbent::HandsOver(inheritance) = Incumbent::ask(&socket).await else {
                panic!("a predecessor that answers")
            };
            (Self { succession, attending, _folder: folder }, inheritance)
        }

        async fn until(&self, holds: impl Fn(&SuccessionState) -> bool) {
            timeout(PATIENCE, self.succession.state.subscribe().wait_for(holds)).await.unwrap().unwrap();
        }
    }

    async fn pair() -> (StdTcpStream, TcpStream) {
        let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
        let client = StdTcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (served, _) = listener.accept().unwrap();
        served.set_nonblocking(true).unwrap();
        (client, TcpStream::from_std(served).unwrap())
    }

    #[tokio::test]
    async fn a_takeover_keeps_queued_connections_and_unread_bytes() {
        let listener = StdTcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let mut queued = StdTcpStream::connect(address).unwrap();
        let (two, mut inheritance) = RunnerPair::new(Some(listener.into())).await;
        two.succession.close_listener();
        let listener = inheritance.listener.take().expect("the listener");
        assert_eq!(listener.local_addr().unwrap(), address);
        let (mut accepted, _) = listener.accept().unwrap();
        accepted.write_all(b"served").unwrap();
        let mut answer = [0; 6];
        queued.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"served");

        let (mut client, served) = pair().await;
        assert!(!two.succession.hand_over_requests(&served).await, "no runner serves yet");
        inheritance.predecessor.listens().await;
        two.until(|state| state.ready.is_some()).await;
        client.write_all(b"a request").unwrap();
        assert!(two.succession.hand_over_requests(&served).await);
        drop(served);
        let Some(Inherited::Requests(inherited)) = inheritance.predecessor.next().await else {
            panic!("a connection")
        };
        inherited.readable().await.unwrap();
        let mut read = [0; 20];
        assert_eq!(inherited.try_read(&mut read).unwrap(), 9);

        let (mut gateway, calls) = StdUnixStream::pair().unwrap();
        calls.set_nonblocking(true).unwrap();
        assert!(two.succession.hand_over_calls(&UnixStream::from_std(calls).unwrap()).await);
        let Some(Inherited::Calls(inherited)) = inheritance.predecessor.next().await else {
            panic!("a connection")
        };
        inherited.writable().await.unwrap();
        inherited.try_write(b"answer").unwrap();
        gateway.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"answer");
    }

    #[tokio::test]
    async fn many_wait_for_a_successor_that_takes_its_time() {
        let (two, inheritance) = RunnerPair::new(None).await;
        assert!(inheritance.listener.is_none());
        inheritance.predecessor.listens().await;
        two.until(|state| state.ready.is_some()).await;
        const MANY: usize = 300;
        let mut handed = 0;
        loop {
            let (_client, served) = pair().await;
            if now_or_never(pin!(two.succession.hand_over_requests(&served))) != Some(true) {
                break;
            }
            handed += 1;
            assert!(handed < 10_000, "the queue has an end");
        }
        let more = handed + MANY;
        let handing = async {
            for _ in handed..more {
                let (_client, served) = pair().await;
                assert!(two.succession.hand_over_requests(&served).await);
            }
        };
        let taking = async {
            for _ in 0..more {
                assert!(matches!(inheritance.predecessor.next().await, Some(Inherited::Requests(_))));
            }
        };
        tokio::join!(handing, taking);
        drop(two);
        assert!(inheritance.predecessor.next().await.is_none(), "the predecessor has ended");
    }

    /// The first of three hands over to the last, past one that ends in between.
    #[tokio::test]
    async fn a_predecessor_is_handed_on_with_its_waiting_connections() {
        let ((first, middle), (second, last)) = (RunnerPair::new(None).await, RunnerPair::new(None).await);
        for (two, inheritance) in [(&first, &middle), (&second, &last)] {
            inheritance.predecessor.listens().await;
            two.until(|state| state.ready.is_some()).await;
        }
        let (_client, served) = pair().await;
        assert!(first.succession.hand_over_requests(&served).await, "no runner has read it yet");
        assert!(second.succession.hand_over_predecessor(&middle.predecessor).await);
        drop((second, middle));
        let Some(Inherited::Predecessor(handed_on)) = last.predecessor.next().await else {
            panic!("the first")
        };
        assert!(last.predecessor.next().await.is_none(), "the middle one has ended");
        assert!(matches!(handed_on.next().await, Some(Inherited::Requests(_))));
        let (_client, served) = pair().await;
        assert!(first.succession.hand_over_requests(&served).await);
        assert!(matches!(handed_on.next().await, Some(Inherited::Requests(_))));
    }

    /// A successor that asks and never serves changes nothing for one that serves.
    #[tokio::test]
    async fn only_one_that_serves_counts() {
        let (two, inheritance) = RunnerPair::new(None).await;
        inheritance.predecessor.listens().await;
        two.until(|state| state.ready.is_some()).await;
        let (asks, stream) = UnixStream::pair().unwrap();
        let succession = Arc::clone(&two.succession);
        let attending = tokio::spawn(async move { succession.attend(stream).await });
        send(&asks, ASKS, None).await.unwrap();
        two.until(|state| state.announced == 1).await;
        drop(asks);
        attending.await.unwrap();
        assert!(two.succession.is_ready());
        assert_eq!(two.succession.state.borrow().announced, 0);
    }

    #[tokio::test]
    async fn a_successor_that_is_gone_gets_nothing() {
        let (two, inheritance) = RunnerPair::new(None).await;
        inheritance.predecessor.listens().await;
        two.until(|state| state.ready.is_some()).await;
        drop(inheritance);
        two.until(|state| state.ready.is_none()).await;
        let (_client, served) = pair().await;
        assert!(!two.succession.hand_over_requests(&served).await);
    }

    #[tokio::test]
    async fn a_successor_that_ends_just_now_is_noticed_at_the_next_connection() {
        let (two, inheritance) = RunnerPair::new(None).await;
        inheritance.predecessor.listens().await;
        two.until(|state| state.ready.is_some()).await;
        drop(inheritance);
        let (_client, served) = pair().await;
        assert!(!two.succession.hand_over_requests(&served).await);
        assert!(!two.succession.is_ready());
    }

    #[tokio::test(start_paused = true)]
    async fn a_successor_is_awaited_for_as_long_as_was_said() {
        let alone = Succession::new(None);
        for for_one in [Duration::ZERO, Duration::from_secs(1)] {
            let since = tokio::time::Instant::now();
            alone.wait(for_one).await;
            assert_eq!(since.elapsed(), for_one);
        }
        let since = tokio::time::Instant::now();
        let about = AnnouncedSuccessor::new(&alone.state);
        alone.wait(Duration::ZERO).await;
        assert_eq!(since.elapsed(), ABOUT_TO_LISTEN);
        alone.wait(Duration::from_secs(1)).await;
        assert_eq!(since.elapsed(), ABOUT_TO_LISTEN + Duration::from_secs(1));
        // A successor that fails leaves the time to the next.
        tokio::join!(alone.wait(Duration::from_secs(1)), async { drop(about) });
        assert_eq!(since.elapsed(), ABOUT_TO_LISTEN + Duration::from_secs(2));
        let stream = Arc::new(UnixStream::pair().unwrap().0);
        alone.state.send_modify(|state| state.ready = Some(stream));
        alone.wait(Duration::from_secs(1)).await;
        assert_eq!(since.elapsed(), ABOUT_TO_LISTEN + Duration::from_secs(2));
    }
}
