//! The way of a request to a workspace and of its response back, past each other if need
//! be.

use std::io;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::asked::Asked;
use super::buffered::{Buffered, Unsent};
use super::failure::{Failure, MAX_INTERIM, ResponseError};
use super::framing::{self, Framing};
use super::hang_up::{HangUp as _, LOOK_PAUSE};
use super::head::{HeadEnd, RequestHead, ResponseHead, Version};
use super::headers::{self, ResponseForm};
use super::relay::{Coding, PassError, Relay, WaitsFor};
use super::watch::Watch;
use super::workspace::Connection;
use super::{Forwarder, Waits, refuse};
use crate::refusal::Refusal;

/// A request and its response on their way, past each other if need be.
pub(super) struct Passage<'e> {
    forwarder: &'e Forwarder,
    gateway: &'e mut Buffered<TcpStream>,
    pub(super) connection: Connection,
    asked: &'e Asked,
    upload: &'e mut Relay,
    uploading: Uploading,
    responding: Responding,
    stop: &'e CancellationToken,
    /// Whether anything was read of this connection.
    has_heard: bool,
    /// Whether the gateway was told to go on with the body.
    has_continued: bool,
    /// Whether its response is that of a workspace that has started.
    pub(super) is_workspace_ready: bool,
    waits: Waits,
    last_move: Instant,
    /// When the first byte of the head came that is not whole.
    head_since: Option<Instant>,
    /// When it is to be looked next whether the gateway has gone.
    look_at: Instant,
    watch: &'e mut Watch,
}

/// How far the request is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Uploading {
    Going,
    Done,
    /// The workspace does not take the rest; it may have answered before.
    Broken,
}

/// How far the response is.
enum Responding {
    /// The head has not come; what waits are interim ones.
    Head {
        end: HeadEnd,
        unsent: Unsent,
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
        Self::Head { end: HeadEnd::default(), unsent: Unsent::default(), interim: 0 }
    }

    fn has_begun(&self) -> bool {
        match self {
            Self::Head { unsent, .. } => !unsent.is_empty(),
            Self::Body { .. } | Self::Done(_) => true,
        }
    }
}

/// How it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ended {
    Responded {
        /// For how long the workspace's connection may be kept, if at all.
        keep: Option<Duration>,
        is_last: bool,
    },
    Upgraded,
}

/// Whether a response is for a person to read.
fn is_page(head: &ResponseHead<'_>) -> bool {
    head.fields.iter().any(|field| {
        field.is("content-type")
            && field.value.get(..9).is_some_and(|start| start.eq_ignore_ascii_case(b"text/html"))
    })
}

