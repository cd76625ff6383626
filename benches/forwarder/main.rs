//! What does the forwarder cost, next to what else could stand in its place?
//!
//! `cargo bench --bench forwarder` sends, in one run and to the same backend, the
//! same requests directly, through Debian's nginx (one worker, keep-alive of 320),
//! through Debian's HAProxy (one thread), and through us with one worker thread and
//! with two: answers of 40 bytes and of 64 KiB, a WebSocket's messages there and back,
//! bytes in bulk through a WebSocket, and the memory of tunnels that are idle. Each round
//! measures all of them in turn, and ratios are the medians of each round's. Without
//! nginx or HAProxy it says so. The aim is printed with it, and whether this run
//! reached it; two runs differ by some hundredths.
//!
//! On a machine of two cores the load, the way and the backend share them, so
//! requests a second say how much all three take; CPU a request is the way's own,
//! from the kernel's account of its threads.

// What production leaves to one place, tests and tools may do.
#![allow(clippy::disallowed_methods)]
// To print is what it is for, and what can't be made here can't be measured.
#![allow(clippy::print_stdout, clippy::unwrap_used)]

mod backend;
mod proxies;

use std::error::Error;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use proxies::Proxy;

/// How many connections ask at a time.
const CONNECTIONS: usize = 32;

/// How many tunnels send messages at a time, and how long a message is: what an
/// editor sends for a keystroke.
const TUNNELS: usize = 32;
const MESSAGE: usize = 128;

/// How many frames go through a tunnel between two signs of life, and how many bytes one
/// carries and is.
const BULK_FRAMES: usize = 1024;
const BULK_PAYLOAD: usize = 64 << 10;
const BULK: usize = BULK_FRAMES * (2 + 8 + 4 + BULK_PAYLOAD);

/// A message as it goes to a server, and as it comes back (RFC 6455, section 5.2).
const TO_SERVER: usize = 2 + 2 + 4 + MESSAGE;
const TO_CLIENT: usize = 2 + 2 + MESSAGE;

/// How many tunnels are idle at a time, two connections each: what a limit of 20,000
/// open files has room for. And how many KiB of memory one may take.
const IDLE_TUNNELS: usize = 9_000;
const AIM_TUNNEL: f64 = 12.0;

/// How often everything is measured, and for how long.
const ROUNDS: usize = 7;
const ROUND: Duration = Duration::from_millis(700);

/// What was measured of one way: how many a second, and CPU for each, in seconds.
#[derive(Clone, Copy)]
struct Measured {
    a_second: f64,
    cpu: f64,
}

