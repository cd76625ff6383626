//! What stands for a workspace: answers that cost it as little as possible.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// How many bytes each answer's body has, by the target that asks for it.
pub(crate) const ANSWERS: [(&str, usize); 2] = [("/40", 40), ("/64k", 64 * 1024)];

/// The answer to the handshake of RFC 6455, section 1.3.
const AGREED: &[u8] = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
    Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n\r\n";

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
                // A client that goes away has measured enough.
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
            stream.write_all(AGREED).await?;
            return echo(stream).await;
        }
        if buffer.starts_with(b"GET /sink ") {
            stream.write_all(AGREED).await?;
            return sink(stream).await;
        }
        let answer = answers.iter().find(|(start, _)| buffer.starts_with(start));
        let (_, answer) = answer.ok_or(io::ErrorKind::InvalidData)?;
        stream.write_all(answer).await?;
        buffer.clear();
    }
}

/// Answers each message with one of the same length.
async fn echo(mut stream: TcpStream) -> io::Result<()> {
    let mut message = vec![0x82, 126];
    message.extend((super::MESSAGE as u16).to_be_bytes());
    message.resize(super::TO_CLIENT, b'x');
    let (mut buffer, mut taken) = (vec![0; 64 * 1024], 0);
    loop {
        match stream.read(&mut buffer).await? {
            0 => return Ok(()),
            length => taken += length,
        }
        let messages = taken / super::TO_SERVER;
        taken %= super::TO_SERVER;
        if messages > 0 {
            stream.write_all(&message.repeat(messages)).await?;
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
            stream.write_all(&[0x82, 1, b'x']).await?;
        }
    }
}
