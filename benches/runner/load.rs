//! The load: connections that call one after another, and what that took.

use std::error::Error;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::task::JoinSet;

use crate::calls::{Calls, extra_info, is_rewrite, prepare_conf, token};
use crate::server::{Server, Subject};

/// A server with the frames to call it with.
pub(crate) struct Target {
    server: Arc<Server>,
    frames: Arc<Vec<Vec<u8>>>,
}

impl Target {
    /// Prepares the plugin, and makes each call once.
    pub(crate) async fn new(
        server: Arc<Server>,
        plugin: Option<(&str, &str)>,
        calls: &Calls,
    ) -> Result<Self, Box<dyn Error>> {
        let mut peer = Peer::connect(&server.socket).await?;
        let frames = calls.frames(peer.prepare(plugin).await?);
        // A measurement of refusals would be worth nothing.
        for frame in &frames {
            if plugin.is_some() && !is_rewrite(peer.call(frame).await?) {
                return Err(format!("{}: a call was refused", server.subject).into());
            }
        }
        Ok(Self { server, frames: Arc::new(frames) })
    }

    /// The same with the first of the calls only.
    pub(crate) fn first(&self, calls: usize) -> Self {
        Self { server: Arc::clone(&self.server), frames: Arc::new(self.frames[..calls].to_vec()) }
    }

    pub(crate) fn server(&self) -> &Server {
        &self.server
    }

    pub(crate) fn subject(&self) -> Subject {
        self.server.subject
    }

    /// Calls for this long from this many connections in parallel.
    pub(crate) async fn measure(
        &self,
        connections: usize,
        time: Duration,
    ) -> Result<Measured, Box<dyn Error>> {
        let mut peers = Vec::new();
        for _ in 0..connections {
            peers.push(Peer::connect(&self.server.socket).await?);
        }
        let (peers, _) = self.call_until(peers, Instant::now() + time / 5).await?;
        let (start, cpu) = (Instant::now(), self.server.cpu()?);
        let (_, mut latencies) = self.call_until(peers, start + time).await?;
        let (took, cpu) = (start.elapsed(), self.server.cpu()? - cpu);
        latencies.sort_unstable();
        let calls = latencies.len();
        let percentile =
            |percent: usize| micros(Duration::from_nanos(latencies[(calls - 1) * percent / 100]));
        Ok(Measured {
            calls_a_second: calls as f64 / took.as_secs_f64(),
            p50: percentile(50),
            p99: percentile(99),
            cpu: micros(cpu) / calls as f64,
        })
    }

    /// The server's CPU time for each of these calls, made once from so many
    /// connections, in microseconds.
    pub(crate) async fn cpu_of_each_once(
        server: &Server,
        plugin: (&str, &str),
        calls: &Calls,
        connections: usize,
    ) -> Result<f64, Box<dyn Error>> {
        let mut first = Peer::connect(&server.socket).await?;
        let frames = Arc::new(calls.frames(first.prepare(Some(plugin)).await?));
        let mut peers = vec![first];
        while peers.len() < connections {
            peers.push(Peer::connect(&server.socket).await?);
        }
        let (cpu, mut tasks) = (server.cpu()?, JoinSet::new());
        for (index, mut peer) in peers.into_iter().enumerate() {
            let frames = Arc::clone(&frames);
            tasks.spawn(async move {
                for frame in frames.iter().skip(index).step_by(connections) {
                    if !is_rewrite(peer.call(frame).await?) {
                        return Err(io::Error::other("a call was refused"));
                    }
                }
                Ok(())
            });
        }
        while let Some(ended) = tasks.join_next().await {
            ended??;
        }
        Ok(micros(server.cpu()? - cpu) / frames.len() as f64)
    }

