//! A request on its way to a workspace and its response on the way back, at the same time
//! if need be.

use std::io;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::buffered_stream::BufferedStream;
use super::deadline_timer::DeadlineTimer;
use super::error_response;
use super::exchange_failure::{ExchangeFailure, MAX_INTERIM, ResponseError};
use super::http::framing::{self, Framing};
use super::http::head::{HeadEnd, HttpVersion, RawRequestHead, RawResponseHead};
use super::http::headers::{self, Persistence, ResponseForm};
use super::limits::ExchangeTimeouts;
use super::peer_state::{LOOK_PAUSE, PeerState as _};
use super::relay::{Coding, PassError, Relay, WaitsFor};
use super::stamped_request::StampedRequest;
use super::state::Forwarder;
use super::workspace::connection::WorkspaceConnection;
use super::write_buffer::WriteBuffer;
use crate::refusal::Refusal;

/// A request and its response on their way.
pub(super) struct Transfer<'e> {
    forwarder: &'e Forwarder,
    gateway: &'e mut BufferedStream<TcpStream>,
    pub(super) connection: WorkspaceConnection,
    asked: &'e StampedRequest,
    upload: &'e mut Relay,
    uploading: Uploading,
    responding: Responding,
    stop: &'e CancellationToken,
    /// Whether the workspace has sent anything on this connection.
    has_heard: bool,
    /// Whether the gateway got a 100.
    has_continued: bool,
    /// Whether the response shows that the workspace has started.
    pub(super) is_workspace_ready: bool,
    waits: ExchangeTimeouts,
    last_move: Instant,
    /// When the first byte of the current, incomplete head arrived.
    head_since: Option<Instant>,
    /// When to check next whether the gateway has closed its side.
    look_at: Instant,
    timer: &'e mut DeadlineTimer,
}

/// How far the request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Uploading {
    Going,
    Done,
    /// The workspace does not read the rest. It may have responded already.
    Broken,
}

/// How far the response is.
enum Responding {
    /// The final head has not arrived. Interim responses may be waiting to be sent.
    Head {
        end: HeadEnd,
        unsent: WriteBuffer,
        interim: usize,
    },
    Body {
        relay: Relay,
        ended: Ended,
    },
    Done(Ended),
}

impl Responding {
    fn none() -> Self {
        Self::Head { end: HeadEnd::default(), unsent: WriteBuffer::default(), interim: 0 }
    }

    fn has_begun(&self) -> bool {
        match self {
            Self::Head { unsent, .. } => !unsent.is_empty(),
            Self::Body { .. } | Self::Done(_) => true,
        }
    }
}

/// How a transfer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Responded {
        /// For how long the connection to the workspace may be kept, if at all.
        keep: Option<Duration>,
        persistence: Persistence,
    },
    Upgraded,
}

/// Whether a response is a page for people.
fn is_page(head: &RawResponseHead<'_>) -> bool {
    head.fields.iter().any(|field| {
        field.is("content-type")
            && field.value.get(..9).is_some_and(|start| start.eq_ignore_ascii_case(b"text/html"))
    })
}

impl<'e> Transfer<'e> {
    pub(super) fn new(
        forwarder: &'e Forwarder,
        gateway: &'e mut BufferedStream<TcpStream>,
        mut connection: WorkspaceConnection,
        asked: &'e StampedRequest,
        upload: &'e mut Relay,
        timer: &'e mut DeadlineTimer,
        stop: &'e CancellationToken,
    ) -> Self {
        connection.requests += 1;
        let (waits, now) = (forwarder.limits.with(asked.upstream.timeouts()), Instant::now());
        Self {
            forwarder,
            gateway,
            connection,
            asked,
            upload,
            uploading: Uploading::Going,
            responding: Responding::none(),
            stop,
            has_heard: false,
            has_continued: false,
            is_workspace_ready: false,
            waits,
            last_move: now,
            head_since: None,
            look_at: now,
            timer,
        }
    }

    /// Whether the gateway may have received a part of a response.
    pub(super) fn has_begun(&self) -> bool {
        self.responding.has_begun()
    }

