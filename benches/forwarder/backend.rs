//! What stands for a workspace: answers that cost it as little as possible.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How many bytes each answer's body has, by the target that asks for it.
pub(crate) const ANSWERS: [(&str, usize); 2] = [("/40", 40), ("/64k", 64 * 1024)];

/// Serves until it is killed, and prints where.
pub(crate) fn serve() -> io::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(SocketAddr::from(([127, 0, 0, 1], 0))).await?;
        println!("{}", listener.local_addr()?);
        let answers = Arc::new(ANSWERS.map(|(target, length)| {
            let head =
                format!("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: {length}\r\n\r\n");
            (format!("GET {target} ").into_bytes(), [head.into_bytes(), vec![b'x'; length]].concat())
        }));
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            let answers = Arc::clone(&answers);
            tokio::spawn(async move {
                // Whoever goes away has measured enough.
                let _ = connection(stream, answers.as_slice()).await;
            });
        }
    })
}

async fn connection(mut stream: TcpStream, answers: &[(Vec<u8>, Vec<u8>)]) -> io::Result<()> {
    let mut buffer = Vec::with_capacity(16 * 1024);
    loop {
        while !buffer.ends_with(b"\r\n\r\n") {
            if stream.read_buf(&mut buffer).await? == 0 {
                return Ok(());
            }
        }
        if buffer.starts_with(b"GET /echo ") {
            let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n";
            stream.write_all(head).await?;
            return echo(stream).await;
        }
        if buffer.starts_with(b"GET /sink ") {
            let head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo/1\r\n\r\n";
            stream.write_all(head).await?;
            return sink(stream).await;
        }
        let answer = answers.iter().find(|(start, _)| buffer.starts_with(start));
        let (_, answer) = answer.ok_or(io::ErrorKind::InvalidData)?;
        stream.write_all(answer).await?;
        buffer.clear();
    }
}

async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 64 * 1024];
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            length => stream.write_all(&buffer[..length]).await?,
        }
    }
}

/// Takes all, and says at the end of each 64 MiB that it has them.
async fn sink(mut stream: TcpStream) -> io::Result<()> {
    let mut buffer = vec![0; 256 * 1024];
    let mut taken = 0;
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            length => taken += length,
        }
        if taken >= super::BULK {
            taken -= super::BULK;
            stream.write_all(b"x").await?;
        }
    }
}
