//! Bodies on their way: a request's to the workspace, a response's to the gateway.

use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use tokio::time::{Instant, Sleep, sleep};

/// How much of a body is read that nobody wants, and for how long.
///
/// A connection that is closed while something is unread is reset, and a reset
/// may take the refusal from the gateway before it has read it.
const MAX_DISCARDED: usize = 1 << 20;
const MAX_DISCARDING: Duration = Duration::from_secs(2);

/// A body as it comes in, piece by piece, watched by its [`Progress`].
#[derive(Debug)]
pub(super) struct RequestBody {
    /// Present until it is dropped.
    incoming: Option<Incoming>,
    progress: Progress,
}

/// What is known of a body that another task sends.
#[derive(Clone, Debug)]
pub(super) struct Progress(Arc<Mutex<State>>);

#[derive(Debug)]
struct State {
    /// When the last piece passed: a workspace is not late as long as there is
    /// something for it to read.
    last: Instant,
    /// Whether nothing more will be sent of it.
    has_ended: bool,
    /// The body, if it was dropped before its end.
    leftover: Option<Incoming>,
}

impl RequestBody {
    pub(super) fn new(incoming: Incoming) -> (Self, Progress) {
        let progress =
            Progress(Arc::new(Mutex::new(State { last: Instant::now(), has_ended: false, leftover: None })));
        (Self { incoming: Some(incoming), progress: progress.clone() }, progress)
    }
}

impl Progress {
    /// Returns when nothing has passed for this long.
    pub(super) async fn stalled_for(&self, wait: Duration) {
        loop {
            let late = self.state().last + wait;
            if late <= Instant::now() {
                return;
            }
            tokio::time::sleep_until(late).await;
        }
    }

    /// Reads the rest of a body that was not wanted, within limits.
    pub(super) async fn discard_leftover(&self) {
        let Some(mut body) = self.state().leftover.take() else { return };
        let reading = async {
            let mut discarded = 0;
            while let Some(Ok(frame)) = body.frame().await {
                discarded += frame.data_ref().map_or(0, Bytes::len);
                if discarded > MAX_DISCARDED {
                    break;
                }
            }
        };
        // Late or not, the answer is the same.
        let _ = tokio::time::timeout(MAX_DISCARDING, reading).await;
    }

    /// Nothing in here panics half-way, so poison would say nothing.
    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Body for RequestBody {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let Some(incoming) = &mut self.incoming else { return Poll::Ready(None) };
        let frame = Pin::new(incoming).poll_frame(context);
        if let Poll::Ready(ready) = &frame {
            let mut state = self.progress.state();
            state.last = Instant::now();
            state.has_ended |= !matches!(ready, Some(Ok(_)));
        }
        frame
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.as_ref().is_none_or(Incoming::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.as_ref().map_or_else(SizeHint::default, Incoming::size_hint)
    }
}

impl Drop for RequestBody {
    fn drop(&mut self) {
        let mut state = self.progress.state();
        state.has_ended = true;
        state.leftover = self.incoming.take().filter(|incoming| !incoming.is_end_stream());
    }
}

/// A response's body, which breaks off when neither it nor the request's moves.
///
/// As long as the request's body waits for a workspace to read it, nobody reads
/// from the gateway, and so nobody would see that the client has gone: a workspace
/// that neither reads nor writes would hold the connection for ever.
pub(super) struct ResponseBody {
    incoming: Incoming,
    request: Progress,
    wait: Duration,
    late: Pin<Box<Sleep>>,
}

impl ResponseBody {
    pub(super) fn new(incoming: Incoming, request: Progress, wait: Duration) -> Self {
        Self { incoming, request, wait, late: Box::pin(sleep(wait)) }
    }

    /// Whether nothing has moved for too long.
    fn poll_stalled(&mut self, context: &mut Context<'_>) -> Poll<()> {
        loop {
            ready!(self.late.as_mut().poll(context));
            let late = self.request.state().last + self.wait;
            if late <= Instant::now() {
                return Poll::Ready(());
            }
            self.late.as_mut().reset(late);
        }
    }
}

impl Body for ResponseBody {
    type Data = Bytes;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
        let frame = Pin::new(&mut self.incoming).poll_frame(context);
        if frame.is_ready() {
            self.request.state().last = Instant::now();
            return frame.map_err(Into::into);
        }
        // Once the request is through, hyper sees by itself when the gateway goes.
        if !self.request.state().has_ended {
            ready!(self.poll_stalled(context));
            return Poll::Ready(Some(Err("request and response have stalled".into())));
        }
        Poll::Pending
    }

    fn is_end_stream(&self) -> bool {
        self.incoming.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.incoming.size_hint()
    }
}
