//! Both sides of a takeover, each with a peer that sends anything, for `crate::fuzzing`.

use std::pin::pin;

use tokio::io::AsyncWriteExt as _;

use super::*;
use crate::single_poll::now_or_never;

/// How many bytes a peer sends: each may take a descriptor along.
const MAX_BYTES: usize = 32;

/// A successor takes what a predecessor sends.
pub(crate) async fn successor(data: &[u8]) {
    let (ours, mut theirs) = UnixStream::pair().expect("two sockets");
    send_all(&theirs, data).await;
    theirs.shutdown().await.expect("an end");
    let Ok(inheritance) = Inheritance::from_predecessor(ours).await else { return };
    inheritance.predecessor.listens().await;
    while let Some(inherited) = inheritance.predecessor.next().await {
        // What was sent as a further predecessor may be a socket on which nothing ever comes.
        if let Inherited::Predecessor(further) = inherited {
            let _ = now_or_never(pin!(further.next()));
        }
    }
}

/// A predecessor hears what a successor sends. It gives its listener to one that asks for it
/// and to no other, and counts on none once that one is gone.
pub(crate) async fn predecessor(data: &[u8]) {
    let succession = Succession::new(null());
    let (ours, mut theirs) = UnixStream::pair().expect("two sockets");
    send_all(&theirs, data).await;
    theirs.shutdown().await.expect("an end");
    let attended = succession.attend(ours);
    let heard = async {
        let mut heard = Vec::new();
        // What a peer that ends does not read is an error at the other end.
        while let Ok((Some(what), descriptor)) = receive(&theirs).await {
            heard.push((what, descriptor.is_some()));
        }
        heard
    };
    let ((), heard) = tokio::join!(attended, heard);
    let asks = match data {
        [what] => *what == ASKS,
        [what, descriptor, ..] => *what == ASKS && descriptor % 4 == 0,
        [] => false,
    };
    let expected = if asks { vec![(LISTENER, true)] } else { Vec::new() };
    assert_eq!(heard, expected);
    assert!(!succession.is_ready());
    assert_eq!(succession.state.borrow().announced, 0);
}

async fn send_all(stream: &UnixStream, data: &[u8]) {
    for pair in data.chunks(2).take(MAX_BYTES) {
        let descriptor = match pair.get(1).map(|kind| kind % 4) {
            Some(1) => UnixStream::pair().ok().and_then(|(one, _)| Some(one.into_std().ok()?.into())),
            Some(2) => null(),
            Some(3) => StdTcpListener::bind("127.0.0.1:0").ok().map(OwnedFd::from),
            _ => None,
        };
        send(stream, pair[0], descriptor.as_ref().map(OwnedFd::as_fd)).await.expect("room for a byte");
    }
}

fn null() -> Option<OwnedFd> {
    std::fs::File::open("/dev/null").ok().map(OwnedFd::from)
}
