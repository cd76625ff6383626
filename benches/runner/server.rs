//! The servers that are measured, each a process of its own.

use std::error::Error;
use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::str::FromStr;
use std::time::Duration;

use apisix_plugin_runner::{Action, HeaderName, Plugin, PluginError, Request, Stop};
use kube_coders::Program;
use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};

use crate::calls::{GREET, USER_UPSTREAM, fixed_answer};

/// What is measured.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Reference,
    Greet,
    UserUpstream,
}

impl Subject {
    pub(crate) const ALL: [Self; 3] = [Self::Reference, Self::Greet, Self::UserUpstream];

    /// The plugin that its route has; the reference is not asked for one.
    pub(crate) fn plugin(self) -> Option<(&'static str, &'static str)> {
        match self {
            Self::Reference => None,
            Self::Greet => Some(GREET),
            Self::UserUpstream => Some(USER_UPSTREAM),
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Reference => "a reference",
            Self::Greet => "b greet",
            Self::UserUpstream => "c user-upstream",
        })
    }
}

impl FromStr for Subject {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        Self::ALL
            .into_iter()
            .find(|subject| subject.to_string() == text)
            .ok_or_else(|| format!("no subject {text:?}"))
    }
}

/// A running server; it ends when it is dropped.
pub(crate) struct Server {
    pub(crate) subject: Subject,
    pub(crate) socket: PathBuf,
    child: Child,
}

impl Server {
    pub(crate) async fn start(subject: Subject, folder: &Path, names: SocketAddr) -> io::Result<Self> {
        let socket = folder.join(format!("{subject}.sock"));
        let child = std::process::Command::new(std::env::current_exe()?)
            .args(["serve", &subject.to_string()])
            .arg(&socket)
            .arg(names.to_string())
            .stdin(Stdio::null())
            .spawn()?;
        while UnixStream::connect(&socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        Ok(Self { subject, socket, child })
    }

    /// The most memory that it has held, in bytes (proc(5), `VmHWM`).
    pub(crate) fn memory(&self) -> io::Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kib.ok_or(io::ErrorKind::InvalidData)? * 1024)
    }

    /// The CPU time of all its threads.
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        cpu_of(self.child.id())
    }
}

/// The CPU time of all threads of a process (proc(5), `schedstat`).
pub(crate) fn cpu_of(process: u32) -> io::Result<Duration> {
    let mut nanoseconds = 0;
    for thread in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let account = std::fs::read_to_string(thread?.path().join("schedstat"))?;
        let on_cpu = account.split_ascii_whitespace().next().and_then(|field| field.parse::<u64>().ok());
        nanoseconds += on_cpu.ok_or(io::ErrorKind::InvalidData)?;
    }
    Ok(Duration::from_nanos(nanoseconds))
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The example's plugin.
struct Greet;

#[derive(Deserialize)]
struct GreetConfig {
    #[serde(deserialize_with = "apisix_plugin_runner::config::header_name")]
    header: HeaderName,
}

impl Plugin for Greet {
    const NAME: &'static str = "greet";
    type Config = GreetConfig;

    async fn on_request(
        &self,
        config: &GreetConfig,
        request: &mut Request<'_>,
    ) -> Result<Action, PluginError> {
        let Some(name) = request.header(&config.header) else {
            return Ok(Stop::new(apisix_plugin_runner::StatusCode::UNAUTHORIZED).into());
        };
        let route = request.var("route_id").await?.unwrap_or_default();
        request.set_header("x-greeting", [&b"hello "[..], name, b" from ", &route].concat())?;
        Ok(Action::Continue)
    }
}

/// Serves as the subject, until it is killed.
pub(crate) fn serve(subject: Subject, socket: &str, names: Option<&str>) -> Result<(), Box<dyn Error>> {
    // Both kinds of server have the runtime that the command makes.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    match subject {
        Subject::Reference => runtime.block_on(reference(socket)),
        _ => {
            let listen_address = format!("unix:{socket}");
            let args = [
                "--listen-address",
                &listen_address,
                "--forwarder-address",
                "127.0.0.1:0",
                "--allow-address",
                "127.0.0.0/8",
                "--dns-server",
                names.ok_or("serve: no name server")?,
            ];
            runtime.block_on(Program::new().plugin(Greet).serve(args, std::future::pending()))?;
            Ok(())
        }
    }
}

async fn reference(socket: &str) -> Result<(), Box<dyn Error>> {
    let listener = UnixListener::bind(socket)?;
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move { answer_without_looking(stream).await });
    }
}

async fn answer_without_looking(mut stream: UnixStream) -> io::Result<()> {
    let answer = fixed_answer();
    let mut buffer = Vec::with_capacity(64 * 1024);
    while stream.read_buf(&mut buffer).await? > 0 {
        while let Some(&[_, high, middle, low]) = buffer.first_chunk() {
            let length = 4 + (usize::from(high) << 16 | usize::from(middle) << 8 | usize::from(low));
            if buffer.len() < length {
                break;
            }
            buffer.drain(..length);
            stream.write_all(&answer).await?;
        }
    }
    Ok(())
}
