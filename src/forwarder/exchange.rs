//! One request and its answer.

use std::future::poll_fn;
use std::io;
use std::net::IpAddr;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::{Duration, SystemTime};

use tokio::net::TcpStream;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::debug;

use super::asked::{Asked, AskedError};
use super::buffered::{Buffered, Unsent};
use super::failure::{AnswerError, Failure, MAX_INTERIM};
use super::framing::{self, Framing};
use super::hang_up::{HangUp as _, LOOK_PAUSE};
use super::head::{HeadEnd, RequestHead, ResponseHead, Version};
use super::headers::{self, ResponseForm};
use super::pool::Destination;
use super::relay::{Coding, PassError, Relay, WaitsFor};
use super::tunnel::Tunnel;
use super::watch::Watch;
use super::workspace::Connection;
use super::{Forwarder, Waits, refuse};
use crate::refusal::{More, Refusal};

/// What comes after an exchange on the gateway's connection.
pub(super) enum Next {
    /// Another request.
    Request,
    End,
    Tunnel(Tunnel),
}

/// Answers the request whose head is used up: with the workspace's answer, or with a
/// refusal.
pub(super) async fn run(
    forwarder: &Arc<Forwarder>,
    gateway: &mut Buffered<TcpStream>,
    watch: &mut Watch,
    stop: &CancellationToken,
) -> Next {
    let mut asked = match Asked::read(gateway.used(), &forwarder.key, SystemTime::now()) {
        Ok(asked) => asked,
        Err(error) => {
            let body = match error {
                AskedError::Stamp { framing, is_last: false, .. } => Some(framing),
                _ => None,
            };
            let body = body.map(|framing| Relay::new(Unsent::default(), framing, Coding::Plain));
            return refuse::answer(forwarder, gateway, &error.into(), body, More::Nothing).await;
        }
    };
    let before = Unsent::new(std::mem::take(&mut asked.head));
    let mut upload = Relay::new(before, asked.framing, upload_coding(asked.framing));
    let exchanged = match upload.take_early(gateway) {
        Ok(()) => exchange(forwarder, gateway, &asked, &mut upload, watch, stop).await,
        Err(PassError::Malformed(error)) => Err(Failure::Body(error)),
        Err(_) => Err(Failure::Gone),
    };
    match exchanged {
        Ok(next) => next,
        Err(failure) => {
            let upstream = &asked.upstream;
            debug!(host = %upstream.host(), port = upstream.port(), %failure, "no response");
            let body = (!asked.is_last && !matches!(failure, Failure::Body(_))).then_some(upload);
            let more = match failure.refusal() {
                Some(Refusal::WorkspaceStarting) => {
                    More::Waited(forwarder.starting.waited(&Destination::of(&asked.upstream)))
                }
                _ => More::Nothing,
            };
            refuse::answer(forwarder, gateway, &failure, body, more).await
        }
    }
}

fn upload_coding(framing: Framing) -> Coding {
    if framing == Framing::Chunked { Coding::Chunked } else { Coding::Plain }
}

async fn exchange(
    forwarder: &Arc<Forwarder>,
    gateway: &mut Buffered<TcpStream>,
    asked: &Asked,
    upload: &mut Relay,
    watch: &mut Watch,
    stop: &CancellationToken,
) -> Result<Next, Failure> {
    let place = Arc::clone(&forwarder.places).try_acquire_owned();
    let place = place.map_err(|_| Failure::Busy(forwarder.limits.max_connections))?;
    let most = forwarder.limits.max_of_subject;
    let counted = forwarder.subjects.begin(asked.upstream.subject(), most);
    let counted = counted.ok_or(Failure::SubjectBusy(most))?;
    let addresses = forwarder.resolver.resolve(asked.upstream.host()).await?;
    let destination = Destination::of(&asked.upstream);
    let pooled = forwarder.pool.take(&destination, &addresses);
    let is_reused = pooled.is_some();
    let connection = match pooled {
        Some(connection) => connection,
        None => connect(forwarder, asked, &addresses).await?,
    };
    let mut exchange = Exchange::new(forwarder, gateway, connection, asked, upload, watch, stop);
    let mut exchanged = poll_fn(|context| exchange.poll(context)).await;
    if is_reused && matches!(exchanged, Err(Failure::Unsent(_))) {
        // It died while it waited. That no byte was written makes this the one case
        // where sending again is safe for any request.
        exchange.replace(connect(forwarder, asked, &addresses).await?);
        exchanged = poll_fn(|context| exchange.poll(context)).await;
    }
    if exchange.answering.has_begun() {
        // Behind what has begun, a refusal would be the answer to the next request.
        exchanged = exchanged.map_err(Failure::behind_a_beginning);
    }
    if exchanged.is_ok() && exchange.is_workspace_ready {
        forwarder.starting.answers(&destination);
    }
    let (connection, ended, body_passed) =
        (exchange.connection, exchanged?, exchange.uploading == Uploading::Done);
    match ended {
        Ended::Upgraded => {
            let counted = counted.into_tunnel(asked.upstream.clone());
            let is_websocket =
                asked.protocols.as_deref().is_some_and(|wanted| wanted.eq_ignore_ascii_case(b"websocket"));
            let waits = forwarder.limits.with(asked.upstream.timeouts());
            let workspace = connection.stream;
            Ok(Next::Tunnel(Tunnel { workspace, counted, is_websocket, send: waits.send, place }))
        }
        Ended::Answered { keep, is_last } => {
            if let Some(idle) = keep.filter(|_| body_passed) {
                forwarder.pool.put(destination, connection, idle);
            }
            if !body_passed {
                // What is unread would reset the connection, and take the answer with it.
                refuse::discard(gateway, upload).await;
            }
            Ok(if is_last || !body_passed { Next::End } else { Next::Request })
        }
    }
}