    async fn call_until(
        &self,
        peers: Vec<Peer>,
        end: Instant,
    ) -> Result<(Vec<Peer>, Vec<u64>), Box<dyn Error>> {
        let mut tasks = JoinSet::new();
        let between = self.frames.len() / peers.len();
        for (index, mut peer) in peers.into_iter().enumerate() {
            let frames = Arc::clone(&self.frames);
            tasks.spawn(async move {
                let mut latencies = Vec::new();
                for frame in frames.iter().cycle().skip(index * between) {
                    let start = Instant::now();
                    if start >= end {
                        break;
                    }
                    peer.call(frame).await?;
                    latencies.push(u64::try_from(start.elapsed().as_nanos()).unwrap_or(u64::MAX));
                }
                io::Result::Ok((peer, latencies))
            });
        }
        let (mut peers, mut latencies) = (Vec::new(), Vec::new());
        while let Some(ended) = tasks.join_next().await {
            let (peer, mut more) = ended??;
            peers.push(peer);
            latencies.append(&mut more);
        }
        Ok((peers, latencies))
    }
}

/// One connection to a server.
struct Peer {
    stream: UnixStream,
    buffer: Vec<u8>,
    extra_info: Vec<u8>,
}

impl Peer {
    async fn connect(socket: &Path) -> io::Result<Self> {
        Ok(Self { stream: UnixStream::connect(socket).await?, buffer: Vec::new(), extra_info: extra_info() })
    }

    /// The conf token of a route with this plugin.
    async fn prepare(&mut self, plugin: Option<(&str, &str)>) -> Result<u32, Box<dyn Error>> {
        let Some(plugin) = plugin else { return Ok(1) };
        Ok(token(self.call(&prepare_conf(plugin)).await?).ok_or("the conf was refused")?)
    }

    /// Sends a call, answers questions, and returns the answer's payload.
    async fn call(&mut self, frame: &[u8]) -> io::Result<&[u8]> {
        self.stream.write_all(frame).await?;
        loop {
            self.buffer.clear();
            while !is_whole(&self.buffer) {
                if self.stream.read_buf(&mut self.buffer).await? == 0 {
                    return Err(io::ErrorKind::UnexpectedEof.into());
                }
            }
            if self.buffer.first() != Some(&3) {
                return Ok(&self.buffer[4..]);
            }
            self.stream.write_all(&self.extra_info).await?;
        }
    }
}

fn is_whole(buffer: &[u8]) -> bool {
    let length = |[_, high, middle, low]: [u8; 4]| {
        usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low)
    };
    buffer.first_chunk().is_some_and(|header| buffer.len() >= 4 + length(*header))
}

/// What one measurement, or the median of several, says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Measured {
    calls_a_second: f64,
    /// Microseconds, as the next two.
    p50: f64,
    pub(crate) p99: f64,
    /// Of the server, a call.
    pub(crate) cpu: f64,
}

impl Measured {
    /// The median of each number on its own.
    pub(crate) fn median(rounds: &[Self]) -> Self {
        let median = |number: fn(&Self) -> f64| median(rounds.iter().map(number).collect());
        Self {
            calls_a_second: median(|round| round.calls_a_second),
            p50: median(|round| round.p50),
            p99: median(|round| round.p99),
            cpu: median(|round| round.cpu),
        }
    }
}

/// What a server reaches of the reference: the median of the ratios of each
/// round, since the machine's pace changes from round to round.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ratios {
    pub(crate) calls: f64,
    pub(crate) cpu: f64,
    p99: f64,
}

impl Ratios {
    pub(crate) fn median(rounds: &[Measured], reference: &[Measured]) -> Self {
        let median = |number: fn(&Measured) -> f64| {
            median(rounds.iter().zip(reference).map(|(one, other)| number(one) / number(other)).collect())
        };
        Self {
            calls: median(|round| round.calls_a_second),
            cpu: median(|round| round.cpu),
            p99: median(|round| round.p99),
        }
    }
}

impl fmt::Display for Ratios {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls, cpu, p99 } = self;
        write!(formatter, "calls {calls:.2}, CPU {cpu:.2}, p99 {p99:.2}")
    }
}

pub(crate) fn median(mut numbers: Vec<f64>) -> f64 {
    numbers.sort_unstable_by(f64::total_cmp);
    numbers[numbers.len() / 2]
}

impl fmt::Display for Measured {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { calls_a_second, p50, p99, cpu } = self;
        write!(formatter, "{calls_a_second:>9.0} {p50:>9.1} {p99:>9.1} {cpu:>10.2}")
    }
}

pub(crate) fn micros(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e6
}