impl<'e> Passage<'e> {
    pub(super) fn new(
        forwarder: &'e Forwarder,
        gateway: &'e mut Buffered<TcpStream>,
        mut connection: Connection,
        asked: &'e Asked,
        upload: &'e mut Relay,
        watch: &'e mut Watch,
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
            watch,
        }
    }

    /// Whether the gateway has got something of a response, or may have.
    pub(super) fn has_begun(&self) -> bool {
        self.responding.has_begun()
    }

    /// Whether the workspace has taken the whole request.
    pub(super) fn has_passed_request(&self) -> bool {
        self.uploading == Uploading::Done
    }

    /// Goes on with a connection in place of one that took nothing.
    pub(super) fn replace(&mut self, mut connection: Connection) {
        connection.requests += 1;
        self.connection = connection;
        self.responding = Responding::none();
        self.last_move = Instant::now();
    }

    /// Ready once both are through, or one can't be.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Ended, Failure>> {
        if self.uploading == Uploading::Going {
            self.poll_upload(context)?;
        }
        match self.poll_response(context)? {
            Poll::Ready(ended) if self.uploading != Uploading::Going => return Poll::Ready(Ok(ended)),
            // The gateway was told that nothing comes behind this response.
            Poll::Ready(_) | Poll::Pending => {}
        }
        if self.uploading != Uploading::Going && self.gateway.unused().is_empty() {
            // What it sends by now belongs to the tunnel or to the next request.
            if let Poll::Ready(Ok(0) | Err(_)) = self.gateway.poll_more(context) {
                return Poll::Ready(Err(Failure::Gone));
            }
        }
        self.poll_stalled(context).map(Err)
    }

    fn poll_upload(&mut self, context: &mut Context<'_>) -> Result<(), Failure> {
        let passed = self.upload.poll_pass(self.gateway, &mut self.connection.stream.stream, context);
        match passed {
            Poll::Pending => {}
            Poll::Ready(Ok(())) => self.uploading = Uploading::Done,
            // Whoever has spoken before the request is no connection to begin anew for.
            Poll::Ready(Err(PassError::Write(error))) if !self.upload.has_sent() && !self.has_heard => {
                return Err(Failure::Unsent(error));
            }
            Poll::Ready(Err(PassError::Write(_))) => self.uploading = Uploading::Broken,
            Poll::Ready(Err(PassError::Malformed(error))) => {
                return Err(match self.responding {
                    Responding::Head { .. } => Failure::Body(error),
                    _ => Failure::Gone,
                });
            }
            Poll::Ready(Err(PassError::Read(_) | PassError::Ended)) => return Err(Failure::Gone),
        }
        Ok(())
    }

    fn poll_response(&mut self, context: &mut Context<'_>) -> Result<Poll<Ended>, Failure> {
        loop {
            match &mut self.responding {
                Responding::Head { end, unsent, .. } => {
                    let mut has_moved = false;
                    let sent = unsent.poll_write(&mut self.gateway.stream, context, &mut has_moved);
                    if has_moved {
                        self.last_move = Instant::now();
                    }
                    let Poll::Ready(sent) = sent else { return Ok(Poll::Pending) };
                    sent.map_err(|_| Failure::Gone)?;
                    let workspace = &mut self.connection.stream;
                    if let Some(length) = end.find(workspace.unused()).map_err(ResponseError::from)? {
                        self.take_head(length)?;
                        continue;
                    }
                    match workspace.poll_more(context) {
                        Poll::Ready(Ok(0)) => {
                            return Err(Failure::Broken(io::ErrorKind::UnexpectedEof.into()));
                        }
                        Poll::Ready(Ok(_)) => {
                            self.has_heard = true;
                            self.last_move = Instant::now();
                            self.head_since.get_or_insert(self.last_move);
                        }
                        Poll::Ready(Err(error)) => return Err(Failure::Broken(error)),
                        Poll::Pending => return Ok(Poll::Pending),
                    }
                }
                Responding::Body { relay, ended } => {
                    match relay.poll_pass(&mut self.connection.stream, &mut self.gateway.stream, context) {
                        Poll::Ready(Ok(())) => self.responding = Responding::Done(*ended),
                        Poll::Ready(Err(PassError::Write(_))) => return Err(Failure::Gone),
                        Poll::Ready(Err(error)) => return Err(Failure::broken_off(&error)),
                        Poll::Pending => return Ok(Poll::Pending),
                    }
                }
                Responding::Done(ended) => return Ok(Poll::Ready(*ended)),
            }
        }
    }

    /// Takes the head of this length, and decides what comes behind it.
    fn take_head(&mut self, length: usize) -> Result<(), Failure> {
        let Responding::Head { unsent, interim, .. } = &mut self.responding else { return Ok(()) };
        let (mut unsent, interim) = (std::mem::take(unsent), *interim);
        let head =
            ResponseHead::parse(&self.connection.stream.unused()[..length]).map_err(ResponseError::from)?;
        let framing = framing::of_response(&head, self.asked.is_head).map_err(ResponseError::from)?;
        self.is_workspace_ready = head.status != 503;
        self.responding = match head.status {
            101 => {
                let wanted = self.asked.protocols.as_deref();
                let agreed = wanted.and_then(|wanted| headers::agreed_protocol(&head, wanted));
                let protocol = Some(agreed.ok_or(ResponseError::UnaskedUpgrade)?);
                if self.uploading != Uploading::Done {
                    return Err(ResponseError::UnaskedUpgrade.into());
                }
                let form = ResponseForm { protocol, ..self.form(Framing::None, false) };
                headers::write_response(&head, &form, &mut unsent.bytes).map_err(ResponseError::from)?;
                Responding::Body {
                    relay: Relay::new(unsent, Framing::None, Coding::Plain),
                    ended: Ended::Upgraded,
                }
            }
            100..200 if interim == MAX_INTERIM => return Err(ResponseError::Interim.into()),
            status @ 100..200 => {
                // An nginx takes an interim response that it did not ask for as the response, and
                // the response as that to somebody else's request. So only what was asked for
                // passes, and nothing that the workspace says in it.
                if status == 100 && self.asked.expects_continue && !self.has_continued {
                    self.has_continued = true;
                    unsent.bytes.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                Responding::Head { end: HeadEnd::default(), unsent, interim: interim + 1 }
            }
            503 if !is_page(&head) && self.is_navigation() => return Err(Failure::NotReady),
            _ => {
                // A gateway that has sent a whole request and got a whole response sends the next
                // one, and nobody would read it while the request still goes its way.
                let is_last = self.asked.is_last
                    || self.forwarder.closes_connections(self.stop)
                    || self.uploading != Uploading::Done;
                let is_starting = head.status == 503 && !is_page(&head);
                let retry_after = Refusal::WorkspaceStarting.retry_after().filter(|_| is_starting);
                let form = ResponseForm { retry_after, ..self.form(framing, is_last) };
                headers::write_response(&head, &form, &mut unsent.bytes).map_err(ResponseError::from)?;
                let ended = Ended::Responded { keep: self.keep(&head, framing), is_last };
                Responding::Body { relay: Relay::new(unsent, framing, self.coding(framing)), ended }
            }
        };
        self.connection.stream.use_up(length);
        self.head_since = None;
        if let Responding::Body { relay, ended: Ended::Responded { .. } } = &mut self.responding {
            // A short response goes out with its head.
            let taken = relay.take_early(&mut self.connection.stream);
            taken.map_err(|error| Failure::broken_off(&error))?;
        }
        self.connection.stream.forget_used();
        Ok(())
    }

    /// Whether a person waits for the response.
    fn is_navigation(&self) -> bool {
        RequestHead::parse(self.gateway.used()).is_ok_and(|head| refuse::reader(&head).is_navigation())
    }

    fn form(&self, framing: Framing, is_last: bool) -> ResponseForm<'static> {
        let is_chunked = self.coding(framing) != Coding::Plain;
        ResponseForm { version: self.asked.version, is_chunked, protocol: None, is_last, retry_after: None }
    }

    /// How the gateway learns where such a body ends.
    fn coding(&self, framing: Framing) -> Coding {
        match (framing, self.asked.version) {
            (Framing::Chunked, Version::Http11) => Coding::ChunkedWithTrailers,
            (Framing::UntilClose, Version::Http11) => Coding::Chunked,
            _ => Coding::Plain,
        }
    }

    /// For how long the connection may be kept once the response is through.
    fn keep(&self, head: &ResponseHead<'_>, framing: Framing) -> Option<Duration> {
        let limits = &self.forwarder.limits;
        let goes_on = framing != Framing::UntilClose
            && headers::goes_on(head)
            && self.connection.requests < limits.max_requests;
        let idle = headers::keep_alive(&head.fields).unwrap_or(limits.idle);
        (goes_on && !idle.is_zero()).then_some(idle)
    }

    /// Ready once nothing has moved for too long.
    fn poll_stalled(&mut self, context: &mut Context<'_>) -> Poll<Failure> {
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
        // While its bytes wait, the gateway's own end is not read.
        let is_blind =
            upload_waits || self.uploading != Uploading::Going && !self.gateway.unused().is_empty();
        loop {
            let next = if is_blind { end.min(self.look_at) } else { end };
            ready!(self.watch.poll_over(next, context));
            if Instant::now() >= end {
                break;
            }
            if self.gateway.stream.has_hung_up() {
                return Poll::Ready(Failure::Gone);
            }
            self.look_at = Instant::now() + LOOK_PAUSE;
        }
        Poll::Ready(match self.responding {
            Responding::Head { .. } if head_end == Some(end) => ResponseError::Late.into(),
            Responding::Head { .. } if self.uploading == Uploading::Going && !upload_waits => {
                Failure::LateBody(wait)
            }
            Responding::Head { .. } => Failure::Silent(wait),
            _ if response_waits_for == WaitsFor::Writing => {
                Failure::BrokenOff(format!("gateway: it took nothing for {wait:?}"))
            }
            _ => Failure::BrokenOff(format!("workspace: nothing came for {wait:?}")),
        })
    }
}