async fn connect(forwarder: &Forwarder, asked: &Asked, addresses: &[IpAddr]) -> Result<Connection, Failure> {
    let wait = forwarder.limits.with(asked.upstream.timeouts()).connect;
    Ok(Connection::open(&asked.upstream, addresses, &forwarder.tls, wait).await?)
}

/// A request and its answer on their way, past each other if need be.
struct Exchange<'e> {
    forwarder: &'e Forwarder,
    gateway: &'e mut Buffered<TcpStream>,
    connection: Connection,
    asked: &'e Asked,
    upload: &'e mut Relay,
    uploading: Uploading,
    answering: Answering,
    stop: &'e CancellationToken,
    /// Whether anything was read of this connection.
    has_heard: bool,
    /// Whether the gateway was told to go on with the body.
    has_continued: bool,
    /// Whether its answer is that of a workspace that has started.
    is_workspace_ready: bool,
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

/// How far the answer is.
enum Answering {
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

impl Answering {
    fn none() -> Self {
        Self::Head { end: HeadEnd::default(), unsent: Unsent::default(), interim: 0 }
    }

    /// Whether the gateway has got something of an answer, or may have.
    fn has_begun(&self) -> bool {
        match self {
            Self::Head { unsent, .. } => !unsent.is_empty(),
            Self::Body { .. } | Self::Done(_) => true,
        }
    }
}

/// How an exchange ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ended {
    Answered {
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

impl<'e> Exchange<'e> {
    fn new(
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
            answering: Answering::none(),
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

    /// Goes on with a connection in place of one that took nothing.
    fn replace(&mut self, mut connection: Connection) {
        connection.requests += 1;
        self.connection = connection;
        self.answering = Answering::none();
        self.last_move = Instant::now();
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<Result<Ended, Failure>> {
        if self.uploading == Uploading::Going {
            self.poll_upload(context)?;
        }
        match self.poll_answer(context)? {
            Poll::Ready(ended) if self.uploading != Uploading::Going => return Poll::Ready(Ok(ended)),
            // The gateway was told that nothing comes behind this answer.
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
                return Err(match self.answering {
                    Answering::Head { .. } => Failure::Body(error),
                    _ => Failure::Gone,
                });
            }
            Poll::Ready(Err(PassError::Read(_) | PassError::Ended)) => return Err(Failure::Gone),
        }
        Ok(())
    }

    fn poll_answer(&mut self, context: &mut Context<'_>) -> Result<Poll<Ended>, Failure> {
        loop {
            match &mut self.answering {
                Answering::Head { end, unsent, .. } => {
                    let mut has_moved = false;
                    let sent = unsent.poll_write(&mut self.gateway.stream, context, &mut has_moved);
                    if has_moved {
                        self.last_move = Instant::now();
                    }
                    let Poll::Ready(sent) = sent else { return Ok(Poll::Pending) };
                    sent.map_err(|_| Failure::Gone)?;
                    let workspace = &mut self.connection.stream;
                    if let Some(length) = end.find(workspace.unused()).map_err(AnswerError::from)? {
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
                Answering::Body { relay, ended } => {
                    match relay.poll_pass(&mut self.connection.stream, &mut self.gateway.stream, context) {
                        Poll::Ready(Ok(())) => self.answering = Answering::Done(*ended),
                        Poll::Ready(Err(PassError::Write(_))) => return Err(Failure::Gone),
                        Poll::Ready(Err(error)) => return Err(Failure::broken_off(&error)),
                        Poll::Pending => return Ok(Poll::Pending),
                    }
                }
                Answering::Done(ended) => return Ok(Poll::Ready(*ended)),
            }
        }
    }

    /// Takes the head of this length, and decides what comes behind it.
    fn take_head(&mut self, length: usize) -> Result<(), Failure> {
        let Answering::Head { unsent, interim, .. } = &mut self.answering else { return Ok(()) };
        let (mut unsent, interim) = (std::mem::take(unsent), *interim);
        let head =
            ResponseHead::parse(&self.connection.stream.unused()[..length]).map_err(AnswerError::from)?;
        let framing = framing::of_response(&head, self.asked.is_head).map_err(AnswerError::from)?;
        self.is_workspace_ready = head.status != 503;
        self.answering = match head.status {
            101 => {
                let wanted = self.asked.protocols.as_deref();
                let agreed = wanted.and_then(|wanted| headers::agreed_protocol(&head, wanted));
                let protocol = Some(agreed.ok_or(AnswerError::UnaskedUpgrade)?);
                if self.uploading != Uploading::Done {
                    return Err(AnswerError::UnaskedUpgrade.into());
                }
                let form = ResponseForm { protocol, ..self.form(Framing::None, false) };
                headers::write_response(&head, &form, &mut unsent.bytes).map_err(AnswerError::from)?;
                Answering::Body {
                    relay: Relay::new(unsent, Framing::None, Coding::Plain),
                    ended: Ended::Upgraded,
                }
            }
            100..200 if interim == MAX_INTERIM => return Err(AnswerError::Interim.into()),
            status @ 100..200 => {
                // An nginx takes an interim response that it did not ask for as the answer, and
                // the answer as that to somebody else's request. So only what was asked for
                // passes, and nothing that the workspace says in it.
                if status == 100 && self.asked.expects_continue && !self.has_continued {
                    self.has_continued = true;
                    unsent.bytes.extend_from_slice(b"HTTP/1.1 100 Continue\r\n\r\n");
                }
                Answering::Head { end: HeadEnd::default(), unsent, interim: interim + 1 }
            }
            503 if !is_page(&head) && self.is_navigation() => return Err(Failure::NotReady),
            _ => {
                // A gateway that has sent a whole request and got a whole answer sends the next
                // one, and nobody would read it while the request still goes its way.
                let is_last = self.asked.is_last
                    || self.forwarder.closes_connections(self.stop)
                    || self.uploading != Uploading::Done;
                let is_starting = head.status == 503 && !is_page(&head);
                let retry_after = Refusal::WorkspaceStarting.retry_after().filter(|_| is_starting);
                let form = ResponseForm { retry_after, ..self.form(framing, is_last) };
                headers::write_response(&head, &form, &mut unsent.bytes).map_err(AnswerError::from)?;
                let ended = Ended::Answered { keep: self.keep(&head, framing), is_last };
                Answering::Body { relay: Relay::new(unsent, framing, self.coding(framing)), ended }
            }
        };
        self.connection.stream.use_up(length);
        self.head_since = None;
        if let Answering::Body { relay, ended: Ended::Answered { .. } } = &mut self.answering {
            // A short answer goes out with its head.
            let taken = relay.take_early(&mut self.connection.stream);
            taken.map_err(|error| Failure::broken_off(&error))?;
        }
        self.connection.stream.forget_used();
        Ok(())
    }

    /// Whether a person waits for the answer.
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

    /// For how long the connection may be kept once the answer is through.
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
        let answer_waits_for = match &mut self.answering {
            Answering::Head { unsent, .. } if unsent.is_waiting() => WaitsFor::Writing,
            Answering::Head { .. } => WaitsFor::Reading,
            Answering::Body { relay, .. } => {
                has_moved |= relay.take_moved();
                relay.waits_for()
            }
            Answering::Done(_) => WaitsFor::Reading,
        };
        if has_moved {
            self.last_move = Instant::now();
        }
        let upload_waits = self.uploading == Uploading::Going && self.upload.waits_for() == WaitsFor::Writing;
        let wait = match upload_waits || answer_waits_for == WaitsFor::Writing {
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
        Poll::Ready(match self.answering {
            Answering::Head { .. } if head_end == Some(end) => AnswerError::Late.into(),
            Answering::Head { .. } if self.uploading == Uploading::Going && !upload_waits => {
                Failure::LateBody(wait)
            }
            Answering::Head { .. } => Failure::Silent(wait),
            _ if answer_waits_for == WaitsFor::Writing => {
                Failure::BrokenOff(format!("gateway: it took nothing for {wait:?}"))
            }
            _ => Failure::BrokenOff(format!("workspace: nothing came for {wait:?}")),
        })
    }
}
