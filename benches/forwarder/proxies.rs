//! The proxy between the load and the workspace: none, nginx, HAProxy, or ours.

use std::error::Error;
use std::fmt::Write as _;
use std::fs;
use std::io::{self, BufRead as _, BufReader};
use std::net::{SocketAddr, TcpListener};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use apisix_plugin_runner::gateway::{ClientRequest, Gateway, Outcome, Route};
use tokio::net::{TcpStream, UnixStream};
use tokio::time::{sleep, timeout};

/// How long a program may take to listen.
const START: Duration = Duration::from_secs(10);

/// A process that ends with this.
pub(crate) struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A way to the workspace.
pub(crate) struct Proxy {
    pub(crate) name: &'static str,
    pub(crate) address: SocketAddr,
    /// The header lines that a request needs on this way.
    pub(crate) lines: String,
    process: Option<Process>,
}

impl Proxy {
    pub(crate) fn direct(backend: SocketAddr) -> Self {
        Self { name: "direct", address: backend, lines: String::new(), process: None }
    }

    /// Debian's nginx, its one worker without a master, which would leave it behind, as
    /// it stands before an upstream by the book.
    pub(crate) async fn nginx(folder: &Path, backend: SocketAddr) -> Result<Option<Self>, Box<dyn Error>> {
        let address = free_address()?;
        let place = folder.display();
        let conf = format!(
            "daemon off; master_process off; pid {place}/nginx.pid; error_log {place}/nginx.log warn;\n\
             events {{ worker_connections 4096; }}\n\
             http {{\n\
               access_log off; keepalive_requests 1000000000; client_body_temp_path {place}/body; \
               proxy_temp_path {place}/proxy; fastcgi_temp_path {place}/f; uwsgi_temp_path {place}/u; scgi_temp_path {place}/s;\n\
               map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}\n\
               upstream workspace {{ server {backend}; keepalive 320; keepalive_requests 1000000000; }}\n\
               server {{ listen {address};\n\
                 location / {{ proxy_pass http://workspace; proxy_http_version 1.1; proxy_set_header Host $host;\n\
                   proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; }}\n\
               }}\n\
             }}\n"
        );
        let file = folder.join("nginx.conf");
        fs::write(&file, conf)?;
        let mut command = Command::new("nginx");
        command.arg("-c").arg(&file).arg("-e").arg(folder.join("nginx.log"));
        Self::start("nginx", command, address).await
    }

    /// Debian's HAProxy, one thread.
    pub(crate) async fn haproxy(folder: &Path, backend: SocketAddr) -> Result<Option<Self>, Box<dyn Error>> {
        let address = free_address()?;
        let conf = format!(
            "global\n nbthread 1\n maxconn 4096\n\
             defaults\n mode http\n timeout connect 6s\n timeout client 300s\n timeout server 300s\n timeout tunnel 1h\n \
             http-reuse always\n\
             listen workspace\n bind {address}\n server one {backend} pool-max-conn 320\n"
        );
        let file = folder.join("haproxy.cfg");
        fs::write(&file, conf)?;
        let mut command = Command::new("haproxy");
        command.arg("-db").arg("-f").arg(&file);
        Self::start("HAProxy", command, address).await
    }

    /// The runner itself, with so many worker threads.
    pub(crate) async fn ours(
        name: &'static str,
        threads: usize,
        folder: &Path,
        backend: SocketAddr,
    ) -> Result<Self, Box<dyn Error>> {
        let (address, socket) = (free_address()?, folder.join(format!("runner-{threads}.sock")));
        let mut command = Command::new(env!("CARGO_BIN_EXE_kube-coders"));
        command.env("TOKIO_WORKER_THREADS", threads.to_string());
        command.arg("run").arg("--listen-address").arg(format!("unix:{}", socket.display()));
        command.args(["--forwarder-address", &address.to_string(), "--stamp-lifetime", "1h"]);
        command.args(["--max-forwarder-connections", "20000", "--max-subject-connections", "20000"]);
        let proxy = Self::start(name, command, address).await?.ok_or("the runner can't be started")?;
        // The forwarder listens before the runner does.
        let serves = async {
            while UnixStream::connect(&socket).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(START, serves).await.map_err(|_| format!("{name} does not serve"))?;
        let conf = format!(r#"{{"identity": {{"trust": "gateway"}}, "upstream": "http://{backend}"}}"#);
        let route = Route::new("r").plugin("user-upstream", &conf);
        // "{"sub":"alice"}"
        let request = ClientRequest::get("/").header("X-Userinfo", "eyJzdWIiOiJhbGljZSJ9");
        let Outcome::Forward(forwarded) = Gateway::connect(&socket).try_call(&route, &request).await? else {
            return Err("the runner refuses".into());
        };
        let mut lines = String::new();
        for name in ["x-kube-coders-stamp", "x-forwarded-user"] {
            let value = forwarded.header(name).ok_or("no stamp")?;
            write!(lines, "{name}: {}\r\n", str::from_utf8(value)?)?;
        }
        Ok(Self { lines, ..proxy })
    }

    /// Starts a program, if there is one, and waits until it listens.
    async fn start(
        name: &'static str,
        mut command: Command,
        address: SocketAddr,
    ) -> Result<Option<Self>, Box<dyn Error>> {
        let child = match command.stdout(Stdio::null()).stderr(Stdio::null()).spawn() {
            Ok(child) => child,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let process = Process(child);
        let listens = async {
            while TcpStream::connect(address).await.is_err() {
                sleep(Duration::from_millis(20)).await;
            }
        };
        timeout(START, listens).await.map_err(|_| format!("{name} does not listen"))?;
        Ok(Some(Self { name, address, lines: String::new(), process: Some(process) }))
    }

    /// The memory that the process holds, in bytes (proc(5), `VmRSS`).
    pub(crate) fn memory(&self) -> io::Result<u64> {
        let Some(Process(child)) = &self.process else { return Ok(0) };
        let status = fs::read_to_string(format!("/proc/{}/status", child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok());
        Ok(kib.ok_or(io::ErrorKind::InvalidData)? * 1024)
    }

    /// The CPU time of the process and its children (proc(5), `schedstat`).
    pub(crate) fn cpu(&self) -> io::Result<Duration> {
        let Some(Process(child)) = &self.process else { return Ok(Duration::ZERO) };
        let mut nanoseconds = 0;
        let mut processes = vec![child.id()];
        while let Some(process) = processes.pop() {
            for thread in fs::read_dir(format!("/proc/{process}/task"))? {
                let thread = thread?.path();
                let account = fs::read_to_string(thread.join("schedstat"))?;
                let on_cpu =
                    account.split_ascii_whitespace().next().and_then(|field| field.parse::<u64>().ok());
                nanoseconds += on_cpu.ok_or(io::ErrorKind::InvalidData)?;
                let children = fs::read_to_string(thread.join("children"))?;
                processes.extend(children.split_ascii_whitespace().filter_map(|id| id.parse::<u32>().ok()));
            }
        }
        Ok(Duration::from_nanos(nanoseconds))
    }
}

/// The workspace, a process of its own.
pub(crate) fn backend() -> Result<(SocketAddr, Process), Box<dyn Error>> {
    let mut child = Command::new(std::env::current_exe()?).arg("backend").stdout(Stdio::piped()).spawn()?;
    let output = child.stdout.take().ok_or("no output")?;
    let process = Process(child);
    let mut line = String::new();
    BufReader::new(output).read_line(&mut line)?;
    Ok((line.trim().parse()?, process))
}

/// An address without a listener.
fn free_address() -> io::Result<SocketAddr> {
    TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0)))?.local_addr()
}