/// What is measured.
#[derive(Clone, Copy)]
enum Work {
    Answers(&'static str),
    Messages,
    Bulk,
}

fn main() -> Result<(), Box<dyn Error>> {
    if std::env::args().nth(1).as_deref() == Some("backend") {
        return Ok(backend::serve()?);
    }
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(measure_all())
}

async fn measure_all() -> Result<(), Box<dyn Error>> {
    let folder = tempfile::tempdir()?;
    let (address, _backend) = proxies::backend()?;
    let mut proxies = vec![Proxy::direct(address)];
    match Proxy::nginx(folder.path(), address).await? {
        Some(proxy) => proxies.push(proxy),
        None => println!("left out: there is no nginx"),
    }
    match Proxy::haproxy(folder.path(), address).await? {
        Some(proxy) => proxies.push(proxy),
        None => println!("left out: there is no HAProxy"),
    }
    proxies.push(Proxy::ours("ours, 1 thread", 1, folder.path(), address).await?);
    proxies.push(Proxy::ours("ours, 2 threads", 2, folder.path(), address).await?);
    for (work, title, unit) in [
        (Work::Answers("/40"), "answers of 40 bytes", "µs"),
        (Work::Answers("/64k"), "answers of 64 KiB", "µs"),
        (Work::Messages, "messages of 128 bytes there and back, in 32 WebSockets", "µs"),
        (Work::Bulk, "MiB through a WebSocket, in frames of 64 KiB", "µs"),
    ] {
        println!("{title}");
        let mut rounds = Vec::new();
        for _ in 0..ROUNDS {
            let mut round = Vec::new();
            for proxy in &proxies {
                round.push(measure(proxy, work).await?);
            }
            rounds.push(round);
        }
        print(&proxies, &rounds, unit);
        print_verdicts(&proxies, &rounds, work);
    }
    idle_tunnels(proxies.last().unwrap()).await
}

/// What tunnels cost in which nothing moves, after a message each.
async fn idle_tunnels(proxy: &Proxy) -> Result<(), Box<dyn Error>> {
    let before = proxy.memory()?;
    let mut tunnels = Vec::new();
    while tunnels.len() < IDLE_TUNNELS {
        let mut peer = Peer::open(proxy, Work::Messages).await?;
        peer.once().await?;
        // What is read has its place in the load, not in the way.
        peer.buffer = Vec::new();
        tunnels.push(peer);
    }
    let each = (proxy.memory()? - before) as f64 / tunnels.len() as f64 / 1024.0;
    let verdict = if each <= AIM_TUNNEL { "reached" } else { "MISSED" };
    println!("{IDLE_TUNNELS} idle tunnels: {each:.1} KiB each (aim: at most {AIM_TUNNEL}, {verdict})");
    Ok(())
}

fn print(proxies: &[Proxy], rounds: &[Vec<Measured>], unit: &str) {
    let reference = |name| proxies.iter().position(|proxy| proxy.name == name);
    let (nginx, haproxy) = (reference("nginx"), reference("HAProxy"));
    println!(
        "  {:<16} {:>10} {:>9}   of nginx's, its CPU   of HAProxy's, its CPU",
        "", "a second", "CPU each"
    );
    for (at, proxy) in proxies.iter().enumerate() {
        let a_second = median(rounds.iter().map(|round| round[at].a_second));
        let cpu = median(rounds.iter().map(|round| round[at].cpu)) * 1e6;
        let ratio = |to: Option<usize>| match to {
            Some(to) if proxy.name != "direct" => {
                let many = median(rounds.iter().map(|round| round[at].a_second / round[to].a_second));
                let cpu = median(rounds.iter().map(|round| round[at].cpu / round[to].cpu));
                format!("{many:.2}, {cpu:.2}")
            }
            _ => "-".to_owned(),
        };
        println!(
            "  {:<16} {a_second:>10.0} {cpu:>6.2} {unit}   {:>19}   {:>21}",
            proxy.name,
            ratio(nginx),
            ratio(haproxy)
        );
    }
}

/// Whether we take as many requests a second as nginx at no more CPU, and as many bytes
/// in a tunnel as HAProxy.
fn print_verdicts(proxies: &[Proxy], rounds: &[Vec<Measured>], work: Work) {
    let (reference, counts_cpu) = match work {
        Work::Answers(_) => ("nginx", true),
        Work::Bulk => ("HAProxy", false),
        Work::Messages => return,
    };
    let Some(to) = proxies.iter().position(|proxy| proxy.name == reference) else { return };
    let is_ours = |proxy: &(usize, &Proxy)| proxy.1.name.starts_with("ours");
    for (at, proxy) in proxies.iter().enumerate().filter(is_ours) {
        let many = median(rounds.iter().map(|round| round[at].a_second / round[to].a_second));
        let cpu = median(rounds.iter().map(|round| round[at].cpu / round[to].cpu));
        let verdict = if many >= 1.0 && (!counts_cpu || cpu <= 1.0) { "reached" } else { "MISSED" };
        let aim = if counts_cpu { "at least 1 of its requests, at most 1 of its CPU" } else { "at least 1" };
        println!("  {}: {many:.2}, {cpu:.2} of {reference}'s (aim: {aim}, {verdict})", proxy.name);
    }
}

/// A masked frame of binary data, with a mask that changes nothing.
fn frame_to_server(payload: usize) -> Vec<u8> {
    let mut frame = vec![0x82];
    match u16::try_from(payload) {
        Ok(short) => {
            frame.push(0x80 | 126);
            frame.extend(short.to_be_bytes());
        }
        Err(_) => {
            frame.push(0x80 | 127);
            frame.extend((payload as u64).to_be_bytes());
        }
    }
    frame.extend([0; 4]);
    frame.resize(frame.len() + payload, b'x');
    frame
}

fn median(values: impl Iterator<Item = f64>) -> f64 {
    let mut values: Vec<_> = values.collect();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

async fn measure(proxy: &Proxy, work: Work) -> Result<Measured, Box<dyn Error>> {
    let count = match work {
        Work::Bulk => 1,
        Work::Answers(_) => CONNECTIONS,
        Work::Messages => TUNNELS,
    };
    let mut peers = Vec::new();
    for _ in 0..count {
        peers.push(Peer::open(proxy, work).await?);
    }
    let (peers, _) = work_until(peers, Instant::now() + ROUND / 4).await?;
    let (start, cpu) = (Instant::now(), proxy.cpu()?);
    let (_, done) = work_until(peers, start + ROUND).await?;
    let (took, cpu) = (start.elapsed(), proxy.cpu()? - cpu);
    Ok(Measured { a_second: done / took.as_secs_f64(), cpu: cpu.as_secs_f64() / done })
}

async fn work_until(peers: Vec<Peer>, end: Instant) -> Result<(Vec<Peer>, f64), Box<dyn Error>> {
    let mut tasks = JoinSet::new();
    for mut peer in peers {
        tasks.spawn(async move {
            let mut done = 0.0;
            while Instant::now() < end {
                done += peer.once().await?;
            }
            Ok::<_, io::Error>((peer, done))
        });
    }
    let (mut peers, mut all) = (Vec::new(), 0.0);
    while let Some(ended) = tasks.join_next().await {
        let (peer, done) = ended??;
        peers.push(peer);
        all += done;
    }
    Ok((peers, all))
}

/// One connection of the load's.
struct Peer {
    stream: TcpStream,
    work: Work,
    /// What is sent each time.
    bytes: Arc<[u8]>,
    /// How many bytes come back each time.
    expected: usize,
    buffer: Vec<u8>,
}

impl Peer {
    async fn open(proxy: &Proxy, work: Work) -> Result<Self, Box<dyn Error>> {
        let stream = TcpStream::connect(proxy.address).await?;
        stream.set_nodelay(true)?;
        // What a browser sends to an editor.
        let request = |target: &str, more: &str| {
            format!(
                "GET {target} HTTP/1.1\r\nHost: coders.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n\
                 Accept: */*\r\nAccept-Language: en-US,en;q=0.9\r\nAccept-Encoding: gzip, br\r\nReferer: https://coders.example.com/\r\n\
                 Cookie: vscode-tkn={}\r\n{more}{}\r\n",
                "x".repeat(400),
                proxy.lines
            )
        };
        let mut peer = Self { stream, work, bytes: Arc::from([]), expected: 0, buffer: vec![0; 256 * 1024] };
        match work {
            Work::Answers(target) => {
                peer.bytes = request(target, "").into_bytes().into();
                let (_, length) = backend::ANSWERS.into_iter().find(|(known, _)| *known == target).unwrap();
                peer.stream.write_all(&peer.bytes).await?;
                let head = peer.head("HTTP/1.1 200 ").await?;
                peer.expected = length;
                peer.take().await?;
                peer.expected = head + length;
            }
            Work::Messages | Work::Bulk => {
                let target = if matches!(work, Work::Bulk) { "/sink" } else { "/echo" };
                // The key of RFC 6455, section 1.3.
                let upgrade = "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n\
                               Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n";
                peer.stream.write_all(request(target, upgrade).as_bytes()).await?;
                peer.head("HTTP/1.1 101 ").await?;
                (peer.bytes, peer.expected) = match work {
                    Work::Bulk => (frame_to_server(BULK_PAYLOAD).repeat(BULK_FRAMES).into(), 3),
                    _ => (frame_to_server(MESSAGE).into(), TO_CLIENT),
                };
                assert_eq!(peer.bytes.len(), if matches!(work, Work::Bulk) { BULK } else { TO_SERVER });
            }
        }
        Ok(peer)
    }

    /// Reads a head and nothing after it, and returns its length.
    async fn head(&mut self, start: &str) -> io::Result<usize> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(self.stream.read_u8().await?);
        }
        match head.starts_with(start.as_bytes()) {
            true => Ok(head.len()),
            false => Err(io::Error::other(String::from_utf8_lossy(&head).into_owned())),
        }
    }

    /// Does its work once, and says how much that was.
    async fn once(&mut self) -> io::Result<f64> {
        self.stream.write_all(&self.bytes).await?;
        self.take().await?;
        Ok(if matches!(self.work, Work::Bulk) { ((BULK_FRAMES * BULK_PAYLOAD) >> 20) as f64 } else { 1.0 })
    }

    async fn take(&mut self) -> io::Result<()> {
        let mut left = self.expected;
        while left > 0 {
            let most = left.min(self.buffer.len());
            match self.stream.read(&mut self.buffer[..most]).await? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                length => left -= length,
            }
        }
        Ok(())
    }
}