    /// Whether the workspace has received the whole request.
    pub(super) fn has_passed_request(&self) -> bool {
        self.uploading == Uploading::Done
    }

    /// Continues with another connection in place of one that took nothing.
    pub(super) fn replace(&mut self, mut connection: WorkspaceConnection) {
        connection.requests += 1;
        self.connection = connection;
        self.responding = Responding::none();
        self.last_move = Instant::now();
    }

    /// Whether the request may be sent again on another connection: the workspace has sent
    /// nothing, so it may never have got the request, and twice is as good as once.
    pub(super) fn may_repeat(&self) -> bool {
        self.asked.is_repeatable && !self.has_heard && !self.has_begun()
    }

    /// Sends the request again on another connection. Returns whether its stamp is still good.
    pub(super) fn repeat(&mut self, connection: WorkspaceConnection) -> bool {
        let head = self.gateway.used();
        let Ok(again) = StampedRequest::read(head, &self.forwarder.key, SystemTime::now()) else {
            return false;
        };
        *self.upload = Relay::new(WriteBuffer::new(again.head), again.framing, Coding::Plain);
        self.uploading = Uploading::Going;
        self.replace(connection);
        true
    }

    /// Passes on what can pass. Ready once both messages are complete, or one has failed.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Ended, ExchangeFailure>> {
        if self.uploading == Uploading::Going {
            self.poll_upload(context)?;
        }
        match self.poll_response(context)? {
            Poll::Ready(ended) if self.uploading != Uploading::Going => return Poll::Ready(Ok(ended)),
            // The response said that the connection ends, and the upload still goes on.
            Poll::Ready(_) | Poll::Pending => {}
        }
        if self.uploading != Uploading::Going && self.gateway.unused().is_empty() {
            // What the gateway sends now belongs to the tunnel or to the next request.
            if let Poll::Ready(Ok(0) | Err(_)) = self.gateway.poll_more(context) {
                return Poll::Ready(Err(ExchangeFailure::Gone));
            }
        }
        self.poll_stalled(context).map(Err)
    }

    fn poll_upload(&mut self, context: &mut Context<'_>) -> Result<(), ExchangeFailure> {
        let passed = self.upload.poll_pass(self.gateway, &mut self.connection.stream.stream, context);
        match passed {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.uploading = Uploading::Done,
            // If the workspace has sent something, it may have acted on the request, so the
            // request is not sent again.
            Poll::Ready(Err(PassError::Write(error))) if !self.upload.has_sent() && !self.has_heard => {
                return Err(ExchangeFailure::Unsent(error));
            }
            Poll::Ready(Err(PassError::Write(_))) => self.uploading = Uploading::Broken,
            Poll::Ready(Err(PassError::Malformed(error))) => {
                return Err(match self.responding {
                    Responding::Head { .. } => ExchangeFailure::Body(error),
                    _ => ExchangeFailure::Gone,
                });
            }
            Poll::Ready(Err(PassError::Read(_) | PassError::Ended)) => return Err(ExchangeFailure::Gone),
        }
        Ok(())
    }

    fn poll_response(&mut self, context: &mut Context<'_>) -> Result<Poll<Ended>, ExchangeFailure> {
        loop {
            match &mut self.responding {
                Responding::Head { end, unsent, .. } => {
                    let mut has_moved = false;
                    let sent = unsent.poll_write(&mut self.gateway.stream, context, &mut has_moved);
                    if has_moved {
                        self.last_move = Instant::now();
                    }
                    let Poll::Ready(sent) = sent else { return Ok(Poll::Pending) };
                    sent.map_err(|_| ExchangeFailure::Gone)?;
                    let workspace = &mut self.connection.stream;
                    if let Some(length) = end.find(workspace.unused()).map_err(ResponseError::from)? {
                        self.take_head(length)?;
                        continue;
                    }
                    match workspace.poll_more(context) {
                        Poll::Ready(Ok(0)) => {
                            return Err(ExchangeFailure::Broken(io::ErrorKind::UnexpectedEof.into()));
                        }
                        Poll::Ready(Ok(_)) => {
                            self.has_heard = true;
                            self.last_move = Instant::now();
                            self.head_since.get_or_insert(self.last_move);
                        }
                        Poll::Ready(Err(error)) => return Err(ExchangeFailure::Broken(error)),
                        Poll::Pending => return Ok(Poll::Pending),
                    }
                }
                Responding::Body { relay, ended } => {
                    match relay.poll_pass(&mut self.connection.stream, &mut self.gateway.stream, context) {
                        Poll::Ready(Ok(())) => self.responding = Responding::Done(*ended),
                        Poll::Ready(Err(PassError::Write(_))) => return Err(ExchangeFailure::Gone),
                        Poll::Ready(Err(error)) => return Err(ExchangeFailure::broken_off(&error)),
                        Poll::Pending => return Ok(Poll::Pending),
                    }
                }
                Responding::Done(ended) => return Ok(Poll::Ready(*ended)),
            }
        }
    }

    /// Takes the head of this length, and decides what follows it.
    fn take_head(&mut self, length: usize) -> Result<(), ExchangeFailure> {
        let Responding::Head { unsent, interim, .. } = &mut self.responding else { return Ok(()) };
        let (mut unsent, interim) = (std::mem::take(unsent), *interim);
        let head = RawResponseHead::parse(&self.connection.stream.unused()[..length])
            .map_err(ResponseError::from)?;
        let framing = framing::of_response(&head, self.asked.method).map_err(ResponseError::from)?;
        self.is_workspace_ready = head.status != 503;
        self.responding = match head.status {
            101 => {
                let agreed = self.agreed_protocol(&head)?;
                let form = ResponseForm { protocol: Some(agreed), ..self.form(Framing::None) };
                headers::write_response(&head, &form, &mut unsent.bytes).map_err(ResponseError::from)?;
                let relay = Relay::new(unsent, Framing::None, Coding::Plain);
                Responding::Body { relay, ended: Ended::Upgraded }
            }
            100..200 if interim == MAX_INTERIM => return Err(ResponseError::Interim.into()),
            status @ 100..200 => {
                // An nginx takes an interim response that it did not ask for as the response, and
                // the response as the one to another request. So only a 100 that the request
                // asked for passes, without the workspace's headers.
                if status == 100 && self.asked.expects_continue && !self.has_continued {
                    self.has_continued = true;
                    unsent.bytes.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                Responding::Head { end: HeadEnd::default(), unsent, interim: interim + 1 }
            }
            503 if !is_page(&head) && self.is_navigation() => return Err(ExchangeFailure::NotReady),
            status => {
                let persistence = self.persistence();
                let is_starting = status == 503 && !is_page(&head);
                let retry_after = Refusal::WorkspaceStarting.retry_after().filter(|_| is_starting);
                let form = ResponseForm { retry_after, persistence, ..self.form(framing) };
                headers::write_response(&head, &form, &mut unsent.bytes).map_err(ResponseError::from)?;
                let ended = Ended::Responded { keep: self.keep(&head, framing), persistence };
                Responding::Body { relay: Relay::new(unsent, framing, self.coding(framing)), ended }
            }
        };
        self.connection.stream.use_up(length);
        self.head_since = None;
        if let Responding::Body { relay, ended: Ended::Responded { .. } } = &mut self.responding {
            // A short response goes out with its head.
            let taken = relay.take_early(&mut self.connection.stream);
            taken.map_err(|error| ExchangeFailure::broken_off(&error))?;
        }
        self.connection.stream.forget_used();
        Ok(())
    }

    /// The protocol of a 101, if the request asked for it and has been sent whole.
    fn agreed_protocol<'h>(&self, head: &RawResponseHead<'h>) -> Result<&'h [u8], ResponseError> {
        let wanted = self.asked.protocols.as_deref().filter(|_| self.uploading == Uploading::Done);
        let agreed = wanted.and_then(|wanted| headers::agreed_protocol(head, wanted));
        agreed.ok_or(ResponseError::UnaskedUpgrade)
    }

    /// Whether the gateway may send another request after this response. A gateway that has
    /// sent a whole request and got a whole response sends the next one. The forwarder would
    /// not read it while the rest of this request is still on its way to the workspace.
    fn persistence(&self) -> Persistence {
        let is_last = self.asked.is_last
            || self.forwarder.closes_connections(self.stop)
            || self.uploading != Uploading::Done;
        if is_last { Persistence::Close } else { Persistence::KeepAlive }
    }

    /// Whether a person waits for the response.
    fn is_navigation(&self) -> bool {
        RawRequestHead::parse(self.gateway.used())
            .is_ok_and(|head| error_response::reader(&head).is_navigation())
    }

    fn form(&self, framing: Framing) -> ResponseForm<'e> {
        let is_chunked = self.coding(framing) != Coding::Plain;
        ResponseForm {
            version: self.asked.version,
            is_chunked,
            protocol: None,
            persistence: Persistence::KeepAlive,
            retry_after: None,
            removed_cookies: &self.asked.removed_cookies,
        }
    }

    /// How the gateway learns where such a body ends.
    fn coding(&self, framing: Framing) -> Coding {
        match (framing, self.asked.version) {
            (Framing::Chunked, HttpVersion::Http11) => Coding::ChunkedWithTrailers,
            (Framing::UntilClose, HttpVersion::Http11) => Coding::Chunked,
            _ => Coding::Plain,
        }
    }

    /// For how long the connection may be kept once the response is complete.
    fn keep(&self, head: &RawResponseHead<'_>, framing: Framing) -> Option<Duration> {
        let limits = &self.forwarder.limits;
        let goes_on = framing != Framing::UntilClose
            && headers::goes_on(head)
            && self.connection.requests < limits.max_requests;
        let idle = headers::keep_alive(&head.fields).unwrap_or(limits.idle);
        (goes_on && !idle.is_zero()).then_some(idle)
    }

    /// Ready once nothing has moved for too long, with the failure that this is.
    fn poll_stalled(&mut self, context: &mut Context<'_>) -> Poll<ExchangeFailure> {
        let mut has_moved = self.upload.take_moved();
        let response_waits_for = match &mut self.responding {
            Responding::Head { unsent, .. } if unsent.is_waiting() => WaitsFor::Writing,
            Responding::Head { .. } => WaitsFor::Reading,
            Responding::Body { relay, .. } => {
                has_moved |= relay.take_moved();
                relay.waits_for()
            }
            Responding::Done(_) => WaitsFor::Reading,
        };
        if has_moved {
            self.last_move = Instant::now();
        }
        let upload_waits = self.uploading == Uploading::Going && self.upload.waits_for() == WaitsFor::Writing;
        let wait = match upload_waits || response_waits_for == WaitsFor::Writing {
            true => self.waits.send,
            false => self.waits.read,
        };
        let head_end = self.head_since.map(|since| since + self.forwarder.limits.head);
        let stalled_at = self.last_move + wait;
        let end = head_end.map_or(stalled_at, |end| end.min(stalled_at));
        // While bytes of the gateway wait, the end after them is not read.
        let is_blind =
            upload_waits || self.uploading != Uploading::Going && !self.gateway.unused().is_empty();
        loop {
            let next = if is_blind { end.min(self.look_at) } else { end };
            ready!(self.timer.poll_over(next, context));
            if Instant::now() >= end {
                break;
            }
            if self.gateway.stream.has_closed() {
                return Poll::Ready(ExchangeFailure::Gone);
            }
            self.look_at = Instant::now() + LOOK_PAUSE;
        }
        Poll::Ready(match self.responding {
            Responding::Head { .. } if head_end == Some(end) => ResponseError::Late.into(),
            Responding::Head { .. } if self.uploading == Uploading::Going && !upload_waits => {
                ExchangeFailure::LateBody(wait)
            }
            Responding::Head { .. } if self.upload.has_sent() => ExchangeFailure::Unanswered(wait),
            Responding::Head { .. } => ExchangeFailure::Silent(wait),
            _ if response_waits_for == WaitsFor::Writing => {
                ExchangeFailure::BrokenOff(format!("gateway: it read nothing for {wait:?}"))
            }
            _ => ExchangeFailure::BrokenOff(format!("workspace: nothing arrived for {wait:?}")),
        })
    }
}
